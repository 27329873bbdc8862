"""Shapes and gradients of the operators of `masked_conv2d`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..reference import masked_conv2d as reference
from ..reference.channel_activity import accumulator
from . import _masked


def _fake_fwd(
    x: Tensor, active_weight: Tensor, free_weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    outputs = active_weight.shape[0] + free_weight.shape[0]
    size = reference.output_size(x, free_weight.shape[2:], *rest[2:5])
    sums = x.new_empty(outputs if rest[-1] else 0, dtype=accumulator(x.dtype))
    return _masked.empty(x, outputs, size), sums


def _fake_dgrad(grad_z: Tensor, x: Tensor, *rest: Any) -> Tensor:
    return _masked.empty(x, x.shape[1])


def _setup_dgrad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_z, _, free_weight, ctx.active, *ctx.geometry = inputs
    ctx.save_for_backward(grad_z, free_weight)


def _backward_dgrad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient is linear in `grad_z` and in the weight."""
    grad_z, free_weight = ctx.saved_tensors
    missing = 0 if ctx.geometry[3] else ctx.active
    free, weight = grad[:, ctx.active :], free_weight[:, missing:]
    grad_grad_z = reference.convolve(free, weight, None, *ctx.geometry)
    grad_weight = reference.weight_gradient(grad_z, free, weight.shape[2:], *ctx.geometry)
    return grad_grad_z, None, pad(grad_weight, (0, 0, 0, 0, missing, 0)), *(None,) * 5


def _fake_wgrad(
    grad_z: Tensor, x: Tensor, kernel: Sequence[int], *rest: Any
) -> tuple[Tensor, Tensor]:
    outputs, (*_, depthwise, bias) = grad_z.shape[1], rest
    shape = (outputs, 1 if depthwise else x.shape[1], *kernel)
    format_x = reference.memory_format(x)
    weight = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=format_x)
    return weight, grad_z.new_empty(outputs if bias else 0)


def _setup_wgrad(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad_z, x, _, *ctx.geometry, ctx.bias = inputs
    ctx.save_for_backward(grad_z, x)


def _backward_wgrad(ctx: Any, grad_weight: Tensor, grad_bias: Tensor) -> tuple[Tensor | None, ...]:
    grad_z, x = ctx.saved_tensors
    active = x.shape[1] - grad_z.shape[1] if ctx.geometry[3] else 0
    bias = grad_bias if ctx.bias else None
    seen = x[:, active:]
    grad_grad_z = reference.convolve(seen, grad_weight, bias, *ctx.geometry)
    grad_x = reference.input_gradient(grad_z, seen.shape, grad_weight, *ctx.geometry)
    return grad_grad_z, pad(grad_x, (0, 0, 0, 0, active, 0)), *(None,) * 6


_masked.register(
    "masked_conv2d",
    reference,
    (_fake_fwd, _fake_dgrad, _fake_wgrad),
    ((_backward_dgrad, _setup_dgrad), (_backward_wgrad, _setup_wgrad)),
)
