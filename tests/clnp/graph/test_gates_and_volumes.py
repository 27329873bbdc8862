"""Gates of one channel, norms without weights, constant filters, volumes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clnp
from clnp.errors import ConvertError
from tests.clnp.conv_cases import randomise_norms
from tests.clnp.graph.test_any_network import (
    IMAGES,
    VECTORS,
    between,
    check_same,
    force_three_tasks,
    images,
    vectors,
)


class Blur(nn.Module):
    """A fixed filter in front of a stride, as in networks against aliasing."""

    def __init__(self, channels: int, alike: bool = True) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        kernel = (row[:, None] * row).expand(channels, 1, 3, 3).contiguous()
        kernel[0] *= 1 if alike else 2
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(x, self.kernel, stride=2, groups=x.shape[1])


def gate_of_pixels(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.out(net.b(torch.sigmoid(net.gate(y)) * y).mean((2, 3)))


def gate_of_vectors(net: Any, x: Tensor) -> Tensor:
    y = torch.relu(net.a(x))
    y = y * torch.tanh(net.gate(y)) + net.gate2(y)
    return net.out(net.b(y))


def gate_of_two(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    weights = torch.sigmoid(net.gate(y))
    return net.out((net.b(y) * weights[:, :1] - net.c(y) * weights[:, 1:]).mean((2, 3)))


def stacked(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.out(net.b(torch.stack([y, y.relu(), -y], dim=1).amax(1)).mean((2, 3)))


def repeated(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.out(net.b(y * y[:, :2].repeat(1, 4, 1, 1)).mean((2, 3)))


def mean_of_channels(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.out(net.b(y * y.mean(1, keepdim=True)).mean((2, 3)))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "gate of pixels": (lambda: images(gate_of_pixels, gate=nn.Conv2d(8, 1, 1)), IMAGES),
    "gates of vectors": (
        lambda: vectors(gate_of_vectors, gate=nn.Linear(8, 1), gate2=nn.Linear(8, 1)),
        VECTORS,
    ),
    "two gates of a layer": (
        lambda: images(
            gate_of_two,
            **{"gate": nn.Conv2d(8, 2, 1), "b": nn.Conv2d(8, 6, 1), "c": nn.Conv2d(8, 6, 1)},
        ),
        IMAGES,
    ),
    "stack": (lambda: images(stacked), IMAGES),
    "group norm without weights": (lambda: between(nn.GroupNorm(4, 8, affine=False)), IMAGES),
    "instances without weights": (lambda: between(nn.InstanceNorm2d(8), nn.ReLU()), IMAGES),
    "instances of sequences": (
        lambda: nn.Sequential(
            *(nn.Unflatten(1, (3, 4)), nn.Conv1d(3, 8, 3, padding=1)),
            *(nn.InstanceNorm1d(8, affine=True), nn.Flatten(), nn.Linear(32, 3)),
        ),
        VECTORS,
    ),
    "blur": (lambda: between(nn.ReLU(), Blur(8)), IMAGES),
    "blur of the input": (lambda: nn.Sequential(Blur(3), *between(nn.ReLU())), IMAGES),
}


class Residual3d(nn.Module):
    """A block of a network for videos, its convolution divided into one of pixels and of time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pixels = nn.Conv3d(channels, 6, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.time = nn.Conv3d(6, channels, (3, 1, 1), padding=(1, 0, 0))
        self.norm, self.last = nn.BatchNorm3d(6), nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.time(F.relu(self.norm(self.pixels(x)))))
        return F.relu(x + y)


def volumes(*end: nn.Module) -> nn.Module:
    stem = nn.Conv3d(2, 8, 3, stride=(1, 2, 2), padding=1)
    return nn.Sequential(stem, nn.ReLU(), nn.MaxPool3d((1, 2, 2)), Residual3d(8), *end)


class MeanOfVolume(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3, 4))


VOLUMES = (2, 4, 12, 12)
CASES |= {
    "volumes": (lambda: volumes(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 3)), VOLUMES),
    "volumes to their end": (
        lambda: volumes(nn.AvgPool3d(2), nn.Conv3d(8, 3, 1), MeanOfVolume()),
        VOLUMES,
    ),
    "flattened volumes": (
        lambda: volumes(nn.AdaptiveMaxPool3d(2), nn.Flatten(), nn.Linear(64, 3)),
        VOLUMES,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_same_function_and_bits_that_stay(name: str) -> None:
    torch.manual_seed(0)
    make, shape = CASES[name]
    net = randomise_norms(make().double())
    x = torch.randn(5, *shape, dtype=torch.float64)
    model = clnp.convert(net, x[:1], verbose=False)
    check_same(net.eval(), model.eval(), x)
    net.train()
    model.begin_task()
    check_same(net, model.train(), x)
    model.cancel_task()
    force_three_tasks(clnp.convert(net.eval(), x, verbose=False), x)


def test_a_gate_is_never_pruned() -> None:
    model = clnp.convert(CASES["gate of pixels"][0](), torch.zeros(1, *IMAGES), verbose=False)
    assert [g.name for g in model.groups.prunable] == ["a", "b"]
    assert "a gate needs it" in dict(model.conversion.masked)["gate"]


@pytest.mark.parametrize(
    ("net", "text"),
    [
        (lambda: between(Blur(8, alike=False)), "its weight is a constant, which no task"),
        (lambda: images(repeated), "'repeat'.*can't be converted"),
        (lambda: images(mean_of_channels), r"'mean' .*works along the channels, axis 1"),
    ],
)
def test_refused_with_the_reason(net: Callable[[], nn.Module], text: str) -> None:
    with pytest.raises(ConvertError, match=text):
        clnp.convert(net(), torch.zeros(2, *IMAGES), verbose=False)
