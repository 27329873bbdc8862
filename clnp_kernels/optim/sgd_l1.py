"""`SGDL1`: SGD with a coupled L1 term."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .. import ops
from .._checks import check_number
from ..errors import message
from . import _common


class SGDL1(_common.CoupledL1):
    """SGD on the loss plus `l1 * sum |w|`, the term of CLNP (Golkar et al. 2019, Sec. 2.2).

    With `l1 = 0` it is `torch.optim.SGD`, to rounding. Closures, schedulers, `state_dict` and
    `torch.amp.GradScaler` work as with `torch.optim`. A state of `torch.optim.SGD` can be
    loaded: groups then keep their `l1`.

    Arguments:
        params: parameters or groups of them; `l1` is an option of a group.
        lr: learning rate, a number or a tensor of one element.
        momentum, dampening, weight_decay, nesterov: as `torch.optim.SGD`.
        l1: alpha, at least 0.
        maximize: ascend the objective; `l1` still shrinks the weights.

    Raises:
        ValueError: a number is out of its range, or Nesterov without momentum or with dampening.
        ValueError: (in `load_state_dict`) a state of another optimizer or of other shapes.
        TypeError: (in `step`) a gradient is sparse.
    """

    entries = frozenset({"momentum_buffer"})

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        l1: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "momentum": momentum, "dampening": dampening}
        defaults |= {"weight_decay": weight_decay, "nesterov": nesterov, "l1": l1}
        defaults |= {"maximize": maximize}
        super().__init__(params, defaults)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise unless the options of a group are possible."""
        super().check_options(options)
        check_number("momentum", options["momentum"])
        check_number("dampening", options["dampening"], low=-math.inf)
        if options["nesterov"] and (not options["momentum"] or options["dampening"]):
            got = f"momentum={options['momentum']}, dampening={options['dampening']}"
            raise ValueError(message("nesterov=True", got, "momentum > 0 and dampening = 0"))

    def _step_alike(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], **common: Any
    ) -> None:
        buffers: list[Tensor] = []
        first: list[bool] | None = None
        if group["momentum"]:
            first = ["momentum_buffer" not in self.state[param] for param in params]
            # A step that GradScaler skips leaves no buffer behind: the next one is still the first.
            if any(first) and common["found_inf"] is not None and common["found_inf"].item():
                return
            buffers = [self._buffer_of(param) for param in params]
        ops.sgd_l1(
            params,
            grads,
            buffers,
            momentum=group["momentum"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
            first=first,
            **common,
        )

    def _buffer_of(self, param: Tensor) -> Tensor:
        state = self.state[param]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return state["momentum_buffer"]
