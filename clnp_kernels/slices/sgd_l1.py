"""`sgd_l1` by tensor operations; nothing waits for the device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.sgd_l1 import Options, step_of


def sgd_l1(
    params: Sequence[Tensor], grads: Sequence[Tensor], buffers: Sequence[Tensor], *rest: Any
) -> None:
    """One step of SGD with a coupled L1 subgradient, in place."""
    options = Options(*rest)
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        g, buffer = step_of(i, param, grad, buffers, options)
        if buffer is not None:
            _put(buffers[i], buffer, options.found_inf)
        _put(param, param.to(g.dtype) - options.lr[i].to(g.dtype) * g, options.found_inf)


def _put(tensor: Tensor, value: Tensor, found_inf: Tensor | None) -> None:
    """Write `value` unless `found_inf`."""
    if found_inf is not None:
        skip = (found_inf.reshape(()) != 0).to(tensor.device)
        value = torch.where(skip, tensor, value.to(tensor.dtype))
    tensor.copy_(value)
