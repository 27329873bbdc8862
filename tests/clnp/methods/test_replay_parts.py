"""The reservoir, and the parts of SparCL and PackNet."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clnp import methods
from clnp.methods.buffer import Reservoir
from clnp.methods.co2l import instance_distillation
from clnp.methods.method import Batch
from clnp.methods.network import PAD, TaskNet
from clnp.methods.sparcl import DynamicMask, ForgettingCount, GradientMask
from tests.clnp.cases import blobs, mlp


@given(size=st.integers(1, 20), batches=st.lists(st.integers(1, 15), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_reservoir_holds_different_examples_of_what_was_offered(
    size: int, batches: list[int]
) -> None:
    buffer, offered = Reservoir(size), 0
    for count in batches:
        y = torch.arange(offered, offered + count)
        buffer.offer(torch.Generator().manual_seed(offered), x=y.float()[:, None], y=y)
        offered += count
    assert len(buffer) == min(size, offered)
    assert buffer.seen == offered
    held = buffer.rows["y"].tolist()
    assert len(set(held)) == len(held)
    assert set(held) <= set(range(offered))
    assert torch.equal(buffer.rows["x"][:, 0].long(), buffer.rows["y"])


def test_reservoir_is_uniform() -> None:
    counts = torch.zeros(40)
    for seed in range(500):
        g, buffer = torch.Generator().manual_seed(seed), Reservoir(10)
        for start in range(0, 40, 8):
            buffer.offer(g, y=torch.arange(start, start + 8))
        counts[buffer.rows["y"]] += 1
    # binomial: mean 125, standard deviation 9.7
    assert (counts - 125).abs().max() < 5 * 9.7


def test_reservoir_samples_without_repeats_and_survives_saving() -> None:
    buffer = Reservoir(6)
    buffer.offer(y=torch.arange(6), logits=torch.randn(6, 2))
    drawn = buffer.sample(4)["y"].tolist()
    assert len(set(drawn)) == 4
    again = Reservoir(6)
    again.load_state(buffer.state(), torch.device("cpu"))
    assert again.seen == 6
    again.offer(y=torch.arange(3), logits=torch.randn(3, 5))  # more classes than before
    assert again.rows["logits"].shape == (6, 5)


def test_derpp_loss_is_its_formula() -> None:
    lt = methods.make(
        "derpp", mlp([8]), torch.zeros(1, 12), head="single", batch_size=4, alpha=0.3, beta=0.7
    )
    lt.net.add_task(3, None)
    method, x = lt.method, torch.randn(4, 12)
    y = torch.tensor([0, 1, 2, 0])
    stored = torch.randn(4, 3)
    # A reservoir of copies of one example: any draw is the same.
    old = {"x": x[:1].repeat(4, 1), "y": y[:1].repeat(4), "task": torch.zeros(4).long()}
    method.buffer.rows = {**old, "logits": stored[:1].repeat(4, 1)}  # type: ignore[attr-defined]
    method.buffer.seen = 4  # type: ignore[attr-defined]
    lt.net.eval()
    loss, _ = method.loss(Batch(x, y, 0))
    logits = lt.net(x)
    entropy = nn.functional.cross_entropy
    wanted = entropy(logits, y) + 0.3 * (logits[0] - stored[0]).square().mean()
    wanted = wanted + 0.7 * entropy(logits[:1], y[:1])
    torch.testing.assert_close(loss, wanted)


def test_heads_of_a_mixed_batch_are_those_of_its_tasks() -> None:
    torch.manual_seed(0)
    net = TaskNet(mlp([8]), torch.zeros(1, 12), "multi")
    for classes in (2, 5, 3):
        net.add_task(classes, None)
    x, tasks = torch.randn(7, 12), torch.tensor([2, 0, 1, 1, 0, 2, 2])
    logits = net(x, tasks)
    assert logits.shape == (7, 5)
    for i, k in enumerate(tasks.tolist()):
        own = net(x[i : i + 1], k)[0]
        torch.testing.assert_close(logits[i, : len(own)], own)
        assert (logits[i, len(own) :] == PAD).all()
    loss = nn.functional.cross_entropy(logits, torch.zeros(7).long())
    loss.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters() if p.grad is not None)


def test_dynamic_mask_keeps_the_most_important() -> None:
    w = nn.Parameter(torch.tensor([[3.0, 0.1], [0.2, 1.0]]))
    w.grad = torch.tensor([[0.0, 5.0], [0.0, 0.0]])
    mask = DynamicMask(0.5, weight=1.0)
    mask.update({"w": w})
    assert mask.masks["w"].tolist() == [[True, True], [False, False]]
    assert w.tolist() == [[3.0, pytest.approx(0.1)], [0.0, 0.0]]
    # a masked weight comes back where its gradient is large
    w.grad = torch.tensor([[0.0, 0.0], [9.0, 0.0]])
    mask.update({"w": w})
    assert mask.masks["w"].tolist() == [[True, False], [True, False]]


def test_gradient_mask_is_kept_for_some_batches() -> None:
    w = nn.Parameter(torch.zeros(4))
    mask = GradientMask(0.5, every=2)
    used = []
    for grad in ([4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]):
        w.grad = torch.tensor(grad)
        mask.apply({"w": w})
        used.append(w.grad.tolist())
    assert used == [[4.0, 3.0, 0.0, 0.0], [1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 4.0]]


def test_gradients_of_masked_weights_are_not_among_the_largest() -> None:
    w = nn.Parameter(torch.zeros(4))
    w.grad = torch.tensor([4.0, 3.0, 2.0, 1.0])
    GradientMask(0.5, every=2).apply({"w": w}, {"w": torch.tensor([False, True, True, True])})
    assert w.grad.tolist() == [0.0, 3.0, 2.0, 0.0]


def test_co2l_balances_contrast_and_distillation_as_its_authors() -> None:
    """Contrast / distillation is that of temperature / 0.07 times the contrast."""
    torch.manual_seed(0)
    options = {"batch_size": 8, "buffer": 20, "temperature": 0.5}
    lt = methods.make("co2l", mlp([8]), torch.zeros(1, 12), epochs=2, **options)
    lt.learn(blobs(0))
    lt.net.add_task(3, None)
    method = lt.method
    method.task = 1
    method.begin(blobs(1))
    with torch.no_grad():
        for p in lt.net.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)
        batch = Batch(torch.randn(8, 12), torch.randint(0, 3, (8,)), 1)
        lt.net.eval()
        with_both, _ = method.contrast(batch)  # type: ignore[attr-defined]
        method.o["distillation"] = 0.0
        contrast, _ = method.contrast(batch)  # type: ignore[attr-defined]
        features, _ = lt.net.with_features(batch.x, 1)
        z = nn.functional.normalize(method.projector(features), dim=1)  # type: ignore[attr-defined]
        old, projector = method.past  # type: ignore[attr-defined]
        earlier = torch.zeros(8, dtype=torch.int64)
        past, _ = old.with_features(batch.x, earlier)
        relation = instance_distillation(z, nn.functional.normalize(projector(past), dim=1))
    torch.testing.assert_close(with_both - contrast, relation * 0.07 / 0.5)


def test_forgetting_is_counted() -> None:
    count = ForgettingCount(3)
    every = torch.arange(3)
    for correct in ([1, 0, 1], [0, 0, 1], [1, 0, 1], [0, 1, 1]):
        count.record(every, torch.tensor(correct, dtype=torch.bool))
    assert count.events.tolist() == [2, 0, 0]
    assert count.wrong.tolist() == [2, 3, 0]
    assert count.most_forgotten(2).tolist() == [0, 1]


def test_sparcl_keeps_its_sparsity_and_counts_it() -> None:
    lt = methods.make(
        "sparcl",
        mlp([40, 30]),
        torch.zeros(1, 12),
        epochs=6,
        batch_size=16,
        sparsity=0.8,
        buffer=20,
    )
    lt.learn(blobs(0))
    for name in ("net.0.weight", "net.2.weight"):
        zeros = (lt.net.get_parameter(name) == 0).float().mean()
        assert float(zeros) == pytest.approx(0.8, abs=0.01)
    cost = lt.cost[0]
    assert cost["sparse_flops"] < 0.25 * cost["flops"]
    assert cost["examples"] < 6 * 80  # some were removed


def test_packnet_packs() -> None:
    lt = methods.make("packnet", mlp([40]), torch.zeros(1, 12), epochs=6, lr=0.01, tasks=4)
    for k in range(3):
        lt.learn(blobs(k))
    owner = lt.method.memory["owner.net.0.weight"]
    shares = [float((owner == k).float().mean()) for k in range(4)]
    assert shares == pytest.approx([0.25] * 4, abs=0.01)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_masked_weights_are_zero_after_every_step(optimizer: str) -> None:
    """Moments of masked weights are not 0; weights that the user froze are not masked."""
    torch.manual_seed(0)
    net = mlp([20, 10])
    net[2].requires_grad_(False)
    frozen = net[2].weight.clone()
    lt = methods.make(
        "sparcl",
        net,
        torch.zeros(1, 12),
        **{"epochs": 3, "batch_size": 16, "sparsity": 0.7, "update": 1, "buffer": 20},
        optimizer=optimizer,
        momentum=0.9,
        reset_optimizer=False,
    )
    method, steps = lt.method, []
    step = method.step

    def watched(batch):  # type: ignore[no-untyped-def]
        result = step(batch)
        for name, mask in method.weights_mask.masks.items():  # type: ignore[attr-defined]
            assert not lt.net.get_parameter(name)[~mask].any()
            steps.append(name)
        return result

    method.step = watched  # type: ignore[method-assign]
    for k in range(2):
        lt.learn(blobs(k))
    assert set(steps) == {"net.0.weight"}
    assert torch.equal(lt.net.get_parameter("net.2.weight"), frozen)
