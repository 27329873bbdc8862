"""Masks of weights, per task: their size, their bits, what moves, and their gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from clnp import methods
from clnp.methods import MethodLearner
from clnp.methods.isolation import packed, unpacked
from clnp.methods.supermask import Supermask
from tests.clnp.cases import blobs, mlp


def learner(name: str, **options: Any) -> MethodLearner:
    torch.manual_seed(0)
    return methods.make(name, mlp([20, 9]), torch.zeros(1, 12), epochs=3, lr=0.02, **options)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 99))
def test_bits_are_the_mask(shape: list[int], seed: int) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    bits = packed(mask)
    assert bits.numel() == -(-mask.numel() // 8)
    assert torch.equal(unpacked(bits, mask.shape), mask)


@pytest.mark.parametrize("name", ["wsn", "supsup"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 1.0])
def test_a_task_reads_the_share_it_was_given(name: str, keep: float) -> None:
    lt = learner(name, keep=keep)
    method = lt.method
    assert isinstance(method, Supermask)
    for k in range(2):
        lt.learn(blobs(k))
        network = lt.predictor(k).net.state_dict()
        for weight, p in method.weights().items():
            read = method.read(weight, k)
            assert int(read.sum()) == p.numel() - round((1 - keep) * p.numel())
            assert not network[weight][~read].any()


def test_wsn_trains_what_no_task_reads_and_reuses_the_rest() -> None:
    lt = learner("wsn", keep=0.4)
    method = lt.method
    lt.learn(blobs(0))
    first = {name: p.detach().clone() for name, p in method.weights().items()}
    lt.learn(blobs(1))
    for name, p in method.weights().items():
        before, now = method.read(name, 0), method.read(name, 1)
        assert torch.equal(p[before], first[name][before])
        assert (p != first[name])[now & ~before].any()
    assert any((method.read(name, 0) & method.read(name, 1)).any() for name in method.weights())


def test_supsup_keeps_random_weights_of_one_size() -> None:
    lt = learner("supsup", keep=0.5)
    before = {name: p.detach().clone() for name, p in lt.method.weights().items()}
    for k in range(2):
        lt.learn(blobs(k))
    for name, p in lt.method.weights().items():
        assert torch.equal(p, before[name])
        assert p.abs().unique().numel() == 1
        assert p.detach().abs()[0, 0].item() == pytest.approx((2 / (0.5 * p.shape[1])) ** 0.5)
        assert (p > 0).any()
        assert (p < 0).any()
    given_weights = learner("supsup", init="given")
    torch.manual_seed(0)
    assert torch.equal(next(iter(given_weights.method.weights().values())), mlp([20, 9])[0].weight)


def test_scores_learn_straight_through() -> None:
    """The gradient of a score is that of its mask entry, and a weight's is masked."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3))
    lt = methods.make("wsn", net, torch.zeros(1, 6), keep=0.5)
    method = lt.method
    assert isinstance(method, Supermask)
    method.begin(blobs(0))
    (name,) = method.weights()
    weight, score = method.weights()[name], method.scores[name]
    x, y = torch.randn(8, 6), torch.randint(0, 3, (8,))
    torch.nn.functional.cross_entropy(method.logits(x, 0), y).backward()
    mask = method.read(name, 0).float().requires_grad_()
    w = weight.detach().clone().requires_grad_()
    logits = net[2].layers[0](torch.relu(x @ (w * mask).T))
    torch.nn.functional.cross_entropy(logits, y).backward()
    assert torch.allclose(score.grad, mask.grad * score.detach().sign(), atol=1e-7)
    assert torch.allclose(weight.grad, w.grad, atol=1e-7)


@pytest.mark.parametrize("name", ["wsn", "supsup"])
def test_masks_count_as_bits_of_memory(name: str) -> None:
    lt = learner(name)
    for k in range(2):
        lt.learn(blobs(k))
    bits = [t for n, t in lt.method.state().items() if n.startswith("mask.")]
    size = sum(p.numel() for p in lt.method.weights().values())
    assert sum(t.numel() * t.element_size() for t in bits) <= 2 * (
        size / 8 + len(lt.method.weights())
    )
