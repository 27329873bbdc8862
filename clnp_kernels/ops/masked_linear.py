"""``masked_linear``: a linear layer whose first outputs are frozen and see the first inputs only.

Letters: B batch, I/O inputs/outputs, Ia/Oa active (frozen), If/Of free, I = Ia + If, O = Oa + Of.
``z`` is the output before the activation.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import linear, relu

from .. import _register
from .._checks import check_alike, check_choice, check_count, check_shape, check_tensor
from .._register import call
from ..errors import message
from ..reference import masked_linear as reference
from ..reference.channel_activity import accumulator

ACTIVATIONS = ("none", "relu")


def masked_linear(
    x: Tensor,  # [..., I]
    active_weight: Tensor,  # [Oa, Ia]
    free_weight: Tensor,  # [Of, I]
    active_bias: Tensor | None = None,  # [Oa]
    free_bias: Tensor | None = None,  # [Of]
    *,
    activation: str = "none",
    activity: bool = False,
    full_input_grad: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Linear layer with a frozen block: the first Oa outputs see only the first Ia inputs.

    ::

        y[..., :Oa] = activation(x[..., :Ia] @ active_weight.T + active_bias)
        y[..., Oa:] = activation(x @ free_weight.T + free_bias)

    The weights from free inputs to active outputs (the interference of CLNP, Golkar et al. 2019,
    Sec. 2.1) do not exist, so nothing a free channel does can reach an active one.

    The gradient with respect to ``x`` is *defined* as zero for the first Ia inputs: these are
    active channels, which depend on frozen weights only, so nothing trainable lies behind them.
    ``full_input_grad=True`` computes the true gradient. Frozen weights and biases get no gradient.

    Under ``torch.autocast`` the arguments are cast as those of ``torch.nn.functional.linear`` are.

    Arguments:
        x: [..., I], float32, bfloat16, float16 or float64.
        active_weight: [Oa, Ia], frozen.
        free_weight: [Of, I].
        active_bias: [Oa], frozen; given if and only if ``free_bias`` is.
        free_bias: [Of].
        activation: "none" or "relu", applied to all outputs.
        activity: also return the activity.
        full_input_grad: compute the gradient of the active inputs too.

    Returns:
        y [..., O]; with ``activity`` also [O], float32 (float64 for float64): the sum over all
        leading dimensions of ``|y|``. No gradient flows through the activity.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or the dtypes differ.
        ValueError: shapes or devices do not fit, one bias is missing, or the activation is unknown.
    """
    check_choice("activation", activation, ACTIVATIONS)
    _check(x, active_weight, free_weight, active_bias, free_bias)
    tensors = _autocast(x, active_weight, free_weight, active_bias, free_bias)
    _check_dtypes(*tensors)
    x, *parameters = tensors
    if not activity and not sum(active_weight.shape):
        # With nothing frozen there is nothing to skip, and PyTorch's own layer calls less Python.
        y = linear(x, parameters[1], parameters[3])
        return y if activation == "none" else relu(y, inplace=True)
    rows = x if x.ndim == 2 else x.reshape(x.shape[:-1].numel(), x.shape[-1])
    y, sums = call("masked_linear_fwd", rows, *parameters, activation, activity, full_input_grad)
    y = y if x.ndim == 2 else y.view(*x.shape[:-1], y.shape[1])
    return (y, sums) if activity else y


def masked_linear_fwd(
    x: Tensor,  # [B, I]
    active_weight: Tensor,  # [Oa, Ia]
    free_weight: Tensor,  # [Of, I]
    active_bias: Tensor | None,  # [Oa]
    free_bias: Tensor | None,  # [Of]
    activation: str,
    activity: bool,
    full_input_grad: bool = False,
) -> tuple[Tensor, Tensor]:
    """The operator of :func:`masked_linear` on rows: y [B, O] and activity [O] (or empty).

    Raises:
        TypeError, ValueError: as :func:`masked_linear`.
    """
    check_choice("activation", activation, ACTIVATIONS)
    check_tensor("x", x, 2)
    _check(x, active_weight, free_weight, active_bias, free_bias)
    _check_dtypes(x, active_weight, free_weight, active_bias, free_bias)
    arguments = (x, active_weight, free_weight, active_bias, free_bias)
    result = call("masked_linear_fwd", *arguments, activation, activity, full_input_grad)
    return cast(tuple[Tensor, Tensor], result)


