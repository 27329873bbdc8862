"""Start-up summary of a run: its data, its network, and settings that are not the defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Subset

from ..data import ImageSet, Task
from ..data.inputs import SPLITS, Split
from ..data.names import counted
from ..data.split import target_shape
from ..html.text import MOST_LAYERS
from ..learner.learner import Learner
from ..objectives.shapes import CLASSES
from .build_config import experiment_defaults
from .config import Config, option, shown
from .defaults import NAMED
from .prepare import folders_of

# Of more classes than this the first and the last ones are shown.
MOST_CLASSES = 20
SHOWN = 8
# Longer names are cut.
WIDEST = 40
# Found out from the data, given by the files, or of the machine.
NO_CHOICE = ("stream", "seeds", "image_size", "image_range", "threads", "method")


def lines(config: Config, stream: Sequence[Task], learner: Any) -> Iterator[str]:
    """The lines of a run that begins: its tasks, network, and settings that are not the defaults of
    its experiment.
    """
    yield from data_lines(config, stream)
    yield network_line(config, learner)
    yield settings_line(config)


def data_lines(config: Config, stream: Sequence[Task]) -> Iterator[str]:
    """The tasks: a table of each where they are the user's files, else a line each, and one line
    for all where they differ in the order of their inputs only.
    """
    if config.stream in NAMED:
        for index in range(len(stream)):
            yield from task_table(stream[index], f"task {index + 1}/{len(stream)}")
        folders = folders_of(stream)
        if folders is not None:
            yield from (f"note: {note}" for note in folders.notes())
    elif config.stream.startswith("permuted"):
        yield f"data: {counted(len(stream), 'task')}, each with {_task(stream[0])}"
    else:
        yield f"data: {counted(len(stream), 'task')}"
        for index in range(len(stream)):
            task = stream[index]
            yield f"  {index + 1} {task.name}: {_task(task)}"


def _task(task: Task) -> str:
    """ "2 classes (cat, dog), 100 train, 20 validation, 40 test examples of 3 x 32 x 32"."""
    names = [*(task.class_names or ())]
    names = names if len(names) <= SHOWN else [*names[: SHOWN - 1], "...", names[-1]]
    named = f" ({', '.join(name[:WIDEST] for name in names)})" if names else ""
    sizes = ", ".join(f"{task.size(split)} {split}" for split in SPLITS)
    shape = " x ".join(map(str, task.sample_shape))
    return f"{_outputs(task)}{named}, {sizes} examples of {shape}"


def _outputs(task: Task) -> str:
    """ "2 classes", "3 labels", "1 number" of each example."""
    if task.kind == CLASSES:
        return counted(task.num_classes, "class", "classes")
    return counted(task.num_outputs, task.kind.removesuffix("s"))


def network_line(config: Config, learner: Any) -> str:
    """ "network: mlp, fc1 600, fc2 600 channels, 405,010 parameters"."""
    layers = ""
    if isinstance(learner, Learner):
        sizes = learner.model.sizes
        names = [group.name for group in learner.model.groups.prunable]
        some = names if len(names) <= MOST_LAYERS else [*names[: MOST_LAYERS - 1], names[-1]]
        text = ", ".join(f"{name} {sizes[name]}" for name in some)
        more = f" ({len(names)} groups)" if len(some) < len(names) else ""
        layers = f", {text} channels{more}"
    net = learner.model if isinstance(learner, Learner) else learner.net
    count = sum(parameter.numel() for parameter in net.parameters())
    return f"network: {config.net}{layers}, {count:,} parameters"


def settings_line(config: Config) -> str:
    """ "settings: --lr 0.001 (default 0.002)" of those that are not the experiment's."""
    base = experiment_defaults(config.stream, config.method)
    fields = {field.name: field.default for field in dataclasses.fields(Config)}
    skipped = (*NO_CHOICE, "tasks") if config.stream in NAMED else NO_CHOICE
    changed = [
        f"{option(name)} {shown(value)} (default {shown(usual)})"
        for name, default in fields.items()
        if name not in skipped
        and (value := getattr(config, name)) != (usual := base.get(name, default))
    ]
    own = "" if config.method == "clnp" else f" for {config.method}"
    return f"settings: {', '.join(changed) or f'the defaults of {config.stream}{own}'}"


def task_table(task: Task, number: str) -> list[str]:
    """The table of one task: examples of each class in each split; many classes in the middle
    become one line.
    """
    shape = " x ".join(map(str, task.sample_shape))
    if task.kind != CLASSES or target_shape(task.train):
        sizes = ", ".join(f"{task.size(split)} {split}" for split in SPLITS)
        return [f"{number} {task.name}: {_outputs(task)}, {sizes} examples of {shape}"]
    classes = task.num_classes
    names = task.class_names or [""] * classes
    columns = []
    for split in SPLITS:
        labels = _labels(task.split(split))
        columns.append([split, *map(str, labels.bincount(minlength=classes).tolist())])
        columns[-1].append(str(len(labels)))
    titles = ["class", *(f"{k} {name}"[:WIDEST].rstrip() for k, name in enumerate(names)), "all"]
    table = list(zip(titles, *columns, strict=True))
    if classes > MOST_CLASSES:
        between = classes - 2 * SHOWN
        dots = (f"... {between} more", *[""] * len(SPLITS))
        table = [*table[: 1 + SHOWN], dots, *table[-1 - SHOWN :]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    count = counted(classes, "class", "classes")
    heading = f"{number} {task.name}: {count}, examples of {shape}"
    rows = (
        "  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:]))) for row in table
    )
    return [heading, *(f"  {row}" for row in rows)]


def _labels(split: Split) -> Tensor:
    if isinstance(split, tuple):
        return split[1]
    if isinstance(split, Subset):
        return _labels(split.dataset)[split.indices]
    assert isinstance(split, ImageSet)
    return split.labels
