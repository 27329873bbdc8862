"""Cutting channels out of a network in training: which rows and columns stay, and the narrow
network that is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clnp.errors import ConfigError
from clnp.graph import plain_linear

if TYPE_CHECKING:
    from clnp.model import Model

Keep = Mapping[str, Tensor]  # group name -> indices (int64, ascending) into its free channels


def keep_everything(model: Model) -> dict[str, Tensor]:
    """`keep` with all free channels of every prunable group."""
    return {group.name: torch.arange(model.free(group)) for group in model.groups.prunable}


def columns(model: Model, layer: str, keep: Keep) -> Tensor:
    """Input columns of a layer that are left when of each group's free channels only `keep`
    stays.
    """
    group = model.groups[model.groups.reads[layer]]
    weight = model.layer_weight(layer)
    device, total = weight.device, weight.shape[1]
    if not group.prunable:
        return torch.arange(total, device=device)
    kept = keep[group.name].to(device)
    frozen = total - model.free(group)
    return torch.cat([torch.arange(frozen, device=device), frozen + kept])


def rows(model: Model, layer: str, keep: Keep) -> Tensor:
    """Free outputs of a hidden layer that are left."""
    group = model.groups[model.groups.makes[layer]]
    weight = model.layer_weight(layer)
    device = weight.device
    if not group.prunable:
        return torch.arange(weight.shape[0], device=device)
    return keep[group.name].to(device)


def check_keep(model: Model, keep: Keep) -> None:
    """Raises ConfigError unless `keep` names, for every prunable group, ascending indices of
    its free channels.
    """
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
                f"keep[{group.name!r}]: at least one channel of {group.name!r} has to stay"
            )
        if model.head.kind == "single" and group == model.groups.last and kept.numel() == 0:
            raise ConfigError(
                f"keep[{group.name!r}]: with a single head a task needs at least one channel "
                "of its own there"
            )


def head_columns(model: Model, keep: Keep) -> Tensor:
    if model.head.kind == "single":
        return keep[model.groups.last.name].to(model.head.free_weight.device)
    return columns(model, model.groups.head, keep)


def pruned_layers(model: Model, keep: Keep) -> dict[str, nn.Module]:
    """The layers of `pruned_network`; here `keep` may be in any order."""
    last, head = model.groups.last.name, model.head
    own_only = head.kind == "single" and model.groups.only_feeds_head()
    layers: dict[str, nn.Module] = {}
    for name, layer in model.masked_layers.items():
        kept = rows(model, name, keep)
        weight = layer.free_weight.detach()[kept][:, columns(model, name, keep)]
        bias = None if layer.free_bias is None else layer.free_bias.detach()[kept]
        if not (own_only and model.groups.makes[name] == last) and layer.active_weight.shape[0]:
            frozen = layer.active_weight
            grown = frozen.new_zeros(frozen.shape[0], weight.shape[1])
            grown[:, : frozen.shape[1]] = frozen
            weight = torch.cat([grown, weight])
            if bias is not None and layer.active_bias is not None:
                bias = torch.cat([layer.active_bias, bias])
        layers[name] = plain_linear(weight, bias)
    weight = head.free_weight.detach()[:, head_columns(model, keep)]
    if head.kind == "single" and not own_only:
        weight = torch.cat([weight.new_zeros(weight.shape[0], model.active(last)), weight], dim=1)
    layers[model.groups.head] = plain_linear(weight, head.current_bias())
    return layers
