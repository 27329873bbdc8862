"""Definition of `sgd_l1`."""

from collections.abc import Sequence

from torch import Tensor

from .adam_l1 import gradient_l1


def sgd_l1(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    first: Sequence[bool],
    lr: Tensor,
    l1: Sequence[float],
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    maximize: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """One step of SGD with a coupled L1 subgradient, in place."""
    if found_inf is not None and found_inf.item():
        return
    rate = float(lr)
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        g = gradient_l1(param, grad, l1[i], weight_decay, maximize, grad_scale)
        if momentum:
            buffer = momentum_buffers[i].to(g.dtype)
            buffer = g if first[i] else buffer * momentum + (1 - dampening) * g
            momentum_buffers[i].copy_(buffer)
            g = g + momentum * buffer if nesterov else buffer
        param.copy_(param.to(g.dtype) - rate * g)
