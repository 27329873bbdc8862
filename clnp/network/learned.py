"""What a network remembers of its tasks, and whether its tensors agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .keep import tensors_of

if TYPE_CHECKING:
    from .network import Network


Shapes = tuple[tuple[int, ...], tuple[int, ...]]  # found, wanted


@dataclass(frozen=True)
class LearnedTask:
    """What the network remembers of a learned task.

    Attributes:
        name: the task's name.
        classes: number of outputs C of its head.
        active: group name -> how many channels were active after it (its boundary).
    """

    name: str
    classes: int
    active: dict[str, int]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LearnedTask:
        """The inverse of `dataclasses.asdict`; raises KeyError, TypeError or ValueError."""
        active = {str(group): int(count) for group, count in data["active"].items()}
        return cls(str(data["name"]), int(data["classes"]), active)


def check_shapes(model: Network) -> None:
    """Raises CheckpointError unless every tensor has the shape that the boundaries ask for."""
    wanted = _head_shapes(model)
    for name, module in model.masked.items():
        group = model.groups.of(name)
        active = model.active(group)
        free = model.free(group) if model.in_task else model.sizes[group.name] - active
        for part, channels in (("active", active), ("free", free)):
            for key, value in tensors_of(module, part).items():
                if value is not None:
                    rest = (1, *value.shape[2:])[: value.dim() - 1]
                    if key == "weight" and name in model.groups.reads:
                        rest = (_inputs(model, name, part), *value.shape[2:])
                    wanted[f"{name}.{part}_{key}"] = (tuple(value.shape), (channels, *rest))
    for k, task in enumerate(model.tasks):
        positions = model.groups.positions[model.groups.head]
        start = model.tasks[k - 1].active[model.groups.last.name] if k else 0
        stop = task.active[model.groups.last.name]
        weight, _ = model.head.task_weights(k, start * positions, stop * positions)
        columns = (
            (stop - start) * positions
            if model.head.kind == "single"
            else model.width(model.groups.head, task.active)
        )
        wanted[f"{model.groups.head}, task {k}"] = (tuple(weight.shape), (task.classes, columns))
    for what, (got, expected) in wanted.items():
        if got != expected:
            raise CheckpointError(
                f"{what} has shape {list(got)}; the learned tasks ask for {list(expected)}"
            )


def _head_shapes(model: Network) -> dict[str, Shapes]:
    """Of the output layer that is being learned, or waits for the next task."""
    head, name, waits = model.head, model.groups.head, model.tasks and not model.in_task
    rows = model.tasks[-1].classes if waits else head.classes
    frozen, multi = model.frozen_inputs(name), head.kind == "multi"
    columns = _inputs(model, name, "free") - (0 if multi else frozen)
    wanted: dict[str, Shapes] = {
        f"{name}.free_weight": (tuple(head.free_weight.shape), (rows, columns)),
        f"{name}.active_weight": (tuple(head.active_weight.shape), (0, frozen if multi else 0)),
    }
    bias = head.current_bias()
    if bias is not None:
        wanted[f"{name}, bias"] = (tuple(bias.shape), (rows,))
    return wanted


def _inputs(model: Network, name: str, part: str) -> int:
    """Columns that the active or free weight of a layer has to have."""
    if part == "active":
        return model.frozen_inputs(name)
    group = model.groups[model.groups.reads[name]]
    if not group.prunable or not model.in_task:
        return model.inputs(name)
    channels = model.active(group) + model.free(group)
    return channels * model.groups.positions[name]
