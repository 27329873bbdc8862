"""Forgetting on request: a learned task's output weights and all channels that only it reads go.

What a task added stands behind everything that earlier tasks added. So channels behind those of the
last task that is kept become free. Channels in between are set to zero if no kept task reads them,
which is decided by the frozen weights: a channel is read if a path of weights other than zero leads
from it to the output of a kept task.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from .boundaries import Boundaries, NormAcross
from .heads import Head
from .keep import part_tensors
from .layout import units_of

Units = dict[str, Tensor]  # group -> bool [active units]


@dataclass(frozen=True)
class Forgotten:
    """Outcome of `Model.forget`. Numbers are units of a group: channels, or what moves together.

    Attributes:
        tasks: indices of the tasks that were forgotten, in ascending order.
        freed: group -> units that are free again.
        zeroed: group -> units that were set to zero, because no kept task reads them; they come
            free when the later tasks go.
        read: group -> units of the forgotten tasks that kept tasks read; they stay.
        readers: indices of the kept tasks that read them.
    """

    tasks: tuple[int, ...]
    freed: dict[str, int]
    zeroed: dict[str, int]
    read: dict[str, int]
    readers: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Course of forgetting.

    Attributes:
        tasks: indices of the tasks to forget.
        kept: number of task records that stay, those of forgotten tasks in between included.
        zeroed, read: group -> units of forgotten tasks, without and with a reader.
        readers: indices of the kept tasks with a part in `read`.
    """

    tasks: tuple[int, ...]
    kept: int
    zeroed: Units
    read: Units
    readers: tuple[int, ...]


def plan(model: Boundaries, task: int, cascade: bool) -> Plan:
    """Decide what goes with a task.

    Arguments:
        model: the network, between tasks.
        task: index of a learned task.
        cascade: forget the tasks that read its channels too.
    """
    gone = {task}
    present = {k for k, record in enumerate(model.tasks) if not record.forgotten}
    reads = {k: units_read(model, k) for k in present}
    while True:
        kept = sorted(present - gone)
        free = _of_tasks(model, (k for k in range(len(model.tasks)) if k not in kept))
        readers = {k for k in kept if _any(_both(reads[k], free))}
        own = {k for k in kept if _any(_both(reads[k], _of_tasks(model, gone)))}
        if not cascade or not own:
            break
        gone |= own
    read = {name: torch.zeros_like(units) for name, units in free.items()}
    for k in readers:
        read = {name: read[name] | found for name, found in _both(reads[k], free).items()}
    zeroed = {name: units & ~read[name] for name, units in free.items()}
    return Plan(
        tuple(sorted(gone)), max(kept, default=-1) + 1, zeroed, read, tuple(sorted(readers))
    )


def units_read(model: Boundaries, task: int) -> Units:
    """Return the active units from which weights other than zero lead to a task's outputs.

    A norm over channels needs all of them.
    """
    stages, active = model.frozen_stages(task), model.tasks[task].active
    found = {name: torch.zeros(n, dtype=torch.bool) for name, n in active.items()}
    head = model.groups.head
    stop = model.width(head, active)
    start = model.width(head, model.tasks[task - 1].active) if task else 0
    weight, _ = model.head.task_weights(task, start, stop)
    columns = torch.zeros(stop, dtype=torch.bool)
    columns[stop - weight.shape[1] :] = _nonzero(weight, 1)
    _mark(model, head, columns, stages, found)
    for name in model.groups.across:  # statistics are those of all channels, read or not
        for group, _ in model.groups.of(name):
            found[group][:] = True
    before = -1
    while before != (before := sum(int(units.sum()) for units in found.values())):
        for name, layer in reversed(model.masked_layers.items()):
            if name not in model.groups.reads:
                continue  # one of its own channels each
            wanted = torch.zeros(model.outputs(name, active), dtype=torch.bool)
            for group, _ in model.groups.of(name):
                rows = units_of(model.groups.of(name), stages, group)
                wanted[rows[found[group]]] = True
            width = model.width(name, active)
            weight = layer.active_weight[: len(wanted), :width]
            _mark(model, name, _nonzero(weight[wanted.to(weight.device)], 1), stages, found)
    return found


def _nonzero(weight: Tensor, axis: int) -> Tensor:
    """Return [n] on the CPU: whether any weight of an entry of `axis` is not zero, or is NaN."""
    return (weight != 0).movedim(axis, 0).flatten(1).any(dim=1).cpu()


def _mark(model: Boundaries, layer: str, columns: Tensor, stages: Any, found: Units) -> None:
    """Set the units in `found` of which a layer reads one of the marked columns."""
    for group, _ in model.groups.reads[layer]:
        found[group] |= columns[units_of(model.groups.reads[layer], stages, group)].any(dim=1)


def _of_tasks(model: Boundaries, tasks: Iterable[int]) -> Units:
    """Return the units that some tasks added."""
    found = {name: torch.zeros(model.active(name), dtype=torch.bool) for name in model.sizes}
    prunable = {group.name: found[group.name] for group in model.groups.prunable}
    for k in tasks:
        for name, units in prunable.items():
            before = model.tasks[k - 1].active[name] if k else 0
            units[before : model.tasks[k].active[name]] = True
    return found


