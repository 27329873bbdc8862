"""The CSV files of an experiment."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.reproduce.finished import Run
from clnp.cli.run_folder import write_csv
from clnp.metrics import average_accuracy, mean_accuracies, mean_std

Row = dict[str, Any]

COUNTS = ("used", "new", "reused", "size")
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
WORDS = {"contender", "name", "epochs", "date", "revision"}  # the other columns hold numbers


@dataclass(frozen=True)
class Tables:
    """The numbers of an experiment's runs.

    Attributes:
        tasks: rows of tasks.csv, one per contender, seed and task, as `task_rows` has them.
        runs: rows of runs.csv, one per contender and seed.
    """

    tasks: list[Row]
    runs: list[Row]

    @classmethod
    def of(cls, done: Iterable[Run], more: Callable[[Run], Row] | None = None) -> Tables:
        """Tables of some runs; `more` gives further numbers of a run, for runs.csv."""
        done = list(done)
        tasks = [row for run in done for row in task_rows(run)]
        return cls(tasks, [run_row(run) | (more(run) if more else {}) for run in done])

    @classmethod
    def read(cls, folder: Path) -> Tables:
        """Tables that `write` has written; without the files, empty."""
        return cls(*(_read(folder / name) for name in ("tasks.csv", "runs.csv")))

    def beside(self, earlier: Tables, contenders: Iterable[str]) -> Tables:
        """With the runs of an earlier call, or of another machine, that are not in these; those of
        other contenders are left out. In the contenders' order.
        """
        own = {_key(row) for row in self.runs}
        order = {name: place for place, name in enumerate(contenders)}

        def both(now: list[Row], then: list[Row]) -> list[Row]:
            kept = [row for row in then if _key(row) not in own and row["contender"] in order]
            return sorted(now + kept, key=lambda row: (order[row["contender"]], row["seed"]))

        return Tables(both(self.tasks, earlier.tasks), both(self.runs, earlier.runs))

    def having(self, keep: Callable[[Row], bool]) -> Tables:
        """The runs whose row in `runs` is to be kept."""
        runs = [row for row in self.runs if keep(row)]
        own = {_key(row) for row in runs}
        return Tables([row for row in self.tasks if _key(row) in own], runs)

    def write(self, folder: Path) -> None:
        """Writes tasks.csv, runs.csv, and summary.csv (a row per contender, over its seeds)."""
        groups = groups_of(self.tasks)
        counts = [f"{kind}_{g}" for g in groups for kind in COUNTS]
        write_csv(folder / "tasks.csv", (*TASKS, *counts), self.tasks)
        used = [f"used_{g}" for g in groups]
        extra = [n for n in dict.fromkeys(n for row in self.runs for n in row) if n not in RUNS]
        names = [name for name in extra if name not in used]
        write_csv(folder / "runs.csv", (*RUNS, *used, *names), self.runs)
        numbers = ["acc", *used, "seconds", *names]
        fields = [f"{key}_{part}" for key in numbers for part in ("mean", "std")]
        write_csv(folder / "summary.csv", (*ALIKE, "n", *fields), summary(self.runs, numbers))


def _key(row: Row) -> tuple[str, int]:
    return row["contender"], row["seed"]


def _read(path: Path) -> list[Row]:
    """Rows as they were written, without their empty cells."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [
            {name: _value(name, cell) for name, cell in row.items() if cell != ""}
            for row in csv.DictReader(file)
        ]


def _value(name: str, cell: str) -> str | int | float:
    if name in WORDS:
        return cell
    return int(cell) if cell.lstrip("-").isdigit() else float(cell)


def groups_of(tasks: Iterable[Row]) -> list[str]:
    """The groups of channels that rows of `Tables.tasks` count; none for methods other than
    CLNP.
    """
    names = dict.fromkeys(name for row in tasks for name in row)
    return [name.removeprefix("size_") for name in names if name.startswith("size_")]


def share(row: Mapping[str, Any], group: str) -> float:
    """The used channels of a group after a task, of all; of a row of `Tables.tasks`."""
    return float(row[f"used_{group}"] / row[f"size_{group}"])


def task_rows(run: Run) -> list[Row]:
    """One row per task; `test` is the accuracy on it after the last task, `mean` that over the
    tasks so far when it had been learned. A number that a run does not have is left out.
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
            "mean": float(means[task]),
            "seconds": run.seconds[task],
        }
        for group, counts in report["capacity"].items():
            row |= {f"{kind}_{group}": counts[kind] for kind in COUNTS}
        if report["validation"] is not None:
            row["validation"] = report["validation"]
        rows.append(row)
    return rows


def run_row(run: Run) -> Row:
    """The numbers of a run after its last task; `used` are shares, `identical` the tasks whose
    certificate holds.
    """
    last = task_rows(run)[-1]
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
        **{f"used_{group}": share(last, group) for group in groups_of([last])},
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
