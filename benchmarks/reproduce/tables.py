"""The CSV files of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.reproduce.experiment import Run
from clnp.cli.results import write_csv
from clnp.diagnostics import average_accuracy, mean_accuracies, mean_std

Row = dict[str, Any]


def write_tables(
    folder: Path, there: Sequence[Run], more: Callable[[Run], dict[str, float]] | None = None
) -> None:
    """Writes tasks.csv (a row per contender, seed and task), runs.csv (per contender and seed) and
    summary.csv (per contender, over seeds); `more` gives further numbers of a run.
    """
    groups = list(dict.fromkeys(g for run in there for g in used(run, -1)))
    tasks = [row for run in there for row in task_rows(run)]
    _write(folder / "tasks.csv", TASKS, [f"{kind}_{g}" for g in groups for kind in COUNTS], tasks)
    extra = [more(run) if more else {} for run in there]
    names = list(extra[0])
    rows = [run_row(run) | own for run, own in zip(there, extra, strict=True)]
    _write(folder / "runs.csv", RUNS, [*(f"used_{g}" for g in groups), *names], rows)
    numbers = ["acc", *(f"used_{g}" for g in groups), "seconds", *names]
    fields = [f"{key}_{part}" for key in numbers for part in ("mean", "std")]
    _write(folder / "summary.csv", (*ALIKE, "n"), fields, summary(rows, numbers))


COUNTS = ("used", "new", "reused")
TASKS = ("contender", "seed", "task", "name", "test", "validation", "mean", "seconds")
ALIKE = ("contender", "tasks", "epochs")  # of the runs that a line of summary.csv is about
RUNS = (
    "contender",
    "seed",
    "tasks",
    "epochs",
    "acc",
    "bwt",
    "identical",
    "seconds",
    "date",
    "revision",
)


def _write(path: Path, fields: Sequence[str], more: Sequence[str], rows: Sequence[Row]) -> None:
    write_csv(path, (*fields, *more), rows)


def used(run: Run, task: int) -> dict[str, float]:
    """Group -> share of its channels that are used after a task; empty for other methods."""
    capacity = run.metrics["reports"][task]["capacity"]
    return {group: counts["used"] / counts["size"] for group, counts in capacity.items()}


def task_rows(run: Run) -> list[Row]:
    """One row per task; `test` is the accuracy on it after the last task, `mean` that over the
    tasks so far when it had been learned.
    """
    means = mean_accuracies(run.metrics["accuracy_matrix"])
    last = run.metrics["accuracy_matrix"][-1]
    rows = []
    for task, report in enumerate(run.metrics["reports"]):
        row: Row = {
            "contender": run.contender,
            "seed": run.seed,
            "task": task,
            "name": report["name"],
            "test": last[task],
            "validation": report["validation"],
            "mean": float(means[task]),
            "seconds": run.seconds[task],
        }
        for group, counts in report["capacity"].items():
            row |= {f"{kind}_{group}": counts[kind] for kind in COUNTS}
        rows.append(row)
    return rows


def run_row(run: Run) -> Row:
    """The numbers of a run after its last task; `used` are shares, `identical` the tasks whose
    certificate holds.
    """
    return {
        "contender": run.contender,
        "seed": run.seed,
        "tasks": run.metrics["tasks_learned"],
        "epochs": epochs(run),
        "acc": average_accuracy(run.metrics["accuracy_matrix"]),
        "bwt": run.metrics["bwt"],
        "identical": run.metrics["certificate"]["identical"],
        "seconds": sum(run.seconds),
        "date": run.machine["date"],
        "revision": run.machine["revision"],
        **{f"used_{group}": share for group, share in used(run, -1).items()},
    }


def epochs(run: Run) -> str:
    """Epochs of a task, of training and (rounds x) of fine-tuning: "16 + 4 x 4"."""
    config = run.metrics["config"]
    text, tuning = str(config["epochs"]), config["fine_tune_epochs"]
    if config["method"] != "clnp" or not tuning:
        return text
    rounds = config["fine_tune_rounds"]
    return f"{text} + {rounds} x {tuning}" if rounds > 1 else f"{text} + {tuning}"


def summary(rows: Sequence[Row], numbers: Sequence[str]) -> list[Row]:
    """Mean and standard deviation (n - 1) over seeds, a row for each contender, number of
    tasks and of epochs.
    """
    table = []
    for key in dict.fromkeys(tuple(row[name] for name in ALIKE) for row in rows):
        own = [row for row in rows if tuple(row[name] for name in ALIKE) == key]
        line: Row = {**dict(zip(ALIKE, key, strict=True)), "n": len(own)}
        for number in numbers:
            spread = mean_std([row.get(number) for row in own])
            line |= {f"{number}_mean": spread["mean"], f"{number}_std": spread["std"]}
        table.append(line)
    return table
