"""The report of a learned task, as plain data."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from ..data.fingerprint import TaskData
from ..data.names import counted
from ..errors import ConfigError
from ..metrics import capacity_text
from ..network.inference import Inferred
from ..network.model import Model
from ..objectives.objective import Objective
from ..objectives.shown import Shown

# Fields of older files -> their present names.
RENAMED = {
    "score": "metric",
    "train_accuracy": "train_metric",
    "validation_accuracy": "validation_metric",
}


@dataclass(repr=False)
class TaskReport:
    """Outcome of learning one task. Metrics are in the units of the task's own, accuracies are
    fractions, times are seconds.

    Attributes:
        task, name: index (from 0) and name.
        epochs, lr, l1: of the chosen grid point; l1 is layer -> alpha.
        best_validation: best validation metric over the grid (paper, Sec. 2.2: the margin counts
            from here).
        validation_before, validation: of the chosen network before and after pruning (and
            fine-tuning).
        test: metric of the task's network on its test split; `row`: that of tasks 0..task, each
            its own metric by its own network, so with the task given (NaN where its test data is
            not at hand).
        capacity: group -> {"size", "used", "new", "reused", "free"} channels after the task;
            "reused" are earlier tasks' channels whose mean activity on this task exceeds the
            threshold.
        in_training: group -> channels of the network in training, the frozen ones included.
        thresholds: group -> theta.
        reuse: group -> for each earlier task j, how many of its channels are reused.
        history: per epoch of the chosen grid point: epoch, loss, train_metric (NaN where the
            metric is no mean over examples), validation_metric, lr.
        grid: per grid point: l1, lr, validation, candidate, chosen, kept (free channels left after
            pruning; -1 if not pruned).
        transfer_only: the final hidden layer was full, so only a head was trained (paper, Sec.
            2.1).
        seconds: fit, search, fine_tune, evaluate, total.
        inferred: accuracies of `model.predict`, which is not told the task, on tasks 0..task: rule
            ("entropy", "energy") -> "task" (the task is right), "class_incremental" (task and
            class) and "domain_incremental" (the class, whichever the task); see
            `clnp.network.inference`. Empty where it was not measured.
        class_names: of its classes, in the order of the outputs, where they are known.
        data: fingerprints of its splits; what is given as this task later has to be the same.
        loss: name of the loss.
        metric, unit, higher_is_better: the metric of `test`, `best_validation`,
            `validation_before`, `validation`, the history and the grid, on which the margin was
            held; unit "%" means a fraction.
        fine_tuned: for each round of fine-tuning "kept", or "rolled back" where the validation
            metric was better before it; joined by ", ", "" without fine-tuning.
        forgotten: True for a task that was forgotten and of which later tasks read channels; its
            other numbers are gone.
    """

    task: int
    name: str
    epochs: int
    lr: float
    l1: dict[str, float]
    best_validation: float
    validation_before: float
    validation: float
    test: float
    row: list[float]
    capacity: dict[str, dict[str, int]]
    thresholds: dict[str, float]
    reuse: dict[str, list[int]]
    history: list[dict[str, float]]
    grid: list[dict[str, Any]]
    transfer_only: bool
    seconds: dict[str, float] = field(default_factory=dict)
    inferred: Inferred = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    data: TaskData | None = None
    loss: str = "cross_entropy"
    metric: str = "accuracy"
    unit: str = "%"
    higher_is_better: bool = True
    fine_tuned: str = ""
    in_training: dict[str, int] = field(default_factory=dict)
    forgotten: bool = False

    def __post_init__(self) -> None:
        # JSON knows neither tuples nor classes.
        if self.class_names is not None:
            self.class_names = tuple(map(str, self.class_names))
        if isinstance(self.data, Mapping):
            self.data = TaskData.from_json(self.data)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskReport:
        """The inverse of `to_json`; the fields of older files get their present names."""
        fields = {RENAMED.get(name, name): value for name, value in data.items()}
        fields["history"] = [
            {RENAMED.get(name, name): value for name, value in record.items()}
            for record in fields["history"]
        ]
        return cls(**fields)

    @property
    def shown(self) -> Shown:
        """Name and unit of the metric, to write its numbers."""
        return Shown.of_report(vars(self))

    def __repr__(self) -> str:
        used, size = (sum(c[k] for c in self.capacity.values()) for k in ("used", "size"))
        channels = f", channels used={used}/{size}" if self.capacity else ""
        return (
            f"TaskReport(task={self.task}, name={self.name!r}, test={self.test:.4f}, "
            f"validation={self.validation:.4f}{channels})"
        )

    def __str__(self) -> str:
        """The outcome in a few lines: metrics, then the channels of every group."""
        epochs = counted(self.epochs, "epoch")
        seconds = f", {self.seconds['total']:.1f} s" if "total" in self.seconds else ""
        head = (
            f"task {self.task + 1}, {self.name!r}: test {self.shown.text(self.test)}, "
            f"{self.metric} on the validation split {self.validation_before:.4g} before pruning "
            f"and {self.validation:.4g} after; {epochs}{seconds}"
        )
        return f"{head}\n{capacity_text(self.capacity)}" if self.capacity else head

    def to_json(self) -> dict[str, Any]:
        """Plain data, the inverse of `TaskReport.from_json`."""
        return dataclasses.asdict(self)


def objective_fields(objective: Objective) -> dict[str, Any]:
    """The fields of a report that describe loss and metric."""
    metric = objective.metric
    return {
        "loss": objective.loss.name,
        "metric": metric.name,
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
    }


def check_classes(reports: Sequence[TaskReport], task: int | None) -> None:
    """Raises ConfigError where a task (None: any) has not one class per example to predict."""
    asked = range(len(reports)) if task is None else [task]
    for k in asked:
        report = reports[k] if -len(reports) <= k < len(reports) else None
        if report is not None and report.data is not None and not report.data.classifies:
            raise ConfigError(
                f"predict(): expected tasks with one class per example, got {report.name!r}, "
                f"learned by loss {report.loss!r}; model(x, task={reports.index(report)}) has its "
                "outputs"
            )


def present(reports: Sequence[TaskReport]) -> list[int]:
    """Indices of the tasks that have not been forgotten."""
    return [k for k, report in enumerate(reports) if not report.forgotten]


def matrix_of(reports: Sequence[TaskReport]) -> np.ndarray:
    """R [T, T] float64: R[i, j] is the metric of task j on its test split after learning task i;
    NaN above the diagonal.
    """
    matrix = np.full((len(reports), len(reports)), np.nan)
    for i, report in enumerate(reports):
        matrix[i, : i + 1] = report.row
    return matrix


def reuse_of(
    model: Model, activity: Mapping[str, Tensor], thresholds: Mapping[str, float]
) -> dict[str, list[int]]:
    """For each group and each learned task j: how many of the channels that j claimed are active on
    the data that `activity` ([channels], float64, from `measure_activity`) was measured on.

    Channels that the task in training does not compute (NaN) do not count.
    """
    reuse = {}
    for group in model.groups.prunable:
        used = activity[group.name] > thresholds[group.name]
        bounds = [0, *(task.active[group.name] for task in model.tasks)]
        reuse[group.name] = [int(used[a:b].sum()) for a, b in itertools.pairwise(bounds)]
    return reuse


def capacity_of(model: Model, reuse: Mapping[str, list[int]]) -> dict[str, dict[str, int]]:
    """Channels per group after the task learned last; `reuse` is that task's."""
    before = model.tasks[-2].active if len(model.tasks) > 1 else {}
    table = {}
    for group in model.groups.prunable:
        size, used = model.sizes[group.name], model.active(group)
        new = used - before.get(group.name, 0)
        table[group.name] = {
            "size": size,
            "used": used,
            "new": new,
            "reused": sum(reuse[group.name]),
            "free": size - used,
        }
    return table
