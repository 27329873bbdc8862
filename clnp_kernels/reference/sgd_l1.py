"""Definition of `sgd_l1`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .adam_l1 import gradient_l1


class Options(NamedTuple):
    """Arguments of the operator behind the three lists of tensors, in their order."""

    first: Sequence[bool]
    lr: Sequence[Tensor]
    l1: Sequence[float]
    momentum: float
    dampening: float
    nesterov: bool
    weight_decay: float
    maximize: bool
    grad_scale: Tensor | None
    found_inf: Tensor | None


def step_of(
    i: int, param: Tensor, grad: Tensor, buffers: Sequence[Tensor], options: Options
) -> tuple[Tensor, Tensor | None]:
    """The step of parameter `i` before the rate, and its new momentum (None without momentum)."""
    g, momentum = gradient_l1(param, grad, options.l1[i], options), options.momentum
    if not momentum:
        return g, None
    buffer = buffers[i].to(g.dtype)
    buffer = g if options.first[i] else buffer * momentum + (1 - options.dampening) * g
    return g + momentum * buffer if options.nesterov else buffer, buffer


def sgd_l1(
    params: Sequence[Tensor], grads: Sequence[Tensor], buffers: Sequence[Tensor], *rest: Any
) -> None:
    """One step of SGD with a coupled L1 subgradient, in place."""
    options = Options(*rest)
    if options.found_inf is not None and options.found_inf.item():
        return
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        g, buffer = step_of(i, param, grad, buffers, options)
        if buffer is not None:
            buffers[i].copy_(buffer)
        param.copy_(param.to(g.dtype) - float(options.lr[i]) * g)
