"""Folders of image files as tasks, one sub-folder per class, as ImageFolder of torchvision."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from clnp.data.images import Constants, ImageSet, constants_for, held_out
from clnp.data.streams import Stream
from clnp.data.task import Task
from clnp.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
# Names under which people keep a split.
SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
# Pillow's modes that turn into RGB, or into grey, without losing anything but a palette.
MODES = {3: ("RGB", "L", "P", "1"), 1: ("L", "1")}
PILLOW = {3: "RGB", 1: "L"}
# From this side on, an image is kept by 1/7 larger than it is shown, so that crops have room.
LARGE = 64
CACHE_BYTES = 1 << 29

T = TypeVar("T")
Item = tuple[Path, int]
# (class names, {split: its images}).
Found = tuple[list[str], dict[str, list[Item]]]


class ImageFiles(ImageSet):
    """Image files, read by threads when they are asked for, then kept as bytes.

    An image is scaled until its shorter side has `stored_side(image_size)` pixels, and the square
    in its middle is kept; `ImageSet` crops that to `image_size`.

    Arguments:
        items: (path, label) each.
        constants, augment: as in `ImageSet`.
        image_size: side of x, which is [C, image_size, image_size].
        channels: 3 or 1.
        convert: take files of any kind (transparency is dropped, CMYK converted) instead of
            refusing those that aren't RGB, grey or of a palette.
        workers: threads that read files.
        cache_bytes: images are kept in memory once read if all of them fit into so many bytes.
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
        workers: int = 2,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        labels = torch.tensor([label for _, label in items], dtype=torch.int64)
        super().__init__(labels, constants, size=(image_size, image_size), augment=augment)
        self.paths = [path for path, _ in items]
        self.image_size, self.channels = image_size, channels
        self.convert, self.workers = convert, workers
        side = stored_side(image_size)
        shape = (len(items), channels, side, side)
        fits = int(np.prod(shape, dtype=np.int64)) <= cache_bytes
        self._kept = torch.empty(shape, dtype=torch.uint8) if fits else None
        self._known = torch.zeros(len(items), dtype=torch.bool)

    def pixels(self, rows: Tensor) -> Tensor:
        """The rows' images, from memory or from their files.

        Raises:
            DataError: a file that can't be read, naming it.
        """
        if self._kept is None:
            return self._read(rows.tolist())
        new = rows[~self._known[rows]].unique()
        if len(new):
            self._kept[new] = self._read(new.tolist())
            self._known[new] = True
        return self._kept[rows]

    def _read(self, rows: Sequence[int]) -> Tensor:
        def one(row: int) -> Tensor:
            return read_image(self.paths[row], self.image_size, self.channels, convert=self.convert)

        return torch.stack(_by_threads(one, rows, self.workers))


def stored_side(image_size: int) -> int:
    """Side of the square that is kept of an image: image_size, by 1/7 more from 64 pixels on (256
    for 224).
    """
    return image_size if image_size < LARGE else round(image_size * 8 / 7)


def read_image(path: Path, image_size: int, channels: int = 3, *, convert: bool = False) -> Tensor:
    """One image file as [C, S, S] uint8 with S = stored_side(image_size).

    Raises:
        DataError: it can't be read, or is of a kind that `channels` doesn't go with.
    """
    pillow = _pillow()
    side = stored_side(image_size)
    try:
        with pillow.open(path) as image:
            _check_mode(image.mode, path, channels, convert)
            # Decodes a JPEG at a fraction of its size where that is still large enough.
            image.draft(None, (side, side))
            whole = image.convert(PILLOW[channels])
    except DataError:
        raise
    except Exception as error:  # Pillow raises its own, and those of zlib, struct and the system
        raise DataError(f"{path}: can't be read as an image ({error})") from error
    factor = side / min(whole.size)
    width, height = (max(side, round(n * factor)) for n in whole.size)
    left, top = (width - side) // 2, (height - side) // 2
    scaled = whole.resize((width, height), pillow.Resampling.BILINEAR)
    array = np.array(scaled.crop((left, top, left + side, top + side)), dtype=np.uint8)
    return torch.from_numpy(array.reshape(side, side, channels)).movedim(-1, 0)


