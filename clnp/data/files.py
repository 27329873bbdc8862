"""Tasks from your own array files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clnp.data.images import Constants, Images, channel_constants, constants_for, held_out
from clnp.data.streams import Stream
from clnp.data.task import Task
from clnp.errors import DataError

# Names of the inputs and labels of a split, in the ways in which people write them.
NAMES = (("{}_images", "{}_labels"), ("x_{}", "y_{}"), ("{}_x", "{}_y"), ("X_{}", "y_{}"))
SPLITS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}


class ArrayFiles(Stream):
    """Your own arrays from files as a stream, one task each: .npz files, or folders of .npy files.

    A task's arrays are `x_train` [N, ...], `y_train` [N], the same for `test` and, if there are
    any, for `validation` (or val); `train_x`, or `train_images` with `train_labels`, do as well.
    Without a validation split, a fraction of every class of the training split is set aside.

    uint8 arrays are images, [N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels; they stay
    bytes until a batch is made. Other numbers become float32 as they are.

    Arguments:
        paths: one per task, which is named after it.
        seed: draws the validation split.
        validation: fraction that is set aside.
        normalise, augment: of images, see `clnp.data.SplitCIFAR`; "constants" are those of all
            training images of the first task, the same for every task.

    Raises:
        DataError: no file, or what a file lacks.
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
            if not path.exists():
                raise DataError(f"{path}: no such file")
        self.seed, self.validation = seed, validation
        self.normalise, self.augment = normalise, augment
        self._constants: Constants | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def task(self, index: int) -> Task:
        """Task `index`. Raises DataError where its arrays are no good."""
        path = self.paths[index]
        splits = read_splits(path)
        train = splits["train"][0]
        if train.dtype == torch.uint8:
            constants = self._image_constants(train)
        if "validation" not in splits:
            x, y = splits["train"]
            kept, aside = held_out(y, self.validation, (self.seed, index))
            splits["train"], splits["validation"] = (x[kept], y[kept]), (x[aside], y[aside])
        classes = 1 + max(int(y.max()) for _, y in splits.values())
        if train.dtype != torch.uint8:
            return Task(path.stem, **splits, classes=classes)
        images = {
            name: Images(x, y, constants, augment=self.augment and name == "train")
            for name, (x, y) in splits.items()
        }
        return Task(path.stem, **images, classes=classes)

    def _image_constants(self, images: Tensor) -> Constants:
        if self.normalise != "constants":
            return constants_for(self.normalise, "cifar10", images)
        if self._constants is None:
            self._constants = channel_constants(read_splits(self.paths[0])["train"][0])
        return self._constants


def read_splits(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """{"train", "test" and perhaps "validation": (x, y [N] int64)} of an .npz file or a folder of
    .npy files; x is [N, C, H, W] uint8 for images, or else float32.

    Raises:
        DataError: a file that can't be read, arrays that are missing or don't fit together.
    """
    arrays = _arrays(path)
    splits = {}
    for split, words in SPLITS.items():
        for x_name, y_name in ((x.format(w), y.format(w)) for x, y in NAMES for w in words):
            if x_name in arrays and y_name in arrays and split not in splits:
                where = f"{path}, {split}"
                splits[split] = _checked(arrays[x_name], arrays[y_name], where)
    for split in ("train", "test"):
        if split not in splits:
            known = ", ".join(f"{x} and {y}".format(split, split) for x, y in NAMES[:3])
            raise DataError(
                f"{path}: has no {split} split, wanted {known}; it has "
                f"{', '.join(sorted(arrays)) or 'no arrays'}"
            )
    return splits


def _arrays(path: Path) -> dict[str, np.ndarray]:
    files = {p.stem: p for p in path.glob("*.npy")} if path.is_dir() else {"": path}
    arrays: dict[str, np.ndarray] = {}
    for stem, file in files.items():
        try:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                arrays[stem] = loaded
                continue
            with loaded:
                arrays |= {key: loaded[key] for key in loaded.files}
        except Exception as error:  # zip, zlib, numpy and the system each have their own
            raise DataError(f"{file}: can't be read as arrays ({error})") from error
    return arrays


def _checked(x: np.ndarray, y: np.ndarray, where: str) -> tuple[Tensor, Tensor]:
    if x.ndim < 2 or y.shape != (len(x),) or not len(x):
        raise DataError(
            f"{where}: x is {list(x.shape)} and y {list(y.shape)}, wanted [N, ...] and [N]"
        )
    if y.dtype.kind not in "iu" or int(y.min()) < 0:
        raise DataError(f"{where}: labels are {y.dtype}, wanted integers from 0")
    labels = torch.from_numpy(y.astype(np.int64))
    if x.dtype != np.uint8:
        if x.dtype.kind not in "fiu":
            raise DataError(f"{where}: x is {x.dtype}, wanted numbers")
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)), labels
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[1] not in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise DataError(
            f"{where}: x is {list(x.shape)} uint8, wanted images [N, H, W], [N, H, W, C] or "
            "[N, C, H, W] with 1 or 3 channels; other numbers as float32"
        )
    return torch.from_numpy(np.ascontiguousarray(x)), labels
