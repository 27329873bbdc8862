"""An optimizer's state as named tensors, so that training can stop and go on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def numbered(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters of an optimizer by their position, "0", "1", ..."""
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return {str(i): p for i, p in enumerate(parameters)}


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor], separator: str = "|"
) -> dict[str, Tensor]:
    """Copies of an optimizer's state on the CPU: "parameter|entry" -> tensor.

    Arguments:
        optimizer: its state is read.
        named: name -> parameter; the state of others is left out.
        separator: between the names of the parameter and of the entry.
    """
    names = {id(p): name for name, p in named.items()}
    return {
        f"{names[id(p)]}{separator}{entry}": torch.as_tensor(value).detach().cpu().clone()
        for p, values in optimizer.state.items()
        for entry, value in values.items()
        if id(p) in names and value is not None
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    named: Mapping[str, Tensor],
    saved: Mapping[str, Tensor],
    separator: str = "|",
) -> None:
    """Load the result of `optimizer_tensors`. Entries of parameters that the optimizer does not
    train are left out; parameters without entries start anew.
    """
    positions = {id(p): int(i) for i, p in numbered(optimizer).items()}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in saved.items():
        name, entry = key.rsplit(separator, 1)
        if name in named and id(named[name]) in positions:
            state.setdefault(positions[id(named[name])], {})[entry] = value.clone()
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
