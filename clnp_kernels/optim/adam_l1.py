"""`AdamL1`: Adam with a coupled L1 term."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .. import ops
from .._checks import check_number
from ..errors import message
from . import _common


class AdamL1(_common.CoupledL1):
    """Adam (Kingma & Ba 2015) on the loss plus `l1 * sum |w|`, the sparsity term of CLNP.

    The subgradient `l1 * sign(w)` enters Adam like any other gradient (coupled; Golkar et al.
    2019, Sec. 2.2), computed within the step's single pass over memory. With `l1 = 0` it is
    `torch.optim.Adam`, to rounding. Closures, schedulers, `state_dict` and
    `torch.amp.GradScaler` work as with `torch.optim`. A state of `torch.optim.Adam` can be
    loaded: groups then keep their `l1`.

    On a GPU the numbers of steps are on the GPU too and nothing waits for it, so a CUDA graph can
    hold a step once the state exists (after the first step). A captured step reads the rate anew if
    `lr` is a tensor on the device, and keeps that of the capture if it is a number.

    Arguments:
        params: parameters or groups of them; `l1` is an option of a group.
        lr: learning rate, a number or a tensor of one element.
        betas, eps: as `torch.optim.Adam`.
        l1: alpha, at least 0.
        weight_decay: coupled L2, as `torch.optim.Adam`.
        maximize: ascend the objective; `l1` still shrinks the weights.

    Raises:
        ValueError: a number is out of its range.
        ValueError: (in `load_state_dict`) a state of another optimizer or of other shapes.
        TypeError: (in `step`) a gradient is sparse.
    """

    entries = frozenset({"step", "exp_avg", "exp_avg_sq"})

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        l1: float = 0.0,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "l1": l1}
        defaults |= {"weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise unless the options of a group are possible."""
        super().check_options(options)
        betas = options["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(message("betas", betas, "two numbers"))
        for i, beta in enumerate(betas):
            check_number(f"betas[{i}]", beta, below=1.0)
        check_number("eps", options["eps"])

    def _step_alike(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], **common: Any
    ) -> None:
        states = [self._state_of(param) for param in params]
        ops.adam_l1(
            params,
            grads,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["step"] for state in states],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
            **common,
        )

    def _state_of(self, param: Tensor) -> dict[str, Tensor]:
        state = self.state[param]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=_home(param))
            state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        elif state["step"].device != _home(param):  # loaded from a state that was saved elsewhere
            state["step"] = state["step"].to(_home(param))
        return state


def _home(param: Tensor) -> torch.device:
    """The device of a parameter's number of steps: its own if that is a GPU, else the CPU."""
    return param.device if param.is_cuda else torch.device("cpu")
