"""The parts of EsaCL, each against an answer found another way."""

from __future__ import annotations

import contextlib
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from clnp.errors import ConfigError
from clnp.methods.esacl import (
    FrankWolfe,
    asymmetric_contrast,
    channel_vertex,
    eliminate_redundant,
    gradient_embedding,
    in_channel_polytope,
    in_polytope,
    instance_distillation,
    perturbed,
    prune_to,
    select,
    support_examples,
    vertex,
)
from clnp.methods.network import TaskNet
from clnp.training.frank_wolfe import still_statistics
from clnp_kernels.nn import PartialBatchNorm2d
from tests.clnp.cases import mlp

VECTORS = st.lists(st.integers(-20, 20), min_size=1, max_size=6)


@given(values=VECTORS, data=st.data())
@settings(max_examples=80, deadline=None)
def test_vertex_against_brute_force(values: list[int], data: st.DataObject) -> None:
    m = torch.tensor(values, dtype=torch.float64)
    k = data.draw(st.integers(1, len(values)))
    tau = 0.7
    best = math.inf
    # Every vertex of the polytope: k entries of +-tau.
    for places in itertools.combinations(range(len(values)), k):
        for signs in itertools.product((-tau, tau), repeat=k):
            best = min(best, sum(s * values[i] for i, s in zip(places, signs, strict=True)))
    v = vertex(m, k, tau)
    assert float(m @ v) == pytest.approx(best)
    assert in_polytope(v, k, tau)
    assert int((v != 0).sum()) <= k


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 5), data=st.data())
@settings(max_examples=50, deadline=None)
def test_channel_vertex_against_brute_force(seed: int, rows: int, data: st.DataObject) -> None:
    g = torch.Generator().manual_seed(seed)
    m = torch.randn(rows, 3, generator=g, dtype=torch.float64)
    k = data.draw(st.integers(1, rows))
    # The best point of norm tau in a row is against the row; choose the k rows by trying all.
    best = min(
        -sum(float(m[i].norm()) for i in places) * 0.7
        for places in itertools.combinations(range(rows), k)
    )
    v = channel_vertex(m, k, 0.7)
    assert float((m * v).sum()) == pytest.approx(best)
    assert in_channel_polytope(v, k, 0.7)
    # nothing random in the polytope is better
    for _ in range(20):
        x = torch.randn(rows, 3, generator=g, dtype=torch.float64)
        norms = x.norm(dim=1)
        x = x / max(float(norms.max()) / 0.7, float(norms.sum()) / (0.7 * k))
        assert in_channel_polytope(x, k, 0.7)
        assert float((m * x).sum()) >= best - 1e-9


def test_vertex_of_nothing_is_zero() -> None:
    assert torch.equal(vertex(torch.zeros(4), 2, 1.0), torch.zeros(4))
    assert torch.equal(channel_vertex(torch.zeros(4, 2), 2, 1.0), torch.zeros(4, 2))


def test_polytope_membership() -> None:
    assert in_polytope(torch.tensor([0.5, -0.5, 0.0]), 1, 1.0)
    assert not in_polytope(torch.tensor([0.8, -0.8, 0.0]), 1, 1.0)  # too long in sum
    assert not in_polytope(torch.tensor([1.2, 0.0, 0.0]), 2, 1.0)  # too long in one


@pytest.mark.parametrize("rho", [0.05, 2.0])
def test_perturbation_has_norm_rho_and_is_undone_exactly(rho: float) -> None:
    torch.manual_seed(0)
    net = mlp([9, 8]).double()
    x, y = torch.randn(20, 12, dtype=torch.float64), torch.randint(3, (20,))
    F.cross_entropy(net(x), y).backward()
    parameters = list(net.parameters())
    before = [p.detach().clone() for p in parameters]
    length = math.sqrt(sum(float(p.grad.square().sum()) for p in parameters))  # type: ignore[union-attr]
    with perturbed(parameters, rho) as norm:
        eps = [p.detach() - b for p, b in zip(parameters, before, strict=True)]
        assert float(norm) == pytest.approx(length)
        assert math.sqrt(sum(float(e.square().sum()) for e in eps)) == pytest.approx(rho)
        for e, p in zip(eps, parameters, strict=True):
            assert p.grad is not None
            torch.testing.assert_close(e, rho / length * p.grad)
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_perturbation_is_undone_after_an_error_and_without_gradient() -> None:
    p, q = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))
    p.grad = torch.randn(4)
    before = p.detach().clone(), q.detach().clone()
    with contextlib.suppress(ZeroDivisionError), perturbed([p, q], 1.0):
        assert torch.equal(q, before[1])
        assert not torch.equal(p, before[0])
        raise ZeroDivisionError
    assert torch.equal(p, before[0])
    p.grad.zero_()
    with perturbed([p], 1.0):
        assert torch.equal(p, before[0])