def _both(first: Units, second: Units) -> Units:
    """Return the units in both; the shorter of two goes on with False."""
    joined = {}
    for name, units in second.items():
        joined[name] = torch.zeros_like(units)
        own = first[name]
        joined[name][: len(own)] = own & units[: len(own)]
    return joined


def _any(units: Units) -> bool:
    return any(bool(found.any()) for found in units.values())


# Carrying it out


def state_without(model: Any, what: Plan) -> dict[str, Tensor]:
    """Return the state dict of a network that has forgotten; the tensors are copies.

    Free parts have their new sizes and are zero.
    """
    after = _boundaries(model, what)
    state: dict[str, Tensor] = {}
    for name, module in model.masked.items():
        prefix = f"net.{name}."
        own = {k: v.detach().clone() for k, v in module.state_dict().items()}
        units = model.outputs(name, after)
        unread = _entries(model, name, what.zeroed)
        for key, value in part_tensors(module, "active").items():
            if value is not None:
                kept = value[:units].clone()
                kept[unread[:units].to(kept.device)] = 0
                free = own[f"free_{key}"]
                gained = value.shape[0] - units
                own[f"free_{key}"] = free.new_zeros(free.shape[0] + gained, *free.shape[1:])
                if key == "weight" and name in model.groups.reads:
                    kept = kept[:, : model.width(name, after)]
                own[f"active_{key}"] = kept.contiguous()
        if isinstance(module, NormAcross):
            own["ends"] = torch.cat([own["ends"][: what.kept], own["ends"][-1:]])
        state |= {prefix + key: value for key, value in own.items()}
    head = _head_without(model, what)
    return state | {f"net.{model.groups.head}.{key}": value for key, value in head.items()}


def _boundaries(model: Boundaries, what: Plan) -> dict[str, int]:
    """Return the active units afterwards."""
    return model.tasks[what.kept - 1].active if what.kept else dict.fromkeys(model.sizes, 0)


def _entries(model: Boundaries, name: str, units: Units) -> Tensor:
    """Return [channels] bool: the active channels of a module that belong to the units."""
    layout, stages = model.groups.of(name), model.frozen_stages()
    found = torch.zeros(model.outputs(name, model.tasks[-1].active), dtype=torch.bool)
    for group, _ in layout:
        found[units_of(layout, stages, group)[units[group]]] = True
    return found


def _head_without(model: Boundaries, what: Plan) -> dict[str, Tensor]:
    """Return the state of the head: learned parts of the kept tasks, a current part of zeros."""
    head: Head = model.head
    name, after = model.groups.head, _boundaries(model, what)
    own = {k: v.detach().clone() for k, v in head.state_dict().items()}
    if head.kind == "multi":
        for key in [key for key in own if key.startswith(("weight_", "bias_"))]:
            number = int(key.rpartition("_")[2])
            if number >= what.kept:
                del own[key]
            elif number in what.tasks:
                own[key] = own[key][:0]
        own["active_weight"] = own["active_weight"].new_empty(0, model.width(name, after))
        classes = model.tasks[what.kept - 1].classes if what.kept else head.classes
        own["free_weight"] = own["free_weight"].new_zeros(classes, model.inputs(name))
        if "free_bias" in own:
            own["free_bias"] = own["free_bias"].new_zeros(classes)
        return own
    frozen = own["frozen_weight"]
    for task in what.tasks:
        start = model.width(name, model.tasks[task - 1].active) if task else 0
        frozen[:, start : model.width(name, model.tasks[task].active)] = 0
    columns = model.width(name, after)
    own["frozen_weight"] = frozen[:, :columns].contiguous()
    own["free_weight"] = frozen.new_zeros(frozen.shape[0], model.inputs(name) - columns)
    if not what.kept and "frozen_bias" in own:
        own["free_bias"] = torch.zeros_like(own.pop("frozen_bias"))
    return own


def structure_without(model: Any, what: Plan) -> dict[str, Any]:
    """Return the structure (`Model.structure`) afterwards."""
    data: dict[str, Any] = model.structure()
    records = data["tasks"][: what.kept]
    for task in what.tasks:
        if task < what.kept:
            records[task] |= {"name": "", "classes": 0}
    after = _boundaries(model, what)
    left = {name: size - after[name] for name, size in model.sizes.items()}
    return {**data, "tasks": records, "left": left}


def outcome(model: Boundaries, what: Plan) -> Forgotten:
    """Return what a plan does to the present network, in numbers, without groups of zero."""
    after = _boundaries(model, what)

    def counts(units: Units, up_to_boundary: bool) -> dict[str, int]:
        sums = {n: int(u[: after[n] if up_to_boundary else None].sum()) for n, u in units.items()}
        return {name: number for name, number in sums.items() if number}

    groups = [group.name for group in model.groups.prunable]
    freed = {name: model.active(name) - after[name] for name in groups}
    return Forgotten(
        what.tasks,
        {name: number for name, number in freed.items() if number},
        counts(what.zeroed, True),
        counts(what.read, False),
        what.readers,
    )


def check_forget(model: Boundaries, cascade: Any) -> None:
    """Raise ConfigError during a task, or for a `cascade` that is neither True nor False."""
    if model.in_task:
        raise ConfigError(
            "forget(): expected no task in training; end it with consolidate() or cancel_task()"
        )
    if not isinstance(cascade, bool):
        raise ConfigError(f"cascade: expected True or False, got {cascade!r}")
