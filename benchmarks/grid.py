"""Suite "grid": a task with a grid search, its points one by one, in two processes, and as one
network of stacked weights ("ours"): `clnp.Learner`'s `workers` and `stack`. Time is that of
`Learner.learn` with the threshold search, without the start of the processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

import clnp
from benchmarks.cases import SEED, Case, Size
from benchmarks.checks import WrongResultError
from benchmarks.end_to_end import TaskSequence, task_data
from benchmarks.harness import processes, race
from benchmarks.record import OURS, Table, rows_of
from clnp import models

WIDTHS = (64, 256, 1024)  # of both hidden layers
POINTS = {"l1": [0.0, 1e-5, 1e-4], "lr": [5e-4, 1e-3]}
COUNT = math.prod(map(len, POINTS.values()))
BATCH = 256
WAYS: dict[str, dict[str, Any]] = {
    "one by one": {"stack": "off"},
    "two processes": {"stack": "off", "workers": 2},
    OURS: {"stack": "on"},
}
SEARCHES = 3  # that are timed; one takes seconds
TOLERANCE = 0.02  # of validation accuracy: roundings differ, and with them the steps that follow


@dataclass(frozen=True)
class Grid:
    """A search that every way carries out.

    Attributes:
        width: of the hidden layers.
        examples, epochs: of training.
        dtype, device: as of `Case`.
    """

    width: int
    examples: int
    epochs: int
    dtype: str
    device: str


class Search:
    """Learns the task with one of the `WAYS`, anew at every call.

    Attributes:
        validation: of every point of the last call, in the order of the grid.
    """

    def __init__(self, grid: Grid, way: str) -> None:
        self.grid = grid
        self.options = {**WAYS[way], "dtype": grid.dtype}
        case = Case("mlp", 1.0, BATCH, 0.0, grid.dtype, grid.device)
        train, validation = task_data(TaskSequence(case, 1, grid.epochs, grid.examples), 0)
        self.task = clnp.data.Task("task", train, validation, validation, classes=10)
        self.workers = clnp.Workers(self.options.pop("workers", 1))
        self.validation: list[float] = []

    def __call__(self) -> torch.Tensor:
        """The mean validation accuracy of the points."""
        net = models.mlp(width=self.grid.width, seed=SEED)
        learner = clnp.Learner(
            clnp.convert(net, torch.zeros(1, 784), verbose=False),
            head="single",
            grid=POINTS,
            epochs=self.grid.epochs,
            batch_size=BATCH,
            device=self.grid.device,
            workers=self.workers,
            **self.options,
        )
        self.validation = [row["validation"] for row in learner.learn(self.task).grid]
        return torch.tensor(self.validation).mean()

    def report(self) -> dict[str, float]:
        """Result for the harness after the first calls."""
        return {f"point {i}": value for i, value in enumerate(self.validation)}


def check(grid: Grid, found: Mapping[str, Mapping[str, float]]) -> None:
    """Raises WrongResultError where a way's points reach another accuracy."""
    for name, values in found.items():
        for point, value in found["one by one"].items():
            if abs(values[point] - value) > TOLERANCE:
                raise WrongResultError(
                    f"{name}, {grid}, {point}: validation accuracy {values[point]:.4f}, one by one "
                    f"{value:.4f}; wrong result, so no times"
                )


def make(grid: Grid, way: str) -> Callable[[], Any]:
    """A search, as the harness calls it."""
    return Search(grid, way)


def run(
    tables: Mapping[str, Table],
    size: Size,
    device: str,
    networks: Sequence[str] = (),
    fractions: Sequence[float] = (),
) -> None:
    """Measures; arguments as of `benchmarks.step.run`. There is one task, so nothing is frozen."""
    few = replace(size, least=min(size.least, SEARCHES), seconds=0.0)
    widths = WIDTHS if size.scale == 1 else WIDTHS[:1]
    with processes() as pool:
        for dtype, table in tables.items():
            for width in widths:
                grid = Grid(width, size.examples, size.epochs, dtype, device)
                results = race(pool, make, grid, list(WAYS), few, group=grid)
                check(grid, {name: samples.report for name, samples in results.items()})
                common = {"suite": "grid", "case": f"{COUNT} x mlp-{width}", "batch": BATCH}
                common |= {"dtype": dtype, "device": device, "fraction": 0.0}
                table.add(rows_of(results, common))
