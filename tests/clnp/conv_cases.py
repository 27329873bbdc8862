"""Small convolutional networks for the tests of `clnp`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

import clnp
from clnp.data import Task
from clnp.network.model import Model

SHAPE = (3, 8, 8)


class SqueezeExcite(nn.Module):
    """Scales channels by a function of their means (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, 4), nn.Linear(4, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        scale = F.adaptive_avg_pool2d(x, 1).view(b, c)
        scale = torch.sigmoid(self.up(F.relu(self.down(scale)))).view(b, c, 1, 1)
        return x * scale.expand_as(x)


class Block(nn.Module):
    """A residual block, with a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: bool) -> None:
        super().__init__()

        def normed(conv: nn.Conv2d) -> nn.Sequential:
            return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels) if norm else nn.Identity())

        self.first = normed(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=not norm))
        self.second = normed(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=not norm))
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else normed(nn.Conv2d(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x)))
        y += self.skip(x)
        return F.relu(y)


class Inverted(nn.Module):
    """Expand, filter depthwise, excite, project, add: the block of the mobile networks."""

    def __init__(self, channels: int, excite: bool) -> None:
        super().__init__()
        wide = 2 * channels
        self.body = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.Hardswish(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            SqueezeExcite(wide) if excite else nn.Identity(),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Grown(nn.Module):
    """Adds its outputs to the channels, with a norm over both (Huang et al. 2017)."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class Cardinal(nn.Module):
    """A residual block with a grouped convolution and a group norm (Xie et al. 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.norm = nn.Conv2d(channels, 8, 1), nn.GroupNorm(4, 8)
        self.conv = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.expand = nn.Conv2d(12, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.reduce(x)))
        return F.relu(x + self.expand(F.relu(self.conv(y))))


class Shuffled(nn.Module):
    """Half of the channels goes through a branch; then both are mixed (Ma et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(nn.Conv2d(half, half, 1), nn.BatchNorm2d(half), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        y = torch.cat([a, self.branch(b)], dim=1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class Gated(nn.Module):
    """Gates channels by others, doubles them, and makes pixels of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate, self.slope = nn.Conv2d(channels, 8, 1), nn.PReLU(4)
        self.pixels, self.conv = nn.Conv2d(8, 12, 3, 2, padding=1), nn.Conv2d(3, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.slope(F.glu(self.gate(x), 1))
        y = F.pixel_shuffle(self.pixels(torch.cat([y, -y], 1)), 2)
        return self.conv(y[:, :, : x.shape[2], : x.shape[3]]) + x


@dataclass(frozen=True)
class Plan:
    """Parts of a random network.

    Attributes:
        width: channels of the first convolution.
        blocks: kinds of blocks, one after the other.
        norm, dropout: batch norms and dropout in it.
        end: "flatten" (several inputs per channel), "mean" or "hidden" (a hidden linear layer).
    """

    width: int
    blocks: tuple[str, ...]
    norm: bool
    dropout: bool
    end: str

    def build(self) -> nn.Sequential:
        """The network: [B, 3, 8, 8] -> [B, 3]."""
        width = self.width
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
        layers += [nn.BatchNorm2d(width)] if self.norm else []
        layers += [nn.ReLU()]
        for kind in self.blocks:
            if kind == "plain":
                layers += [nn.Conv2d(width, width + 2, 3, stride=2, padding=1), nn.SiLU()]
                width += 2
            elif kind == "depthwise":
                layers += [nn.Conv2d(width, width, 3, padding=1, groups=width), nn.LeakyReLU(0.1)]
            elif kind == "residual":
                layers += [Block(width, width, 1, self.norm)]
            elif kind == "project":
                layers += [Block(width, width + 3, 2, self.norm)]
                width += 3
            elif kind == "inverted":
                layers += [Inverted(width, excite=self.norm)]
            elif kind == "pool":
                layers += [nn.MaxPool2d(2, ceil_mode=True)]
            elif kind == "grown":
                layers += [Grown(width, 3), Grown(width + 3, 2)]
                width += 5
            elif kind == "cardinal":
                layers += [Cardinal(width)]
            elif kind == "shuffled":
                layers += [nn.Conv2d(width, 8, 1), Shuffled(8), Shuffled(8)]
                width = 8
            elif kind == "gated":
                layers += [Gated(width)]
            layers += [nn.Dropout2d(0.2)] if self.dropout else []
        return nn.Sequential(*layers, *self._end(width))

    def _end(self, width: int) -> list[nn.Module]:
        if self.end == "mean":
            return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)]
        flat = [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
        if self.end == "flatten":
            return [*flat, nn.Linear(4 * width, 3)]
        norm = [nn.BatchNorm1d(11)] if self.norm else []
        return [*flat, nn.Linear(4 * width, 11), *norm, nn.GELU(), nn.Linear(11, 3)]


KINDS = (
    *("plain", "depthwise", "residual", "project", "inverted", "pool"),
    *("grown", "cardinal", "shuffled", "gated"),
)
plans = st.builds(
    Plan,
    st.integers(2, 9),
    st.lists(st.sampled_from(KINDS), max_size=3).map(tuple),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["flatten", "mean", "hidden"]),
)


def convert(net: nn.Module, head: str = "multi", shape: tuple[int, ...] = SHAPE) -> Model:
    """A quiet conversion with the given head."""
    dtype = next(net.parameters()).dtype
    model = clnp.convert(net, torch.zeros(2, *shape, dtype=dtype), verbose=False)
    model.set_head(head)
    return model


def randomise_norms(net: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and weights of batch norms as a trained network has them, not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
    return net


def patterns(
    seed: int, *, classes: int = 3, rows: int = 180, shape: tuple[int, ...] = SHAPE
) -> Task:
    """A task of noisy images around one random pattern per class."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, *shape, generator=generator)
    y = torch.arange(rows) % classes
    x = centres[y] + 0.5 * torch.randn(rows, *shape, generator=generator)
    third = rows // 3
    parts = [(x[i * third : (i + 1) * third], y[i * third : (i + 1) * third]) for i in range(3)]
    return Task(f"patterns-{seed}", *parts, classes=classes)
