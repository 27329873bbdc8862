"""All inputs of a run, checked before anything trains."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError, DataWarning
from .fingerprint import TaskData
from .images import ImageSet
from .items import Items
from .labels import SHOWN, check_numbering
from .scan import Scan, common_names, names_of, scan_items, scan_tensors
from .task import SPLITS, Split, Task

# Splits that are ready to be read: checked, or images that make their batches themselves.
READY = (tuple, Items, ImageSet)
# What is worth keeping most comes first: validation items are read again and again.
BY_WORTH = ("validation", "test", "train")


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


def task_data(task: Task) -> TaskData:
    """Fingerprints, class names and number of classes of a task. Every item is read and checked the
    first time that a `Task` is asked.

    Raises:
        DataError: an item that is no good, with its split and index; labels that do not start at 0
            or have gaps; splits with other class names.
    """
    if task._data is None:
        _scanned(task, keep_bytes=0)
    data = task._data
    assert data is not None
    return data


def ready(task: Task) -> Task:
    """The task as it is learned: checked, with class names where they are known, and with its
    Datasets in memory where they fit, or else with their workers. Raises as `task_data` does.
    """
    if task._data is None or not all(isinstance(task.split(s), READY) for s in SPLITS):
        splits = _scanned(task, keep_bytes=task.cache_bytes)
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


def _scanned(task: Task, keep_bytes: int) -> dict[str, Split]:
    """Reads a task and notes what it finds in it; its splits, in memory where they fit."""
    scans: dict[str, Scan] = {}
    splits: dict[str, Split] = {}
    for split in BY_WORTH:
        data = task.split(split)
        splits[split] = data
        if split == "test" and data is task.validation:
            scans[split], splits[split] = scans["validation"], splits["validation"]
            continue
        if isinstance(data, tuple):
            scans[split] = scan_tensors(*data)
            continue
        items = task.items(split)
        # Without room, there is nothing to find out by a second reading.
        fixed = True if split != "train" else task.fixed_items
        scan = scan_items(items, keep_bytes, fixed=fixed)
        task.check_range(split, scan.labels)
        scans[split] = scan
        items.labels = scan.labels
        if not isinstance(data, ImageSet):
            splits[split] = items
        if scan.kept is not None:
            splits[split] = scan.kept
            keep_bytes -= scan.kept[0].nbytes
    labels = {split: scans[split].labels for split in SPLITS}
    names, classes = _classes(task, labels)
    prints = {split: scans[split].fingerprint for split in SPLITS}
    if task._data is None:
        object.__setattr__(task, "_unseen", _unseen(labels))
    object.__setattr__(task, "_data", TaskData(prints, names, classes))
    return splits


def known_labels(split: Split | Dataset[Any]) -> Tensor | None:
    """All labels [N] of a split of a task that is `ready`; None where nobody has read them."""
    if isinstance(split, tuple):
        return split[1]
    if isinstance(split, ImageSet):
        return torch.as_tensor(split.targets)
    return split.labels if isinstance(split, Items) else None


def _classes(task: Task, labels: dict[str, Tensor]) -> tuple[tuple[str, ...] | None, int]:
    """Class names, where they are known, and the number of classes."""
    if task.class_names is not None:
        return task.class_names, len(task.class_names)
    where = f"task {task.name!r}"
    told = {
        split: names_of(data.data if isinstance(data, Items) else data, labels[split])
        for split in SPLITS
        if not isinstance(data := task.split(split), tuple)
    }
    names = common_names(told, where)
    fits = names is not None and all(int(y.max()) < len(names) for y in labels.values())
    if names is not None and fits and task.classes in (None, len(names)):
        return names, len(names)
    if task.classes is not None:
        return None, task.classes
    return None, check_numbering(labels, where)


def _unseen(labels: dict[str, Tensor]) -> dict[str, list[int]]:
    """Split -> its classes that the train split lacks."""
    seen = set(labels["train"].unique().tolist())
    return {
        split: missing
        for split in SPLITS[1:]
        if (missing := sorted(set(labels[split].unique().tolist()) - seen))
    }


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
