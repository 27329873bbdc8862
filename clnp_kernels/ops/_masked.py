"""Checks, autocast and gradients that `masked_linear` and `masked_conv2d` share.

Letters: B batch, I/O inputs/outputs, Ia/Oa active (frozen), If/Of free, I = Ia + If, O = Oa + Of.
Tensors are [B, C] in the linear operators and [B, C, H, W] in the convolutions. `z` is the output
before the activation. `stem` is "masked_linear" or "masked_conv2d".
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import _register
from .._checks import check_alike, check_count, check_shape, check_tensor
from .._register import call
from ..casts import frozen
from ..errors import message
from ..reference.masked_conv2d import memory_format

ACTIVATIONS = ("none", "relu")
NAMES = ("active_weight", "free_weight", "active_bias", "free_bias")


def check_biases(
    active_weight: Tensor, free_weight: Tensor, active_bias: Tensor | None, free_bias: Tensor | None
) -> None:
    """Raise unless both biases fit the weights or both are None."""
    if (active_bias is None) != (free_bias is None):
        missing = "active_bias" if active_bias is None else "free_bias"
        raise ValueError(message(missing, None, "a tensor, as the other bias is one"))
    if active_bias is not None and free_bias is not None:
        check_tensor("active_bias", active_bias)
        check_tensor("free_bias", free_bias)
        check_shape("active_bias", active_bias, active_weight.shape[:1], "[Oa]")
        check_shape("free_bias", free_bias, free_weight.shape[:1], "[Of]")


def check_dtypes(x: Tensor, *others: Tensor | None) -> None:
    """Raise unless the weights and biases have the dtype and the device of `x`."""
    for name, other in zip(NAMES, others, strict=True):
        if other is not None:
            check_alike(name, other, "x", x)


def autocast(x: Tensor, *parameters: Tensor | None) -> Sequence[Any]:
    """Cast to autocast's dtype, except float64; `parameters` are in the order of `NAMES`."""
    tensors = (x, *parameters)
    # The meta device has no autocast: asking whether it is enabled raises.
    if x.device.type == "meta" or not torch.is_autocast_enabled(x.device.type):
        return tensors
    dtype = torch.get_autocast_dtype(x.device.type)
    names = ("x", *NAMES)
    return [
        t if t is None or t.dtype == torch.float64 else _cast(name, t, dtype)
        for name, t in zip(names, tensors, strict=True)
    ]


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return frozen(tensor, dtype) if name.startswith("active") else tensor.to(dtype)


def with_full_input_grad(
    reference: Callable[..., tuple[Tensor, Tensor]], tensors: Sequence[Any], *options: Any
) -> tuple[Tensor, Tensor]:
    """Call a reference in plain PyTorch, of which autograd derives the gradient of all inputs.

    `tensors` are x, weights and biases. The frozen ones get no gradient, the activity has none.
    """
    x, active_weight, free_weight, active_bias, free_bias = tensors
    active_bias = None if active_bias is None else active_bias.detach()
    frozen = active_weight.detach()
    y, sums = reference(x, frozen, free_weight, active_bias, free_bias, *options)
    return y, sums.detach()


def relu_grad(
    stem: str, letters: str, grad_y: Tensor, y: Tensor, active: int, bias: bool
) -> tuple[Tensor, Tensor]:
    """Check the arguments of the operator `<stem>_relu_grad` and call it."""
    ndim = letters.count(",") + 1
    check_tensor("grad_y", grad_y, ndim)
    check_tensor("y", y, ndim)
    check_alike("y", y, "grad_y", grad_y)
    check_shape("y", y, grad_y.shape, letters)
    check_count("active", active, grad_y.shape[1], "outputs")
    return cast(tuple[Tensor, Tensor], call(f"{stem}_relu_grad", grad_y, y, active, bias))


