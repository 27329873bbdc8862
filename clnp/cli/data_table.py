"""A table of the classes and examples of every task, for the console and the log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor
from torch.utils.data import Subset

from ..data import ImageSet, Task
from ..data.inputs import SPLITS, Split
from .checks import folders_of

# Of more classes than this the first and the last ones are shown.
MOST_CLASSES = 20
SHOWN = 8
# Longer names are cut.
WIDEST = 40


def lines(stream: Sequence[Task]) -> Iterator[str]:
    """A table of each task: its classes and how many examples each has in each split; then what was
    left out of folders of images.
    """
    for index in range(len(stream)):
        yield from task_lines(stream[index], f"task {index + 1}/{len(stream)}")
    folders = folders_of(stream)
    if folders is not None:
        yield from (f"note: {note}" for note in folders.notes())


def task_lines(task: Task, number: str) -> list[str]:
    """The table of one task; many classes in the middle become one line."""
    classes = task.num_classes
    names = task.class_names or [""] * classes
    columns = []
    for split in SPLITS:
        told = _labels(task.split(split))
        columns.append([split, *map(str, told.bincount(minlength=classes).tolist())])
        columns[-1].append(str(len(told)))
    titles = ["class", *(f"{k} {name}"[:WIDEST].rstrip() for k, name in enumerate(names)), "all"]
    table = list(zip(titles, *columns, strict=True))
    if classes > MOST_CLASSES:
        between = classes - 2 * SHOWN
        dots = (f"... {between} more", *[""] * len(SPLITS))
        table = [*table[: 1 + SHOWN], dots, *table[-1 - SHOWN :]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    shape = " x ".join(map(str, task.sample_shape))
    heading = f"{number} {task.name}: {classes} classes, examples of {shape}"
    rows = (
        "  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:]))) for row in table
    )
    return [heading, *(f"  {row}" for row in rows)]


def _labels(split: Split) -> Tensor:
    """All labels [N] of a split of our own streams."""
    if isinstance(split, tuple):
        return split[1]
    if isinstance(split, Subset):
        return _labels(split.dataset)[split.indices]
    assert isinstance(split, ImageSet)
    return split.labels
