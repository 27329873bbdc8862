"""Quadratic penalties that hold weights near earlier solutions, by fused operations."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from clnp_kernels import torch_private as private


class Anchor:
    """The penalty sum_i S_i (theta_i - a_i)^2 over named parameters.

    Several quadratics add up to one: after `add`, S is their sum and a their mean weighted by S,
    which differs from the sum of the penalties by a constant only. Where S is 0 nothing is held.

    Attributes:
        strength, centre: parameter name -> S, a, shaped as the parameter.
    """

    def __init__(self) -> None:
        self.strength: dict[str, Tensor] = {}
        self.centre: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, strength: Mapping[str, Tensor], centre: Mapping[str, Tensor]) -> None:
        """Adds one quadratic."""
        for name, new in strength.items():
            old = self.strength.get(name)
            if old is None:
                self.strength[name], self.centre[name] = new.clone(), centre[name].clone()
                continue
            total = old + new
            share = torch.where(total > 0, new / total.clamp_min(torch.finfo(total.dtype).tiny), 0)
            self.centre[name] = torch.lerp(self.centre[name], centre[name], share)
            self.strength[name] = total

    @torch.no_grad()
    def value(self, parameters: Mapping[str, nn.Parameter]) -> Tensor:
        """The penalty, a scalar."""
        names = [n for n in self.strength if n in parameters]
        zero = next(iter(parameters.values())).new_zeros(())
        terms = [
            (self.strength[n] * (parameters[n] - self.centre[n]).square()).sum() for n in names
        ]
        return torch.stack(terms).sum() if terms else zero

    @torch.no_grad()
    def add_gradient(self, parameters: Mapping[str, nn.Parameter], factor: float) -> None:
        """Adds `factor` times the penalty's gradient, 2 factor S (theta - a), to `.grad`."""
        names = [n for n in self.strength if n in parameters and parameters[n].grad is not None]
        if not names or not factor:
            return
        grads = [g for n in names if (g := parameters[n].grad) is not None]
        moved = private.foreach_sub(
            [parameters[n].detach() for n in names], [self.centre[n] for n in names]
        )
        private.foreach_addcmul_(grads, [self.strength[n] for n in names], moved, 2 * factor)

    def state(self) -> dict[str, Tensor]:
        """Tensors by name."""
        return {
            **{f"strength.{n}": t for n, t in self.strength.items()},
            **{f"centre.{n}": t for n, t in self.centre.items()},
        }

    def load_state(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Load the result of `state`; other names are ignored."""
        for kind in ("strength", "centre"):
            mark = kind + "."
            found = {
                n.removeprefix(mark): t.to(device) for n, t in state.items() if n.startswith(mark)
            }
            setattr(self, kind, found)
