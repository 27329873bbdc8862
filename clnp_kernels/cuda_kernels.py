"""The operators of the CUDA C++ library (`csrc/cuda`), with the arguments of the others."""

from typing import Any

import torch
from torch import Tensor

from ._planes import as_planes
from .reference.channel_activity import accumulator
from .support import unsupported_device


def available() -> bool:
    """Return whether the library is loaded."""
    return hasattr(torch.ops.clnp_kernels_cuda, "adam_l1")


def unsupported(x: Tensor) -> str:
    """Return the reason why the library can't take a tensor like `x`, or ''."""
    return unsupported_device(x.device)


def adam_l1(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *rest: Any,
) -> None:
    """One launch for all tensors (and one block that advances the steps).

    Steps on the CPU are copied to the device and back, which waits for the device.
    """
    op, device = torch.ops.clnp_kernels_cuda.adam_l1, params[0].device
    if all(step.device == device for step in steps):
        op(params, grads, exp_avgs, exp_avg_sqs, steps, *rest)
        return
    copies = list(torch.stack([step.to(device) for step in steps]).unbind())
    op(params, grads, exp_avgs, exp_avg_sqs, copies, *rest)
    for step, copy in zip(steps, copies, strict=True):
        step.copy_(copy)


def sgd_l1(*args: Any) -> None:
    """One launch for all tensors."""
    torch.ops.clnp_kernels_cuda.sgd_l1(*args)


def channel_activity(x: Tensor, dim: int) -> Tensor:
    """Sum of `|x|` over every dimension but `dim`: [..., C, ...] -> [C]."""
    if x.numel() == 0:
        return x.new_zeros(x.shape[dim], dtype=accumulator(x.dtype))
    partial: Tensor = torch.ops.clnp_kernels_cuda.channel_activity(as_planes(x, dim))
    return partial[0] if partial.shape[0] == 1 else partial.sum(0)
