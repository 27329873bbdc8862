"""Tasks from your own array files."""

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
from .images import Constants, Images, channel_constants, constants_for, held_out
from .inputs import Split, check_finite
from .labels import as_labels, check_numbering
from .layout import SPLITS
from .names import listed, shown, task_names
from .streams import Stream
from .task import Task

# Names of the inputs and labels of a split, in the ways in which people write them, in any case;
# the words for the splits are those of folders.
NAMES = (("{}_images", "{}_labels"), ("x_{}", "y_{}"), ("{}_x", "{}_y"))


class ArrayFiles(Stream):
    """Your own arrays from files as a stream, one task each: .npz files, or folders of .npy files.

    A task's arrays are `x_train` [N, ...], `y_train` [N], the same for `test` and, if there are
    any, for `validation` (or val); `train_x`, or `train_images` with `train_labels`, do as well.
    Without a validation split, a fraction of every class of the training split is set aside.
    `class_names` [C] of strings, if it is there, names the classes in the order of the labels.

    uint8 arrays are images, [N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels; they stay
    bytes until a batch is made. Other numbers become float32 as they are.

    Arguments:
        paths: one per task, which is named after it, with the folder's name before where two are
            alike.
        seed: draws the validation split.
        validation: fraction that is set aside.
        normalise, augment: of images, see `clnp.data.SplitCIFAR`; "constants" are those of all
            training images of the first task, the same for every task.

    Raises:
        DataError: no file, one that isn't there, or the same one twice; from a task, what its file
            lacks.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        seed: int = 0,
        validation: float = 0.1,
        normalise: Any = "constants",
        augment: bool = False,
    ) -> None:
        self.paths = [Path(path) for path in paths]
        if not self.paths:
            raise DataError("arrays: got no files, wanted one per task")
        for path in self.paths:
            if not os.path.exists(path):
                raise DataError(f"{shown(path)}: no such file")
        self.names = task_names(self.paths, stems=True)
        self.seed, self.validation = seed, validation
        self.normalise, self.augment = normalise, augment
        self._constants: Constants | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def task(self, index: int) -> Task:
        """Task `index`. Raises DataError where its arrays are no good."""
        name = self.names[index]
        splits, class_names = _read(self.paths[index])
        train = splits["train"][0]
        if train.dtype == torch.uint8:
            constants = self._image_constants(train)
        if "validation" not in splits:
            x, y = splits["train"]
            kept, aside = held_out(y, self.validation, (self.seed, index))
            splits["train"], splits["validation"] = (x[kept], y[kept]), (x[aside], y[aside])
        labels = {split: y for split, (_, y) in splits.items()}
        classes = (
            check_numbering(labels, shown(self.paths[index]), "numpy", keep=False)
            if class_names is None
            else len(class_names)
        )
        if train.dtype != torch.uint8:
            return self._task(name, splits, classes, class_names)
        images = {
            split: Images(x, y, constants, augment=self.augment and split == "train")
            for split, (x, y) in splits.items()
        }
        return self._task(name, images, classes, class_names)

    @staticmethod
    def _task(
        name: str, splits: Mapping[str, Split], classes: int, names: tuple[str, ...] | None
    ) -> Task:
        train, validation, test = (splits[split] for split in ("train", "validation", "test"))
        return Task(name, train, validation, test, classes, names)

    def _image_constants(self, images: Tensor) -> Constants:
        if self.normalise != "constants":
            return constants_for(self.normalise, "cifar10", images)
        if self._constants is None:
            first = read_splits(self.paths[0])["train"][0]
            if first.dtype != torch.uint8:
                raise DataError(
                    f"{shown(self.paths[0])}: holds no images (uint8), but a later task of the "
                    "stream does; wanted all tasks of one kind"
                )
            self._constants = channel_constants(first)
        return self._constants


Splits = dict[str, tuple[Tensor, Tensor]]


def read_splits(path: Path) -> Splits:
    """{"train", "test" and perhaps "validation": (x, y [N] int64)} of an .npz file or a folder of
    .npy files; x is [N, C, H, W] uint8 for images, or else float32.

    Raises:
        DataError: a file that can't be read, arrays that are missing, don't fit together, or could
            both be the same.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[Splits, tuple[str, ...] | None]:
    """(`read_splits`, the classes' names)."""
    arrays = _Arrays(path)
    splits: Splits = {}
    for split, words in SPLITS.items():
        pairs = [(x.format(word), y.format(word)) for x, y in NAMES for word in words]
        here = [pair for pair in pairs if any(map(arrays.has, pair))]
        if len(here) > 1:
            raise DataError(
                f"{shown(path)}: {listed(n for p in here for n in p if arrays.has(n))} could all "
                f"be the {split} split; keep one pair of arrays"
            )
        for pair in here:
            x, y = (arrays.read(name, f"the {split} split") for name in pair)
            splits[split] = _checked(x, y, f"{shown(path)}, {split}")
    for split in ("train", "test"):
        if split not in splits:
            known = ", ".join(f"{x} and {y}".format(split, split) for x, y in NAMES)
            raise DataError(f"{shown(path)}: has no {split} split, wanted {known}; {arrays.told()}")
    _check_unseen(splits, path)
    names = _class_names(arrays, path) if arrays.has("class_names") else None
    most = max(int(y.max()) for _, y in splits.values())
    if names is not None and most >= len(names):
        raise DataError(
            f"{shown(path)}: label {most} is outside class_names, which has {len(names)} names"
        )
    return splits, names


