"""Counted operations against torch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import clnp
from clnp import methods
from clnp.data import Task
from clnp.methods import clnp_cost, inference_flops, layer_products, training_flops
from clnp.training.cost import products
from clnp_kernels.nn import MaskedConv2d, MaskedLinear
from tests.clnp.cases import blobs, mlp
from tests.clnp.conv_cases import SHAPE, Block, Inverted


def counted(net: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(net(x), torch.zeros(len(x)).long()).backward()
    return int(counter.get_total_flops())


def small_conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1),
        nn.Flatten(),
        nn.Linear(6 * 9, 5),
    )


@pytest.mark.parametrize(
    ("net", "shape"), [(lambda: mlp([40, 30]), (12,)), (small_conv, (3, 8, 8))], ids=["mlp", "conv"]
)
def test_dense_networks_against_the_counter(net: Any, shape: tuple[int, ...]) -> None:
    made, x = net(), torch.randn(4, *shape)
    assert training_flops(made, x, 4) == counted(made, x)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        made(x)
    assert inference_flops(made, x, 4) == counter.get_total_flops()


def test_depthwise_layers() -> None:
    """By hand: torch's counter takes the weight gradient of a grouped convolution for a dense
    one's.
    """
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8))
    depthwise = layer_products(net, torch.zeros(1, 3, 6, 6))["1"]
    assert depthwise.forward == depthwise.weight_grad == depthwise.input_grad == 8 * 9 * 16


def test_frozen_layers_cost_less() -> None:
    made, x = mlp([40, 30]), torch.randn(4, 12)
    made[0].requires_grad_(False)
    # torch skips the gradient of the second layer's inputs too, for nothing behind it is trained
    assert training_flops(made, x, 4) == counted(made, x)


def test_a_run_counts_what_the_formula_says() -> None:
    lt = methods.make("finetune", mlp([40, 30]), torch.zeros(1, 12), epochs=3, batch_size=32)
    lt.learn(blobs(0))
    wanted = training_flops(mlp([40, 30]), torch.zeros(1, 12), 3 * 80)
    assert lt.cost[0]["flops"] == wanted
    assert lt.cost[0]["examples"] == 240


def test_products_of_a_masked_layer() -> None:
    got = products(10, 6, 4, 2)
    assert (got.forward, got.weight_grad, got.input_grad) == (4 * 2 + 6 * 6, 6 * 6, 6 * 4)
    assert products(10, 6, 4, 2, skip_frozen=True).forward == 36
    assert products(10, 6, 4, 2, needs_input_grad=False).input_grad == 0
    dense = products(10, 6)
    assert dense.total == 3 * 60


def test_masked_layers_are_read_from_their_shapes() -> None:
    net = nn.Sequential(
        MaskedConv2d(3, 8, 3, active_out=5, active_in=3),
        MaskedConv2d(8, 8, 3, groups=8, active_in=5, active_out=5),
        nn.Flatten(),
        MaskedLinear(8 * 4, 7, active_in=20, active_out=3),
    )
    work = layer_products(net, torch.zeros(2, 3, 6, 6))
    first, depthwise, linear = work.values()
    assert (first.forward, first.weight_grad, first.input_grad) == (
        16 * 9 * (5 * 3 + 3 * 3),
        16 * 9 * 3 * 3,
        0,
    )
    assert (depthwise.forward, depthwise.weight_grad, depthwise.input_grad) == (
        4 * 9 * 8,
        4 * 9 * 3,
        4 * 9 * 3,
    )
    assert (linear.forward, linear.weight_grad, linear.input_grad) == (
        3 * 20 + 4 * 32,
        4 * 32,
        4 * 12,
    )


def images(seed: int) -> Task:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(60) % 3
    x = torch.randn(3, *SHAPE, generator=g)[y] + 0.3 * torch.randn(60, *SHAPE, generator=g)
    return Task(f"images-{seed}", (x, y), (x, y), (x, y), classes=3)


def flat() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 10, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(160, 20),
        nn.ReLU(),
        nn.Linear(20, 3),
    )


def averaged(block: nn.Module, outputs: int) -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    return nn.Sequential(stem, block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(outputs, 3))


NETWORKS: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "mlp": (lambda: mlp([40, 30]), blobs, (12,)),
    "flat": (flat, images, SHAPE),
    "residual": (lambda: averaged(Block(8, 12, 2, True), 12), images, SHAPE),
    "depthwise": (lambda: averaged(Inverted(8, False), 8), images, SHAPE),
}


@pytest.mark.parametrize("head", ["single", "multi"])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_clnp_costs_what_its_network_does(name: str, head: str) -> None:
    """The formula from the reports equals what the network itself has in training."""
    net, make, shape = NETWORKS[name]
    example = torch.zeros(1, *shape)
    seen: list[int] = []

    class Watch:
        def on_epoch_end(self, learner: clnp.Learner, record: dict[str, Any]) -> None:
            seen.append(training_flops(learner.model, example))

    torch.manual_seed(0)
    lt = clnp.Learner(
        clnp.convert(net(), example, verbose=False),
        head=head,
        margin=0.9,
        epochs=2,
        lr=0.01,
        batch_size=20,
        l1=1e-3,
        first_growth=None,
        callbacks=[Watch()],
    )
    tasks = [make(k) for k in range(3)]
    for task in tasks:
        lt.learn(task)
    examples = tasks[0].size("train")
    costs = [clnp_cost(lt, k, examples) for k in range(3)]
    assert [c["flops"] for c in costs] == [2 * examples * seen[2 * k] for k in range(3)]
    assert costs[0]["flops"] == training_flops(net(), example, 2 * examples)
    assert costs[2]["flops"] < costs[0]["flops"]
    assert [c["examples"] for c in costs] == [2 * examples] * 3
    assert all(c["peak_memory"] > 0 and c["seconds"] > 0 for c in costs)


def test_structured_sdp_costs_two_passes() -> None:
    flops = []
    for kind in ("activity", "sdp"):
        torch.manual_seed(0)
        net = clnp.convert(mlp([40, 30]), torch.zeros(1, 12), verbose=False)
        lt = clnp.Learner(net, margin=0.5, epochs=2, lr=0.01, sparsifier=kind)
        lt.learn(blobs(0))
        flops.append(clnp_cost(lt, 0, 80)["flops"])
    assert flops[1] == 2 * flops[0]
