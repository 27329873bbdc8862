"""CIFAR-10 and CIFAR-100 as tasks of a few classes each (Golkar et al. 2019, Sec. 3.2)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .cifar import Halves, read_cifar
from .images import Images, constants_for, held_out
from .inputs import check_int
from .streams import Stream, read_or_download
from .task import Task


@dataclass(frozen=True)
class Part:
    """Classes of one data set that form a task.

    Attributes:
        name: name of the task.
        source: "cifar10" or "cifar100".
        classes: labels in the data set; the task's label c means classes[c].
    """

    name: str
    source: str
    classes: tuple[int, ...]


class SplitCIFAR(Stream):
    """Tasks of a few CIFAR classes each, with x [B, 3, 32, 32] float32.

    Labels are 0 to C - 1, in the order of `Part.classes`. Images stay bytes and are converted to
    floats per batch (`clnp.data.Images`). The validation split is a fraction of the training images
    of each class, drawn by the seed.

    Arguments:
        sources: {"cifar10" | "cifar100": result of `clnp.data.cifar.read_cifar`}.
        parts: one per task.
        seed: non-negative; draws the validation split.
        validation: fraction of the training images set aside for validation.
        normalise: "constants" (mean and deviation of the whole data set of the first task, the same
            for every task), "train" (of the task's training images), "none" (pixels in [0, 1]) or
            (mean, std) per channel.
        augment: random crops of images padded by 4, and mirror images, in the training split.

    Raises:
        DataError: a class has no images, or an argument is out of range.
    """

    def __init__(
        self,
        sources: dict[str, Halves],
        parts: Sequence[Part],
        seed: int = 0,
        *,
        validation: float = 0.1,
        normalise: Any = "constants",
        augment: bool = False,
    ) -> None:
        check_int("seed", seed, 0)
        self.sources, self.parts, self.seed = sources, tuple(parts), seed
        self.validation, self.normalise, self.augment = validation, normalise, augment
        for part in self.parts:
            for half, (_, labels) in sources[part.source].items():
                absent = sorted(set(part.classes) - set(np.unique(labels).tolist()))
                if absent:
                    raise DataError(
                        f"task {part.name!r}: expected {half} images of every class of "
                        f"{part.source}, got none of class {', '.join(map(str, absent))}"
                    )

    def __len__(self) -> int:
        return len(self.parts)

    def task(self, index: int) -> Task:
        """Make task `index` with copies of its images."""
        part = self.parts[index]
        images, labels = _select(*self.sources[part.source]["train"], part.classes)
        kept, aside = held_out(labels, self.validation, (self.seed, index))
        constants = constants_for(self.normalise, self.parts[0].source, images[kept])

        def split(images: Tensor, labels: Tensor, augment: bool = False) -> Images:
            return Images(images, labels, constants, augment=augment)

        return Task(
            part.name,
            split(images[kept], labels[kept], self.augment),
            split(images[aside], labels[aside]),
            split(*_select(*self.sources[part.source]["test"], part.classes)),
            classes=len(part.classes),
        )


class SplitCIFAR10(SplitCIFAR):
    """CIFAR-10 in tasks of two classes: 0 and 1, 2 and 3, ...

    Arguments:
        root: a folder with the data in any form that `clnp.data.cifar.read_cifar` reads. None lets
            torchvision download it once into `clnp.data.cache_folder()`.
        tasks: length of the stream.
        seed, validation, normalise, augment: as in `SplitCIFAR`.
        classes_per_task: number of classes of every task.
        download: allow the download with root=None.

    Raises:
        DataError: no data, or fewer classes than the tasks need.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        tasks: int = 5,
        seed: int = 0,
        *,
        classes_per_task: int = 2,
        download: bool = True,
        **options: Any,
    ) -> None:
        halves = _find(root, "cifar10", download)
        parts = _parts("cifar10", halves, tasks, classes_per_task)
        super().__init__({"cifar10": halves}, parts, seed, **options)


