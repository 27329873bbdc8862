"""One task of a stream: three splits of (x, y), checked once when the task is made."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from ..errors import DataError
from .contents import task_data
from .fingerprint import TaskData
from .inputs import SPLITS, Split, as_input, check_finite, name_of
from .items import Items, Sample
from .labels import as_labels, check_numbering


@dataclass(frozen=True, eq=False)
class Task:
    """A classification task: a name and the splits it is trained, pruned and tested on.

    Arguments:
        name: what tables and plots call the task.
        train, validation, test: either `(x, y)` or a `torch.utils.data.Dataset` with a length whose
            items are `(x, y)`. x is [N, ...] float32, float64 or bfloat16, finite, the same sample
            shape and dtype in every split; y is [N], integer class labels from 0 without gaps.
            Tensors and numpy arrays are taken without a copy (labels become int64); a
            `TensorDataset` is unwrapped.
        classes: number of classes; labels may then have gaps. None takes the number of
            `class_names`, or else the number of classes that the labels show.
        class_names: one for every class, in the order of the labels. None takes those that the
            data sets tell (attribute `classes`), if their items agree with them.
        num_workers: processes that read the items of Datasets ahead. Results are the same with any
            number. (An `ImageSet` makes its batches itself.)
        cache_bytes: items of Datasets are kept in memory while a task is learned where they fit
            into so many bytes: validation first, then test, then train.
        fixed_items: whether the training items of a Dataset are the same in every reading. None
            reads them twice to find out. Validation and test items are meant to be: they are drawn
            once where they are kept.

    A list of tasks is a stream: whatever takes a stream takes `[Task(...), Task(...)]`.

    The items of Datasets are checked, all of them, before anything is trained on the task.

    Raises:
        DataError: a split that is empty or of the wrong rank, length, dtype or label range, or with
            NaN or Inf in x; class names that are no distinct strings, or of another number.
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
            raise DataError(f"name: got {self.name!r}, wanted a non-empty string")
        if self.classes is not None and not _is_count(self.classes, 1):
            raise DataError(f"classes: got {self.classes!r}, wanted a positive int or None")
        self._check_names()
        for name in ("num_workers", "cache_bytes"):
            value = getattr(self, name)
            if not _is_count(value, 0):
                raise DataError(f"{name}: got {value!r}, wanted an int of at least 0")
        if self.fixed_items not in (None, True, False):
            raise DataError(f"fixed_items: got {self.fixed_items!r}, wanted True, False or None")
        self._samples: dict[str, Sample]
        self._data: TaskData | None
        self._unseen: dict[str, list[int]]
        object.__setattr__(self, "_samples", {})
        object.__setattr__(self, "_data", None)
        object.__setattr__(self, "_unseen", {})
        given = [_labels_of(getattr(self, split)) for split in SPLITS]
        for split in SPLITS:
            data, sample = _checked_split(getattr(self, split), self.where(split))
            object.__setattr__(self, split, data)
            self._samples[split] = sample
        self._check_agreement(given)

    def where(self, split: str) -> str:
        """The name of a split in errors."""
        return f"task {self.name!r}, {split}"

    def tensors(self, split: str) -> tuple[Tensor, Tensor] | None:
        """(x [N, ...], y [N] int64) of a split, or None where the split is a Dataset that makes its
        items when asked.

        Raises:
            DataError: `split` is none of "train", "validation", "test".
        """
        data = self.split(split)
        return data if isinstance(data, tuple) else None

    def split(self, split: str) -> Split:
        """The split of that name, tensors or Dataset. Raises DataError for another name."""
        if split not in SPLITS:
            raise DataError(f"split: got {split!r}, wanted one of {', '.join(SPLITS)}")
        data: Split = getattr(self, split)
        return data

    def size(self, split: str) -> int:
        """Number of samples in a split."""
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
        """`classes`, or else the number of `class_names`, or else of the classes that the labels of
        all splits show. Datasets are read for that, once.

        Raises:
            DataError: an item of a Dataset is no good; labels do not start at 0, or have gaps.
        """
        if self.classes is not None:
            return self.classes

        return task_data(self).classes

    def items(self, split: str) -> Items:
        """A Dataset split as data that is checked when it is read, with the task's workers."""
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
            raise DataError(f"class_names: got {names!r}, wanted distinct non-empty strings")
        if self.classes is not None and self.classes != len(names):
            raise DataError(
                f"class_names: got {len(names)} names for classes={self.classes}, wanted one each"
            )
        object.__setattr__(self, "class_names", tuple(names))
        object.__setattr__(self, "classes", len(names))

    def _check_agreement(self, given: Sequence[Any]) -> None:
        shape, dtype = self._samples["train"]
        for split in SPLITS[1:]:
            got = self._samples[split]
            if got != (shape, dtype):
                raise DataError(
                    f"{self.where(split)}: samples are {list(got[0])} {name_of(got[1])}, wanted "
                    f"{list(shape)} {name_of(dtype)} as in the train split"
                )
        labels = {
            split: data[1] for split in SPLITS if isinstance(data := self.split(split), tuple)
        }
        if self.classes is not None:
            for split, y in labels.items():
                self.check_range(split, y)
        elif len(labels) == len(SPLITS):
            code = "torch" if all(isinstance(y, Tensor) for y in given) else "numpy"
            check_numbering(labels, f"task {self.name!r}", code)

    def check_range(self, split: str, y: Tensor) -> None:
        """Raises DataError where a label of y [N] is not one of the task's `classes`."""
        if self.classes is not None and int(y.max()) >= self.classes:
            first = int((y >= self.classes).nonzero()[0])
            raise DataError(
                f"{self.where(split)}: label {int(y[first])} is outside classes={self.classes} "
                f"(index {first}); labels go from 0 to {self.classes - 1}"
            )


