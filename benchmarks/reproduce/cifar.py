"""Figs. 4 and 5: CIFAR-10, then CIFAR-100 by tens."""

from __future__ import annotations

from pathlib import Path

from benchmarks.reproduce import figures
from benchmarks.reproduce.experiment import Contender, Experiment
from benchmarks.reproduce.tables import Tables, groups_of
from clnp import plots

# Sec. 3.2 and Table 2. Epochs and batch are those of the code of Zenke, Poole, Ganguli 2017, whose
# training scheme the paper takes over.
NARROW = "--net narrow --tasks 6 --lr 1e-3 --epochs 60 --batch-size 256 --schedule constant"
ALPHA = "--l1 5e-5"
TUNE = f"{ALPHA} --margin 0.04 --fine-tune-epochs 20 --fine-tune-lr 1e-4"
# Ours: a part of every layer for each task, so that the last ones still find free channels. Twelve
# epochs of batches of 64 are as many steps as 48 of 256.
LIMITED = (
    "--l1 3e-6 --epochs 9 --batch-size 64 --schedule step --margin 0.01 --sparsifier contribution "
    "--first-growth 30,30,52,44,240 --growth 3,3,7,10,100 --fine-tune-epochs 3 "
    "--fine-tune-lr 5e-4 --fine-tune-l1 0 --fine-tune-schedule cosine"
)
# Sec. 3.2, Table 3, appendix A. The paper's grid and margins for this network are not given.
WIDE = "--net wide --tasks 10 --epochs 120 --lr 1e-3 --batch-size 128 --schedule step"
JOINT = "--set first=50 others=10"
QUICK = "--tasks 2 --epochs 2 --fine-tune-epochs 1 --batch-size 16 --net-scale 0.125 --threads 1"


def write(folder: Path, tables: Tables) -> None:
    """CSV files, accuracies per task and capacity."""
    tables.write(folder)
    for column, name, words in (
        ("test", "test", "test accuracy on every task"),
        ("validation", "validation", "validation accuracy on every task"),
        ("mean", "mean_accuracy", "mean test accuracy over the tasks so far"),
    ):
        if any(column in row for row in tables.tasks):
            figure = figures.accuracy_per_task(tables.tasks, column, f"Split CIFAR: {words}")
            plots.save(figure, folder / f"{name}.png")
    if groups_of(tables.tasks):
        title = "Split CIFAR: channels used after each task"
        plots.save(figures.capacity_per_task(tables.tasks, title), folder / "capacity.png")


FIG_4 = Experiment(
    name="fig4",
    title="Fig. 4: CIFAR-10 and five times ten classes of CIFAR-100, narrow network, several heads",
    runs="split-cifar-narrow",
    stream="split-cifar",
    contenders={
        "CLNP m = 1 %": Contender(f"{NARROW} {ALPHA} --margin 0.01"),
        "CLNP m = 2 %": Contender(f"{NARROW} {ALPHA} --margin 0.02"),
        "CLNP m = 4 % + FT": Contender(f"{NARROW} {TUNE}"),
        "CLNP, limited": Contender(NARROW, changes=LIMITED),
        "SI": Contender(NARROW, "si"),
        "scratch": Contender(NARROW, "scratch"),
        "joint": Contender(f"{NARROW} {JOINT}", "joint"),
    },
    write=write,
    quick_stream="split-cifar",
    quick=QUICK,
)
FIG_5 = Experiment(
    name="fig5",
    title="Fig. 5: CIFAR-10 and nine times ten classes of CIFAR-100, wide network, single head",
    runs="split-cifar-wide",
    stream="split-cifar",
    contenders={
        "CLNP": Contender(f"{WIDE} {ALPHA} --margin 0.02"),
        "scratch": Contender(WIDE, "scratch"),
        "joint": Contender(f"{WIDE} {JOINT}", "joint"),
    },
    write=write,
    quick_stream="split-cifar",
    quick=QUICK,
)
