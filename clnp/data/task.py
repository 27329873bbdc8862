"""One task of a stream: three splits of (x, y), checked once when the task is made."""

from __future__ import annotations

import warnings
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from clnp.errors import DataError

Split: TypeAlias = "tuple[Tensor, Tensor] | Dataset[Any]"

SPLITS = ("train", "validation", "test")
FLOATS = (torch.float32, torch.float64, torch.bfloat16)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Rows of the finiteness check are taken in pieces of about this many elements, so that it needs no
# second copy of x.
PIECE = 1 << 20


@dataclass(frozen=True, eq=False)
class Task:
    """A classification task: a name and the splits it is trained, pruned and tested on.

    Arguments:
        name: what tables and plots call the task.
        train, validation, test: either `(x, y)` or a `torch.utils.data.Dataset` with a length whose
            items are `(x, y)`. x is [B, ...] float32, float64 or bfloat16, finite, the same sample
            shape and dtype in every split; y is [B], integer class labels from 0. Tensors and numpy
            arrays are taken without a copy (labels become int64); a `TensorDataset` is unwrapped.
        classes: number of classes; None takes the largest label + 1.
        class_names: one for every class, in the order of the labels.

    A list of tasks is a stream: whatever takes a stream takes `[Task(...), Task(...)]`.

    Raises:
        DataError: a split that is empty or of the wrong rank, length, dtype or label range, or with
            NaN or Inf in x.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise DataError(f"name: got {self.name!r}, wanted a non-empty string")
        if self.classes is not None and not _is_count(self.classes):
            raise DataError(f"classes: got {self.classes!r}, wanted a positive int or None")
        for split in SPLITS:
            where = f"task {self.name!r}, {split}"
            object.__setattr__(self, split, _checked_split(getattr(self, split), where))
        self._check_agreement()

    def tensors(self, split: str) -> tuple[Tensor, Tensor] | None:
        """(x [B, ...], y [B] int64) of a split, or None where the split is a Dataset that makes its
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
        return len(data[1]) if isinstance(data, tuple) else _length(data)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one x, without the batch."""
        return _first(self.train)[0]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of x."""
        return _first(self.train)[1]

    @property
    def num_classes(self) -> int:
        """`classes`, or else the largest label of all splits + 1.

        Raises:
            DataError: a split is a Dataset that doesn't tell its labels (attribute `classes` or
                `targets`).
        """
        if self.classes is not None:
            return self.classes
        return max(_count_classes(getattr(self, s), f"task {self.name!r}, {s}") for s in SPLITS)

    def _check_agreement(self) -> None:
        shape, dtype = _first(self.train)
        for split in SPLITS[1:]:
            got = _first(getattr(self, split))
            if got != (shape, dtype):
                raise DataError(
                    f"task {self.name!r}, {split}: samples are {list(got[0])} {_name(got[1])}, "
                    "wanted "
                    f"{list(shape)} {_name(dtype)} as in the train split"
                )
        if self.classes is None:
            return
        for split in SPLITS:
            data = getattr(self, split)
            if isinstance(data, tuple) and int(data[1].max()) >= self.classes:
                raise DataError(
                    f"task {self.name!r}, {split}: label {int(data[1].max())} is outside "
                    f"classes={self.classes}; "
                    f"labels go from 0 to {self.classes - 1}"
                )


def _checked_split(data: Any, where: str) -> Split:
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, (tuple, list)):
        if len(data) != 2:
            raise DataError(f"{where}: got {len(data)} arrays, wanted two, (x, y)")
        return _checked_tensors(data[0], data[1], where)
    if isinstance(data, Dataset):
        return _checked_dataset(data, where)
    raise DataError(f"{where}: got {type(data).__name__}, wanted (x, y) or a torch Dataset")


def _checked_tensors(x: Any, y: Any, where: str) -> tuple[Tensor, Tensor]:
    x, y = _tensor(x, f"{where} x"), _tensor(y, f"{where} y")
    _check_dtype(x, f"{where} x")
    if x.ndim < 2:
        raise DataError(
            f"{where} x: got shape {list(x.shape)}, wanted [B, ...] with at least 2 dimensions"
        )
    if y.ndim != 1:
        raise DataError(
            f"{where} y: got shape {list(y.shape)}, wanted [B] class labels; one-hot rows: "
            "y.argmax(1)"
        )
    if y.dtype not in INTEGERS:
        raise DataError(
            f"{where} y: got {_name(y.dtype)}, wanted integer labels (int64); convert with y.long()"
        )
    if len(x) != len(y):
        raise DataError(
            f"{where}: x has {len(x)} samples and y has {len(y)}, wanted the same number"
        )
    if x.device != y.device:
        raise DataError(
            f"{where}: x is on {x.device} and y on {y.device}, wanted one device; move with "
            "y.to(x.device)"
        )
    if x.numel() == 0:
        raise DataError(f"{where} x: is empty, shape {list(x.shape)}; wanted at least one sample")
    if int(y.min()) < 0:
        first = int((y < 0).nonzero()[0])
        raise DataError(f"{where} y: label {int(y[first])} at index {first}, wanted labels from 0")
    _check_finite(x, f"{where} x")
    return x, y.long()