def _labels_of(data: Any) -> Any:
    """The y of an (x, y) as it came."""
    return data[1] if isinstance(data, (tuple, list)) and len(data) == 2 else None


def _checked_split(data: Any, where: str) -> tuple[Split, Sample]:
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, (tuple, list)):
        if len(data) != 2:
            raise DataError(f"{where}: got {len(data)} arrays, wanted two, (x, y)")
        x, y = _checked_tensors(data[0], data[1], where)
        return (x, y), (tuple(x.shape[1:]), x.dtype)
    if isinstance(data, Dataset):
        return data, _first_item(data, where)
    raise DataError(f"{where}: got {type(data).__name__}, wanted (x, y) or a torch Dataset")


def _checked_tensors(x: Any, y: Any, where: str) -> tuple[Tensor, Tensor]:
    x = as_input(x, f"{where} x")
    if x.ndim < 2:
        raise DataError(
            f"{where} x: got shape {list(x.shape)}, wanted [B, ...] with at least 2 dimensions"
        )
    if x.numel() == 0:
        raise DataError(f"{where} x: is empty, shape {list(x.shape)}; wanted at least one sample")
    device = getattr(y, "device", x.device)
    if x.device != device and isinstance(y, Tensor):
        raise DataError(
            f"{where}: x is on {x.device} and y on {device}, wanted one device; move with "
            "y.to(x.device)"
        )
    y = as_labels(y, f"{where} y")
    if len(x) != len(y):
        raise DataError(
            f"{where}: x has {len(x)} samples and y has {len(y)}, wanted the same number"
        )
    check_finite(x, f"{where} x")
    return x, y


def _first_item(data: Dataset[Any], where: str) -> Sample:
    """Shape and dtype of the first x, checked; the other items are read later."""
    if not isinstance(data, Sized):
        raise DataError(
            f"{where}: {type(data).__name__} has no length; wanted a Dataset with __len__ and "
            "__getitem__"
        )
    if len(data) == 0:
        raise DataError(f"{where}: {type(data).__name__} is empty; wanted at least one sample")
    x, _ = next(Items(data, where).batches([[0]]))
    if not x.numel():
        raise DataError(f"{where}: x of item 0 is empty, shape {list(x.shape)}")
    return tuple(x.shape[1:]), x.dtype


def _is_count(n: object, least: int) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and n >= least
