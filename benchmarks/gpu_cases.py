"""Training steps of the GPU suite, each made only when it is called for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.state import LR, make_state
from clnp.training.step_graph import StepGraph

FRACTIONS = (0.0, 0.5, 0.75)
NETWORKS = {"mlp": 256, "narrow": 256, "block18-128": 256}  # name -> batch
DTYPES = ("bf16", "fp32")
CAPTURED = "captured"
# what trains, and the kernels that serve: those of the table, PyTorch's alone, or all of ours
WAYS = (
    ("dense captured", "torch"),
    ("ours captured", "table"),
    ("ours captured", "torch"),
    ("ours captured", "ours"),
    ("dense", "torch"),
    ("ours", "table"),
    ("ours", "torch"),
    ("slices", "torch"),
    ("eager-masked", "torch"),
)
Function = Callable[[], Any]


@dataclass(frozen=True)
class StepCase:
    """A training step to time.

    Attributes:
        network, dtype, fraction: as of `Case`.
        way: key of `CONTENDERS`, and " captured" where the step is one CUDA graph.
        kernels: "table", or what `chooser.prefer` takes.
    """

    network: str
    dtype: str
    fraction: float
    way: str
    kernels: str

    @property
    def key(self) -> str:
        """Name of its row."""
        return f"{self.network}, {self.dtype}, {self.fraction}, {self.way}, {self.kernels}"

    def make(self, device: str, dry: bool) -> Function:
        """A function that makes one step."""
        name = self.way.removesuffix(f" {CAPTURED}")
        scale, batch = (0.05, 4) if dry else (1.0, NETWORKS[self.network])
        case = Case(self.network, scale, batch, self.fraction, self.dtype, device)
        contender = CONTENDERS[name](make_state(case))
        if not self.way.endswith(CAPTURED):
            return contender.step
        if name == "dense":
            parameters = contender.network.parameters()
            contender.optimizer = torch.optim.Adam(
                parameters, lr=LR, fused=True, capturable=not dry
            )
        return _captured(contender, device)


def _captured(contender: Contender, device: str) -> Function:
    x, labels = contender.state.x, contender.state.labels

    def step(x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return (contender.step(x, labels),)

    graph = StepGraph(step, contender.optimizer, torch.device(device))
    return lambda: graph(x, labels)


def steps(*, dry: bool) -> Iterator[StepCase]:
    """All steps that are timed, the most telling first; a few of them for a rehearsal."""
    if dry:
        yield from (StepCase("mlp", "fp32", 0.5, way, kernels) for way, kernels in WAYS[:3])
        return
    for network in NETWORKS:
        for dtype in DTYPES:
            for fraction in FRACTIONS:
                for way, kernels in WAYS:
                    yield StepCase(network, dtype, fraction, way, kernels)


def profiled(*, dry: bool) -> Iterator[StepCase]:
    """Steps whose kernels are listed."""
    for network in ("mlp",) if dry else NETWORKS:
        yield StepCase(network, "bf16", 0.5, "ours", "table")