def masked_linear_relu_grad(
    grad_y: Tensor, y: Tensor, active: int, bias: bool = True
) -> tuple[Tensor, Tensor]:
    """Gradients before the ReLU and of the bias, of the outputs from ``active`` on, in one pass.

    Arguments:
        grad_y: [B, O], gradient of the output.
        y: [B, O], the output after the ReLU, same dtype and device.
        active: outputs to leave out at the front.
        bias: compute the gradient of the bias.

    Returns:
        [B, O - active], contiguous: ``grad_y`` where ``y > 0``, else 0; and its sum over B, [O -
        active] (an empty tensor without ``bias``).

    Raises:
        TypeError, ValueError: dtypes, devices or shapes do not fit.
    """
    check_tensor("grad_y", grad_y, 2)
    check_tensor("y", y, 2)
    check_alike("y", y, "grad_y", grad_y)
    check_shape("y", y, grad_y.shape, "[B, O]")
    check_count("active", active, grad_y.shape[1], "outputs")
    result = call("masked_linear_relu_grad", grad_y, y, active, bias)
    return cast(tuple[Tensor, Tensor], result)


def masked_linear_dgrad(
    grad_z: Tensor, active_weight: Tensor, free_weight: Tensor, full_input_grad: bool = False
) -> Tensor:
    """Gradient of the input.

    Arguments:
        grad_z: [B, Of], gradient of the free outputs before the activation; with
            ``full_input_grad`` [B, O], of all outputs.
        active_weight: [Oa, Ia].
        free_weight: [Of, I].
        full_input_grad: compute the columns of the active inputs too.

    Returns:
        [B, I]: the first Ia columns are zero, the others ``grad_z @ free_weight[:, Ia:]``.

    Raises:
        TypeError, ValueError: dtypes, devices or shapes do not fit.
    """
    check_tensor("grad_z", grad_z, 2)
    _check_weights(active_weight, free_weight)
    check_alike("free_weight", free_weight, "grad_z", grad_z)
    check_alike("active_weight", active_weight, "grad_z", grad_z)
    outputs = free_weight.shape[0] + (active_weight.shape[0] if full_input_grad else 0)
    letters = "[B, O]" if full_input_grad else "[B, Of]"
    check_shape("grad_z", grad_z, (grad_z.shape[0], outputs), letters)
    result = call("masked_linear_dgrad", grad_z, active_weight, free_weight, full_input_grad)
    return cast(Tensor, result)


def masked_linear_wgrad(grad_z: Tensor, x: Tensor, bias: bool = True) -> tuple[Tensor, Tensor]:
    """Gradients of the free weight and the free bias.

    Arguments:
        grad_z: [B, Of], gradient of the free outputs before the activation.
        x: [B, I], the input.
        bias: compute the gradient of the bias.

    Returns:
        [Of, I] and [Of] (an empty tensor without ``bias``).

    Raises:
        TypeError, ValueError: dtypes, devices or shapes do not fit.
    """
    check_tensor("grad_z", grad_z, 2)
    check_tensor("x", x, 2)
    check_alike("x", x, "grad_z", grad_z)
    check_shape("x", x, (grad_z.shape[0], x.shape[1]), "[B, I]")
    return cast(tuple[Tensor, Tensor], call("masked_linear_wgrad", grad_z, x, bias))


def _check_weights(active_weight: Tensor, free_weight: Tensor) -> None:
    check_tensor("active_weight", active_weight, 2)
    check_tensor("free_weight", free_weight, 2)
    if active_weight.shape[1] > free_weight.shape[1]:
        wanted = f"at most {free_weight.shape[1]} columns, the inputs I of free_weight"
        raise ValueError(message("active_weight.shape", list(active_weight.shape), wanted))


