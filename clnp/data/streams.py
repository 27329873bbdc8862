"""Streams of tasks: lazy sequences, each task made when it is asked for.

A list of `Task`s is a stream too; the classes here only save memory and writing.
"""

from __future__ import annotations

import dataclasses
import os
from abc import abstractmethod
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from ..errors import DataError
from .idx import read_mnist
from .inputs import Split
from .task import Task


class Stream(Sequence[Task]):
    """A lazy sequence of tasks: `len(stream)`, `stream[k]`, `stream[a:b]` (a list), `for task in
    stream`.

    Nothing is kept: `stream[k]` makes the same task anew each time, so at most the tasks in use are
        in memory.
    """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def task(self, index: int) -> Task:
        """Task number `index`, 0 <= index < len(self)."""

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> list[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | list[Task]:
        if isinstance(index, slice):
            return [self.task(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"task {index} of a stream of {len(self)} tasks")
        return self.task(index % len(self))


class Limited(Stream):
    """Another stream whose tasks train on few of their examples, for trials that take less time.

    Arguments:
        stream: any stream; a task with no more examples than wanted is left as it is.
        examples: how many of each training split, drawn at random; validation and test splits stay
            whole.
        seed: the choice depends on it, on the task's number and on the size of the split.

    Raises:
        DataError: `examples` is not a positive int.
    """

    def __init__(self, stream: Sequence[Task], examples: int, seed: int = 0) -> None:
        if isinstance(examples, bool) or not isinstance(examples, int) or examples < 1:
            raise DataError(f"examples: got {examples!r}, wanted a positive int")
        self.stream, self.examples, self.seed = stream, examples, seed

    def __len__(self) -> int:
        return len(self.stream)

    def task(self, index: int) -> Task:
        task = self.stream[index]
        total = task.size("train")
        if total <= self.examples:
            return task
        order = np.random.default_rng((self.seed, index)).permutation(total)
        chosen = torch.from_numpy(np.sort(order[: self.examples]))
        train: Split
        if isinstance(task.train, tuple):
            x, y = task.train
            train = (x[chosen], y[chosen])
        else:
            train = Subset(task.train, chosen.tolist())
        return dataclasses.replace(task, train=train, classes=task.num_classes)


class Permuted(Stream):
    """Tasks that differ in one fixed random permutation of the pixels each (the permuted MNIST
    protocol).

    As in the CLNP paper every task, the first one too, has a random permutation ("ten random
    permutations of the pixels", Golkar et al. 2019, Sec. 3.1); `identity_first=True` leaves the
    first task's pixels in place, as some others do. Permutation k depends on `seed` and k alone,
    not on the number of tasks or on the numpy version.

    Arguments:
        splits: {"train" | "validation" | "test": (x [N, P] float32, y [N] int64)}.
        tasks: length of the stream.
        seed: non-negative; chooses the permutations.
        identity_first: task 0 keeps the order of the pixels.
        name: names of the tasks begin with it.

    Raises:
        DataError: `tasks` or `seed` is nonsense.
    """

    def __init__(
        self,
        splits: dict[str, tuple[Tensor, Tensor]],
        tasks: int,
        seed: int = 0,
        *,
        identity_first: bool = False,
        name: str = "permuted",
    ) -> None:
        if not isinstance(tasks, int) or tasks < 1:
            raise DataError(f"tasks: got {tasks!r}, wanted an int of at least 1")
        if not isinstance(seed, int) or seed < 0:
            raise DataError(f"seed: got {seed!r}, wanted an int of at least 0")
        self.splits = splits
        self.seed = seed
        self.identity_first = identity_first
        self.name = name
        self._tasks = tasks
        self._classes = 1 + max(int(y.max()) for _, y in splits.values())

    def __len__(self) -> int:
        return self._tasks

    def permutation(self, index: int) -> Tensor:
        """The pixel order of a task, [P] int64: pixel p of the task is pixel permutation[p] of the
        image.
        """
        pixels = self.splits["train"][0].shape[1]
        if self.identity_first and index == 0:
            return torch.arange(pixels)
        # numpy promises the raw bits of a bit generator for ever, but not what
        # Generator.permutation makes of them.
        raw = np.random.PCG64(np.random.SeedSequence([self.seed, index])).random_raw(pixels)
        return torch.from_numpy(np.argsort(raw, kind="stable"))

    def task(self, index: int) -> Task:
        """Task `index`: copies of the three splits with its pixel order."""
        order = self.permutation(index)
        x_y: dict[str, Any] = {
            split: (x.index_select(1, order), y) for split, (x, y) in self.splits.items()
        }
        return Task(f"{self.name}-{index}", **x_y, classes=self._classes)


class PermutedDigits(Permuted):
    """Permuted 8 x 8 handwritten digits, embedded in the package: x [B, 64] float32 in [0, 1], 10
    classes.

    1100 train, 297 validation and 400 test images in a fixed, stratified split; source and licence:
    `clnp/data/README.md`.

    Arguments:
        tasks, seed, identity_first: as in `Permuted`.
    """

    def __init__(self, tasks: int = 5, seed: int = 0, *, identity_first: bool = False) -> None:
        with resources.files("clnp.data").joinpath("digits.npz").open("rb") as file:
            arrays = np.load(file)
            images, labels, split = arrays["images"], arrays["labels"], arrays["split"]
        x = torch.from_numpy(images).float() / 16
        y = torch.from_numpy(labels).long()
        names = ("train", "validation", "test")
        splits = {name: (x[split == i], y[split == i]) for i, name in enumerate(names)}
        super().__init__(splits, tasks, seed, identity_first=identity_first, name="digits")


class PermutedMNIST(Permuted):
    """Permuted MNIST: x [B, 784] float32 in [0, 1], 10 classes (Golkar et al. 2019, Sec. 3.1).

    The validation split is the last `validation` training images (50,000 / 10,000 by default).

    Arguments:
        root: a folder with the four idx files, plain or .gz, in itself, `MNIST/raw` or `raw`. None:
            torchvision downloads them once into `cache_folder()`.
        tasks, seed, identity_first: as in `Permuted`.
        validation: training images that are set aside for validation.
        download: with root=None, may the files be fetched? False takes them only if they are in the
            cache.

    Raises:
        DataError: no files, damaged files, no torchvision, no network; `validation` leaves no
            training image.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        tasks: int = 10,
        seed: int = 0,
        *,
        validation: int = 10_000,
        download: bool = True,
        identity_first: bool = False,
    ) -> None:
        halves = read_mnist(Path(root) if root is not None else _mnist_cache(download))
        images, labels = halves["train"]
        if not isinstance(validation, int) or not 1 <= validation < len(images):
            raise DataError(
                f"validation: got {validation!r}, wanted 1 to {len(images) - 1} of the "
                f"{len(images)} images"
            )
        cut = len(images) - validation
        splits = {
            "train": _pixels(images[:cut], labels[:cut]),
            "validation": _pixels(images[cut:], labels[cut:]),
            "test": _pixels(*halves["test"]),
        }
        super().__init__(splits, tasks, seed, identity_first=identity_first, name="mnist")


class Arrays(Stream):
    """Your own arrays as a stream: each item is the `(train, validation, test)` of a task, each
    split `(x, y)`.

    The checks of a task are made when it is asked for. With every task in memory anyway, a plain
    list of `Task`s does as well.

    Arguments:
        splits: a sequence of `(train, validation, test)`; it may be lazy itself (memory maps, a
            class with __getitem__).
        names: one name per task; None numbers them.
        classes: number of classes of every task; None takes each task's largest label + 1.

    Raises:
        DataError: no task, or another number of names than of tasks.
    """

    def __init__(
        self,
        splits: Sequence[tuple[Any, Any, Any]],
        names: Sequence[str] | None = None,
        classes: int | None = None,
    ) -> None:
        if len(splits) == 0:
            raise DataError("splits: is empty, wanted at least one (train, validation, test)")
        if names is not None and len(names) != len(splits):
            raise DataError(
                f"names: got {len(names)} names for {len(splits)} tasks, wanted one each"
            )
        self.splits, self.names, self.classes = splits, names, classes

    def __len__(self) -> int:
        return len(self.splits)

    def task(self, index: int) -> Task:
        """Task `index`, checked. Raises DataError where it isn't a (train, validation, test) of
        good splits.
        """
        name = self.names[index] if self.names is not None else f"task-{index}"
        item = self.splits[index]
        if not isinstance(item, (tuple, list)) or len(item) != 3:
            raise DataError(
                f"task {name!r}: got {type(item).__name__}, wanted (train, validation, test)"
            )
        return Task(name, *item, classes=self.classes)


def cache_folder() -> Path:
    """Where downloads go: $CLNP_DATA, or else `clnp` in $XDG_CACHE_HOME, or else ~/.cache/clnp."""
    if os.environ.get("CLNP_DATA"):
        return Path(os.environ["CLNP_DATA"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clnp"


def _mnist_cache(download: bool) -> Path:
    """The cache folder, with MNIST in it."""
    folder = cache_folder()
    if (folder / "MNIST" / "raw").is_dir() or not download:
        try:
            read_mnist(folder)
            return folder
        except DataError:
            if not download:
                raise
    way_out = "give the folder of the four idx files (root=..., on the command line --data-root)"
    try:
        # Imported here only: torchvision is heavy, and who has the files doesn't need it.
        from torchvision.datasets import MNIST
    except Exception as error:  # a torchvision built for another torch fails with RuntimeError
        raise DataError(f"MNIST: torchvision can't be imported ({error}); {way_out}") from error
    try:
        MNIST(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"MNIST: the download into {folder} failed ({error}); {way_out}") from error
    return folder


def _pixels(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """uint8 images [N, P] and labels [N] -> float32 in [0, 1] and int64."""
    return torch.from_numpy(images.astype(np.float32) / np.float32(255)), torch.from_numpy(
        labels.astype(np.int64)
    )
