"""EWC, SI and superposition against answers known in closed form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from clnp import methods
from clnp.data import Task
from clnp.errors import ConfigError
from clnp.methods.anchor import Anchor
from clnp.methods.fisher import diagonal_fisher
from clnp.methods.method import Batch
from clnp.methods.si import SI
from clnp.methods.superposition import Keyed, binary_key, complex_key
from tests.clnp.cases import blobs, mlp


def softmax_regression(inputs: int = 5, classes: int = 4) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(inputs, classes).double()


def points(rows: int = 30, inputs: int = 5, classes: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(rows, inputs, generator=g, dtype=torch.float64)
    return x, torch.randint(classes, (rows,), generator=g)


def fisher_of(net: nn.Module, split: tuple[Tensor, Tensor], labels: str) -> dict[str, Tensor]:
    return diagonal_fisher(net, split, dict(net.named_parameters()), labels=labels)


def test_fisher_of_softmax_regression() -> None:
    """F of W_ci is the mean of x_i^2 p_c (1 - p_c); of b_c, of p_c (1 - p_c)."""
    net = nn.Sequential(softmax_regression())
    x, y = points()
    p = net(x).softmax(1).detach()
    variance = p * (1 - p)
    got = fisher_of(net, (x, y), "exact")
    torch.testing.assert_close(got["0.weight"], variance.T @ x.square() / len(x))
    torch.testing.assert_close(got["0.bias"], variance.mean(0))


def test_empirical_fisher_of_softmax_regression() -> None:
    net = nn.Sequential(softmax_regression())
    x, y = points()
    error = net(x).softmax(1).detach() - F.one_hot(y, 4)
    got = fisher_of(net, (x, y), "empirical")
    torch.testing.assert_close(got["0.weight"], error.square().T @ x.square() / len(x))


class Twice(nn.Module):
    """A network that no shortcut fits: a layer is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(torch.tanh(self.a(x)))))


def slow_fisher(net: nn.Module, split: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """One example and one label after the other."""
    names = [n for n, _ in net.named_parameters()]
    total = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    for x in split[0]:
        logits = net(x[None])
        p = logits.softmax(1).detach()[0]
        for label in range(len(p)):
            loss = F.cross_entropy(logits, torch.tensor([label]))
            grads = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
            for name, g in zip(names, grads, strict=True):
                total[name] += p[label] * g.square() / len(split[0])
    return total


@pytest.mark.parametrize(
    "net",
    [
        lambda: mlp([7, 6], inputs=5, classes=4),
        lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 4)),
        Twice,
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 5, 1)), nn.Conv2d(1, 3, (2, 1)), nn.Flatten(), nn.Linear(12, 4)
        ),
    ],
    ids=["mlp", "in place", "twice", "conv"],
)
def test_fisher_per_example(net) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    made = net().double()
    got, wanted = fisher_of(made, points(), "exact"), slow_fisher(made, points())
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, msg=name)


def test_sampled_fisher_is_exact_on_average() -> None:
    net = nn.Sequential(softmax_regression())
    x, y = points(4)
    many = x.repeat(4000, 1), y.repeat(4000)
    sampled = fisher_of(net, many, "sampled")["0.weight"]
    exact = fisher_of(net, (x, y), "exact")["0.weight"]
    assert (sampled / exact - 1).abs().max() < 0.1


def test_fisher_of_some_examples() -> None:
    net = nn.Sequential(softmax_regression())
    x, y = points(30)
    named = dict(net.named_parameters())
    some = diagonal_fisher(net, (x, y), named, examples=10)
    torch.testing.assert_close(some, fisher_of(net, (x[::3], y[::3]), "exact"))
    with pytest.raises(ConfigError, match=r"^fisher: expected one of .*, got 'all'"):
        diagonal_fisher(net, (x, y), named, labels="all")


