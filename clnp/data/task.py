"""A task of a stream: three splits of (x, y), checked once at construction, and their contents."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from ..errors import DataError
from ..files.checkpoint import dtype_name
from .fingerprint import TaskData
from .images import ImageSet
from .inputs import SPLITS, Split, as_input, check_finite, check_int
from .items import Items, Sample
from .labels import as_labels, check_numbering
from .scan import Scan, common_names, names_of, scan_items, scan_tensors

# Splits in the order in which they are kept in memory: validation items are read most often.
BY_WORTH = ("validation", "test", "train")


@dataclass(frozen=True, eq=False)
class Task:
    """A classification task: a name, and splits for training, pruning and testing.

    A list of tasks is a stream: every function of a stream accepts `[Task(...), Task(...)]`. All
    items of Datasets are checked before the task is trained.

    Arguments:
        name: name in tables and plots.
        train, validation, test: `(x, y)`, or a `torch.utils.data.Dataset` with a length and items
            `(x, y)`. x is [N, ...] float32, float64 or bfloat16, finite, with the same sample shape
            and dtype in every split; y is [N], integer class labels from 0 without gaps. Tensors
            and numpy arrays are not copied (labels become int64); a `TensorDataset` is unwrapped.
        classes: number of classes; labels may then have gaps. None uses the number of
            `class_names`, or else the number of different labels.
        class_names: one per class, in the order of the labels. None uses the attribute `classes` of
            the data sets, if their items agree with it.
        num_workers: processes that read items of Datasets ahead, without effect on results. (An
            `ImageSet` makes its batches itself.)
        cache_bytes: memory for the items of Datasets while a task is learned; a split is kept if it
            fits, first validation, then test, then train.
        fixed_items: whether the training items of a Dataset are the same in every pass. None reads
            them twice to find out. Validation and test items should be; kept ones are drawn once.

    Raises:
        DataError: a split is empty, has the wrong rank, length, dtype or label range, or NaN or Inf
            in x; class names are not distinct strings, or of another number than `classes`.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int | None = None
    class_names: tuple[str, ...] | None = None
    num_workers: int = 0
    cache_bytes: int = 1 << 30
    fixed_items: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise DataError(f"name: expected a non-empty string, got {self.name!r}")
        if self.classes is not None:
            check_int("classes", self.classes, 1)
        self._check_names()
        for name in ("num_workers", "cache_bytes"):
            check_int(name, getattr(self, name), 0)
        if self.fixed_items not in (None, True, False):
            raise DataError(f"fixed_items: expected True, False or None, got {self.fixed_items!r}")
        self._samples: dict[str, Sample]
        self._data: TaskData | None
        self._unseen: dict[str, list[int]]
        object.__setattr__(self, "_samples", {})
        object.__setattr__(self, "_data", None)
        object.__setattr__(self, "_unseen", {})
        labels = [_labels_of(getattr(self, split)) for split in SPLITS]
        for split in SPLITS:
            data, sample = _checked_split(getattr(self, split), self.where(split))
            object.__setattr__(self, split, data)
            self._samples[split] = sample
        self._check_agreement(labels)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split}={self.size(split)}" for split in SPLITS)
        shape = list(self.sample_shape)
        classes = "" if self.classes is None else f", classes={self.classes}"
        return f"Task({self.name!r}, {sizes}, x={shape} {dtype_name(self.dtype)}{classes})"

    def where(self, split: str) -> str:
        """Name a split in errors."""
        return f"task {self.name!r}, {split}"

    def tensors(self, split: str) -> tuple[Tensor, Tensor] | None:
        """Return (x [N, ...], y [N] int64) of a split, or None if the split is a Dataset.

        Raises:
            DataError: `split` is none of "train", "validation", "test".
        """
        data = self.split(split)
        return data if isinstance(data, tuple) else None

    def split(self, split: str) -> Split:
        """Return a split by its name, tensors or Dataset.

        Raises:
            DataError: `split` is none of "train", "validation", "test".
        """
        if split not in SPLITS:
            raise DataError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
        data: Split = getattr(self, split)
        return data

    def size(self, split: str) -> int:
        """Return the number of samples in a split."""
        data = self.split(split)
        return len(data[1]) if isinstance(data, tuple) else len(data)  # type: ignore[arg-type]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one x, without the batch."""
        return self._samples["train"][0]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of x."""
        return self._samples["train"][1]

    @property
    def num_classes(self) -> int:
        """`classes` if given, or else the number of different labels in all splits.

        The latter reads every Dataset once.

        Raises:
            DataError: an item of a Dataset is invalid; labels don't start at 0, or have gaps.
        """
        return self.classes if self.classes is not None else task_data(self).classes

    def items(self, split: str) -> Items:
        """Return a Dataset split as `Items`, which checks every read, with the task's workers."""
        data = self.split(split)
        assert not isinstance(data, tuple)
        if isinstance(data, Items):
            return data
        return Items(data, self.where(split), self.num_workers, self._samples[split])

    def _check_names(self) -> None:
        names = self.class_names
        if names is None:
            return
        if (
            isinstance(names, str)
            or not isinstance(names, Sequence)
            or not names
            or not all(isinstance(name, str) and name for name in names)
            or len(set(names)) < len(names)
        ):
            raise DataError(f"class_names: expected distinct non-empty strings, got {names!r}")
        if self.classes is not None and self.classes != len(names):
            raise DataError(
                f"class_names: expected one per class, classes={self.classes}, got {len(names)}"
            )
        object.__setattr__(self, "class_names", tuple(names))
        object.__setattr__(self, "classes", len(names))

    def _check_agreement(self, given_labels: Sequence[Any]) -> None:
        shape, dtype = self._samples["train"]
        for split in SPLITS[1:]:
            got = self._samples[split]
            if got != (shape, dtype):
                raise DataError(
                    f"{self.where(split)}: expected samples {list(shape)} {dtype_name(dtype)} as "
                    f"in the train split, got {list(got[0])} {dtype_name(got[1])}"
                )
        labels = {
            split: data[1] for split in SPLITS if isinstance(data := self.split(split), tuple)
        }
        if self.classes is not None:
            for split, y in labels.items():
                self.check_range(split, y)
        elif len(labels) == len(SPLITS):
            code = "torch" if all(isinstance(y, Tensor) for y in given_labels) else "numpy"
            check_numbering(labels, f"task {self.name!r}", code)

    def check_range(self, split: str, y: Tensor) -> None:
        """Raise DataError if a label of y [N] is not below the task's `classes`."""
        if self.classes is not None and int(y.max()) >= self.classes:
            first = int((y >= self.classes).nonzero()[0])
            raise DataError(
                f"{self.where(split)}: expected labels from 0 to {self.classes - 1}, since "
                f"classes={self.classes}, got {int(y[first])} at index {first}"
            )