def _checked_dataset(data: Dataset[Any], where: str) -> Dataset[Any]:
    if not isinstance(data, Sized):
        raise DataError(
            f"{where}: {type(data).__name__} has no length; wanted a Dataset with __len__ and "
            "__getitem__"
        )
    if len(data) == 0:
        raise DataError(f"{where}: {type(data).__name__} is empty; wanted at least one sample")
    item = data[0]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise DataError(f"{where}: item 0 is a {type(item).__name__}, wanted (x, y)")
    x, y = item
    if not isinstance(x, (Tensor, np.ndarray)):
        raise DataError(
            f"{where}: x of item 0 is a {type(x).__name__}, wanted a tensor; give the Dataset a "
            "transform such as "
            "torchvision.transforms.ToTensor()"
        )
    x = _tensor(x, f"{where} x of item 0")
    _check_dtype(x, f"{where} x of item 0")
    _check_finite(x[None], f"{where} x of item 0")
    if _label(y) is None:
        raise DataError(f"{where}: y of item 0 is {y!r}, wanted one integer class label from 0")
    return data


def _tensor(array: Any, where: str) -> Tensor:
    if isinstance(array, Tensor):
        return array.detach()
    if not isinstance(array, np.ndarray):
        raise DataError(
            f"{where}: got {type(array).__name__}, wanted a torch tensor or a numpy array"
        )
    # torch refuses negative strides and foreign byte order; only such arrays are copied.
    if any(stride < 0 for stride in array.strides) or not array.dtype.isnative:
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    try:
        with warnings.catch_warnings():
            # Read-only arrays (memory maps, npz) are fine: nothing here writes to the data.
            warnings.filterwarnings("ignore", message=".*not writable.*")
            return torch.from_numpy(array)
    except TypeError:
        raise DataError(
            f"{where}: got numpy dtype {array.dtype}, wanted float32, float64 or integers"
        ) from None


def _check_dtype(x: Tensor, where: str) -> None:
    if x.dtype in FLOATS:
        return
    way_out = (
        "x.float() / 255 turns images into pixels in [0, 1]"
        if x.dtype == torch.uint8
        else "convert with x.float()"
    )
    raise DataError(
        f"{where}: got {_name(x.dtype)}, wanted {', '.join(map(_name, FLOATS))}; {way_out}"
    )


def _check_finite(x: Tensor, where: str) -> None:
    rows = max(1, PIECE // max(1, x[0].numel()))
    for start in range(0, len(x), rows):
        finite = torch.isfinite(x[start : start + rows])
        if not bool(finite.all()):
            index = (~finite).nonzero()[0].tolist()
            index[0] += start
            raise DataError(
                f"{where}: {float(x[tuple(index)])} at index {index}, wanted finite numbers"
            )


def _first(data: Split) -> tuple[tuple[int, ...], torch.dtype]:
    """Sample shape and dtype of a split that was checked before."""
    x = data[0][0] if isinstance(data, tuple) else _tensor(data[0][0], "x of item 0")
    return tuple(x.shape), x.dtype


def _count_classes(data: Split, where: str) -> int:
    if isinstance(data, tuple):
        return int(data[1].max()) + 1
    names = getattr(data, "classes", None)
    if isinstance(names, Sized) and len(names):
        return len(names)
    targets = getattr(data, "targets", None)
    if targets is not None and len(targets):
        return int(torch.as_tensor(targets).max()) + 1
    raise DataError(
        f"{where}: {type(data).__name__} doesn't tell its labels; give Task the argument classes="
    )


def _label(y: Any) -> int | None:
    if isinstance(y, bool) or (
        isinstance(y, (Tensor, np.ndarray)) and (y.ndim != 0 or "int" not in str(y.dtype))
    ):
        return None
    if not isinstance(y, (int, np.integer, Tensor, np.ndarray)) or int(y) < 0:
        return None
    return int(y)


def _length(data: Dataset[Any]) -> int:
    return len(data)  # type: ignore[arg-type]


def _is_count(n: object) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and n > 0


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