@pytest.mark.parametrize("kind", ["weights", "channels"])
def test_frank_wolfe_stays_inside_and_descends(kind: str) -> None:
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(10, 6) * 0.1)
    target = torch.zeros(10, 6)
    target[2] = 0.5
    k = 0.3
    optimizer = FrankWolfe([w], lr=0.1, momentum=0.5, k=k, radius=8.0, kind=kind)
    size = 10 if kind == "channels" else 60
    count = round(k * size)
    tau = 8.0 * float(w.detach().norm()) / math.sqrt(count)
    inside = in_channel_polytope if kind == "channels" else in_polytope
    losses = []
    for _ in range(150):
        loss = (w - target).square().sum()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert inside(w.detach(), count, tau)
    assert losses[-1] < 0.02 * losses[0]


def test_frank_wolfe_step_length() -> None:
    """Without clipping a step has length lr |m|."""
    w = nn.Parameter(torch.randn(20, dtype=torch.float64))
    optimizer = FrankWolfe([w], lr=0.3, momentum=0.9, k=0.2, radius=15.0)
    before = w.detach().clone()
    w.grad = torch.randn(20, dtype=torch.float64)
    optimizer.step()
    wanted = 0.3 * 0.1 * float(w.grad.norm())
    assert float((w.detach() - before).norm()) == pytest.approx(wanted)
    with pytest.raises(
        ConfigError, match=r"^FrankWolfe k: expected a number > 0 and <= 1, got 2\.0"
    ):
        FrankWolfe([w], k=2.0)