@given(seed=st.integers(0, 1000), tasks=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_quadratics_add_up(seed: int, tasks: int) -> None:
    """The sum of quadratics and the one that is kept differ by a constant: their gradients are
    equal.
    """
    g = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(6, generator=g, dtype=torch.float64)  # noqa: E731
    p = nn.Parameter(draw())
    anchor, wanted = Anchor(), torch.zeros_like(p)
    for _ in range(tasks):
        strength = draw().clamp_min(0)
        centre = draw()
        anchor.add({"p": strength}, {"p": centre})
        wanted += 2 * 0.7 * strength * (p.detach() - centre)
    p.grad = torch.zeros_like(p)
    anchor.add_gradient({"p": p}, 0.7)
    torch.testing.assert_close(p.grad, wanted)
    # and it is the gradient of the value
    q = p.detach().clone().requires_grad_()
    value = 0.7 * (anchor.strength["p"] * (q - anchor.centre["p"]).square()).sum()
    value.backward()
    torch.testing.assert_close(q.grad, wanted)
    torch.testing.assert_close(0.7 * anchor.value({"p": p}), value.detach())


def test_ewc_holds_what_mattered() -> None:
    """The stronger the penalty, the less the important weights move."""
    moved = {}
    for strength in (0.0, 30.0, 300.0):
        torch.manual_seed(0)
        lt = methods.make(
            "ewc",
            mlp([20]),
            torch.zeros(1, 12),
            head="single",
            epochs=4,
            lr=0.01,
            batch_size=16,
            strength=strength,
        )
        lt.learn(blobs(0))
        fisher = lt.method.anchor.strength["net.0.weight"].clone()  # type: ignore[attr-defined]
        before = lt.net.net[0].weight.detach().clone()  # type: ignore[index]
        lt.learn(blobs(1))
        change = (lt.net.net[0].weight.detach() - before).square()  # type: ignore[index]
        moved[strength] = float((fisher * change).sum())
    assert moved[300.0] < moved[30.0] < moved[0.0]
    assert moved[300.0] < 0.25 * moved[0.0]


class Quadratic(SI):
    """SI on 1/2 sum_i a_i (theta_i - b_i)^2 over all parameters."""

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        flat = torch.cat([p.flatten() for p in self.net.parameters()])
        a = torch.linspace(0.1, 1.0, len(flat), dtype=flat.dtype)
        return 0.5 * (a * (flat - 1.5).square()).sum(), torch.zeros(1, 4, dtype=flat.dtype)


@pytest.mark.parametrize(("lr", "steps"), [(0.3, 20), (1e-3, 500)])
def test_si_path_integral_is_the_loss_drop(lr: float, steps: int) -> None:
    """On a quadratic a step's drop is -g dtheta - 1/2 dtheta A dtheta, exactly; with small steps
    the path integral alone is the drop.
    """
    lt = methods.make(
        "si", softmax_regression(), torch.zeros(1, 5).double(), optimizer="sgd", lr=lr
    )
    method = Quadratic(lt.net, lt.shared, {})
    method.optimizer = method.make_optimizer()
    task, batch = blobs(0), Batch(torch.zeros(1, 5), torch.zeros(1).long(), 0)
    lt.net.kind = "single"  # all parameters are shared
    method.begin(task)
    flat = lambda: torch.cat([p.detach().flatten() for p in lt.net.parameters()])  # noqa: E731
    a = torch.linspace(0.1, 1.0, len(flat()), dtype=torch.float64)
    first, second_order = float(method.loss(batch)[0].detach()), 0.0
    for _ in range(steps):
        before = flat()
        method.step(batch)
        moved = flat() - before
        second_order += 0.5 * float((a * moved.square()).sum())
    drop = first - float(method.loss(batch)[0].detach())
    path = sum(float(v.sum()) for v in method.path.values())
    assert path == pytest.approx(drop + second_order, rel=1e-10)
    if lr == 1e-3:
        assert path == pytest.approx(drop, rel=1e-3)


def test_si_strength_is_the_path_over_the_distance() -> None:
    lt = methods.make("si", softmax_regression(), torch.zeros(1, 5).double(), lr=0.05, xi=0.02)
    method = lt.method
    assert isinstance(method, SI)
    lt.net.kind = "single"
    lt.net.add_task(4, None)
    method.optimizer = method.make_optimizer()
    task = Task("t", *[points()] * 3, classes=4)
    method.begin(task)
    for _ in range(5):
        method.step(Batch(*points(), 0))
    path = {n: v.clone() for n, v in method.path.items()}
    start = {n: v.clone() for n, v in method.start.items()}
    method.end(task)
    for name, p in lt.net.shared_parameters().items():
        wanted = torch.relu(path[name] / ((p.detach() - start[name]).square() + 0.02))
        torch.testing.assert_close(method.anchor.strength[name], wanted)
        assert torch.equal(method.anchor.centre[name], p.detach())


@given(size=st.integers(1, 300), seed=st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_binding_is_an_involution(size: int, seed: int) -> None:
    x = torch.randn(3, size)
    key = binary_key(size, seed)
    assert set(key.tolist()) <= {-1.0, 1.0}
    assert torch.equal(x * key * key, x)
    turn = complex_key(size, seed)
    torch.testing.assert_close(turn.abs(), torch.ones(size))
    torch.testing.assert_close(turn * turn.conj() * x, x.to(torch.complex64))


def test_keys_are_nearly_orthogonal_and_their_tasks_own() -> None:
    keys = torch.stack([binary_key(4000, seed) for seed in range(5)])
    overlap = keys @ keys.T / 4000
    assert torch.equal(overlap.diagonal(), torch.ones(5))
    assert (overlap - torch.eye(5)).abs().max() < 0.06


@pytest.mark.parametrize("kind", ["binary", "complex"])
def test_bound_layers_keep_their_scale(kind: str) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(400, 300, bias=False)
    keyed = Keyed(nn.Linear(400, 300, bias=False), kind, 0)
    x = torch.randn(50, 400)
    with torch.no_grad():
        first = keyed(x)
        assert float(first.std() / plain(x).std()) == pytest.approx(1.0, abs=0.05)
        keyed.task = 1
        assert not torch.allclose(first, keyed(x))
        keyed.task = 0
        assert torch.equal(first, keyed(x))


def test_complex_binding_is_the_real_part_of_the_complex_product() -> None:
    torch.manual_seed(0)
    keyed = Keyed(nn.Linear(6, 3, bias=False), "complex", 0).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    assert isinstance(keyed.imaginary, nn.Linear)
    assert isinstance(keyed.layer, nn.Linear)
    W = torch.complex(keyed.layer.weight, keyed.imaginary.weight).detach()
    key = keyed.key(x).to(torch.complex128)
    torch.testing.assert_close(keyed(x).detach(), ((x * key) @ W.T).real)
