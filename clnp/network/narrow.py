"""Narrow plain networks in a masked one: of a learned task, of all tasks, and of a pruned one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..graph.plain import plain_module
from .boundaries import Boundaries
from .keep import Keep, columns, head_columns, kept_units, part_tensors, rows
from .layout import Counts, blocks, by_group, reordered


def task_layers(model: Boundaries, task: int) -> dict[str, nn.Module]:
    """Return the modules of a learned task's network, with copies of its part of every layer."""
    bounds = model.tasks[task].active
    before = model.tasks[task - 1].active if task else dict.fromkeys(bounds, 0)
    last, head = model.groups.last.name, model.head
    own_only = head.kind == "single" and model.groups.only_feeds_head()
    layers = _corner(model, task, {last: before[last]} if own_only else {})
    own = _own_columns(model, task)
    weight, bias = head.task_weights(task, *own)
    if not own_only:
        if head.kind == "single":
            weight = _padded(weight, own[0])
        order = by_group(model.groups.reads[model.groups.head], model.frozen_stages(task))
        weight = reordered(weight, 1, order)
    layers[model.groups.head] = plain_module("linear", {}, {"weight": weight, "bias": bias})
    return layers


def frozen_tensors(model: Boundaries, task: int) -> dict[str, list[Tensor]]:
    """Copy the tensors of a learned task's network from the frozen buffers: name -> tensors.

    With a single head, a weight of the last hidden layer is followed by the block from the task's
    channels to those of earlier tasks.
    """
    found = {
        f"{name}.{key}": [value]
        for name, layer in task_layers(model, task).items()
        for key, value in layer.state_dict().items()
        if key != "num_batches_tracked"
    }
    if task and model.head.kind == "single" and model.groups.only_feeds_head():
        # This block is not part of the task's network, but `union_layers` needs it to be zero.
        bounds, before = model.tasks[task].active, model.tasks[task - 1].active
        for name in model.groups.last.producers:
            added = slice(model.width(name, before), model.width(name, bounds))
            weight = model.masked_layers[name].active_weight
            found[f"{name}.weight"].append(weight[: model.outputs(name, before), added])
    return found


def union_layers(model: Boundaries) -> dict[str, nn.Module]:
    """Return the modules of one network of all learned tasks; its head concatenates their logits.

    Weights from channels of later tasks to those of earlier ones are zero.
    """
    bounds = model.tasks[-1].active
    layers = _corner(model, len(model.tasks) - 1, {})
    inputs = model.width(model.groups.head, bounds)
    weights, biases = [], []
    for task in model.present:
        own = _own_columns(model, task)
        weight, bias = model.head.task_weights(task, *own)
        start = own[0] if model.head.kind == "single" else 0
        wide = weight.new_zeros(weight.shape[0], inputs)
        wide[:, start : start + weight.shape[1]] = weight
        weights.append(wide)
        biases.append(weight.new_zeros(weight.shape[0]) if bias is None else bias)
    order = by_group(model.groups.reads[model.groups.head], model.frozen_stages())
    tensors = {"weight": reordered(torch.cat(weights), 1, order), "bias": torch.cat(biases)}
    layers[model.groups.head] = plain_module("linear", {}, tensors)
    return layers


def _own_columns(model: Boundaries, task: int) -> tuple[int, int]:
    """Return start and stop of the columns of a task's new channels, of those the head reads."""
    head = model.groups.head
    start = model.width(head, model.tasks[task - 1].active) if task else 0
    return start, model.width(head, model.tasks[task].active)


def _corner(model: Boundaries, task: int, starts: dict[str, int]) -> dict[str, nn.Module]:
    """Return all hidden modules with the units of a task, of some groups from `starts` on."""
    layers = {}
    bounds, stages = model.tasks[task].active, model.frozen_stages(task)
    for name, module in model.masked.items():
        layout = model.groups.of(name)
        first, each = layout[0]
        kept = slice(starts.get(first, 0) * each, model.outputs(name, bounds))
        active = part_tensors(module, "active")
        tensors = {key: None if value is None else value[kept] for key, value in active.items()}
        weight = tensors["weight"]
        if name in model.groups.reads and weight is not None:
            tensors["weight"] = weight[:, : model.width(name, bounds)]
        layers[name] = _plain(model, name, tensors, stages)
    return layers


def _plain(
    model: Boundaries, name: str, tensors: dict[str, Tensor | None], stages: list[Counts]
) -> nn.Module:
    """Build a module of a narrow network from tensors whose entries stand stage by stage."""
    order = by_group(model.groups.of(name), stages)
    if order is not None:
        tensors = {k: None if t is None else reordered(t, 0, order) for k, t in tensors.items()}
    if name in model.groups.reads:
        weight = tensors["weight"]
        assert weight is not None
        tensors["weight"] = reordered(weight, 1, by_group(model.groups.reads[name], stages))
    node = model.graph[name]
    if node.op == "embedding":  # stored channel by channel
        assert tensors["weight"] is not None
        tensors["weight"] = tensors["weight"].t()
    more = blocks(model.groups.of(name), stages) if node.role == "norm_across" else {}
    return plain_module(node.op, node.attrs | more, tensors)


def pruned_layers(model: Boundaries, keep: Keep) -> dict[str, nn.Module]:
    """Return the modules of `pruned_network`; `keep` may be in any order."""
    last, head = model.groups.last.name, model.head
    own_only = head.kind == "single" and model.groups.only_feeds_head()
    stages = [*model.frozen_stages(), kept_units(model, keep)]
    layers: dict[str, nn.Module] = {}
    for name, module in model.masked.items():
        free = part_tensors(module, "free")
        kept = rows(model, name, keep, model.device)
        tensors = {key: None if value is None else value[kept] for key, value in free.items()}
        if name in model.masked_layers:
            weight = tensors["weight"]
            assert weight is not None
            tensors["weight"] = weight[:, columns(model, name, keep)]
        if not (own_only and model.groups.of(name)[0][0] == last):
            frozen = part_tensors(module, "active")
            tensors = {key: _joined(frozen[key], value) for key, value in tensors.items()}
        layers[name] = _plain(model, name, tensors, stages)
    weight = head.free_weight.detach()[:, head_columns(model, keep)]
    if not own_only:
        if head.kind == "single":
            weight = _padded(weight, model.frozen_inputs(model.groups.head))
        weight = reordered(weight, 1, by_group(model.groups.reads[model.groups.head], stages))
    layers[model.groups.head] = plain_module(
        "linear", {}, {"weight": weight, "bias": head.current_bias()}
    )
    return layers


def _padded(weight: Tensor, others: int) -> Tensor:
    """Prepend `others` zero columns to output weights [C, I].

    They stand for channels of earlier tasks that are computed for other layers and that a single
    head doesn't use.
    """
    return torch.cat([weight.new_zeros(weight.shape[0], others), weight], dim=1)


def _joined(frozen: Tensor | None, free: Tensor | None) -> Tensor | None:
    """Concatenate frozen and free rows; frozen rows get weight zero from newer inputs."""
    if frozen is None or free is None or frozen.shape[0] == 0:
        return free
    if frozen.dim() > 1 and frozen.shape[1] < free.shape[1]:
        grown = frozen.new_zeros(frozen.shape[0], *free.shape[1:])
        grown[:, : frozen.shape[1]] = frozen
        frozen = grown
    return torch.cat([frozen, free])
