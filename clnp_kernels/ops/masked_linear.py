"""`masked_linear`: a linear layer whose first outputs are frozen and see the first inputs only.

Letters: B batch, I/O inputs/outputs, Ia/Oa active (frozen), If/Of free, I = Ia + If, O = Oa + Of.
`z` is the output before the activation.
"""

from typing import Any, cast

from torch import Tensor
from torch.nn.functional import linear, pad, relu

from .._checks import check_alike, check_choice, check_count, check_shape, check_tensor
from .._register import call
from ..errors import message
from ..reference import masked_linear as reference
from ..reference.channel_activity import accumulator
from . import _masked
from ._masked import ACTIVATIONS


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

    The gradient with respect to `x` is *defined* as zero for the first Ia inputs: these are
    active channels, which depend on frozen weights only, so no trainable weight needs it.
    `full_input_grad=True` computes the true gradient. Frozen weights and biases get no gradient.

    Under `torch.autocast` the arguments are cast as those of `torch.nn.functional.linear` are.

    Arguments:
        x: [..., I], float32, bfloat16, float16 or float64.
        active_weight: [Oa, Ia], frozen.
        free_weight: [Of, I].
        active_bias: [Oa], frozen; given if and only if `free_bias` is.
        free_bias: [Of].
        activation: "none" or "relu", applied to all outputs.
        activity: also return the activity.
        full_input_grad: compute the gradient of the active inputs too.

    Returns:
        y [..., O]; with `activity` also [O], float32 (float64 for float64): the sum over all
        leading dimensions of `|y|`. No gradient flows through the activity.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or the dtypes differ.
        ValueError: shapes or devices do not fit, one bias is missing, or the activation is unknown.
    """
    check_choice("activation", activation, ACTIVATIONS)
    _check(x, active_weight, free_weight, active_bias, free_bias)
    tensors = _masked.autocast(x, active_weight, free_weight, active_bias, free_bias)
    _masked.check_dtypes(*tensors)
    x, *parameters = tensors
    if not activity and not sum(active_weight.shape):
        # With nothing frozen there is nothing to skip, and PyTorch's own layer calls less Python.
        y = linear(x, parameters[1], parameters[3])
        return y if activation == "none" else relu(y, inplace=True)
    rows = x if x.ndim == 2 else x.reshape(x.shape[:-1].numel(), x.shape[-1])
    arguments, options = (rows, *parameters), (activation, activity)
    if full_input_grad:
        forward = reference.masked_linear_fwd
        y, sums = _masked.with_full_input_grad(forward, arguments, *options)
    else:
        y, sums = call("masked_linear_fwd", *arguments, *options)
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
) -> tuple[Tensor, Tensor]:
    """The operator of `masked_linear` on rows: y [B, O] and activity [O] (or empty).

    Raises:
        TypeError, ValueError: as `masked_linear`.
    """
    check_choice("activation", activation, ACTIVATIONS)
    check_tensor("x", x, 2)
    _check(x, active_weight, free_weight, active_bias, free_bias)
    arguments = (x, active_weight, free_weight, active_bias, free_bias)
    _masked.check_dtypes(*arguments)
    result = call("masked_linear_fwd", *arguments, activation, activity)
    return cast(tuple[Tensor, Tensor], result)


def masked_linear_relu_grad(
    grad_y: Tensor, y: Tensor, active: int, bias: bool = True
) -> tuple[Tensor, Tensor]:
    """Gradients before the ReLU and of the bias, of the outputs from `active` on, in one pass.

    Arguments:
        grad_y: [B, O], gradient of the output.
        y: [B, O], the output after the ReLU, same dtype and device.
        active: outputs to leave out at the front.
        bias: compute the gradient of the bias.

    Returns:
        [B, O - active], contiguous: `grad_y` where `y > 0`, else 0; and its sum over B, [O -
        active] (an empty tensor without `bias`).

    Raises:
        TypeError, ValueError: dtypes, devices or shapes do not fit.
    """
    return _masked.relu_grad("masked_linear", "[B, O]", grad_y, y, active, bias)


def masked_linear_dgrad(grad_z: Tensor, free_weight: Tensor, active: int) -> Tensor:
    """Gradient of the input.

    Arguments:
        grad_z: [B, Of], gradient of the free outputs before the activation.
        free_weight: [Of, I].
        active: Ia, the inputs at the front that get no gradient.

    Returns:
        [B, I]: the first Ia columns are zero, the others `grad_z @ free_weight[:, Ia:]`.

    Raises:
        TypeError, ValueError: dtypes, devices or shapes do not fit, or `active` is out of range.
    """
    check_tensor("grad_z", grad_z, 2)
    check_tensor("free_weight", free_weight, 2)
    check_alike("free_weight", free_weight, "grad_z", grad_z)
    check_shape("grad_z", grad_z, (grad_z.shape[0], free_weight.shape[0]), "[B, Of]")
    check_count("active", active, free_weight.shape[1], "inputs")
    return cast(Tensor, call("masked_linear_dgrad", grad_z, free_weight, active))


def masked_linear_wgrad(grad_z: Tensor, x: Tensor, bias: bool = True) -> tuple[Tensor, Tensor]:
    """Gradients of the free weight and the free bias.

    Arguments:
        grad_z: [B, Of], gradient of the free outputs before the activation.
        x: [B, I], the input.
        bias: compute the gradient of the bias.

    Returns:
        [Of, I] and [Of] (an empty tensor without `bias`).

    Raises:
        TypeError, ValueError: dtypes, devices or shapes do not fit.
    """
    check_tensor("grad_z", grad_z, 2)
    check_tensor("x", x, 2)
    check_alike("x", x, "grad_z", grad_z)
    check_shape("x", x, (grad_z.shape[0], x.shape[1]), "[B, I]")
    return cast(tuple[Tensor, Tensor], call("masked_linear_wgrad", grad_z, x, bias))


def _check(
    x: Tensor,
    active_weight: Tensor,
    free_weight: Tensor,
    active_bias: Tensor | None,
    free_bias: Tensor | None,
) -> None:
    """Raise unless the shapes fit together."""
    check_tensor("x", x)
    check_tensor("active_weight", active_weight, 2)
    check_tensor("free_weight", free_weight, 2)
    inputs = free_weight.shape[1]
    if active_weight.shape[1] > inputs:
        wanted = f"at most {inputs} columns, the inputs I of free_weight"
        raise ValueError(message("active_weight.shape", list(active_weight.shape), wanted))
    if x.ndim == 0 or x.shape[-1] != inputs:
        wanted = f"[..., I] with I = {inputs} of free_weight"
        raise ValueError(message("x.shape", list(x.shape), wanted))
    _masked.check_biases(active_weight, free_weight, active_bias, free_bias)


def _fake_fwd(
    x: Tensor, active_weight: Tensor, free_weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    outputs = active_weight.shape[0] + free_weight.shape[0]
    sums = x.new_empty(outputs if rest[-1] else 0, dtype=accumulator(x.dtype))
    return x.new_empty(x.shape[0], outputs), sums


def _fake_dgrad(grad_z: Tensor, free_weight: Tensor, active: int) -> Tensor:
    return grad_z.new_empty(grad_z.shape[0], free_weight.shape[1])


def _setup_dgrad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_z, free_weight, ctx.active = inputs
    ctx.save_for_backward(grad_z, free_weight)


def _backward_dgrad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_z, free_weight = ctx.saved_tensors
    free = grad[:, ctx.active :]
    return free @ free_weight[:, ctx.active :].t(), pad(grad_z.t() @ free, (ctx.active, 0)), None


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


_masked.register(
    "masked_linear",
    reference,
    (_fake_fwd, _fake_dgrad, _fake_wgrad),
    ((_backward_dgrad, _setup_dgrad), (_backward_wgrad, _setup_wgrad)),
)
