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


def trained(
    optimizer: torch.optim.Optimizer,
) -> Iterator[tuple[dict[str, Any], list[Tensor], list[float]]]:
    """The parameters that have gradients, for each device and each set of options: a group with
    these options, the parameters, and the alpha of each of them. Groups that differ in ``l1`` only
    are one.

    Raises:
        TypeError: a gradient is sparse.
    """
    found: dict[Any, tuple[dict[str, Any], list[Tensor], list[float]]] = {}
    names = [name for name in optimizer.defaults if name != "l1"]
    for group in optimizer.param_groups:
        options = tuple(_key(group.get(name)) for name in names)
        for param in group["params"]:
            if param.grad is None:
                continue
            if param.grad.layout != torch.strided:
                wanted = "a dense gradient"
                raise TypeError(
                    message("param.grad", param.grad.layout, wanted, "use a dense layer")
                )
            _, params, l1 = found.setdefault((param.device, options), (group, [], []))
            params.append(param)
            l1.append(group["l1"])
    yield from found.values()


def _key(option: Any) -> Any:
    """What is equal for equal options; tensors, such as a rate on the device, are told by which
    they are.
    """
    if isinstance(option, Tensor):
        return id(option)
    return tuple(option) if isinstance(option, list) else option


def scaler_arguments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor | None]:
    """What ``torch.amp.GradScaler`` has set on the optimizer for this step."""
    names = ("grad_scale", "found_inf")
    return {name: getattr(optimizer, name, None) for name in names}
