"""Schemas, shapes and gradients of the operators of ``masked_conv2d``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _register
from .._register import call
from ..reference import masked_conv2d as reference
from ..reference.channel_activity import accumulator


def _images(x: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    """An empty tensor [B, channels, *size] that lies as ``x`` does."""
    shape, format_x = (x.shape[0], channels, *size), reference.memory_format(x)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=format_x)


def _fake_fwd(
    x: Tensor,
    active_weight: Tensor,
    free_weight: Tensor,
    active_bias: Tensor | None,
    free_bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    depthwise: bool,
    activation: str,
    activity: bool,
    full_input_grad: bool,
) -> tuple[Tensor, Tensor]:
    outputs = active_weight.shape[0] + free_weight.shape[0]
    size = reference.output_size(x, free_weight.shape[2:], stride, padding, dilation)
    sums = x.new_empty(outputs if activity else 0, dtype=accumulator(x.dtype))
    return _images(x, outputs, size), sums


def _setup_fwd(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, active_weight, free_weight, _, _, *geometry, activation, _, full_input_grad = inputs
    y, sums = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(sums)
    ctx.relu, ctx.full, ctx.geometry = activation == "relu", full_input_grad, geometry
    ctx.save_for_backward(x, active_weight, free_weight, y if ctx.relu else None)


def _backward_fwd(ctx: Any, grad_y: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of x, free_weight and free_bias; only what is needed, for free outputs only."""
    x, active_weight, free_weight, y = ctx.saved_tensors
    needs_x, _, needs_weight, _, needs_bias = ctx.needs_input_grad[:5]
    grad_x = grad_weight = grad_bias = None
    if grad_y is None or not (needs_x or needs_weight or needs_bias):
        return (None,) * 12
    # Both convolutions take the gradient before the activation. For the whole gradient of x it
    # starts at the first output, else at the first free one.
    active_out = active_weight.shape[0]
    start = 0 if ctx.full and needs_x else active_out
    free = active_out - start
    if ctx.relu:
        grad_z, sums = call("masked_conv2d_relu_grad", grad_y, y, start, needs_bias)
        grad_bias = sums[free:] if needs_bias else None
    else:
        grad_z = grad_y[:, start:] if start else grad_y
    grad_free = grad_z[:, free:] if free else grad_z
    if needs_x:
        arguments = (x, active_weight, free_weight, *ctx.geometry, ctx.full)
        grad_x = call("masked_conv2d_dgrad", grad_z, *arguments)
    if needs_weight:
        sum_now = needs_bias and grad_bias is None
        arguments = (x, list(free_weight.shape[2:]), *ctx.geometry, sum_now)
        grad_weight, sums = call("masked_conv2d_wgrad", grad_free, *arguments)
        grad_bias = sums if sum_now else grad_bias
    elif needs_bias and grad_bias is None:
        grad_bias = grad_free.sum((0, 2, 3))
    return grad_x, None, grad_weight, None, grad_bias, *(None,) * 7


def _fake_relu_grad(grad_y: Tensor, y: Tensor, active: int, bias: bool) -> tuple[Tensor, Tensor]:
    outputs = y.shape[1] - active
    return _images(y, outputs, y.shape[2:]), y.new_empty(outputs if bias else 0)


def _setup_relu_grad(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, y, ctx.active, ctx.bias = inputs
    ctx.save_for_backward(y)


def _backward_relu_grad(ctx: Any, grad: Tensor, grad_bias: Tensor) -> tuple[Tensor | None, ...]:
    (y,) = ctx.saved_tensors
    grad = grad + grad_bias[:, None, None] if ctx.bias else grad
    masked = grad.masked_fill(y[:, ctx.active :] <= 0, 0)
    return torch.nn.functional.pad(masked, (0, 0, 0, 0, ctx.active, 0)), None, None, None


def _fake_dgrad(
    grad_z: Tensor,
    x: Tensor,
    active_weight: Tensor,
    free_weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    depthwise: bool,
    full_input_grad: bool,
) -> Tensor:
    return _images(x, x.shape[1], x.shape[2:])


def _setup_dgrad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_z, x, active_weight, free_weight, *ctx.geometry, ctx.full = inputs
    ctx.save_for_backward(grad_z, x, active_weight, free_weight)


def _backward_dgrad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient is linear in ``grad_z`` and in the weights."""
    grad_z, _, active_weight, free_weight = ctx.saved_tensors
    active_out, depthwise = active_weight.shape[0], ctx.geometry[3]
    split = active_out if depthwise else active_weight.shape[1]
    inner = grad if ctx.full and not depthwise else grad[:, split:]
    weight = free_weight if ctx.full or depthwise else free_weight[:, split:]
    grad_grad_z = reference.convolve(inner, weight, None, *ctx.geometry)
    if ctx.full:
        active = reference.convolve(grad[:, :split], active_weight, None, *ctx.geometry)
        grad_grad_z = torch.cat([active, grad_grad_z], 1)
    free_z = grad_z[:, active_out:] if ctx.full else grad_z
    grad_weight = reference.weight_gradient(free_z, inner, weight.shape[2:], *ctx.geometry)
    missing = free_weight.shape[1] - grad_weight.shape[1]
    grad_weight = torch.nn.functional.pad(grad_weight, (0, 0, 0, 0, missing, 0))
    return grad_grad_z, None, None, grad_weight, *(None,) * 5


def _fake_wgrad(
    grad_z: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    depthwise: bool,
    bias: bool,
) -> tuple[Tensor, Tensor]:
    outputs = grad_z.shape[1]
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
    padded = torch.nn.functional.pad(grad_x, (0, 0, 0, 0, active, 0))
    return grad_grad_z, padded, *(None,) * 6


_GEOMETRY = "int[] stride, int[] padding, int[] dilation, bool depthwise"
_register.define(
    "masked_conv2d_fwd",
    "(Tensor x, Tensor active_weight, Tensor free_weight, Tensor? active_bias, Tensor? free_bias, "
    f"{_GEOMETRY}, str activation, bool activity, bool full_input_grad) -> (Tensor, Tensor)",
    reference.masked_conv2d_fwd,
    _fake_fwd,
)
_register.define(
    "masked_conv2d_relu_grad",
    "(Tensor grad_y, Tensor y, int active, bool bias) -> (Tensor, Tensor)",
    reference.masked_conv2d_relu_grad,
    _fake_relu_grad,
)
_register.define(
    "masked_conv2d_dgrad",
    "(Tensor grad_z, Tensor x, Tensor active_weight, Tensor free_weight, "
    f"{_GEOMETRY}, bool full_input_grad) -> Tensor",
    reference.masked_conv2d_dgrad,
    _fake_dgrad,
)
_register.define(
    "masked_conv2d_wgrad",
    f"(Tensor grad_z, Tensor x, int[] kernel, {_GEOMETRY}, bool bias) -> (Tensor, Tensor)",
    reference.masked_conv2d_wgrad,
    _fake_wgrad,
)
_register.differentiate("masked_conv2d_fwd", _backward_fwd, _setup_fwd)
_register.differentiate("masked_conv2d_relu_grad", _backward_relu_grad, _setup_relu_grad)
_register.differentiate("masked_conv2d_dgrad", _backward_dgrad, _setup_dgrad)
_register.differentiate("masked_conv2d_wgrad", _backward_wgrad, _setup_wgrad)
for _name in ("fwd", "relu_grad", "dgrad", "wgrad"):
    _register.vmap_by_loop(f"masked_conv2d_{_name}")