def folder_task(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    image_size: int = 224,
    seed: int = 0,
    validation: float = 0.1,
    test: float = 0.2,
    normalise: Any = "constants",
    channels: int = 3,
    augment: bool = False,
    convert: bool = False,
    workers: int = 2,
    cache_bytes: int = CACHE_BYTES,
    found: Found | None = None,
) -> Task:
    """A folder of images, one sub-folder per class (named by it, in alphabetical order), as a task.

    `path/train`, `path/validation` (or valid, val) and `path/test` are the splits where they are
    there, each with a sub-folder per class. What is missing is drawn by the seed, the same fraction
    of every class: a test split from `path/validation` where that is there (it is then no
    validation split any more), or else from the training images; a validation split from the
    training images. Without `path/train`, `path` itself holds the classes. All files are looked at,
    and their kinds checked, before anything else is done.

    Arguments:
        path: the folder.
        name: of the task; None takes the folder's.
        image_size: side of x [B, C, image_size, image_size] float32.
        seed, validation, test: of the splits that are drawn, fractions of the images they are taken
            from.
        normalise: "constants" (those of ImageNet; with one channel, pixels in [0, 1]), "none", or
            your own (mean, std) per channel.
        channels: 3 or 1.
        augment: random crops and mirror images in the training split.
        convert, workers, cache_bytes: as in `ImageFiles`.
        found: of an earlier `look_into` with the same arguments; None looks now.

    Raises:
        DataError: no such folder, no classes, a class without images, classes that differ between
            the splits, files that are no images or of another kind, naming them.
    """
    root = Path(path)
    _check_arguments(root, image_size, channels, workers)
    classes, items = found or look_into(root, channels, convert=convert, workers=workers)
    splits = _with_missing(items, seed, validation, test)
    if normalise == "constants" and channels == 1:
        normalise = "none"
    if normalise == "train":
        raise DataError(
            "normalise: 'train' would read every image first; give (mean, std) or 'constants'"
        )
    constants = constants_for(normalise, "imagenet", torch.zeros(1, channels, 1, 1))

    def split(which: str) -> ImageFiles:
        return ImageFiles(
            splits[which],
            constants,
            image_size=image_size,
            channels=channels,
            augment=augment and which == "train",
            convert=convert,
            workers=workers,
            cache_bytes=cache_bytes,
        )

    return Task(
        name or root.resolve().name,
        split("train"),
        split("validation"),
        split("test"),
        classes=len(classes),
    )


class Folders(Stream):
    """Folders of images as a stream, one task each; what is in them is found out once.

    Arguments:
        paths: one folder per task; tasks are named after them, with the parent's name before where
            two are alike.
        seed, options: of `folder_task`; task k's splits are drawn by `seed` and k.

    Raises:
        DataError: no folder, or the same one twice.
    """

    def __init__(
        self, paths: Sequence[str | os.PathLike[str]], *, seed: int = 0, **options: Any
    ) -> None:
        self.paths = [Path(path) for path in paths]
        if not self.paths:
            raise DataError("folders: got none, wanted one per task")
        resolved = [path.resolve() for path in self.paths]
        for i, path in enumerate(resolved):
            if path in resolved[:i]:
                raise DataError(f"folders: {self.paths[i]} is there twice")
        names = [path.name for path in resolved]
        self.names = [
            name if names.count(name) == 1 else f"{path.parent.name}/{name}"
            for name, path in zip(names, resolved, strict=True)
        ]
        self.seed, self.options = seed, options
        # Opening a million files takes minutes, and tasks are made more than once.
        self._found: dict[int, Found] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def task(self, index: int) -> Task:
        """Task `index`. Its folder is looked into once only. Raises as `folder_task` does."""
        path, seed = self.paths[index], self.seed + 1_000_003 * index
        if index not in self._found:
            if not path.is_dir():
                raise DataError(f"{path}: no such folder")
            looks = ("channels", "convert", "workers")
            how = {name: self.options[name] for name in looks if name in self.options}
            self._found[index] = look_into(path, **how)
        return folder_task(
            path, name=self.names[index], seed=seed, found=self._found[index], **self.options
        )


