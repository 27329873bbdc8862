"""Table 1 and Fig. 3: permuted MNIST, single head, 784-2000-2000-10."""

from __future__ import annotations

from pathlib import Path

from benchmarks.reproduce import figures
from benchmarks.reproduce.experiment import Contender, Experiment
from benchmarks.reproduce.tables import Tables, groups_of
from clnp import plots

# Without what this package adds: limits that no task reaches, the usual start, ranks by activity.
PLAIN = "--init default --first-growth 2000 --growth 2000 --sparsifier activity"
# The paper's settings (Sec. 3.1); 20 epochs as in the code of Zenke, Poole, Ganguli 2017, which it
# follows. It names neither its grid nor its schedule.
PAPER = (
    f"{PLAIN} --tasks 10 --epochs 20 --lr 2e-3 --l1 1e-7,1e-5,1e-6 --margin 0.0005 "
    "--fine-tune-epochs 0 --dropout 0 --schedule step"
)
GRID = "--grid l1=1e-7:1e-5:1e-6,1e-6:1e-5:1e-6,1e-5:1e-5:1e-6 lr=1e-3,2e-3 --grid-first-only"
# First-layer features that differ serve later tasks (`reuse`), so the first layer begins orthogonal
# and has no L1 penalty; what a task may train is limited, so that it is small and can have many
# epochs.
OURS = (
    "--tasks 10 --init orthogonal --first-growth 400,300 --growth 240,400 --epochs 40 "
    "--schedule cosine --dropout 0.35 --l1 0,1e-5,1e-6 --margin 0.003 --sparsifier contribution "
    "--fine-tune-rounds 1 --fine-tune-epochs 15 --fine-tune-lr 1e-3 --fine-tune-schedule cosine"
)
# For more and smaller tasks: a task begins wide, which takes fewer epochs, and is pruned and
# fine-tuned in rounds within a greater margin.
WIDE = (
    "--init orthogonal --first-growth 800,400 --growth 700,240 --epochs 16 "
    "--schedule step --dropout 0.2 --l1 0,1e-5,1e-6 --sparsifier contribution "
    "--fine-tune-rounds 4 --fine-tune-epochs 4 --fine-tune-lr 1e-3 --fine-tune-schedule cosine"
)
SPLIT, USUAL_SPLIT = "--validation 6000", "--validation 10000"
QUICK = (
    "--tasks 3 --width 60 --epochs 4 --batch-size 32 --fine-tune-epochs 1 --first-growth 30,30 "
    "--growth 20,15 --threads 1"
)
BASELINES = {
    name: Contender("--tasks 10 --epochs 20", method, changes=words, data=USUAL_SPLIT)
    for name, method, words in (
        ("single-task SGD", "scratch", "--lr 2e-3 --schedule step"),
        ("EWC", "ewc", ""),
        ("SI", "si", ""),
        ("SI, c = 0", "si", "--set c=0"),
        ("superposition", "superposition", ""),
        # Keys protect earlier tasks from small movements, so this one moves less.
        ("superposition, lr 1e-4", "superposition", "--lr 1e-4 --epochs 5"),
    )
}


UNTIL_FULL = {
    "CLNP": Contender(OURS, data=SPLIT),  # shared with table 1
    **{
        f"CLNP, m = {100 * margin:.1f} %": Contender(
            f"{WIDE} --margin {margin} --tasks 60", until_full=True, data=SPLIT
        )
        for margin in (0.008, 0.016)
    },
}


def write_table(folder: Path, tables: Tables) -> None:
    """CSV files and the accuracy after each task."""
    tables.write(folder)
    title = "Permuted MNIST: mean test accuracy over the tasks so far"
    figure = figures.accuracy_per_task(tables.tasks, "mean", title, closer=0.96)
    plots.save(figure, folder / "mean_accuracy.png")
    _capacity(folder, tables)


def write_figure(folder: Path, tables: Tables) -> None:
    """CSV files, capacity after each task, and accuracy to the last task that fits."""
    tables.write(folder)
    _capacity(folder, tables)
    title = "Permuted MNIST: test accuracy on every task"
    plots.save(figures.accuracy_per_task(tables.tasks, "test", title), folder / "accuracy.png")


def _capacity(folder: Path, tables: Tables) -> None:
    title = "Permuted MNIST: channels used after each task"
    if groups_of(tables.tasks):
        plots.save(figures.capacity_per_task(tables.tasks, title), folder / "capacity.png")


TABLE_1 = Experiment(
    name="table1",
    title="Table 1: ten tasks of permuted MNIST, single head",
    runs="permuted-mnist",
    stream="permuted-mnist",
    contenders={
        "CLNP": Contender(OURS, data=SPLIT),
        "CLNP, paper": Contender(f"{PAPER} {GRID}", data=USUAL_SPLIT),
        **BASELINES,
    },
    write=write_table,
    quick_stream="permuted-digits",
    quick=QUICK,
)
FIG_3 = Experiment(
    name="fig3",
    title="Fig. 3: channels used by permuted MNIST, task after task, until the network is full",
    runs="permuted-mnist",
    stream="permuted-mnist",
    contenders=UNTIL_FULL,
    write=write_figure,
    quick_stream="permuted-digits",
    quick=QUICK,
)
