"""Contents of a task, from one pass over its items: fingerprints, class names and labels."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .fingerprint import TaskData
from .images import ImageSet
from .inputs import SPLITS, Split
from .items import Items
from .labels import check_numbering
from .scan import Scan, common_names, names_of, scan_items, scan_tensors

# Splits in the order in which they are kept in memory: validation items are read most often.
BY_WORTH = ("validation", "test", "train")


class Splits(Protocol):
    """Attributes of a `Task` that this module uses."""

    @property
    def name(self) -> str: ...
    @property
    def validation(self) -> Split: ...
    @property
    def classes(self) -> int | None: ...
    @property
    def class_names(self) -> Any: ...
    @property
    def fixed_items(self) -> bool | None: ...
    @property
    def _data(self) -> TaskData | None: ...
    def split(self, split: str) -> Split: ...
    def items(self, split: str) -> Items: ...
    def check_range(self, split: str, y: Tensor) -> None: ...


def task_data(task: Splits) -> TaskData:
    """Return fingerprints, class names and number of classes of a task.

    The first call for a `Task` reads and checks every item.

    Raises:
        DataError: an item is invalid (its split and index are named); labels don't start at 0 or
            have gaps; splits have different class names.
    """
    if task._data is None:
        read_splits(task, keep_bytes=0)
    data = task._data
    assert data is not None
    return data


def read_splits(task: Splits, keep_bytes: int) -> dict[str, Split]:
    """Read and check a task once; return its splits, in memory where they fit."""
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
        # Only training items may be random; they are read twice to find out.
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
    """Return all labels [N] of a split of a `ready` task; None if they were not read yet."""
    if isinstance(split, tuple):
        return split[1]
    if isinstance(split, ImageSet):
        return torch.as_tensor(split.targets)
    return split.labels if isinstance(split, Items) else None


def _classes(task: Splits, labels: dict[str, Tensor]) -> tuple[tuple[str, ...] | None, int]:
    """Return the class names, if known, and the number of classes."""
    if task.class_names is not None:
        return task.class_names, len(task.class_names)
    where = f"task {task.name!r}"
    reported = {
        split: names_of(data.data if isinstance(data, Items) else data, labels[split])
        for split in SPLITS
        if not isinstance(data := task.split(split), tuple)
    }
    names = common_names(reported, where)
    fits = names is not None and all(int(y.max()) < len(names) for y in labels.values())
    if names is not None and fits and task.classes in (None, len(names)):
        return names, len(names)
    if task.classes is not None:
        return None, task.classes
    return None, check_numbering(labels, where)


def _unseen(labels: dict[str, Tensor]) -> dict[str, list[int]]:
    """Return the classes of each split that the train split lacks."""
    seen = set(labels["train"].unique().tolist())
    return {
        split: missing
        for split in SPLITS[1:]
        if (missing := sorted(set(labels[split].unique().tolist()) - seen))
    }
