"""Measured networks, and their cases for each size of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from clnp import models
from clnp.models.networks import scaled, seeded_weights, torchvision_models

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FRACTIONS = (0.0, 0.25, 0.5, 0.75)
ALL_FRACTIONS = (*FRACTIONS, 0.9)
WIDTHS = (512, 1024, 2048, 4096, 8192)
SEED = 0


@dataclass(frozen=True)
class Network:
    """A network to train.

    Attributes:
        make: a factor on all widths -> the dense network, seeded.
        shape: of one example.
        batch: examples in a batch unless said otherwise.
    """

    make: Callable[[float], nn.Module]
    shape: tuple[int, ...]
    batch: int


class Block(nn.Module):
    """One residual block of torchvision's ResNets between a stem of 1 x 1 filters and a classifier.

    Arguments:
        name: "BasicBlock" (of resnet18) or "Bottleneck" (of resnet50).
        planes: channels of its 3 x 3 filters; a bottleneck has four times as many at its ends.
    """

    def __init__(self, name: str, planes: int) -> None:
        super().__init__()
        block = getattr(torchvision_models().resnet, name)
        channels = planes * block.expansion
        self.stem = nn.Conv2d(3, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.block = block(channels, planes)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W] -> logits [B, 10]."""
        y: Tensor = self.block(torch.relu(self.norm(self.stem(x))))
        return self.head(self.pool(y).flatten(1))


def _mlp(width: int) -> Network:
    def make(scale: float) -> nn.Module:
        return models.mlp(width=scaled(width, scale), seed=SEED)

    return Network(make, (784,), 256)


def _block(name: str, planes: int, side: int) -> Network:
    def make(scale: float) -> nn.Module:
        with seeded_weights(SEED):
            return Block(name, scaled(planes, scale))

    return Network(make, (3, side, side), 64)


IMAGE = (3, 32, 32)
# The dropout of the paper's narrow network is left out, since contenders would draw differently.
NETWORKS: dict[str, Network] = {
    "mlp": _mlp(2000),
    "narrow": Network(lambda scale: models.narrow(scale=scale, dropout=0, seed=SEED), IMAGE, 64),
    "wide": Network(lambda scale: models.wide(scale=scale, seed=SEED), IMAGE, 64),
    "resnet18": Network(lambda scale: models.resnet18_small(scale=scale, seed=SEED), IMAGE, 64),
    **{f"mlp-{width}": _mlp(width) for width in WIDTHS},
    **{f"block18-{64 << i}": _block("BasicBlock", 64 << i, 32 >> i) for i in range(4)},
    **{f"block50-{64 << i}": _block("Bottleneck", 64 << i, 56 >> i) for i in range(4)},
}


@dataclass(frozen=True)
class Case:
    """One situation that all contenders are put into.

    Attributes:
        network: key of `NETWORKS`.
        scale: factor on its widths.
        batch: examples.
        fraction: of every hidden group's channels, how many are frozen.
        dtype: key of `DTYPES`; bf16 is autocast.
        device: "cpu", "cuda", ...
    """

    network: str
    scale: float
    batch: int
    fraction: float
    dtype: str = "fp32"
    device: str = "cpu"

    @property
    def name(self) -> str:
        """The network's name, with its factor if that is not 1."""
        return self.network if self.scale == 1 else f"{self.network} x {self.scale:g}"


@dataclass(frozen=True)
class Size:
    """Extent of a run.

    Attributes:
        scale, batch: factors on the widths of networks and on batches.
        fractions: of frozen channels, in the step suite and for operators.
        networks: of the step suite.
        compiled: networks that are also run under torch.compile, which takes its time.
        samples, least, seconds: steps that are timed: `samples`, but no more than take `seconds`
            for each contender, and at least `least`.
        widths, batches: of the scaling suite.
        tasks, epochs, examples: of sequences of tasks.
        copy, gemm: MiB and side of the products that the machine's ceilings are measured with.
    """

    scale: float
    batch: float
    fractions: tuple[float, ...]
    networks: tuple[str, ...]
    compiled: tuple[str, ...]
    samples: int
    least: int
    seconds: float
    widths: tuple[int, ...]
    batches: tuple[int, ...]
    tasks: int
    epochs: int
    examples: int
    copy: int
    gemm: int

    def case(self, network: str, fraction: float, dtype: str, device: str, batch: int = 0) -> Case:
        """A case of this size; `batch` 0 takes the network's own, scaled."""
        batch = batch or max(4, round(NETWORKS[network].batch * self.batch))
        return Case(network, self.scale, batch, fraction, dtype, device)


STEP_NETWORKS = ("mlp", "narrow", "wide", "resnet18")
FULL = Size(
    scale=1.0,
    batch=1.0,
    fractions=FRACTIONS,
    networks=STEP_NETWORKS,
    compiled=tuple(NETWORKS),
    samples=80,
    least=9,
    seconds=16.0,
    widths=WIDTHS,
    batches=(1, 16, 64, 256, 1024, 4096),
    tasks=10,
    epochs=5,
    examples=5120,
    copy=256,
    gemm=2048,
)
QUICK = replace(
    FULL,
    scale=0.25,
    batch=0.25,
    fractions=(0.0, 0.5),
    compiled=("mlp",),
    samples=10,
    least=3,
    seconds=1.0,
    widths=(512, 2048),
    batches=(16, 256),
    tasks=4,
    epochs=1,
    examples=2560,
    copy=64,
    gemm=1024,
)
TINY = replace(
    QUICK,
    scale=0.05,
    batch=0.1,
    fractions=(0.5,),
    networks=("mlp", "narrow"),
    compiled=(),
    samples=2,
    least=1,
    seconds=0.1,
    widths=(512,),
    batches=(16,),
    tasks=2,
    examples=256,
    copy=1,
    gemm=64,
)
SIZES = {"full": FULL, "quick": QUICK, "tiny": TINY}