def look_into(root: Path, channels: int = 3, *, convert: bool = False, workers: int = 2) -> Found:
    """What `find_images` finds, every file opened as far as its header. Raises as `folder_task`
    does.
    """
    classes, items = find_images(root)
    _check_files([p for split in items.values() for p, _ in split], channels, convert, workers)
    return classes, items


def find_images(root: Path) -> Found:
    """(class names, {"train" | "validation" | "test": (path, label) each}) of a folder; only the
    splits that are there.

    Raises:
        DataError: as in `folder_task`.
    """
    places = {
        split: root / name
        for split, names in SPLITS.items()
        for name in names
        if (root / name).is_dir()
    }
    if "train" not in places:
        places = {"train": root}
    classes = _folders(places["train"])
    if not classes:
        raise DataError(
            f"{places['train']}: holds no folders, wanted one per class with its images in it"
        )
    items = {}
    for split, place in places.items():
        found = _folders(place)
        if found != classes:
            odd = sorted(set(found) ^ set(classes))
            raise DataError(
                f"{place}: classes differ from those of {places['train']}: {', '.join(odd[:5])}"
            )
        items[split] = [(p, i) for i, name in enumerate(classes) for p in _files(place / name)]
    return classes, items


def _folders(place: Path) -> list[str]:
    return sorted(p.name for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    files = sorted(
        Path(place, name)
        for place, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
    )
    if not files:
        raise DataError(
            f"{folder}: the class has no images; wanted files that end in {', '.join(EXTENSIONS)}"
        )
    return files


def _with_missing(
    items: dict[str, list[Item]], seed: int, validation: float, test: float
) -> dict[str, list[Item]]:
    """Draws the splits that are missing."""
    splits = dict(items)
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    for split, fraction, part in (("test", test, 0), ("validation", validation, 1)):
        if split in splits:
            continue
        train = splits["train"]
        labels = torch.tensor([label for _, label in train])
        kept, aside = held_out(labels, fraction, (seed, part))
        splits["train"] = [train[i] for i in kept.tolist()]
        splits[split] = [train[i] for i in aside.tolist()]
    return splits


def _check_arguments(root: Path, image_size: int, channels: int, workers: int) -> None:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    for name, value, low in (("image_size", image_size, 1), ("workers", workers, 1)):
        if not isinstance(value, int) or value < low:
            raise DataError(f"{name}: got {value!r}, wanted an int of at least {low}")
    if channels not in MODES:
        raise DataError(f"channels: got {channels!r}, wanted 3 or 1")


def _check_files(paths: Sequence[Path], channels: int, convert: bool, workers: int) -> None:
    """Opens every file as far as its header."""
    pillow = _pillow()

    def check(path: Path) -> None:
        try:
            with pillow.open(path) as image:
                mode = image.mode
        except Exception as error:  # Pillow raises its own, and those of struct and the system
            raise DataError(f"{path}: can't be read as an image ({error})") from error
        _check_mode(mode, path, channels, convert)

    _by_threads(check, paths, workers)


def _check_mode(mode: str, path: Path, channels: int, convert: bool) -> None:
    if not convert and mode not in MODES[channels]:
        raise DataError(
            f"{path}: is of Pillow's mode {mode}, wanted one of {', '.join(MODES[channels])} for "
            f"{channels} channels; convert the file, or take it with convert=True (on the command "
            "line --convert-images), which drops transparency"
        )


def _by_threads(function: Callable[[Any], T], items: Sequence[Any], workers: int) -> list[T]:
    """[function(item) for item in items], by threads: Pillow decodes outside Python's lock."""
    if workers == 1 or len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, items))


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            f"Pillow can't be imported ({error}); pip install pillow to read image files"
        ) from error
    return Image