def task_data(task: Task) -> TaskData:
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


def read_splits(task: Task, keep_bytes: int) -> dict[str, Split]:
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


def _classes(task: Task, labels: dict[str, Tensor]) -> tuple[tuple[str, ...] | None, int]:
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


def _labels_of(data: Any) -> Any:
    return data[1] if isinstance(data, (tuple, list)) and len(data) == 2 else None


def _checked_split(data: Any, where: str) -> tuple[Split, Sample]:
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, (tuple, list)):
        if len(data) != 2:
            raise DataError(f"{where}: expected two arrays, (x, y), got {len(data)}")
        x, y = _checked_tensors(data[0], data[1], where)
        return (x, y), (tuple(x.shape[1:]), x.dtype)
    if isinstance(data, Dataset):
        return data, _first_item(data, where)
    raise DataError(f"{where}: expected (x, y) or a torch Dataset, got {type(data).__name__}")


def _checked_tensors(x: Any, y: Any, where: str) -> tuple[Tensor, Tensor]:
    x = as_input(x, f"{where} x")
    if x.ndim < 2:
        raise DataError(
            f"{where} x: expected [B, ...] with at least 2 dimensions, got shape {list(x.shape)}"
        )
    if x.numel() == 0:
        raise DataError(f"{where} x: expected at least one sample, got shape {list(x.shape)}")
    device = getattr(y, "device", x.device)
    if x.device != device and isinstance(y, Tensor):
        raise DataError(
            f"{where}: expected x and y on one device, got {x.device} and {device}; move with "
            "y.to(x.device)"
        )
    y = as_labels(y, f"{where} y")
    if len(x) != len(y):
        raise DataError(
            f"{where}: expected as many labels as samples, got {len(x)} in x and {len(y)} in y"
        )
    check_finite(x, f"{where} x")
    return x, y


def _first_item(data: Dataset[Any], where: str) -> Sample:
    """Check the first item and return the shape and dtype of its x; others are read later."""
    if not isinstance(data, Sized):
        raise DataError(
            f"{where}: expected a Dataset with __len__ and __getitem__, got "
            f"{type(data).__name__}, which has no length"
        )
    if len(data) == 0:
        raise DataError(
            f"{where}: expected at least one sample, got an empty {type(data).__name__}"
        )
    x, _ = next(Items(data, where).batches([[0]]))
    if not x.numel():
        raise DataError(f"{where}: x of item 0: expected values, got shape {list(x.shape)}")
    return tuple(x.shape[1:]), x.dtype
