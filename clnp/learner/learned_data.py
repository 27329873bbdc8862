"""Data of learned tasks: comparison with data given again, and test splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..data.check import READY, check_is_task
from ..data.images import ImageSet
from ..data.inputs import Split
from ..data.task import Task, task_data
from ..errors import CheckpointError, DataError
from ..objectives.objective import Objective, objective_of
from ..objectives.shapes import CLASSES
from ..training.validation import measured
from .agreement import digest
from .report import TaskReport


def learned_tasks(reports: Sequence[TaskReport], tasks: Sequence[Task | None]) -> list[Task | None]:
    """Return the learned tasks out of `tasks`, after comparing every item with their fingerprints;
    None for a forgotten task, whatever is given.

    Raises:
        DataError: `tasks` are not the tasks that were learned, with the differences.
        CheckpointError: the file has no fingerprints of their data.
    """
    if len(tasks) < len(reports):
        raise DataError(f"tasks: expected the {len(reports)} learned tasks, got {len(tasks)}")
    found: list[Task | None] = []
    for k, report in enumerate(reports):
        if report.forgotten:
            found.append(None)
            continue
        task: Any = tasks[k]
        check_is_task(task, f"tasks[{k}]")
        if task.name != report.name:
            raise DataError(
                f"tasks[{k}]: expected the learned task {report.name!r}, got {task.name!r}"
            )
        if report.data is None:
            raise CheckpointError(
                f"task {report.name!r}: expected fingerprints of its data, got a file of an older "
                "version without them; load without tasks (later rows of the accuracy matrix then "
                "lack it)"
            )
        differences = report.data.differences(task_data(task))
        if differences:
            raise DataError(
                f"tasks[{k}]: expected {task.name!r} as it was learned, got "
                f"{'; '.join(differences)}; pass the same data, or start a new learner"
            )
        found.append(task)
    return found


def test_split(task: Task) -> Split:
    """Test split of a task, whose items are checked when they are read."""
    split = task.split("test")
    return split if isinstance(split, READY) else task.items("test")


def objective_again(report: TaskReport, loss: Any, metric: Any) -> Objective:
    """The objective of a learned task, from its report and the learner's loss and metric.

    Raises:
        ConfigError: it was a function, which a file can't hold.
    """
    data = report.data
    own = (None, None) if data is None else (data.loss, data.metric)
    return objective_of(own[0] or loss, own[1] or metric, CLASSES)


class Tests:
    """The test splits of learned tasks, for the rows of the accuracy matrix.

    Attributes:
        splits: one per task; None where it is not at hand.
        objectives: of the tasks whose split is at hand.
    """

    def __init__(self) -> None:
        self.splits: list[Split | None] = []
        self.objectives: dict[int, Objective] = {}
        self._measured: dict[int, tuple[str, float]] = {}  # task -> what was tested, its metric

    def add(self, split: Split | None, objective: Objective | None = None) -> None:
        """Add the next task's split, with its objective."""
        if objective is not None:
            self.objectives[len(self.splits)] = objective
        self.splits.append(split)

    def forget(self, task: int) -> None:
        """Drop what is known of a task; its place stays."""
        self.splits[task] = None
        self.objectives.pop(task, None)
        self._measured.pop(task, None)

    def cut(self, index: int) -> None:
        """Forget the tasks from `index` on."""
        del self.splits[index:]
        self._measured = {k: v for k, v in self._measured.items() if k < index}
        self.objectives = {k: v for k, v in self.objectives.items() if k < index}

    def keep(self, index: int, task: Task, made: Task) -> None:
        """Keep the test split of a learned task: items of a Dataset stay in memory if they fit
        there beside those of earlier tasks.

        Arguments:
            index: of the task.
            task: as it was given.
            made: as it was learned (`clnp.data.check.ready`).
        """
        self.splits[index] = kept_test(task, made, self.splits[:index])

    def metric(self, task: int, network: nn.Module, device: torch.device) -> float:
        """Metric of a task on its test split. An earlier measurement is reused if the network has
        the same bits; NaN where the split is not at hand.

        Arguments:
            task: its index.
            network: of the task, a fresh copy of the frozen tensors.
            device: where it is.
        """
        split = self.splits[task]
        if split is None:
            return float("nan")
        now = digest(network.state_dict(), f"{device}, {torch.get_num_threads()} threads")
        before, value = self._measured.get(task, ("", 0.0))
        if now != before:
            value = measured(network, split, self.objectives[task], device)
            self._measured[task] = now, value
        return value


def kept_test(task: Task, made: Task, held: Sequence[Split | None]) -> Split:
    """The test split of a learned task as it is kept beside the splits already `held`."""
    given = task.split("test")
    if isinstance(given, (tuple, ImageSet)):
        return given
    sizes = [split[0].nbytes for split in (*held, made.test) if isinstance(split, tuple)]
    return made.test if sum(sizes) <= task.cache_bytes else task.items("test")