def _check(
    x: Tensor,
    active_weight: Tensor,
    free_weight: Tensor,
    active_bias: Tensor | None,
    free_bias: Tensor | None,
) -> None:
    """Raise unless the shapes fit together."""
    check_tensor("x", x)
    _check_weights(active_weight, free_weight)
    inputs = free_weight.shape[1]
    if x.ndim == 0 or x.shape[-1] != inputs:
        wanted = f"[..., I] with I = {inputs} of free_weight"
        raise ValueError(message("x.shape", list(x.shape), wanted))
    if (active_bias is None) != (free_bias is None):
        missing = "active_bias" if active_bias is None else "free_bias"
        raise ValueError(message(missing, None, "a tensor, as the other bias is one"))
    if active_bias is not None and free_bias is not None:
        check_tensor("active_bias", active_bias)
        check_tensor("free_bias", free_bias)
        check_shape("active_bias", active_bias, active_weight.shape[:1], "[Oa]")
        check_shape("free_bias", free_bias, free_weight.shape[:1], "[Of]")


def _check_dtypes(x: Tensor, *others: Tensor | None) -> None:
    """Raise unless all arguments have the dtype and the device of ``x``."""
    names = ("active_weight", "free_weight", "active_bias", "free_bias")
    for name, other in zip(names, others, strict=True):
        if other is not None:
            check_alike(name, other, "x", x)


def _autocast(*tensors: Tensor | None) -> Sequence[Any]:
    """Cast as autocast does: to its dtype, float64 excepted."""
    device = next(t.device.type for t in tensors if t is not None)
    # meta has no autocast and raises when asked whether it is enabled
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors]


def _fake_fwd(
    x: Tensor,
    active_weight: Tensor,
    free_weight: Tensor,
    active_bias: Tensor | None,
    free_bias: Tensor | None,
    activation: str,
    activity: bool,
    full_input_grad: bool,
) -> tuple[Tensor, Tensor]:
    outputs = active_weight.shape[0] + free_weight.shape[0]
    sums = x.new_empty(outputs if activity else 0, dtype=accumulator(x.dtype))
    return x.new_empty(x.shape[0], outputs), sums


