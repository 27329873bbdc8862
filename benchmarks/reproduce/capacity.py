"""Influences on the number of channels that a task claims: a recipe, and one change at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.reproduce import figures
from benchmarks.reproduce.experiment import Contender, Experiment
from benchmarks.reproduce.finished import Run
from benchmarks.reproduce.permuted_mnist import QUICK, SPLIT, UNTIL_FULL
from benchmarks.reproduce.tables import Row, Tables, groups_of, share, task_rows
from clnp import Learner, plots
from clnp.cli.run_folder import write_csv

# A reduced problem: two tasks on half the images, narrower and shorter than table 1's, so that a
# run takes a minute on a core. It begins wide, is pruned and fine-tuned in two rounds.
BASE = (
    "--tasks 2 --first-growth 600,400 --growth 300,200 --init orthogonal --epochs 6 "
    "--schedule step --dropout 0.2 --l1 0,1e-5,1e-6 --search joint --sparsifier contribution "
    "--fine-tune-rounds 2 --fine-tune-epochs 2 --fine-tune-lr 1e-3 --fine-tune-schedule cosine"
)
HALF = f"{SPLIT} --examples 27000"
# One thing changed at a time, and the base at several margins: its accuracy at any capacity is the
# line through those, which the others are compared with.
MARGIN = "--margin 0.005"
BASES = {
    "base": MARGIN,
    "base, m = 0.25 %": "--margin 0.0025",
    "base, m = 1 %": "--margin 0.01",
    "base, m = 2 %": "--margin 0.02",
}
CHANGES = {
    "ranked by activity": "--sparsifier activity",
    "structured SDP": "--sparsifier sdp",
    "one round": "--fine-tune-epochs 4 --fine-tune-rounds 1",
    "four rounds": "--fine-tune-epochs 1 --fine-tune-rounds 4",
    "no fine-tuning": "--epochs 10 --fine-tune-epochs 0 --fine-tune-rounds 1",
    "one threshold": "--search global",
    "usual start": "--init default",
    "L1 1e-5 on layer 1": "--l1 1e-5,1e-5,1e-6",
    "narrow": "--first-growth 300,200 --growth 150,100",
    "twice the epochs": "--epochs 12 --fine-tune-epochs 4",
}
# Two tasks: what the second, with few new channels of its own, can do with the first one's.
FEW = (
    "--tasks 2 --epochs 20 --schedule cosine --dropout 0.3 --margin 0.003 "
    "--sparsifier contribution --first-growth 300,200 --growth 32,200 --fine-tune-rounds 1 "
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
CLASSES = 10
TEN = 10
# Ten tasks of the paper: share of the channels of each layer, mean accuracy (Sec. 3.1, Table 1).
PAPER = {"fc1": (0.18, 0.9842), "fc2": (0.40, 0.9842)}
Point = tuple[float, float]  # weights that are kept, accuracy as a share


def write_reduced(folder: Path, tables: Tables) -> None:
    """CSV files, among them equal.csv: the accuracy of every recipe and that of the base at equal
    capacity; and accuracy against capacity.
    """
    tables.write(folder)
    rows: list[Row] = []
    every: dict[tuple[str, int], list[Point]] = {}
    for seed in sorted({row["seed"] for row in tables.runs}):
        points: dict[str, list[Point]] = {}
        for row in tables.runs:
            if row["seed"] == seed:
                name = "base" if row["contender"] in BASES else row["contender"]
                points.setdefault(name, []).append((row["weights"], row["acc"]))
        every |= {(name, seed): own for name, own in points.items()}
        base = points.pop("base", [])
        rows += [
            {"seed": seed, "recipe": name, "weights": weights, "acc": accuracy, "base": reference}
            for name, [(weights, accuracy)] in points.items()
            if (reference := accuracy_at(weights, base)) is not None
        ]
    write_csv(folder / "equal.csv", ("seed", "recipe", "weights", "acc", "base"), rows)
    title = "Two tasks of permuted MNIST: accuracy and size of what is kept, by recipe"
    plots.save(figures.accuracy_by_size(every, title), folder / "frontier.png")


def accuracy_at(weights: float, line: Sequence[Point]) -> float | None:
    """The accuracy at so many weights on the line through some points, over the logarithm of the
    weights; None beyond its ends.
    """
    if not line:
        return None
    x, y = np.array(sorted(line)).T
    return float(np.interp(np.log(weights), np.log(x), y)) if x[0] <= weights <= x[-1] else None


def kept_weights(run: Run) -> Row:
    """As "weights" the frozen ones of an MLP after the last task, biases not counted. A channel
    reads the channels that were used when its task had been learned.
    """
    network = Learner.load(run.folder).model.subnetwork(0)
    inputs = next(m for m in network.modules() if isinstance(m, nn.Linear)).in_features
    total = 0
    for report in run.metrics["reports"]:
        before = inputs
        for counts in report["capacity"].values():
            total += before * counts["new"]
            before = counts["used"]
        total += CLASSES * counts["new"]
    return {"weights": total}


def write_full(folder: Path, tables: Tables) -> None:
    """CSV files; accuracy against capacity after ten tasks, with the paper's point, of the runs
    that got so far.
    """
    longer = tables.having(lambda row: row["tasks"] >= TEN)
    tables = longer if longer.runs else tables
    tables.write(folder)
    title = "Permuted MNIST: accuracy and capacity after ten tasks"
    plots.save(figures.frontier(tables.tasks, TEN, title, PAPER), folder / "frontier.png")


def after_ten(run: Run) -> Row:
    """Mean accuracy over the first ten tasks, and the shares of the channels that they use."""
    tenth = task_rows(run)[:TEN][-1]
    shares = {f"ten_{group}": share(tenth, group) for group in groups_of([tenth])}
    return {"ten": tenth["mean"], **shares}


def write_reuse(folder: Path, tables: Tables) -> None:
    """CSV files."""
    tables.write(folder)


def first_and_second(run: Run) -> Row:
    """Accuracy on both tasks of a run of two, and of the first layer's weights after the first
    task the effective rank.
    """
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


CAPACITY = Experiment(
    name="capacity",
    title="What decides capacity: permuted MNIST, two tasks, one change at a time",
    runs="capacity",
    stream="permuted-mnist",
    contenders={
        **{name: Contender(f"{BASE} {words}", data=HALF) for name, words in BASES.items()},
        **{
            name: Contender(f"{BASE} {MARGIN}", changes=words, data=HALF)
            for name, words in CHANGES.items()
        },
    },
    write=write_reduced,
    more=kept_weights,
    quick_stream="permuted-digits",
    quick=QUICK,
)
FRONTIER = Experiment(
    name="frontier",
    title="Accuracy against capacity: ten tasks of permuted MNIST, greater and smaller margins",
    runs="permuted-mnist",  # shared with table 1 and fig. 3
    stream="permuted-mnist",
    contenders=UNTIL_FULL,
    write=write_full,
    more=after_ten,
    quick_stream="permuted-digits",
    quick=QUICK,
)
REUSE = Experiment(
    name="reuse",
    title="What a second task can do with the features of the first: permuted MNIST",
    runs="reuse",
    stream="permuted-mnist",
    contenders={name: Contender(FEW, changes=words) for name, words in REUSED.items()},
    write=write_reuse,
    more=first_and_second,
    quick_stream="permuted-digits",
    quick=QUICK.replace("--tasks 3", "--tasks 2"),
)
