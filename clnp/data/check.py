"""All inputs of a run, checked before anything trains."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

from ..errors import DataError, DataWarning
from .contents import read_splits, task_data
from .images import ImageSet
from .inputs import SPLITS
from .items import Items
from .labels import SHOWN
from .task import Task

# Splits that are ready to be read: checked, or images that make their batches themselves.
READY = (tuple, Items, ImageSet)


def check_tasks(tasks: Sequence[Task]) -> None:
    """Checks every task of a stream, content included, before the first one trains: every item of
    every split is read once.

    Arguments:
        tasks: a stream; a lazy one makes each task once.

    Raises:
        DataError: a task that is no `Task`; two tasks named alike; tasks whose samples differ in
            shape or dtype; an item that is no good, with its split and index.
    """
    names: dict[str, int] = {}
    first: Task | None = None
    for k, task in enumerate(tasks):
        check_is_task(task, f"tasks[{k}]")
        if task.name in names:
            raise DataError(
                f"tasks[{k}]: is named {task.name!r} like tasks[{names[task.name]}]; wanted a name "
                "of its own for every task"
            )
        names[task.name] = k
        first = task if first is None else first
        for what in ("sample_shape", "dtype"):
            got, wanted = getattr(task, what), getattr(first, what)
            if got != wanted:
                raise DataError(
                    f"task {task.name!r}: {what} is {got}, wanted {wanted} as in task "
                    f"{first.name!r}"
                )
        task_data(task)
        warn_unseen(task)


def check_is_task(task: Any, where: str = "task") -> None:
    """Raises DataError unless it is a `Task`."""
    if not isinstance(task, Task):
        raise DataError(f"{where}: got {type(task).__name__}, expected a clnp.data.Task")


def ready(task: Task) -> Task:
    """The task as it is learned: checked, with class names where they are known, and with its
    Datasets in memory where they fit, or else with their workers. Raises as `task_data` does.
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
        object.__setattr__(made, "classes", data.classes)
    return made


def warn_unseen(task: Task) -> None:
    """Warns of classes that are tested but never trained, once for a `Task`.

    It is no error: trials on few training examples leave classes out on purpose, and what is
    measured then is still right.
    """
    for split, missing in task._unseen.items():
        shown = ", ".join(map(str, missing[:SHOWN]))
        warnings.warn(
            f"{task.where(split)}: class {shown} does not occur in the train split, so it can't be "
            "learned",
            DataWarning,
            stacklevel=3,
        )
    task._unseen.clear()
