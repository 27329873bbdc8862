"""Checks of all tasks of a run before training."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

from ..errors import DataError, DataWarning
from ..objectives.shapes import CLASSES
from .images import ImageSet
from .inputs import SPLITS
from .items import Items
from .labels import SHOWN
from .task import Task, read_splits, task_data

# Types of splits that need no further wrapping.
READY = (tuple, Items, ImageSet)


def check_tasks(tasks: Sequence[Task]) -> None:
    """Check every task of a stream, reading every item of every split once.

    Arguments:
        tasks: a stream; a lazy one makes each task once.

    Raises:
        DataError: an element isn't a `Task`; two tasks have one name; samples differ in shape or
            dtype between tasks; an item is invalid (its split and index are named).
    """
    names: dict[str, int] = {}
    first: Task | None = None
    for k, task in enumerate(tasks):
        check_is_task(task, f"tasks[{k}]")
        if task.name in names:
            raise DataError(
                f"tasks[{k}]: expected a different name for every task, got {task.name!r} as in "
                f"tasks[{names[task.name]}]"
            )
        names[task.name] = k
        first = task if first is None else first
        for what in ("sample_shape", "dtype"):
            got, expected = getattr(task, what), getattr(first, what)
            if got != expected:
                raise DataError(
                    f"task {task.name!r}: expected {what} {expected} as in task {first.name!r}, "
                    f"got {got}"
                )
        task_data(task)
        warn_unseen(task)


def check_is_task(task: Any, where: str = "task") -> None:
    """Raise DataError unless `task` is a `Task`."""
    if not isinstance(task, Task):
        raise DataError(f"{where}: expected a clnp.data.Task, got {type(task).__name__}")


def ready(task: Task) -> Task:
    """Return the task in the form it is learned: checked, with its class names if known.

    Its Datasets are in memory where they fit, or else wrapped as `Items`. Raises as `task_data`.
    """
    if task._data is None or not all(isinstance(task.split(s), READY) for s in SPLITS):
        splits = read_splits(task, keep_bytes=task.cache_bytes)
    else:
        splits = {split: task.split(split) for split in SPLITS}
    data = task_data(task)
    made = copy.copy(task)
    for split, value in splits.items():
        object.__setattr__(made, split, value)
    if data.class_names is not None:
        object.__setattr__(made, "class_names", data.class_names)
        which = "classes" if task.kind == CLASSES else "outputs"
        object.__setattr__(made, which, data.classes)
    return made


def warn_unseen(task: Task) -> None:
    """Warn once per `Task` about classes that occur in validation or test, but not in training.

    This isn't an error: trials on few training examples leave classes out on purpose, and their
    accuracies are still correct.
    """
    for split, missing in task._unseen.items():
        shown = ", ".join(map(str, missing[:SHOWN]))
        warnings.warn(
            f"{task.where(split)}: expected classes of the train split, got class {shown}, which "
            "can't be learned",
            DataWarning,
            stacklevel=3,
        )
    task._unseen.clear()
