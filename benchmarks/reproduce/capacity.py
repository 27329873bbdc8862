"""What decides how many channels a task claims: a recipe, and one change of it at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.reproduce import figures
from benchmarks.reproduce.experiment import Contender, Experiment, Run
from benchmarks.reproduce.permuted_mnist import QUICK
from benchmarks.reproduce.tables import write_tables
from clnp import plots

BASE = ""
CHANGES: dict[str, str] = {}
# Ten tasks of the paper: share of the channels of each layer, mean accuracy (Sec. 3.1, Table 1).
PAPER = {"fc1": (0.18, 0.9842), "fc2": (0.40, 0.9842)}


def write(folder: Path, there: Sequence[Run]) -> None:
    """CSV files, and accuracy against capacity."""
    write_tables(folder, there)
    title = "Permuted MNIST: accuracy and capacity by recipe"
    plots.save(figures.frontier(there, title, PAPER), folder / "frontier.png")
    plots.save(figures.capacity_per_task(there, title), folder / "capacity.png")


CAPACITY = Experiment(
    name="capacity",
    title="What decides capacity: permuted MNIST, three tasks, one change at a time",
    runs="capacity",
    stream="permuted-mnist",
    contenders={name: Contender(f"{BASE} {words}") for name, words in CHANGES.items()},
    write=write,
    quick_stream="permuted-digits",
    quick=QUICK,
)
