"""Epochs and tasks of a learner in two CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..files.atomic import write_text
from ..files.csv_text import csv_text
from ..metrics import inferred_means, known_mean
from .callback import Callback, alike, epoch_of

NUMBERS = ("loss", "train_metric", "validation_metric", "lr")
FIELDS = ("task", "name", "phase", "point", "epoch", *NUMBERS)
PHASES = ("fit", "fine_tune")
Row = dict[str, Any]
Key = tuple[int, int, int, int]


class CSVLogger(Callback):
    """Write `epochs.csv`, a row per epoch as soon as it is done, and `tasks.csv`, a row per task.

    A resumed run continues the files: every epoch and every task has one row, however often the run
    was stopped. Rows of another run, or of tasks that the learner hasn't learned, are dropped when
    a task begins.

    Columns of `epochs.csv`: task, name, phase ("fit" or "fine_tune"), point (of the grid), epoch
    (counting on over rounds of fine-tuning), loss, train_metric, validation_metric, lr. Columns of
    `tasks.csv`: see `task_row`.

    Arguments:
        folder: folder of the files, created if missing; may be the learner's `checkpoint_dir`.

    Raises:
        ConfigError: `folder` is a file, or its epochs.csv was not written by this class.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"folder: expected a folder, got the file {self.folder}")
        self._name = ""
        self._rows: dict[Key, Row] = _read(self.folder / "epochs.csv")

    def on_task_begin(self, learner: Any, task_index: int, name: str, total_epochs: int) -> None:
        """Make the files agree with the learner; rows of this task stay, for a resumed one."""
        self._name = name
        self._write(learner)

    def on_resume(self, learner: Any, records: Sequence[Mapping[str, Any]]) -> None:
        """Add rows that were not written before the process was killed."""
        for row in [self._row(learner, record) for record in records]:
            self._rows[_key(row)] = row
        self._write_epochs()

    def on_epoch_end(self, learner: Any, record: Mapping[str, Any]) -> None:
        """Append a row, and remove later rows of an earlier attempt."""
        row = self._row(learner, record)
        *fit, epoch = key = _key(row)
        stale = [k for k in self._rows if list(k[:3]) == fit and k[3] >= epoch]
        for old in stale:
            del self._rows[old]
        self._rows[key] = row
        if stale:
            self._write_epochs()
        else:
            with open(self.folder / "epochs.csv", "a", encoding="utf-8", newline="") as file:
                file.write(csv_text(FIELDS, [row], header=False))

    def on_task_end(self, learner: Any, report: Any) -> None:
        """Write the task's row, and epochs that are missing in epochs.csv."""
        self._write(learner)

    def sync(self, learner: Any) -> None:
        """Write rows that are missing if the process was killed right after the last task.

        For a learner that was loaded and has no task left to learn.
        """
        self._name = ""
        self._write(learner)

    def _row(self, learner: Any, record: Mapping[str, Any]) -> Row:
        return {
            "task": len(learner.reports),
            "name": self._name,
            "phase": PHASES[bool(record.get("fine_tune"))],
            "point": record.get("point", 0),
            "epoch": epoch_of(learner, record),
            **{name: record[name] for name in NUMBERS},
        }

    def _write(self, learner: Any) -> None:
        reports = learner.reports
        rows = {k: row for k, row in self._rows.items() if _belongs(row, reports, self._name)}
        for index, report in enumerate(reports):
            for row in _history(index, report):
                rows[_key(row)] = row
        self._rows = dict(sorted(rows.items()))
        self._write_epochs()
        tasks = [task_row(report, alike(reports, k)) for k, report in enumerate(reports)]
        fields = dict.fromkeys(name for row in reversed(tasks) for name in row)
        _replace(self.folder / "tasks.csv", csv_text(list(fields), tasks))

    def _write_epochs(self) -> None:
        _replace(self.folder / "epochs.csv", csv_text(FIELDS, self._rows.values()))


def task_row(report: Any, metrics: Sequence[bool] | None = None) -> Row:
    """Flatten a `clnp.TaskReport` to one row; `metrics` are the tasks so far of its metric, by
    default all.

    Columns: task, name, metric, unit, transfer_only, epochs, lr; the metric as best_validation,
    validation_before, validation, test, and mean over the tasks of this metric so far;
    MEASURE_by_RULE, accuracies with
    inferred tasks (`TaskReport.inferred`); used_GROUP, new_GROUP and reused_GROUP in channels;
    seconds_PHASE; metric_J on every task J so far.
    """
    fields = ("task", "name", "metric", "unit", "transfer_only", "epochs", "lr")
    metrics = [True] * len(report.row) if metrics is None else metrics
    values = ("best_validation", "validation_before", "validation", "test")
    return {
        **{name: getattr(report, name) for name in (*fields, *values)},
        "mean": known_mean([v for v, own in zip(report.row, metrics, strict=True) if own]),
        **{
            f"{measure}_by_{rule}": mean
            for rule, means in inferred_means(report.inferred).items()
            for measure, mean in means.items()
        },
        **{
            f"{part}_{group}": counts[part]
            for group, counts in report.capacity.items()
            for part in ("used", "new", "reused")
        },
        **{f"seconds_{phase}": value for phase, value in report.seconds.items()},
        **{f"metric_{j}": value for j, value in enumerate(report.row)},
    }


def _belongs(row: Row, reports: Sequence[Any], current: str) -> bool:
    """Return whether a row is of a learned task, or of the training of the current one."""
    if row["task"] >= len(reports):
        # Fine-tuning is repeated from its start after a stop.
        same = row["task"] == len(reports) and row["name"] == current
        return same and row["phase"] == "fit"
    report = reports[row["task"]]
    points = max(len(report.grid), 1)
    trained = row["point"] < points and row["epoch"] < report.epochs
    return row["name"] == report.name and (row["phase"] == "fine_tune" or trained)


def _history(index: int, report: Any) -> list[Row]:
    """Return the rows of the chosen grid point, from the report."""
    chosen = [i for i, point in enumerate(report.grid) if point["chosen"]]
    same = {"task": index, "name": report.name, "phase": "fit", "point": chosen[0] if chosen else 0}
    return [{**same, **{k: r[k] for k in ("epoch", *NUMBERS)}} for r in report.history]


def _key(row: Row) -> Key:
    return row["task"], PHASES.index(row["phase"]), row["point"], row["epoch"]


def _read(path: Path) -> dict[Key, Row]:
    """Rows of an earlier process, without an incomplete last line. Raises ConfigError."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(whole, newline=""))
    try:
        if whole and reader.fieldnames != list(FIELDS):
            raise ValueError(f"its columns are {reader.fieldnames}")
        rows = [_row(values) for values in reader]
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"folder: {path} was not written by CSVLogger ({error}); choose another folder"
        ) from error
    return {_key(row): row for row in rows}


def _row(values: Mapping[str, str]) -> Row:
    whole = {name: int(values[name]) for name in ("task", "point", "epoch")}
    return {**values, **whole, **{name: float(values[name]) for name in NUMBERS}}


def _replace(path: Path, text: str) -> None:
    """Write a file unless it has this content already."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
