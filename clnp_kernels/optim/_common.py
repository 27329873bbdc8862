"""What the optimizers share: checks of options and the way through a group's tensors."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .._checks import check_number
from ..errors import message


def check_rate(lr: float | Tensor) -> None:
    """Raise unless ``lr`` is a finite number, at least 0, or a tensor of one element."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(message("lr.shape", list(lr.shape), "one element"))
    else:
        check_number("lr", lr)


def run_closure(closure: Callable[[], Any] | None) -> Any:
    """Evaluate the closure with gradients enabled."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def trained(group: dict[str, Any]) -> Iterator[list[Tensor]]:
    """The parameters of a group that have gradients, one list per device.

    Raises:
        TypeError: a gradient is sparse.
    """
    by_device: dict[torch.device, list[Tensor]] = {}
    for param in group["params"]:
        if param.grad is not None:
            if param.grad.layout != torch.strided:
                wanted = "a dense gradient"
                raise TypeError(
                    message("param.grad", param.grad.layout, wanted, "use a dense layer")
                )
            by_device.setdefault(param.device, []).append(param)
    yield from by_device.values()


def scaler_arguments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor | None]:
    """What ``torch.amp.GradScaler`` has set on the optimizer for this step."""
    names = ("grad_scale", "found_inf")
    return {name: getattr(optimizer, name, None) for name in names}