class SplitCIFAR100(SplitCIFAR):
    """CIFAR-100 in tasks of ten classes, in the order of its fine labels: 0 to 9, 10 to 19, ...

    Classes that the data lacks are skipped.

    Arguments:
        root, tasks, seed, classes_per_task, download, options: as in `SplitCIFAR10`.

    Raises:
        DataError: no data, or fewer classes than the tasks need.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        tasks: int = 10,
        seed: int = 0,
        *,
        classes_per_task: int = 10,
        download: bool = True,
        **options: Any,
    ) -> None:
        halves = _find(root, "cifar100", download)
        parts = _parts("cifar100", halves, tasks, classes_per_task)
        super().__init__({"cifar100": halves}, parts, seed, **options)


# Superclass of CIFAR-100 -> its five fine labels.
SUPERCLASSES: dict[str, tuple[int, ...]] = {
    "aquatic mammals": (4, 30, 55, 72, 95),
    "fish": (1, 32, 67, 73, 91),
    "flowers": (54, 62, 70, 82, 92),
    "food containers": (9, 10, 16, 28, 61),
    "fruit and vegetables": (0, 51, 53, 57, 83),
    "household electrical devices": (22, 39, 40, 86, 87),
    "household furniture": (5, 20, 25, 84, 94),
    "insects": (6, 7, 14, 18, 24),
    "large carnivores": (3, 42, 43, 88, 97),
    "large man-made outdoor things": (12, 17, 37, 68, 76),
    "large natural outdoor scenes": (23, 33, 49, 60, 71),
    "large omnivores and herbivores": (15, 19, 21, 31, 38),
    "medium-sized mammals": (34, 63, 64, 66, 75),
    "non-insect invertebrates": (26, 45, 77, 79, 99),
    "people": (2, 11, 35, 46, 98),
    "reptiles": (27, 29, 44, 78, 93),
    "small mammals": (36, 50, 65, 74, 80),
    "trees": (47, 52, 56, 59, 96),
    "vehicles 1": (8, 13, 48, 58, 90),
    "vehicles 2": (41, 69, 81, 85, 89),
}


class SuperclassCIFAR100(SplitCIFAR):
    """CIFAR-100 in tasks of one superclass each: five classes that look alike, in the order of the
    data set's coarse labels.

    Arguments:
        root, tasks, seed, download, options: as in `SplitCIFAR10`; at most 20 tasks.

    Raises:
        DataError: no data, classes that it lacks, or too many tasks.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        tasks: int = 20,
        seed: int = 0,
        *,
        download: bool = True,
        **options: Any,
    ) -> None:
        check_int("tasks", tasks, 1)
        if tasks > len(SUPERCLASSES):
            raise DataError(
                f"tasks: expected at most {len(SUPERCLASSES)}, the superclasses of cifar100, got "
                f"{tasks}"
            )
        halves = _find(root, "cifar100", download)
        parts = [Part(name, "cifar100", SUPERCLASSES[name]) for name in [*SUPERCLASSES][:tasks]]
        super().__init__({"cifar100": halves}, parts, seed, **options)


class CIFAR10Then100(SplitCIFAR):
    """All of CIFAR-10, then ten classes of CIFAR-100 per task.

    Golkar et al. 2019, Sec. 3.2, learn six tasks with the narrow network and ten with the wide one.

    Arguments:
        root, tasks, seed, download, options: as in `SplitCIFAR10`.
        classes_per_task: number of classes of the tasks after the first.

    Raises:
        DataError: no data, or fewer classes than the tasks need.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        tasks: int = 6,
        seed: int = 0,
        *,
        classes_per_task: int = 10,
        download: bool = True,
        **options: Any,
    ) -> None:
        check_int("tasks", tasks, 1)
        sources = {"cifar10": _find(root, "cifar10", download)}
        parts = [Part("cifar10", "cifar10", tuple(range(10)))]
        if tasks > 1:
            sources["cifar100"] = _find(root, "cifar100", download)
            parts += _parts("cifar100", sources["cifar100"], tasks - 1, classes_per_task)
        super().__init__(sources, parts, seed, **options)


def _select(
    images: np.ndarray, labels: np.ndarray, classes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Copy the images of some classes, in their order; label c means classes[c]."""
    new = np.full(max(int(labels.max()), *classes) + 1, -1)
    new[list(classes)] = np.arange(len(classes))
    chosen = new[labels] >= 0
    return torch.from_numpy(images[chosen]), torch.from_numpy(new[labels[chosen]])


def _parts(source: str, halves: Halves, tasks: int, per_task: int) -> list[Part]:
    """Divide the classes of the data into tasks of `per_task` classes, in order of labels."""
    check_int("tasks", tasks, 1)
    check_int("classes_per_task", per_task, 1)
    present = np.unique(halves["train"][1]).tolist()
    if tasks * per_task > len(present):
        raise DataError(
            f"tasks: expected at most {len(present) // per_task} of {per_task} classes each, since "
            f"the data of {source} has {len(present)} classes, got {tasks}"
        )
    groups = [tuple(present[k * per_task : (k + 1) * per_task]) for k in range(tasks)]
    return [Part(f"{source}-{g[0]}-{g[-1]}", source, g) for g in groups]


def _find(root: str | os.PathLike[str] | None, name: str, download: bool) -> Halves:
    return read_or_download(partial(read_cifar, name=name), root, name.upper(), download)
