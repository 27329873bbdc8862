"""`sgd_l1` by tensor operations; nothing waits for the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference.adam_l1 import gradient_l1


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
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        g = gradient_l1(param, grad, l1[i], weight_decay, maximize, grad_scale)
        if momentum:
            buffer = momentum_buffers[i].to(g.dtype)
            buffer = g if first[i] else buffer * momentum + (1 - dampening) * g
            _put(momentum_buffers[i], buffer, found_inf)
            g = g + momentum * buffer if nesterov else buffer
        _put(param, param.to(g.dtype) - lr.to(g.dtype) * g, found_inf)


def _put(tensor: Tensor, value: Tensor, found_inf: Tensor | None) -> None:
    """Write `value` unless `found_inf`."""
    if found_inf is not None:
        skip = (found_inf.reshape(()) != 0).to(tensor.device)
        value = torch.where(skip, tensor, value.to(tensor.dtype))
    tensor.copy_(value)
