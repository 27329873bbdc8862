"""Concatenations, slices, shuffles and grouped layers: groups of units, and their order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clnp
from clnp.errors import ConfigError
from clnp.network.model import Model
from tests.clnp.cases import random_keep, some_steps
from tests.clnp.conv_cases import (
    SHAPE,
    Cardinal,
    Gated,
    Grown,
    Shuffled,
    convert,
    patterns,
    randomise_norms,
)


class Net(nn.Module):
    """A convolution, then a block or function of [B, 8, 8, 8], a mean over pixels, a Linear."""

    def __init__(self, block: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.stem, self.block, self.out = nn.Conv2d(3, 8, 3, padding=1), block, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(self.stem(x))
        return self.out(y.mean((2, 3)) if y.dim() == 4 else y)


class Pyramid(nn.Module):
    """Flattened pools of several sizes side by side."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.adaptive_max_pool2d(x, n).flatten(1) for n in (1, 2)], 1)


class Wide(nn.Module):
    """The input beside hidden channels, and a sum over a cut of other widths."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x)], 1) + F.relu(x)


class Entered(nn.Module):
    """The network's input is one of the values side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 5, 1), nn.Conv2d(8, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.b(torch.cat([self.a(x), x], 1)).mean((2, 3)))


NETS: dict[str, Callable[[], nn.Module]] = {
    "grown": lambda: Net(nn.Sequential(Grown(8, 3), Grown(11, 2)), 13),
    "cardinal": lambda: Net(Cardinal(8), 8),
    "multiplied": lambda: Net(nn.Conv2d(8, 16, 3, groups=8), 16),
    "shuffled": lambda: Net(nn.Sequential(Shuffled(8), Shuffled(8)), 8),
    "gated": lambda: Net(Gated(8), 8),
    "transposed groups": lambda: Net(nn.ConvTranspose2d(8, 4, 2, 2, groups=4), 4),
    "pyramid": lambda: Net(Pyramid(), 40),
    "sum of parts": lambda: Net(Wide(), 8),
    "input beside": Entered,
}


def net_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise_norms(NETS[name]())


def learned(name: str, head: str = "multi") -> tuple[Model, list[Tensor], Tensor]:
    """Three tasks of random weights and channels, their logits, and a batch."""
    model = convert(net_of(name), head)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, *SHAPE, generator=generator)
    logits = []
    for task in range(3):
        model.begin_task(generator=generator)
        some_steps(model)
        keep = random_keep(model, generator)
        pruned = model.pruned_network(keep)(x)
        model.consolidate(keep)
        logits.append(model(x, task=task))
        assert torch.equal(logits[-1], pruned)
    return model, logits, x


@pytest.mark.parametrize("name", NETS)
def test_function_is_kept_in_both_modes(name: str) -> None:
    net = net_of(name).double()
    model = convert(net)
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    for mode in (False, True):
        expected, got = net.train(mode)(x), model.train(mode)(x)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NETS)
def test_three_tasks_stay_and_come_out_alone(name: str, tmp_path: Path) -> None:
    model, logits, x = learned(name)
    fresh = convert(net_of(name))
    fresh.load_state_dict(model.state_dict())
    for task, expected in enumerate(logits):
        assert torch.equal(model.subnetwork(task, fresh=True)(x), expected)
        assert torch.equal(fresh(x, task=task), expected)
        narrow = clnp.extract(model, task)
        clnp.export(narrow, tmp_path / "n.safetensors", x)
        assert torch.equal(clnp.load_network(tmp_path / "n.safetensors")(x), expected)
    for got, expected in zip(model.all_tasks(x), logits, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["grown", "shuffled", "gated"])
def test_the_network_in_training_is_the_learned_one(name: str) -> None:
    """The joint run, whose channels stand stage by stage, and the network of its last task."""
    model, _, x = learned(name)
    model.begin_task()
    some_steps(model)
    torch.testing.assert_close(
        model.eval().net(x),
        model.pruned_network({g.name: torch.arange(model.free(g)) for g in model.groups.prunable})(
            x
        ),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", ["grown", "shuffled"])
def test_single_head(name: str) -> None:
    model = convert(net_of(name), "single")
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, *SHAPE, generator=generator)
    logits: list[Tensor] = []
    for task in range(2):
        model.begin_task(generator=generator)
        some_steps(model)
        model.consolidate({g.name: torch.arange(1) for g in model.groups.prunable})
        logits.append(model(x, task=task))
        assert torch.equal(model(x, task=0), logits[0])


def test_groups_and_units() -> None:
    model = convert(net_of("cardinal"))
    stem = model.groups["stem"]
    assert (stem.size, stem.consumers) == (8, ("block.reduce", "out"))
    tied = model.groups["block.reduce"]
    assert (tied.size, tied.carriers[-1], tied.consumers) == (4, "block.conv", ("block.expand",))
    assert model.groups.of("block.conv") == (("block.reduce", 3),)
    shuffled = convert(net_of("shuffled"))
    assert [g.size for g in shuffled.groups.prunable] == [2, 2, 4, 2, 2, 4]
    assert not shuffled.groups.rows.keys() & {"stem"}


def test_expand_adds_whole_units() -> None:
    model, logits, x = learned("cardinal")
    with pytest.raises(ConfigError, match=r"channels: expected a multiple of 2, .* got 3"):
        model.expand("block.reduce", 3)
    model.expand("block.reduce", 4)
    assert model.sizes["block.reduce"] == 6
    model.begin_task()
    some_steps(model)
    model.consolidate()
    assert all(torch.equal(model(x, task=k), expected) for k, expected in enumerate(logits))
    assert model.masked["block.conv"].outputs == 18
    with pytest.raises(ConfigError, match=r"expected another layer, since .* divided"):
        learned("shuffled")[0].expand("stem", 2)


def test_learner_learns_searches_and_saves(tmp_path: Path) -> None:
    net = Net(nn.Sequential(Grown(8, 3), nn.Conv2d(11, 8, 1), Shuffled(8), Cardinal(8)), 8)
    lt = clnp.Learner(convert(net), epochs=1, lr=1e-3, margin=0.3)
    tasks = [patterns(seed, rows=24) for seed in range(2)]
    for task in tasks:
        lt.learn(task)
    assert all(verdict.identical for verdict in lt.verify())
    lt.save(tmp_path / "a.safetensors")
    again = clnp.Learner.load(tmp_path / "a.safetensors").model
    x = tasks[0].test[0]
    assert all(torch.equal(again(x, task=k), lt.model(x, task=k)) for k in range(2))
