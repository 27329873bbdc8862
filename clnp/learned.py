"""What a network remembers of its tasks, and whether its tensors agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clnp.errors import CheckpointError

if TYPE_CHECKING:
    from clnp.model import Model


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


def check_shapes(model: Model) -> None:
    """Raises CheckpointError unless every tensor has the shape that the boundaries ask for."""
    wanted: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for name, layer in model.masked_layers.items():
        made, read = (model.groups[g[name]] for g in (model.groups.makes, model.groups.reads))
        frozen = (
            model.active(made),
            model.width(name, model.tasks[-1].active) if model.tasks else 0,
        )
        rows = model.free(made) if model.in_task else model.sizes[made.name] - model.active(made)
        columns = model.graph[name].attrs["in_features"]
        if read.prunable:
            columns = (
                model.active(read) + model.free(read) if model.in_task else model.sizes[read.name]
            )
        if made.prunable or model.tasks:
            wanted[f"{name}.active_weight"] = (tuple(layer.active_weight.shape), frozen)
            wanted[f"{name}.free_weight"] = (tuple(layer.free_weight.shape), (rows, columns))
        if layer.active_bias is not None:
            wanted[f"{name}.active_bias"] = (tuple(layer.active_bias.shape), frozen[:1])
    for k, task in enumerate(model.tasks):
        start = model.tasks[k - 1].active[model.groups.last.name] if k else 0
        stop = task.active[model.groups.last.name]
        weight, _ = model.head.task_weights(k, start, stop)
        columns = (
            stop - start
            if model.head.kind == "single"
            else model.width(model.groups.head, task.active)
        )
        wanted[f"{model.groups.head}, task {k}"] = (tuple(weight.shape), (task.classes, columns))
    for what, (got, expected) in wanted.items():
        if got != expected:
            raise CheckpointError(
                f"{what} has shape {list(got)}; the learned tasks ask for {list(expected)}"
            )
