"""Streams: lazy sequences of tasks.

A list of `Task`s is a stream too; these classes make each task on access to save memory.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from ..errors import DataError
from ..objectives.shapes import CLASSES
from .idx import read_mnist
from .inputs import Split, check_int
from .task import Task

T = TypeVar("T")


class Stream(Sequence[Task]):
    """A lazy sequence of tasks.

    Supports `len(stream)`, `stream[k]`, `stream[a:b]` (a list) and iteration. Each access makes the
    same task anew, so only the tasks in use are in memory.
    """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def task(self, index: int) -> Task:
        """Make task `index`, 0 <= index < len(self)."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self)} task{'s' * (len(self) != 1)}>"

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
    """A stream with fewer training examples per task, for faster trials.

    Arguments:
        stream: any stream; a task with at most `examples` training examples is unchanged.
        examples: number of training examples, drawn at random; validation and test splits stay
            whole.
        seed: the choice depends on it, on the task's index and on the size of the split.

    Raises:
        DataError: `examples` is not a positive int.
    """

    def __init__(self, stream: Sequence[Task], examples: int, seed: int = 0) -> None:
        check_int("examples", examples, 1)
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
        if task.kind != CLASSES:
            return dataclasses.replace(task, train=train, outputs=task.num_outputs)
        return dataclasses.replace(task, train=train, classes=task.num_classes)


class Permuted(Stream):
    """Tasks with a fixed random permutation of the pixels each (the permuted MNIST protocol).

    As in the CLNP paper, every task has a random permutation, also the first one ("ten random
    permutations of the pixels", Golkar et al. 2019, Sec. 3.1). Permutation k depends on `seed` and
    k only, not on the number of tasks or the numpy version.

    Arguments:
        splits: {"train" | "validation" | "test": (x [N, P] float32, y [N] int64)}.
        tasks: length of the stream.
        seed: non-negative; determines the permutations.
        identity_first: leave the pixels of task 0 in their order, as some other papers do.
        name: prefix of the names of the tasks.

    Raises:
        DataError: `tasks` or `seed` is out of range.
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
        check_int("tasks", tasks, 1)
        check_int("seed", seed, 0)
        self.splits = splits
        self.seed = seed
        self.identity_first = identity_first
        self.name = name
        self._tasks = tasks
        self._classes = 1 + max(int(y.max()) for _, y in splits.values())

    def __len__(self) -> int:
        return self._tasks

    def permutation(self, index: int) -> Tensor:
        """Return the pixel order of a task, [P] int64.

        Pixel p of the task is pixel permutation[p] of the image.
        """
        pixels = self.splits["train"][0].shape[1]
        if self.identity_first and index == 0:
            return torch.arange(pixels)
        # numpy guarantees the raw bits of a bit generator in all versions, but not the results of
        # Generator.permutation.
        raw = np.random.PCG64(np.random.SeedSequence([self.seed, index])).random_raw(pixels)
        return torch.from_numpy(np.argsort(raw, kind="stable"))

    def task(self, index: int) -> Task:
        """Make task `index`: copies of the three splits in its pixel order."""
        order = self.permutation(index)
        x_y: dict[str, Any] = {
            split: (x.index_select(1, order), y) for split, (x, y) in self.splits.items()
        }
        return Task(f"{self.name}-{index}", **x_y, classes=self._classes)


class PermutedDigits(Permuted):
    """Permuted 8 x 8 handwritten digits, included in the package.

    x is [B, 64] float32 in [0, 1]; 10 classes; 1100 train, 297 validation and 400 test images in a
    fixed, stratified split. Source and licence: `clnp/data/README.md`.

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
        root: a folder with the four idx files, plain or .gz, in itself, `MNIST/raw` or `raw`. None
            lets torchvision download them once into `cache_folder()`.
        tasks, seed, identity_first: as in `Permuted`.
        validation: number of training images set aside for validation.
        download: allow the download with root=None; False uses the cache only.

    Raises:
        DataError: files are missing or damaged; no torchvision or network; `validation` leaves no
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
        halves = read_or_download(read_mnist, root, "MNIST", download)
        images, labels = halves["train"]
        if not isinstance(validation, int) or not 1 <= validation < len(images):
            raise DataError(
                f"validation: expected 1 to {len(images) - 1} of the {len(images)} images, got "
                f"{validation!r}"
            )
        cut = len(images) - validation
        splits = {
            "train": _pixels(images[:cut], labels[:cut]),
            "validation": _pixels(images[cut:], labels[cut:]),
            "test": _pixels(*halves["test"]),
        }
        super().__init__(splits, tasks, seed, identity_first=identity_first, name="mnist")


class Arrays(Stream):
    """A stream of your own arrays.

    Each task is checked on access. If all tasks are in memory anyway, use a list of `Task`s.

    Arguments:
        splits: a sequence of `(train, validation, test)`, each split `(x, y)`; may be lazy (memory
            maps, a class with __getitem__).
        names: one name per task; None numbers them.
        classes: number of classes of every task; None uses the number of different labels.

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
            raise DataError("splits: expected at least one (train, validation, test), got none")
        if names is not None and len(names) != len(splits):
            raise DataError(f"names: expected {len(splits)}, one per task, got {len(names)}")
        self.splits, self.names, self.classes = splits, names, classes

    def __len__(self) -> int:
        return len(self.splits)

    def task(self, index: int) -> Task:
        """Make and check task `index`; raises DataError as `Task`."""
        name = self.names[index] if self.names is not None else f"task-{index}"
        item = self.splits[index]
        if not isinstance(item, (tuple, list)) or len(item) != 3:
            raise DataError(
                f"task {name!r}: expected (train, validation, test), got {type(item).__name__}"
            )
        return Task(name, *item, classes=self.classes)


def cache_folder() -> Path:
    """Return the folder of downloads: $CLNP_DATA, or $XDG_CACHE_HOME/clnp, or ~/.cache/clnp."""
    if os.environ.get("CLNP_DATA"):
        return Path(os.environ["CLNP_DATA"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clnp"


def read_or_download(
    read: Callable[[Path], T], root: str | os.PathLike[str] | None, name: str, download: bool
) -> T:
    """Read a data set from `root`, or from `cache_folder()` after a download by torchvision.

    Arguments:
        read: reads the data set in a folder; raises DataError if it isn't there.
        root: folder of the data; None uses the cache.
        name: class of torchvision.datasets that downloads it.
        download: allow the download if the cache lacks the data.

    Raises:
        DataError: no data, no torchvision, or no network.
    """
    if root is not None:
        return read(Path(root))
    folder = cache_folder()
    try:
        return read(folder)
    except DataError:
        if not download:
            raise
    way_out = f"pass a folder with {name} (root=..., on the command line --data-root)"
    try:
        # torchvision is slow to import and needed for downloads only.
        datasets = importlib.import_module("torchvision.datasets")
    except Exception as error:  # a torchvision built for another torch fails with RuntimeError
        raise DataError(f"{name}: torchvision can't be imported ({error}); {way_out}") from error
    try:
        getattr(datasets, name)(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name}: the download into {folder} failed ({error}); {way_out}"
        ) from error
    return read(folder)


def _pixels(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Convert uint8 images [N, P] and labels [N] to float32 in [0, 1] and int64."""
    return torch.from_numpy(images.astype(np.float32) / np.float32(255)), torch.from_numpy(
        labels.astype(np.int64)
    )
