"""A method's run as named tensors and plain data, so that it can stop and go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def optimizer_state(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The optimizer's tensors, called "parameter|entry"."""
    names = {id(p): name for name, p in named.items()}
    return {
        f"{names[id(p)]}|{entry}": torch.as_tensor(value)
        for p, values in optimizer.state.items()
        for entry, value in values.items()
        if id(p) in names and value is not None
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]
) -> None:
    """Gives an optimizer what `optimizer_state` read; entries of parameters that it does not train
    are left out, and parameters that have none start anew.
    """
    order = [p for group in optimizer.param_groups for p in group["params"]]
    number = {id(p): i for i, p in enumerate(order)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in saved.items():
        name, entry = key.rsplit("|", 1)
        if name in named and id(named[name]) in number:
            state.setdefault(number[id(named[name])], {})[entry] = value.clone()
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with `prefix` before every name."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the tensors whose names begin with `prefix`, which is taken off."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def as_tensor(data: Any) -> Tensor:
    """JSON-able data as bytes in a tensor [n] uint8."""
    return torch.frombuffer(bytearray(json.dumps(data).encode()), dtype=torch.uint8)


def from_tensor(tensor: Tensor) -> Any:
    """The inverse of `as_tensor`."""
    return json.loads(bytes(tensor.cpu().tolist()))
