"""Tasks from array files (.npz, or folders of .npy) and tables (.csv)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..objectives.losses import Loss
from ..objectives.objective import loss_of
from ..objectives.shapes import CLASSES
from .images import Constants, Images, channel_constants, constants_for, held_out
from .inputs import Split, check_finite
from .labels import check_numbering
from .layout import SPLITS
from .names import listed, shown, task_names
from .streams import Stream
from .table import table_arrays
from .targets import as_targets, labels_of
from .task import Task

# Common names of the inputs and labels of a split, in any case; the words for splits are those of
# folders.
NAMES = (("{}_images", "{}_labels"), ("x_{}", "y_{}"), ("{}_x", "{}_y"))


class ArrayFiles(Stream):
    """A stream of array files, one per task: .npz files, folders of .npy files, or .csv tables.

    The arrays of a task are `x_train` [N, ...] and `y_train` [N], the same for `test` and,
    optionally, for `validation` (or val). `train_x`, or `train_images` with `train_labels`, work
    too. Without a validation split, a fraction of every class of the training split is set aside.
    An optional array `class_names` [C] of strings names the classes in the order of the labels.

    A table has the names of its columns in the first row. The column "split" says train, validation
    or test; y, or y_NAME for several, are the targets; all others are inputs.

    uint8 arrays are images, [N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels; they stay
    bytes until a batch is made. Other numbers become float32 without scaling.

    Arguments:
        paths: one per task. The task is named after it, preceded by its folder if two are equal.
        seed: draws the validation split.
        validation: fraction set aside.
        loss: says what the labels are, as in `clnp.data.Task`: with "bce" y is [N, K] of 0 and 1,
            with "mse", "l1" or "huber" [N] or [N, K] numbers. None: classes.
        normalise, augment: for images, see `clnp.data.SplitCIFAR`; "constants" are those of all
            training images of the first task, the same for every task.

    Raises:
        DataError: no file, a missing file, or the same file twice; on access to a task, arrays
            that are missing or invalid.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        seed: int = 0,
        validation: float = 0.1,
        normalise: Any = "constants",
        augment: bool = False,
        loss: Any = None,
    ) -> None:
        self.paths = [Path(path) for path in paths]
        if not self.paths:
            raise DataError("paths: expected one file per task, got none")
        for path in self.paths:
            if not os.path.exists(path):
                raise DataError(f"{shown(path)}: no such file")
        self.names = task_names(self.paths, stems=True)
        self.seed, self.validation = seed, validation
        self.normalise, self.augment = normalise, augment
        self.loss = None if loss is None else loss_of(loss)
        self._constants: Constants | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def task(self, index: int) -> Task:
        """Make task `index`; raises DataError if its arrays are missing or invalid."""
        name = self.names[index]
        splits, class_names = _read(self.paths[index], self.loss)
        train, kind = splits["train"][0], CLASSES if self.loss is None else self.loss.targets
        if train.dtype == torch.uint8:
            constants = self._image_constants(train)
        if "validation" not in splits:
            x, y = splits["train"]
            alike = (
                y if kind == CLASSES and y.dim() == 1 else torch.zeros(len(y), dtype=torch.int64)
            )
            kept, aside = held_out(alike, self.validation, (self.seed, index))
            splits["train"], splits["validation"] = (x[kept], y[kept]), (x[aside], y[aside])
        classes = None
        if class_names is None and kind == CLASSES:
            labels = {split: labels_of(y, self.loss) for split, (_, y) in splits.items()}
            classes = check_numbering(labels, shown(self.paths[index]), "numpy", keep=False)
        if train.dtype != torch.uint8:
            return self._task(name, splits, classes, class_names)
        if splits["train"][1].dim() > 1 or kind != CLASSES:
            raise DataError(
                f"{shown(self.paths[index])}: expected one class for each image of uint8, got y "
                f"{list(splits['train'][1].shape)} for loss {self.loss!r}; use float32 images"
            )
        images = {
            split: Images(x, y, constants, augment=self.augment and split == "train")
            for split, (x, y) in splits.items()
        }
        return self._task(name, images, classes, class_names)

    def _task(
        self,
        name: str,
        splits: Mapping[str, Split],
        classes: int | None,
        names: tuple[str, ...] | None,
    ) -> Task:
        train, validation, test = (splits[split] for split in ("train", "validation", "test"))
        return Task(name, train, validation, test, classes, names, loss=self.loss)

    def _image_constants(self, images: Tensor) -> Constants:
        if self.normalise != "constants":
            return constants_for(self.normalise, "cifar10", images)
        if self._constants is None:
            first = read_splits(self.paths[0])["train"][0]
            if first.dtype != torch.uint8:
                raise DataError(
                    f"{shown(self.paths[0])}: expected images (uint8), as in a later task of the "
                    "stream, got other numbers; use one kind for all tasks"
                )
            self._constants = channel_constants(first)
        return self._constants