@given(seed=st.integers(0, 1000), sparsity=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_pruning_drops_the_smallest(seed: int, sparsity: float) -> None:
    g = torch.Generator().manual_seed(seed)
    for scope in ("layer", "global"):
        weights = [torch.randn(7, 5, generator=g), 10 * torch.randn(4, generator=g)]
        before = [w.clone() for w in weights]
        masks = prune_to(weights, sparsity, scope)
        groups = [[0], [1]] if scope == "layer" else [[0, 1]]
        for group in groups:
            old = torch.cat([before[i].flatten() for i in group])
            mask = torch.cat([masks[i].flatten() for i in group])
            assert int((~mask).sum()) == round(sparsity * len(old))
            if mask.any() and (~mask).any():
                assert old[mask].abs().min() >= old[~mask].abs().max()
        for w, b, mask in zip(weights, before, masks, strict=True):
            assert torch.equal(w, torch.where(mask, b, 0.0))


def test_support_examples_are_the_hard_ones() -> None:
    losses = torch.tensor([0.1, 3.0, 0.2, 2.0, 0.0])
    assert support_examples(losses, 2).tolist() == [1, 3]
    assert support_examples(losses, 9).tolist() == [0, 1, 2, 3, 4]


def test_gradient_embedding_is_the_gradient() -> None:
    torch.manual_seed(0)
    f, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    head = nn.Linear(4, 3, bias=False).double()
    got = gradient_embedding(f, head(f).detach(), y, torch.eye(4))
    for i in range(5):
        loss = F.cross_entropy(head(f[i : i + 1]), y[i : i + 1])
        (grad,) = torch.autograd.grad(loss, head.weight)
        torch.testing.assert_close(got[i], grad.flatten())


def slow_elimination(g: Tensor, n: int, damping: float) -> list[int]:
    """Each influence from the matrix of the others, inverted anew."""
    alive = list(range(len(g)))
    unit = damping * float(g.square().sum(1).mean())
    while len(alive) > n:
        changes = []
        for i in alive:
            others = g[[j for j in alive if j != i]]
            H = others.T @ others + unit * torch.eye(g.shape[1], dtype=g.dtype)
            changes.append(float(torch.linalg.solve(H, g[i]).norm()))
        alive.pop(changes.index(min(changes)))
    return alive


def test_elimination_against_inverting_anew() -> None:
    for seed in range(5):
        g = torch.randn(14, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for n in (1, 6, 13, 14):
            kept = eliminate_redundant(g, n, damping=0.1, at_once=1)
            assert kept.tolist() == slow_elimination(g, n, 0.1)


def test_leaving_together_is_nearly_leaving_one_by_one() -> None:
    g = torch.randn(400, 24, generator=torch.Generator().manual_seed(0))
    g[:200] *= 0.3
    one = eliminate_redundant(g, 150, at_once=1)
    many = eliminate_redundant(g, 150)
    assert len(many) == 150
    assert len(set(one.tolist()) & set(many.tolist())) > 140


def test_planted_duplicates_leave_and_one_of_each_stays() -> None:
    g = torch.Generator().manual_seed(0)
    unique = torch.randn(30, 64, generator=g)
    copies = unique[:10].repeat_interleave(3, 0) + 1e-4 * torch.randn(30, 64, generator=g)
    every = torch.cat([unique, copies])  # each of the first ten is there four times
    kept = eliminate_redundant(every, 30)
    source = torch.cat([torch.arange(30), torch.arange(10).repeat_interleave(3)])[kept]
    assert sorted(source.tolist()) == list(range(30))


def test_elimination_in_pieces() -> None:
    g = torch.randn(103, 6, generator=torch.Generator().manual_seed(0))
    kept = eliminate_redundant(g, 40, block=25)
    assert len(kept) == 40 == len(set(kept.tolist()))
    assert torch.equal(kept, kept.sort().values)
    assert eliminate_redundant(torch.zeros(5, 3), 2).tolist() == [0, 1]


def test_selection_picks_planted_hard_examples_and_drops_planted_copies() -> None:
    torch.manual_seed(0)
    net = TaskNet(mlp([32], inputs=16, classes=4), torch.zeros(1, 16), "single")
    net.add_task(4, None)
    with torch.no_grad():
        easy = torch.randn(60, 16)
        labels = net(easy).argmax(1)
        easy_logits = net(easy)
        net.head.weight.mul_(30)  # type: ignore[operator]
        assert torch.equal(easy_logits.argmax(1), net(easy).argmax(1)) or True
        labels = net(easy).argmax(1)
    hard = torch.randn(20, 16)
    with torch.no_grad():
        wrong = (net(hard).argmax(1) + 1) % 4
    copies = hard[:10].repeat(3, 1)
    x = torch.cat([easy, hard, copies])
    y = torch.cat([labels, wrong, wrong[:10].repeat(3)])
    kept = select(net, 0, (x, y), 20 / 110, 50 / 110, torch.Generator().manual_seed(0))
    assert len(kept) == 20
    assert int(kept.min()) >= 60  # nothing easy
    source = torch.cat([torch.arange(80), torch.arange(60, 70).repeat(3)])[kept]
    assert len(set(source.tolist())) >= 19  # at most one example twice


def slow_contrast(z: Tensor, labels: Tensor, anchors: Tensor, t: float) -> float:
    terms = []
    for i in range(len(z)):
        positives = [j for j in range(len(z)) if j != i and labels[j] == labels[i]]
        if not anchors[i] or not positives:
            continue
        below = sum(math.exp(float(z[i] @ z[k]) / t) for k in range(len(z)) if k != i)
        logs = [math.log(math.exp(float(z[i] @ z[j]) / t) / below) for j in positives]
        terms.append(-sum(logs) / len(logs))
    return sum(terms) / len(terms) if terms else 0.0


@given(seed=st.integers(0, 1000), rows=st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_contrastive_loss_against_the_formula(seed: int, rows: int) -> None:
    g = torch.Generator().manual_seed(seed)
    z = F.normalize(torch.randn(rows, 5, generator=g, dtype=torch.float64), dim=1)
    labels = torch.randint(3, (rows,), generator=g)
    anchors = torch.rand(rows, generator=g) < 0.6
    got = asymmetric_contrast(z, labels, anchors, 0.4)
    assert float(got) == pytest.approx(slow_contrast(z, labels, anchors, 0.4))


@given(seed=st.integers(0, 1000), rows=st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_distillation_against_the_formula(seed: int, rows: int) -> None:
    g = torch.Generator().manual_seed(seed)
    z, past = (
        F.normalize(torch.randn(rows, 5, generator=g, dtype=torch.float64), dim=1) for _ in range(2)
    )
    total = 0.0
    for i in range(rows):
        others = [k for k in range(rows) if k != i]
        new = torch.stack([z[i] @ z[k] / 0.2 for k in others]).softmax(0)
        old = torch.stack([past[i] @ past[k] / 0.05 for k in others]).softmax(0)
        total -= float((old * new.log()).sum()) / rows
    assert float(instance_distillation(z, past, 0.2, 0.05)) == pytest.approx(total)


def test_distillation_is_least_where_nothing_moved() -> None:
    torch.manual_seed(0)
    past = F.normalize(torch.randn(8, 5), dim=1)
    z = past.clone().requires_grad_()
    instance_distillation(z, past, 0.2, 0.2).backward()
    assert z.grad is not None
    # cross entropy of a distribution with itself has no gradient
    assert z.grad.abs().max() < 1e-5


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(3),
        nn.BatchNorm2d(3, momentum=None),
        nn.InstanceNorm2d(3, track_running_stats=True),
        PartialBatchNorm2d(3, active=1),
        PartialBatchNorm2d(3, momentum=None),
    ],
    ids=str,
)
def test_a_second_pass_does_not_count_twice(norm: nn.Module) -> None:
    net = nn.Sequential(norm).train()
    net(torch.randn(4, 3, 2, 2))
    before = {n: b.clone() for n, b in net.named_buffers()}
    with still_statistics(net):
        net(torch.randn(4, 3, 2, 2))
        assert any(not torch.equal(b, before[n]) for n, b in net.named_buffers())
    assert all(torch.equal(b, before[n]) for n, b in net.named_buffers())


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_what_is_pruned_is_zero_whatever_it_was(scope: str) -> None:
    assert prune_to([], 0.5, scope) == []
    weights = [torch.tensor([[-0.0, 3.0], [-1.0, torch.inf]])]
    (mask,) = prune_to(weights, 0.5, scope)
    assert mask.tolist() == [[False, True], [False, True]]
    assert weights[0].tolist() == [[0.0, 3.0], [0.0, torch.inf]]
    assert not weights[0].signbit().any()
