"""Checks before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..data.check import check_is_task, ready, warn_unseen
from ..data.task import Task, task_data
from ..errors import ConfigError, DataError
from ..network.model import Model
from .report import TaskReport


def check_new(reports: Sequence[TaskReport], task: Any) -> None:
    """Refuse anything but a new `Task`.

    Raises:
        DataError: no `Task`; a task of that name was learned before.
    """
    check_is_task(task)
    for report in reports:
        if report.name == task.name:
            raise DataError(
                f"task: expected a new name, got {task.name!r}, the name of learned task "
                f"{report.task}; rename another task with dataclasses.replace(task, name=...)"
            )


def check_task(
    task: Task, shape: tuple[int, ...], dtype: torch.dtype, outputs: int, *, single: bool
) -> tuple[Task, int]:
    """Refuse a task that does not fit a network, before any work.

    Arguments:
        task: examined, content included.
        shape, dtype: of one input of the network.
        outputs: classes that the network has outputs for.
        single: all tasks share these outputs.

    Returns:
        the task with its Datasets in memory where they fit (`clnp.data.check.ready`), and its
        number of classes.

    Raises:
        DataError: no `Task`; shape, dtype or labels that the network was not made for; a bad item.
    """
    check_is_task(task)
    if task.sample_shape != shape:
        raise DataError(
            f"task {task.name!r}: expected examples of shape {list(shape)}, which the network was "
            f"made for, got {list(task.sample_shape)}"
        )
    if task.dtype != dtype:
        raise DataError(
            f"task {task.name!r}: expected inputs of {dtype}, the dtype of the network, got "
            f"{task.dtype}; convert one of them"
        )
    task = ready(task)
    return task, _classes(task, outputs, single)


def check_model_task(model: Model, task: Task) -> tuple[Task, int]:
    """`check_task` for a masked network. Raises CapacityError where it is full."""
    shape = tuple(model.graph.nodes[0].attrs["shape"][1:])
    outputs = model.graph[model.groups.head].attrs["out_features"]
    dtype, single = model.head.free_weight.dtype, model.head.kind == "single"
    model.check_capacity()
    return check_task(task, shape, dtype, outputs, single=single)


def _classes(task: Task, outputs: int, single: bool) -> int:
    """Outputs that a task is learned with: all of a single head's, else `task.classes`, or those of
    the network where the task has none.
    """
    classes = outputs if single or task.classes is None else task.classes
    for split, data in task_data(task).splits.items():
        if data.top >= classes:
            raise DataError(
                f"task {task.name!r}, {split}: expected labels from 0 to {classes - 1}, as the "
                f"head has, got {data.top}" + ("" if single else "; pass Task(..., classes=...)")
            )
    warn_unseen(task)
    return classes


def check_device(device: str | torch.device) -> torch.device:
    """The device, checked. Raises ConfigError where torch can't use it."""
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device: expected a torch device, got {device!r}: {error}") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: expected 'cpu', for torch finds no GPU, got {device!r}")
    if found.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: expected 'cpu' or 'cuda', got {device!r}")
    return found
