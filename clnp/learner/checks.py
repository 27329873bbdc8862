"""What is refused before any work is done."""

from __future__ import annotations

import torch

from ..data.check import check_is_task, ready, warn_unseen
from ..data.contents import task_data
from ..data.task import Task
from ..errors import ConfigError, DataError
from ..network.model import Model


def check_task(model: Model, task: Task) -> tuple[Task, int]:
    """Refuses a task that does not fit, before any work.

    Returns:
        the task with its Datasets in memory where they fit (`clnp.data.check.ready`), and its
        number of classes.

    Raises:
        DataError: no `Task`; shape, dtype or labels that the network was not made for; an item that
            is no good.
    """
    check_is_task(task)
    outputs = model.graph[model.groups.head].attrs["out_features"]
    shape = tuple(model.graph.nodes[0].attrs["shape"][1:])
    if task.sample_shape != shape:
        raise DataError(
            f"task {task.name!r}: examples have shape {list(task.sample_shape)}, but the "
            "network was converted for "
            f"{list(shape)}"
        )
    dtype = model.head.free_weight.dtype
    if task.dtype != dtype:
        raise DataError(
            f"task {task.name!r}: inputs are {task.dtype}, the network is {dtype}; convert "
            "one of them"
        )
    model.check_capacity()
    made = ready(task)
    return made, classes_of(made, outputs, single=model.head.kind == "single")


def classes_of(task: Task, outputs: int, *, single: bool) -> int:
    """Number of outputs that a task is learned with: all of a single head's, else `task.classes`,
    or what the network has where the task does not say.

    Raises:
        DataError: a label that has no output.
    """
    classes = outputs if single or task.classes is None else task.classes
    for split, data in task_data(task).splits.items():
        if data.top >= classes:
            raise DataError(
                f"task {task.name!r}, {split}: label {data.top} is outside the head's {classes} "
                "classes" + ("" if single else "; pass Task(..., classes=...)")
            )
    warn_unseen(task)
    return classes


def check_device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device={device!r}: {error}") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={device!r}: torch sees no GPU here; use device='cpu'")
    if found.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={device!r}: expected 'cpu' or 'cuda'")
    return found