def _check_unseen(splits: Splits, path: Path) -> None:
    known = set(splits["train"][1].unique().tolist())
    for split, (_, y) in splits.items():
        unseen = sorted(set(y.unique().tolist()) - known)
        if unseen:
            raise DataError(
                f"{shown(path)}, {split}: has labels that the training split lacks: "
                f"{listed(map(str, unseen))}"
            )


def _class_names(arrays: _Arrays, path: Path) -> tuple[str, ...]:
    names = arrays.read("class_names")
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise DataError(
            f"{shown(path)}: class_names is {list(names.shape)} {names.dtype}, wanted [C] strings"
        )
    texts = tuple(
        shown(os.fsdecode(name) if isinstance(name, bytes) else name) for name in names.tolist()
    )
    if len(set(texts)) != len(texts) or "" in texts:
        raise DataError(f"{shown(path)}: class_names has empty or repeated names: {listed(texts)}")
    return texts


class _Arrays:
    """The arrays of a file or folder by their names, in any case; read when they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: dict[str, str] = {}
        for name in sorted(self._listed()):
            other = self.names.setdefault(name.lower(), name)
            if other != name:
                raise DataError(f"{shown(path)}: has {shown(other)} and {shown(name)}; keep one")

    def _listed(self) -> list[str]:
        with _reading(self.path):
            if self.path.is_dir():
                return [file.stem for file in self.path.iterdir() if file.suffix == ".npy"]
            with open(self.path, "rb") as stream:
                loaded = np.load(stream, allow_pickle=False)
                if isinstance(loaded, np.ndarray):
                    raise ValueError("it holds a single array, wanted an .npz file or a folder")
                return list(loaded.files)

    def has(self, name: str) -> bool:
        return name in self.names

    def read(self, name: str, what: str = "") -> np.ndarray:
        """An array, of `what`. Raises DataError where it isn't there or can't be read."""
        if name not in self.names:
            raise DataError(f"{shown(self.path)}: lacks {name} of {what}; {self.told()}")
        own = self.names[name]
        file = self.path / f"{own}.npy" if self.path.is_dir() else self.path
        # numpy leaves files open that it opens itself and that are damaged.
        with _reading(file, own), open(file, "rb") as stream:
            loaded: Any = np.load(stream, allow_pickle=False)
            array = loaded if isinstance(loaded, np.ndarray) else loaded[own]
        if not isinstance(array, np.ndarray):
            raise DataError(f"{shown(file)}: {shown(own)} can't be read as an array")
        return array

    def told(self) -> str:
        """ "it has x_train, ...", for errors."""
        return f"it has {listed(self.names.values(), 12) or 'no arrays'}"


@contextlib.contextmanager
def _reading(file: Path, name: str = "") -> Iterator[None]:
    try:
        yield
    except Exception as error:  # zip, zlib, numpy and the system each have their own
        what = f"{shown(file)}, {shown(name)}" if name else shown(file)
        text = shown(str(error) or type(error).__name__)
        raise DataError(f"{what}: can't be read as arrays ({text})") from error


def _checked(x: np.ndarray, y: np.ndarray, where: str) -> tuple[Tensor, Tensor]:
    if x.ndim < 2 or y.shape[:1] != (len(x),) or not len(x):
        raise DataError(
            f"{where}: x is {list(x.shape)} and y {list(y.shape)}, wanted [N, ...] and [N]"
        )
    labels = as_labels(y, f"{where} y")
    if x.dtype != np.uint8:
        if x.dtype.kind not in "fiu":
            raise DataError(f"{where}: x is {x.dtype}, wanted numbers")
        with np.errstate(over="ignore"):
            numbers = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
        # Here, where rows still have the numbers that they have in the file.
        check_finite(numbers, f"{where} x (as float32)")
        return numbers, labels
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] in (1, 3):
        raise DataError(
            f"{where}: x is {list(x.shape)} uint8, which could be [N, C, H, W] or [N, H, W, C]; "
            "give float32, which is taken as it is"
        )
    elif x.ndim == 4 and x.shape[1] not in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise DataError(
            f"{where}: x is {list(x.shape)} uint8, wanted images [N, H, W], [N, H, W, C] or "
            "[N, C, H, W] with 1 or 3 channels; other numbers as float32"
        )
    return torch.from_numpy(np.ascontiguousarray(x)), labels