Splits = dict[str, tuple[Tensor, Tensor]]


def read_splits(path: Path) -> Splits:
    """Read the splits of an .npz file or a folder of .npy files.

    Returns:
        {"train", "test" and perhaps "validation": (x, y [N] int64)}; x is [N, C, H, W] uint8 for
        images, or else float32.

    Raises:
        DataError: a file can't be read; arrays are missing, ambiguous, or don't fit together.
    """
    return _read(path)[0]


def _read(path: Path, loss: Loss | None = None) -> tuple[Splits, tuple[str, ...] | None]:
    is_table = path.suffix.lower() == ".csv" and not path.is_dir()
    arrays = _Table(path, loss) if is_table else _Arrays(path)
    splits: Splits = {}
    for split, words in SPLITS.items():
        pairs = [(x.format(word), y.format(word)) for x, y in NAMES for word in words]
        present = [pair for pair in pairs if any(map(arrays.has, pair))]
        if len(present) > 1:
            raise DataError(
                f"{shown(path)}: expected one pair of arrays for the {split} split, got "
                f"{listed(n for p in present for n in p if arrays.has(n))}"
            )
        for pair in present:
            x, y = (arrays.read(name, f"the {split} split") for name in pair)
            splits[split] = _checked(x, y, loss, f"{shown(path)}, {split}")
    for split in ("train", "test"):
        if split not in splits:
            known = ", ".join(f"{x} and {y}".format(split, split) for x, y in NAMES)
            raise DataError(
                f"{shown(path)}: expected a {split} split ({known}), got {arrays.found()}"
            )
    if loss is None:
        _check_unseen(splits, path)
    names = _class_names(arrays, path) if arrays.has("class_names") else None
    if names is None or loss is not None:
        return splits, names
    most = max(int(y.max()) for _, y in splits.values())
    if most >= len(names):
        raise DataError(
            f"{shown(path)}: expected labels below {len(names)}, the number of class_names, got "
            f"{most}"
        )
    return splits, names


def _check_unseen(splits: Splits, path: Path) -> None:
    known = set(splits["train"][1].unique().tolist())
    for split, (_, y) in splits.items():
        unseen = sorted(set(y.unique().tolist()) - known)
        if unseen:
            raise DataError(
                f"{shown(path)}, {split}: expected labels of the training split, got "
                f"{listed(map(str, unseen))}"
            )


def _class_names(arrays: _Arrays, path: Path) -> tuple[str, ...]:
    names = arrays.read("class_names")
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise DataError(
            f"{shown(path)}: class_names: expected [C] strings, got {list(names.shape)} "
            f"{names.dtype}"
        )
    texts = tuple(
        shown(os.fsdecode(name) if isinstance(name, bytes) else name) for name in names.tolist()
    )
    if len(set(texts)) != len(texts) or "" in texts:
        raise DataError(
            f"{shown(path)}: class_names: expected distinct non-empty names, got {listed(texts)}"
        )
    return texts


