"""What decides how many channels a task claims: a recipe, and one change of it at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.reproduce import figures
from benchmarks.reproduce.experiment import Contender, Experiment, Run
from benchmarks.reproduce.permuted_mnist import OURS, QUICK, SPLIT
from benchmarks.reproduce.tables import write_tables
from clnp import Learner, plots

# A reduced problem: a quarter of the width and few epochs, so that one run takes minutes on a core.
BASE = (
    "--tasks 3 --width 500 --init default --epochs 4 --schedule cosine --dropout 0.1 "
    "--l1 0,1e-5,1e-6 --first-growth 500 --growth 64,250 "
    "--margin 0.005 --search layerwise --sparsifier contribution "
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
# At full size: how accuracy depends on the new channels of layer 1 that later tasks may train.
LIMITS = (32, 64, 128)
# Two tasks: what the second, with few new channels of its own, can do with the first one's.
FEW = (
    "--tasks 2 --epochs 20 --schedule cosine --dropout 0.3 --margin 0.003 "
    "--sparsifier contribution --first-growth 300,200 --growth 32,200 "
    "--fine-tune-epochs 5 --fine-tune-lr 1e-3 --fine-tune-schedule cosine"
)
ORTHOGONAL = "--l1 0,1e-5,1e-6 --init orthogonal"
REUSED = {
    "L1 1e-5 on layer 1": "--l1 1e-5,1e-5,1e-6 --init default",
    "no L1 on layer 1": "--l1 0,1e-5,1e-6 --init default",
    "orthogonal start, L1 1e-5": "--l1 1e-5,1e-5,1e-6 --init orthogonal",
    "orthogonal start": ORTHOGONAL,
    "orthogonal start, 32 channels": f"{ORTHOGONAL} --first-growth 32,200",
    "orthogonal start, 600 channels": f"{ORTHOGONAL} --first-growth 600,200",
    "orthogonal start, 128 new": f"{ORTHOGONAL} --growth 128,200",
    "orthogonal start, 320 new": f"{ORTHOGONAL} --growth 320,200",
    "orthogonal start, 60 epochs": f"{ORTHOGONAL} --epochs 60",
}
# Ten tasks of the paper: share of the channels of each layer, mean accuracy (Sec. 3.1, Table 1).
PAPER = {"fc1": (0.18, 0.9842), "fc2": (0.40, 0.9842)}


def write_reduced(folder: Path, there: Sequence[Run]) -> None:
    """CSV files, and accuracy against capacity."""
    _write(folder, there, {})


def write_full(folder: Path, there: Sequence[Run]) -> None:
    """The same, with the paper's point."""
    _write(folder, there, PAPER)


def write_reuse(folder: Path, there: Sequence[Run]) -> None:
    """CSV files; of each run the accuracy on both tasks, and of the first layer's weights after the
    first task the effective rank.
    """
    write_tables(folder, there, first_and_second)


def first_and_second(run: Run) -> dict[str, float]:
    """The further numbers of a run of two tasks."""
    network = Learner.load(run.folder).model.subnetwork(0)
    first = next(m for m in network.modules() if isinstance(m, nn.Linear))
    own, second = run.metrics["accuracy_matrix"][-1][:2]
    return {"first": own, "second": second, "rank": effective_rank(first.weight.detach())}


def effective_rank(weight: torch.Tensor) -> float:
    """(sum of the singular values)^2 / sum of their squares, of a matrix [O, I]: min(O, I) where
    its rows or columns are orthogonal and of one length, 1 where they are all parallel.
    """
    values = torch.linalg.svdvals(weight.double())
    return float(values.sum() ** 2 / values.square().sum())


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
    runs="permuted-mnist",  # shared with table 1
    stream="permuted-mnist",
    contenders={
        **{f"CLNP, growth {n}": Contender(f"{OURS} --growth {n},400", data=SPLIT) for n in LIMITS},
        "CLNP": Contender(OURS, data=SPLIT),
    },
    write=write_full,
    quick_stream="permuted-digits",
    quick=QUICK,
)
REUSE = Experiment(
    name="reuse",
    title="What a second task can do with the features of the first: permuted MNIST",
    runs="reuse",
    stream="permuted-mnist",
    contenders={name: Contender(f"{FEW} {words}") for name, words in REUSED.items()},
    write=write_reuse,
    quick_stream="permuted-digits",
    quick=f"{QUICK} --tasks 2",
)
