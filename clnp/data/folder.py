"""Folders of image files as tasks, with one sub-folder per class (torchvision's ImageFolder)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .found import Found, common_range, common_side, look_into
from .images import Constants, ImageSet, constants_for, held_out
from .inputs import check_int
from .layout import Item, Layout
from .names import shown, task_names
from .pictures import MODES, Range, by_threads, read_image, stored_side
from .streams import Stream
from .task import Task

__all__ = ["Folders", "Found", "ImageFiles", "folder_task", "look_into", "read_image"]

CACHE_BYTES = 1 << 29


class ImageFiles(ImageSet):
    """Image files, read by threads on access and then kept as bytes.

    An image is rotated as its EXIF data say and cropped to its middle square. The square is scaled
    to a side of `stored_side(image_size)` pixels, which `ImageSet` crops to `image_size`.

    Arguments:
        items: (path, label) pairs.
        constants, augment: as in `ImageSet`.
        image_size: side of x [C, image_size, image_size].
        channels: 3 or 1.
        convert: accept other files than RGB, grey and palette images: transparent ones are laid on
            white, CMYK is converted, and values of more than 8 bits are scaled.
        value_range: (black, white) of values of more than 8 bits; required if there are some.
        workers: threads that read files.
        cache_bytes: memory for the images; they are kept after reading if all of them fit.
    """

    def __init__(
        self,
        items: Sequence[Item],
        constants: Constants,
        *,
        image_size: int,
        channels: int = 3,
        augment: bool = False,
        convert: bool = False,
        value_range: Range | None = None,
        workers: int = 2,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        labels = torch.tensor([label for _, label in items], dtype=torch.int64)
        super().__init__(labels, constants, size=(image_size, image_size), augment=augment)
        self.paths = [path for path, _ in items]
        how: dict[str, Any] = {"channels": channels, "convert": convert, "value_range": value_range}
        self._read_image = partial(read_image, image_size=image_size, **how)
        self.workers = workers
        side = stored_side(image_size)
        shape = (len(items), channels, side, side)
        fits = int(np.prod(shape, dtype=np.int64)) <= cache_bytes
        self._kept = torch.empty(shape, dtype=torch.uint8) if fits else None
        self._known = torch.zeros(len(items), dtype=torch.bool)

    def pixels(self, rows: Tensor) -> Tensor:
        """Return the images of some rows, from memory or from their files.

        Raises:
            DataError: a file can't be read, naming it.
        """
        if self._kept is None:
            return self._read(rows.tolist())
        new = rows[~self._known[rows]].unique()
        if len(new):
            self._kept[new] = self._read(new.tolist())
            self._known[new] = True
        return self._kept[rows]

    def _read(self, rows: Sequence[int]) -> Tensor:
        paths = [self.paths[row] for row in rows]
        return torch.stack(by_threads(self._read_image, paths, self.workers))


def folder_task(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    image_size: int | None = None,
    seed: int = 0,
    validation: float = 0.1,
    test: float = 0.2,
    normalise: Any = "constants",
    channels: int = 3,
    augment: bool = False,
    convert: bool = False,
    value_range: Range | None = None,
    workers: int = 2,
    cache_bytes: int = CACHE_BYTES,
    found: Found | None = None,
) -> Task:
    """Make a task of a folder of images with one sub-folder per class.

    Classes are named after their folders, in alphabetical order. The splits are the folders `train`
    (or training), `validation` (valid, val, dev) and `test` (testing, eval, evaluation), in any
    case, each with the folders of the classes. Without such folders, `path` itself holds the
    classes. Missing splits are drawn by the seed, the same fraction of every class: the validation
    folder, if there is one, becomes a missing test split; otherwise a split is drawn from the
    training images. The headers of all files are checked first.

    Hidden files and files of systems (`__MACOSX`, `Thumbs.db`, ...) are ignored. Links to files and
    folders are followed.

    Arguments:
        path: the folder.
        name: name of the task; None uses that of the folder.
        image_size: side of x [B, C, image_size, image_size] float32; None uses that of the images,
            which must be squares of one size.
        seed: draws missing splits.
        validation, test: fractions of the training images for missing splits.
        normalise: "constants" (of ImageNet; with one channel, pixels in [0, 1]), "none", or
            (mean, std) per channel.
        channels: 3 or 1.
        augment: random crops and mirror images in the training split.
        convert, workers, cache_bytes: as in `ImageFiles`.
        value_range: as in `ImageFiles`; None measures it (`clnp.data.pictures.measured_range`) over
            the training images of more than 8 bits.
        found: result of an earlier `look_into` with the same arguments.

    Raises:
        DataError: no such folder; an ambiguous or unknown layout; a single class; a class without
            images; different classes in the splits; files that can't be read or are of another
            kind; images of several sizes without an `image_size`.
    """
    root = Path(path)
    _check_folder(root)
    _check_arguments(image_size, channels, workers, value_range, normalise)
    if found is None:
        found = look_into(root, channels, convert=convert, workers=workers)
    if image_size is None:
        image_size = common_side([found], [root])
    if value_range is None:
        value_range = common_range([found], workers)
    splits = _with_missing(found.layout, seed, validation, test)
    if normalise == "constants" and channels == 1:
        normalise = "none"
    constants = constants_for(normalise, "imagenet", torch.zeros(1, channels, 1, 1))
    images: dict[str, Any] = {
        split: ImageFiles(
            items,
            constants,
            image_size=image_size,
            channels=channels,
            augment=augment and split == "train",
            convert=convert,
            value_range=value_range,
            workers=workers,
            cache_bytes=cache_bytes,
        )
        for split, items in splits.items()
    }
    return Task(
        name or shown(root.resolve().name),
        **images,
        classes=len(found.layout.classes),
        class_names=tuple(map(shown, found.layout.classes)),
    )


class Folders(Stream):
    """A stream of folders of images, one per task; each folder is searched once.

    Without an `image_size`, all images of all folders must be squares of one size. Without a
    `value_range`, values of more than 8 bits are scaled by one range for all tasks.

    Arguments:
        paths: one folder per task. The task is named after it, preceded by its parent if two are
            equal.
        seed, image_size, value_range, options: arguments of `folder_task`; the splits of task k are
            drawn by `seed` and k.

    Raises:
        DataError: no folder, a missing folder, or the same folder twice.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        seed: int = 0,
        image_size: int | None = None,
        value_range: Range | None = None,
        **options: Any,
    ) -> None:
        self.paths = [Path(path) for path in paths]
        if not self.paths:
            raise DataError("paths: expected one folder per task, got none")
        for path in self.paths:
            _check_folder(path)
        self.names = task_names(self.paths)
        self.seed, self.options = seed, options
        self._image_size, self._value_range = image_size, value_range
        # Opening a million files takes minutes, and tasks are made several times.
        self._found: dict[int, Found] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def found(self, index: int) -> Found:
        """Return the images in the folder of task `index`. Raises as `folder_task`."""
        if index not in self._found:
            looks = ("channels", "convert", "workers")
            how = {name: self.options[name] for name in looks if name in self.options}
            self._found[index] = look_into(self.paths[index], **how)
        return self._found[index]

    def _all_found(self) -> list[Found]:
        return [self.found(index) for index in range(len(self))]

    @property
    def image_size(self) -> int:
        """Side of x, given or that of all images; raises DataError if these differ."""
        if self._image_size is None:
            self._image_size = common_side(self._all_found(), self.paths)
        return self._image_size

    @property
    def value_range(self) -> Range | None:
        """(black, white) of values of more than 8 bits; None if no image has such values.

        Given, or measured over the training images of all tasks.
        """
        if self._value_range is None:
            self._value_range = common_range(self._all_found(), self.options.get("workers", 2))
        return self._value_range

    def task(self, index: int) -> Task:
        """Make task `index`. Raises as `folder_task`."""
        found = self.found(index)
        return folder_task(
            self.paths[index],
            name=self.names[index],
            seed=self.seed + 1_000_003 * index,
            found=found,
            image_size=self.image_size,
            value_range=self.value_range if found.any_deep else None,
            **self.options,
        )

    def notes(self) -> Iterator[str]:
        """Yield sentences on files that are skipped in each folder, and on the range of values."""
        for name, found in zip(self.names, self._all_found(), strict=True):
            yield from (f"{name}: {note}" for note in found.notes)
        if self.value_range is not None:
            low, high = self.value_range
            yield f"images of more than 8 bits: {low:g} is black, {high:g} white, in all tasks"


