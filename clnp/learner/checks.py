"""Checks before any work is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.check import check_is_task, ready, warn_unseen
from ..data.task import Task, task_data
from ..errors import ConfigError, DataError
from ..network.model import Model
from ..objectives.objective import Objective
from ..objectives.shapes import CLASSES
from ..training.validation import class_sizes
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
        outputs: of the network.
        single: all tasks share these outputs.

    Returns:
        the task with its Datasets in memory where they fit (`clnp.data.check.ready`), and the
        number of outputs that it is learned with.

    Raises:
        DataError: no `Task`; shape, dtype or targets that the network was not made for; a bad item.
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
    return task, _outputs(task, outputs, single)


def check_model_task(model: Model, task: Task) -> tuple[Task, int]:
    """`check_task` for a masked network. Raises CapacityError where it is full."""
    shape = tuple(model.graph.nodes[0].attrs["shape"][1:])
    outputs = model.graph[model.groups.head].attrs["out_features"]
    dtype, single = model.input_dtype, model.head.kind == "single"
    model.check_capacity()
    return check_task(task, shape, dtype, outputs, single=single)


def objective_for(task: Task, outputs: int, loss: Any, metric: Any) -> Objective:
    """Loss and metric that a task is learned with.

    Arguments:
        task: checked by `check_task`.
        outputs: of its head.
        loss, metric: the learner's, for a task that names none.

    Raises:
        ConfigError: they do not fit each other, the task's targets or the outputs.
    """
    found = task.objective(loss, metric)

    def sizes() -> Tensor:
        own = class_sizes(task.train, found)
        return torch.nn.functional.pad(own, (0, outputs - len(own)))

    fitted = found.loss.fitted(sizes)
    fitted.check(outputs)
    return dataclasses.replace(found, loss=fitted)


def _outputs(task: Task, outputs: int, single: bool) -> int:
    """Outputs that a task is learned with: all of a single head's, else those that the task names,
    or those of the network where it names none.
    """
    data = task_data(task)
    named = task.outputs if task.outputs is not None else task.classes
    if task.kind != CLASSES:
        named = data.classes
        if single and named != outputs:
            raise DataError(
                f"task {task.name!r}: expected {outputs} outputs, as the single head has, got "
                f"targets for {named}; use head='multi'"
            )
        return named
    classes = outputs if single or named is None else named
    for split, found in data.splits.items():
        if found.top >= classes:
            raise DataError(
                f"task {task.name!r}, {split}: expected labels from 0 to {classes - 1}, as the "
                f"head has, got {found.top}" + ("" if single else "; pass Task(..., classes=...)")
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
