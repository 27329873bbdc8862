"""What decides how many channels a task claims: a recipe, and one change of it at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.reproduce import figures
from benchmarks.reproduce.experiment import Contender, Experiment, Run
from benchmarks.reproduce.permuted_mnist import QUICK
from benchmarks.reproduce.tables import write_tables
from clnp import plots

# A reduced problem: a quarter of the width and few epochs, so that one run takes minutes on a core.
BASE = (
    "--tasks 3 --width 500 --epochs 4 --schedule cosine --dropout 0.1 --margin 0.005 "
    "--l1 0,1e-5,1e-6 --search layerwise --sparsifier contribution --growth 64,250 "
    "--fine-tune-epochs 2 --fine-tune-lr 1e-3 --fine-tune-schedule cosine"
)
CHANGES = {
    "base": "",
    "L1 1e-5 on layer 1": "--l1 1e-5,1e-5,1e-6",
    "growth 16": "--growth 16,250",
    "no limit": "--growth 500,500",
    "ranked by activity": "--sparsifier activity",
    "means compensated": "--compensate",
    "two rounds": "--fine-tune-epochs 1 --fine-tune-rounds 2",
    "margin 1 %": "--margin 0.01",
    "joint search": "--search joint",
    "structured SDP": "--sparsifier sdp",
    "initial scale 0.05": "--reinit-scale 0.05",
    "twice the epochs": "--epochs 8",
    "growth 16, four times the epochs": "--growth 16,250 --epochs 16",
    "growth 16, lr 8e-3": "--growth 16,250 --lr 8e-3",
}
# At full size: how accuracy depends on the new channels of layer 1 that later tasks may train. Such
# tasks are small, and take many epochs: features that are there already are put to use slowly.
FULL = (
    "--tasks 10 --epochs 30 --schedule cosine --dropout 0.25 --margin 0.003 --l1 1e-5,1e-5,1e-6 "
    "--sparsifier contribution --fine-tune-epochs 10 --fine-tune-lr 1e-3 "
    "--fine-tune-schedule cosine"
)
LIMITS = (16, 32, 64, 128, 256)
# Ten tasks of the paper: share of the channels of each layer, mean accuracy (Sec. 3.1, Table 1).
PAPER = {"fc1": (0.18, 0.9842), "fc2": (0.40, 0.9842)}


def write_reduced(folder: Path, there: Sequence[Run]) -> None:
    """CSV files, and accuracy against capacity."""
    _write(folder, there, {})


def write_full(folder: Path, there: Sequence[Run]) -> None:
    """The same, with the paper's point."""
    _write(folder, there, PAPER)


def _write(folder: Path, there: Sequence[Run], paper: Mapping[str, tuple[float, float]]) -> None:
    write_tables(folder, there)
    title = "Permuted MNIST: accuracy and capacity by recipe"
    plots.save(figures.frontier(there, title, paper), folder / "frontier.png")
    plots.save(figures.capacity_per_task(there, title), folder / "capacity.png")


CAPACITY = Experiment(
    name="capacity",
    title="What decides capacity: permuted MNIST, three tasks, one change at a time",
    runs="capacity",
    stream="permuted-mnist",
    contenders={name: Contender(f"{BASE} {words}") for name, words in CHANGES.items()},
    write=write_reduced,
    quick_stream="permuted-digits",
    quick=QUICK,
)
FRONTIER = Experiment(
    name="frontier",
    title="Accuracy against capacity: ten tasks of permuted MNIST, new channels limited",
    runs="frontier",
    stream="permuted-mnist",
    contenders={
        **{f"growth {n}": Contender(f"{FULL} --growth {n},300") for n in LIMITS},
        "growth 32, lr 8e-3": Contender(f"{FULL} --growth 32,300 --lr 8e-3"),
    },
    write=write_full,
    quick_stream="permuted-digits",
    quick=QUICK,
)
