"""What is refused before any work is done."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from clnp.batches import labels
from clnp.data.task import Task
from clnp.errors import ConfigError, DataError, TrainingError
from clnp.model import Model


def check_task(model: Model, task: Task) -> int:
    """Refuses a task that does not fit, before any work; returns its number of classes."""
    if not isinstance(task, Task):
        raise DataError(f"task: expected a clnp.data.Task, got {type(task).__name__}")
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
    single = model.head.kind == "single"
    classes = outputs if single or task.classes is None else task.classes
    for split in ("train", "validation", "test"):
        told = labels(task.split(split))
        if told is not None and int(told.max()) >= classes:
            raise DataError(
                f"task {task.name!r}, {split}: label {int(told.max())} is outside the "
                f"head's {classes} classes" + ("" if single else "; pass Task(..., classes=...)")
            )
    model.check_capacity()
    return classes


def check_scores(model: Model, scores: Mapping[str, Tensor]) -> None:
    """Raises TrainingError where the channels of a task were ranked by what is no number."""
    for group in model.groups.prunable:
        # Those of active channels are NaN where nothing computed them.
        if not bool(torch.isfinite(scores[group.name][model.active(group) :]).all()):
            raise TrainingError(
                f"activity of {group.name!r}: a channel's mean is not finite. Look for NaN or "
                "huge numbers in the inputs, or take a lower lr"
            )


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
