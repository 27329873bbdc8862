"""Rows and columns of a network in training that stay when channels are pruned."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from clnp_kernels.nn import PartialBatchNorm2d

from ..errors import ConfigError
from ..graph.groups import Layout
from .boundaries import Boundaries
from .layout import spans

Keep = Mapping[str, Tensor]  # group name -> indices (int64, ascending) into its free channels


def keep_everything(model: Boundaries) -> dict[str, Tensor]:
    """Return a `keep` of all free channels of every prunable group."""
    return {group.name: torch.arange(model.free(group)) for group in model.groups.prunable}


def keep_first(model: Boundaries, most: Mapping[str, int]) -> dict[str, Tensor]:
    """Return a `keep` of the first free channels of every group, at most `most[group]` of them."""
    free = {group.name: model.free(group) for group in model.groups.prunable}
    return {name: torch.arange(min(n, most.get(name, n))) for name, n in free.items()}


def _columns_of(channels: Tensor, positions: int) -> Tensor:
    """Return the columns of channels that have `positions` adjacent columns each."""
    if positions == 1:
        return channels
    offsets = torch.arange(positions, device=channels.device)
    return (channels[:, None] * positions + offsets).flatten()


def part_tensors(module: nn.Module, part: str) -> dict[str, Tensor | None]:
    """Return the "active" or "free" tensors of a masked module: name -> [channels, ...] or None."""
    names: tuple[str, ...] = ("weight", "bias")
    if isinstance(module, PartialBatchNorm2d):
        names += ("mean", "var")
    found = {name: getattr(module, f"{part}_{name}") for name in names}
    return {name: None if value is None else value.detach() for name, value in found.items()}


def _free_entries(model: Boundaries, layout: Layout, keep: Keep, device: torch.device) -> Tensor:
    """Return the indices, among a value's free entries, of those that stay."""
    parts = []
    for span in spans(layout, [model.left]):
        kept = keep.get(span.group)
        if kept is None:  # a group that is never pruned
            kept = torch.arange(span.units)
        parts.append(span.start + _columns_of(kept.to(device), span.each))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def free_inputs(model: Boundaries, name: str, keep: Keep, device: torch.device) -> Tensor:
    """Return the indices of a layer's free inputs that stay."""
    return _free_entries(model, model.groups.reads[name], keep, device)


def columns(model: Boundaries, name: str, keep: Keep) -> Tensor:
    """Return the indices of a layer's input columns that stay, frozen ones first."""
    weight = model.layer_weight(name)
    device, total = weight.device, weight.shape[1]
    if name in model.groups.carries:
        return torch.arange(total, device=device)  # the columns of a filter of one group
    frozen = model.frozen_inputs(name)
    kept = free_inputs(model, name, keep, device)
    return torch.cat([torch.arange(frozen, device=device), frozen + kept])


def rows(model: Boundaries, name: str, keep: Keep, device: torch.device) -> Tensor:
    """Return the indices of the free outputs of a hidden layer or carrier that stay."""
    return _free_entries(model, model.groups.of(name), keep, device)


def kept_units(model: Boundaries, keep: Keep) -> dict[str, int]:
    """Return the number of free units of every group that stay."""
    return {name: len(keep[name]) if name in keep else n for name, n in model.left.items()}


def check_keep(model: Boundaries, keep: Keep) -> None:
    """Raise ConfigError unless `keep` has ascending indices of free channels for every group."""
    for group in model.groups.prunable:
        free = model.free(group)
        kept = keep.get(group.name)
        if kept is None or kept.dtype != torch.int64 or kept.dim() != 1:
            raise ConfigError(
                f"keep[{group.name!r}]: expected a 1-D int64 tensor of free channels to keep"
            )
        if kept.numel() and (int(kept.min()) < 0 or int(kept.max()) >= free):
            raise ConfigError(f"keep[{group.name!r}]: expected indices in 0..{free - 1}")
        if bool((kept[1:] <= kept[:-1]).any()):
            raise ConfigError(f"keep[{group.name!r}]: expected ascending indices without repeats")
        if model.active(group) + kept.numel() == 0:
            raise ConfigError(
                f"keep[{group.name!r}]: expected at least one channel, since none is active, got "
                "none"
            )
    if model.head.kind == "single" and not any(
        keep[group.name].numel() for group in model.groups.read_by_head if group.prunable
    ):
        raise ConfigError(
            f"keep[{model.groups.last.name!r}]: expected at least one new channel for a single "
            "head, got none"
        )


def head_columns(model: Boundaries, keep: Keep) -> Tensor:
    """Return the indices of the columns of the current output weights that stay."""
    head = model.groups.head
    if model.head.kind == "single":
        return free_inputs(model, head, keep, model.head.free_weight.device)
    return columns(model, head, keep)