def empty(like: Tensor, channels: int, size: Sequence[int] | None = None) -> Tensor:
    """An empty tensor [B, channels, *size] in the memory format of `like`, whose size it has if
    none is given.
    """
    shape = (like.shape[0], channels, *(like.shape[2:] if size is None else size))
    layout = memory_format(like)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def register(stem: str, reference: Any, fakes: Sequence[Any], backwards: Sequence[Any]) -> None:
    """Register the four operators of a stem.

    Arguments:
        stem: their stem; `<stem>_fwd`, `_relu_grad`, `_dgrad` and `_wgrad` are in
            `reference`.
        reference: the module with their definitions.
        fakes: empty outputs of fwd, dgrad and wgrad.
        backwards: (gradient, what it needs saved) of dgrad and wgrad.
    """
    conv = stem == "masked_conv2d"
    x = "Tensor x, " if conv else ""
    geometry = ", int[] stride, int[] padding, int[] dilation, bool depthwise" if conv else ""
    kernel = ", int[] kernel" if conv else ""
    schemas = {
        "fwd": "(Tensor x, Tensor active_weight, Tensor free_weight, Tensor? active_bias, "
        f"Tensor? free_bias{geometry}, str activation, bool activity) -> (Tensor, Tensor)",
        "dgrad": f"(Tensor grad_z, {x}Tensor free_weight, int active{geometry}) -> Tensor",
        "wgrad": f"(Tensor grad_z, Tensor x{kernel}{geometry}, bool bias) -> (Tensor, Tensor)",
        "relu_grad": "(Tensor grad_y, Tensor y, int active, bool bias) -> (Tensor, Tensor)",
    }
    gradients = [(_backward_fwd(stem), _setup_fwd), *backwards, (_backward_relu_grad, _setup_relu)]
    parts = zip(schemas.items(), [*fakes, _fake_relu_grad], gradients, strict=True)
    for (part, schema), fake, (backward, setup) in parts:
        name = f"{stem}_{part}"
        _register.define(name, schema, getattr(reference, name), fake)
        _register.differentiate(name, backward, setup)
        _register.vmap_by_loop(name)


def _setup_fwd(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, active_weight, free_weight, _, _, *ctx.geometry, activation, _ = inputs
    y, sums = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(sums)
    depthwise = bool(ctx.geometry) and ctx.geometry[3]
    ctx.relu, ctx.active_out = activation == "relu", active_weight.shape[0]
    ctx.active_in = ctx.active_out if depthwise else active_weight.shape[1]
    ctx.save_for_backward(x, free_weight, y if ctx.relu else None)


def _backward_fwd(stem: str) -> Callable[..., tuple[Tensor | None, ...]]:
    relu_grad, dgrad, wgrad = (f"{stem}_{part}" for part in ("relu_grad", "dgrad", "wgrad"))

    def backward(ctx: Any, grad_y: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of x, free_weight and free_bias: only those needed, of free outputs only."""
        x, free_weight, y = ctx.saved_tensors
        needs_x, _, needs_weight, _, needs_bias = ctx.needs_input_grad[:5]
        grad_x = grad_weight = grad_bias = None
        rest = (None,) * (len(ctx.geometry) + 2)
        if grad_y is None or not (needs_x or needs_weight or needs_bias):
            return (None,) * 5 + rest
        images, kernel = ((x,), (list(free_weight.shape[2:]),)) if ctx.geometry else ((), ())
        if ctx.relu:
            grad_z, sums = call(relu_grad, grad_y, y, ctx.active_out, needs_bias)
            grad_bias = sums if needs_bias else None
        else:
            grad_z = grad_y[:, ctx.active_out :] if ctx.active_out else grad_y
        if needs_x:
            grad_x = call(dgrad, grad_z, *images, free_weight, ctx.active_in, *ctx.geometry)
        if needs_weight:
            sum_now = needs_bias and grad_bias is None
            grad_weight, sums = call(wgrad, grad_z, x, *kernel, *ctx.geometry, sum_now)
            grad_bias = sums if sum_now else grad_bias
        elif needs_bias and grad_bias is None:
            grad_bias = grad_z.sum([0, *range(2, grad_z.ndim)])
        return (grad_x, None, grad_weight, None, grad_bias, *rest)

    return backward


def _fake_relu_grad(grad_y: Tensor, y: Tensor, active: int, bias: bool) -> tuple[Tensor, Tensor]:
    outputs = y.shape[1] - active
    return empty(y, outputs), y.new_empty(outputs if bias else 0)


def _setup_relu(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, y, ctx.active, ctx.bias = inputs
    ctx.save_for_backward(y)


def _backward_relu_grad(ctx: Any, grad: Tensor, grad_bias: Tensor) -> tuple[Tensor | None, ...]:
    (y,) = ctx.saved_tensors
    if ctx.bias:
        grad = grad + grad_bias.reshape(-1, *(1,) * (grad.ndim - 2))
    masked = grad.masked_fill(y[:, ctx.active :] <= 0, 0)
    return pad(masked, (*(0, 0) * (y.ndim - 2), ctx.active, 0)), None, None, None