def _with_missing(
    layout: Layout, seed: int, validation: float, test: float
) -> dict[str, list[Item]]:
    splits = dict(layout.items)
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    drawn = (("test", test, 0), ("validation", validation, 1))
    missing = [each for each in drawn if each[0] not in splits]
    labels = torch.tensor([label for _, label in splits["train"]])
    for name, number in zip(layout.classes, labels.bincount().tolist(), strict=True):
        if number <= len(missing):
            raise DataError(
                f"class {shown(name)}: expected at least {len(missing) + 1} training images, to "
                f"draw {' and '.join(m[0] for m in missing)} images from, got {number}"
            )
    for split, fraction, part in missing:
        train = splits["train"]
        labels = torch.tensor([label for _, label in train])
        kept, aside = held_out(labels, fraction, (seed, part))
        splits["train"] = [train[i] for i in kept.tolist()]
        splits[split] = [train[i] for i in aside.tolist()]
    return splits


def _check_arguments(
    image_size: int | None, channels: int, workers: int, value_range: Range | None, normalise: Any
) -> None:
    if image_size is not None:
        check_int("image_size", image_size, 1)
    check_int("workers", workers, 1)
    if channels not in MODES:
        raise DataError(f"channels: expected 3 or 1, got {channels!r}")
    if normalise == "train":
        raise DataError(
            "normalise: expected (mean, std), 'constants' or 'none', got 'train', which would read "
            "every image first"
        )
    if value_range is not None and not (
        len(value_range) == 2 and np.isfinite(value_range).all() and value_range[0] < value_range[1]
    ):
        raise DataError(
            f"value_range: expected (black, white) with black < white, got {value_range!r}"
        )


def _check_folder(path: Path) -> None:
    if not os.path.isdir(path):
        raise DataError(f"{shown(path)}: no such folder")