def _setup_fwd(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, active_weight, free_weight, _, _, activation, _, full_input_grad = inputs
    y, sums = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(sums)
    ctx.relu, ctx.full = activation == "relu", full_input_grad
    ctx.save_for_backward(x, active_weight, free_weight, y if ctx.relu else None)


def _backward_fwd(ctx: Any, grad_y: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of x, free_weight and free_bias; only what is needed, for free outputs only."""
    x, active_weight, free_weight, y = ctx.saved_tensors
    needs_x, _, needs_weight, _, needs_bias = ctx.needs_input_grad[:5]
    grad_x = grad_weight = grad_bias = None
    if grad_y is None or not (needs_x or needs_weight or needs_bias):
        return (None,) * 8
    # Both products take the gradient before the activation. For the whole gradient of x it starts
    # at the first output, else at the first free one.
    active_out = active_weight.shape[0]
    start = 0 if ctx.full and needs_x else active_out
    free = active_out - start
    if ctx.relu:
        grad_z, sums = call("masked_linear_relu_grad", grad_y, y, start, needs_bias)
        grad_bias = sums[free:] if needs_bias else None
    else:
        grad_z = grad_y[:, start:] if start else grad_y
    grad_free = grad_z[:, free:] if free else grad_z
    if needs_x:
        grad_x = call("masked_linear_dgrad", grad_z, active_weight, free_weight, ctx.full)
    if needs_weight:
        sum_now = needs_bias and grad_bias is None
        grad_weight, sums = call("masked_linear_wgrad", grad_free, x, sum_now)
        grad_bias = sums if sum_now else grad_bias
    elif needs_bias and grad_bias is None:
        grad_bias = grad_free.sum(0)
    return grad_x, None, grad_weight, None, grad_bias, None, None, None


def _fake_relu_grad(grad_y: Tensor, y: Tensor, active: int, bias: bool) -> tuple[Tensor, Tensor]:
    outputs = grad_y.shape[1] - active
    return grad_y.new_empty(grad_y.shape[0], outputs), grad_y.new_empty(outputs if bias else 0)


def _setup_relu_grad(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, y, ctx.active, ctx.bias = inputs
    ctx.save_for_backward(y)


def _backward_relu_grad(ctx: Any, grad: Tensor, grad_bias: Tensor) -> tuple[Tensor | None, ...]:
    (y,) = ctx.saved_tensors
    grad = grad + grad_bias if ctx.bias else grad
    masked = grad.masked_fill(y[:, ctx.active :] <= 0, 0)
    return torch.nn.functional.pad(masked, (ctx.active, 0)), None, None, None


def _fake_dgrad(
    grad_z: Tensor, active_weight: Tensor, free_weight: Tensor, full_input_grad: bool
) -> Tensor:
    return grad_z.new_empty(grad_z.shape[0], free_weight.shape[1])


def _setup_dgrad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_z, active_weight, free_weight, ctx.full = inputs
    ctx.save_for_backward(grad_z, active_weight, free_weight)


def _backward_dgrad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_z, active_weight, free_weight = ctx.saved_tensors
    active_out, active_in = active_weight.shape
    if ctx.full:
        from_active = grad[:, :active_in] @ active_weight.t()
        grad_grad_z = torch.cat([from_active, grad @ free_weight.t()], 1)
        return grad_grad_z, None, grad_z[:, active_out:].t() @ grad, None
    free = grad[:, active_in:]
    grad_weight = torch.nn.functional.pad(grad_z.t() @ free, (active_in, 0))
    return free @ free_weight[:, active_in:].t(), None, grad_weight, None


def _fake_wgrad(grad_z: Tensor, x: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    outputs = grad_z.shape[1]
    return grad_z.new_empty(outputs, x.shape[1]), grad_z.new_empty(outputs if bias else 0)


def _setup_wgrad(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad_z, x, ctx.bias = inputs
    ctx.save_for_backward(grad_z, x)


def _backward_wgrad(ctx: Any, grad_weight: Tensor, grad_bias: Tensor) -> tuple[Tensor | None, ...]:
    grad_z, x = ctx.saved_tensors
    grad_grad_z = x @ grad_weight.t()
    if ctx.bias:
        grad_grad_z = grad_grad_z + grad_bias
    return grad_grad_z, grad_z @ grad_weight, None


_register.define(
    "masked_linear_fwd",
    "(Tensor x, Tensor active_weight, Tensor free_weight, Tensor? active_bias, Tensor? free_bias, "
    "str activation, bool activity, bool full_input_grad) -> (Tensor, Tensor)",
    reference.masked_linear_fwd,
    _fake_fwd,
)
_register.define(
    "masked_linear_relu_grad",
    "(Tensor grad_y, Tensor y, int active, bool bias) -> (Tensor, Tensor)",
    reference.masked_linear_relu_grad,
    _fake_relu_grad,
)
_register.define(
    "masked_linear_dgrad",
    "(Tensor grad_z, Tensor active_weight, Tensor free_weight, bool full_input_grad) -> Tensor",
    reference.masked_linear_dgrad,
    _fake_dgrad,
)
_register.define(
    "masked_linear_wgrad",
    "(Tensor grad_z, Tensor x, bool bias) -> (Tensor, Tensor)",
    reference.masked_linear_wgrad,
    _fake_wgrad,
)
_register.differentiate("masked_linear_fwd", _backward_fwd, _setup_fwd)
_register.differentiate("masked_linear_relu_grad", _backward_relu_grad, _setup_relu_grad)
_register.differentiate("masked_linear_dgrad", _backward_dgrad, _setup_dgrad)
_register.differentiate("masked_linear_wgrad", _backward_wgrad, _setup_wgrad)
for _name in ("fwd", "relu_grad", "dgrad", "wgrad"):
    _register.vmap_by_loop(f"masked_linear_{_name}")