class _Arrays:
    """Arrays of a file or folder by name, in any case; each is read on access."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: dict[str, str] = {}
        for name in sorted(self._listed()):
            other = self.names.setdefault(name.lower(), name)
            if other != name:
                raise DataError(
                    f"{shown(path)}: expected one array of that name, got {shown(other)} and "
                    f"{shown(name)}; keep one"
                )

    def _listed(self) -> list[str]:
        with _reading(self.path):
            if self.path.is_dir():
                return [file.stem for file in self.path.iterdir() if file.suffix == ".npy"]
            with open(self.path, "rb") as stream:
                loaded = np.load(stream, allow_pickle=False)
                if isinstance(loaded, np.ndarray):
                    raise ValueError("expected an .npz file or a folder, got a single array")
                return list(loaded.files)

    def has(self, name: str) -> bool:
        return name in self.names

    def read(self, name: str, what: str = "") -> np.ndarray:
        """Read an array of `what`; raises DataError if it is missing or can't be read."""
        if name not in self.names:
            raise DataError(f"{shown(self.path)}: expected {name} for {what}, got {self.found()}")
        own = self.names[name]
        file = self.path / f"{own}.npy" if self.path.is_dir() else self.path
        # numpy doesn't close damaged files that it opened itself.
        with _reading(file, own), open(file, "rb") as stream:
            loaded: Any = np.load(stream, allow_pickle=False)
            array = loaded if isinstance(loaded, np.ndarray) else loaded[own]
        if not isinstance(array, np.ndarray):
            raise DataError(f"{shown(file)}: {shown(own)} can't be read as an array")
        return array

    def found(self) -> str:
        """Names of all arrays, for errors."""
        return listed(self.names.values(), 12) or "no arrays"


class _Table(_Arrays):
    """Arrays of a table; it is read at once."""

    def __init__(self, path: Path, loss: Loss | None) -> None:
        whole = loss is None or loss.targets == CLASSES
        self.arrays = table_arrays(path, whole)
        super().__init__(path)

    def _listed(self) -> list[str]:
        return list(self.arrays)

    def read(self, name: str, what: str = "") -> np.ndarray:
        if name not in self.arrays:
            raise DataError(f"{shown(self.path)}: expected {name} for {what}, got {self.found()}")
        return self.arrays[name]


@contextlib.contextmanager
def _reading(file: Path, name: str = "") -> Iterator[None]:
    try:
        yield
    except Exception as error:  # zip, zlib, numpy and the system raise different types
        what = f"{shown(file)}, {shown(name)}" if name else shown(file)
        text = shown(str(error) or type(error).__name__)
        raise DataError(f"{what}: can't be read as arrays ({text})") from error


def _checked(x: np.ndarray, y: np.ndarray, loss: Loss | None, where: str) -> tuple[Tensor, Tensor]:
    if x.ndim < 2 or y.shape[:1] != (len(x),) or not len(x):
        raise DataError(
            f"{where}: expected x [N, ...] and y [N], got {list(x.shape)} and {list(y.shape)}"
        )
    if y.dtype == np.float64 and loss is not None:
        y = y.astype(np.float32)
    labels = as_targets(y, loss, f"{where} y")
    if x.dtype != np.uint8:
        if x.dtype.kind not in "fiu":
            raise DataError(f"{where} x: expected numbers, got {x.dtype}")
        with np.errstate(over="ignore"):
            numbers = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
        # Check before the validation split is drawn, so that errors name rows of the file.
        check_finite(numbers, f"{where} x (as float32)")
        return numbers, labels
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] in (1, 3):
        raise DataError(
            f"{where} x: expected images of unambiguous layout, got {list(x.shape)} uint8, which "
            "could be [N, C, H, W] or [N, H, W, C]; use float32, which is not rearranged"
        )
    elif x.ndim == 4 and x.shape[1] not in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise DataError(
            f"{where} x: expected images [N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 "
            f"channels, got {list(x.shape)} uint8; use float32 for other numbers"
        )
    return torch.from_numpy(np.ascontiguousarray(x)), labels
