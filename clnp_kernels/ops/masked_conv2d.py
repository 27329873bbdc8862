"""`masked_conv2d`: a convolution whose first outputs are frozen and see the first inputs only.

Letters: B batch, I/O inputs/outputs, Ia/Oa active (frozen), If/Of free, I = Ia + If, O = Oa + Of,
C = Ca + Cf channels of a depthwise convolution, H/W height and width, K, K' kernel. `z` is the
output before the activation.
"""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from .._checks import check_alike, check_choice, check_count, check_shape, check_tensor, once
from .._register import call
from ..errors import message
from ..reference.masked_conv2d import masked_conv2d_fwd as reference_fwd
from ..reference.masked_conv2d import output_size
from . import (
    _masked,
    _masked_conv2d,  # noqa: F401  (registers the operators)
)
from ._masked import ACTIVATIONS


def masked_conv2d(
    x: Tensor,  # [B, I, H, W]
    active_weight: Tensor,  # [Oa, Ia, K, K'], depthwise [Ca, 1, K, K']
    free_weight: Tensor,  # [Of, I, K, K'], depthwise [Cf, 1, K, K']
    active_bias: Tensor | None = None,  # [Oa]
    free_bias: Tensor | None = None,  # [Of]
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    depthwise: bool = False,
    activation: str = "none",
    activity: bool = False,
    full_input_grad: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """2D convolution with a frozen block: the first Oa outputs see only the first Ia inputs.

    ::

        y[:, :Oa] = activation(conv2d(x[:, :Ia], active_weight, active_bias))
        y[:, Oa:] = activation(conv2d(x, free_weight, free_bias))

    Depthwise, every channel has its own filter, the first Ca of them frozen::

        y[:, :Ca] = activation(conv2d(x[:, :Ca], active_weight, active_bias, groups=Ca))
        y[:, Ca:] = activation(conv2d(x[:, Ca:], free_weight, free_bias, groups=Cf))

    The weights from free inputs to active outputs (the interference of CLNP, Golkar et al. 2019,
    Sec. 2.1) do not exist, so nothing a free channel does can reach an active one.

    The gradient with respect to `x` is *defined* as zero for the first Ia (Ca) inputs: these are
    active channels, which depend on frozen weights only, so no trainable weight needs it.
    `full_input_grad=True` computes the true gradient. Frozen weights and biases get no gradient.

    The output has the memory format of `x`: channels_last or contiguous. Under `torch.autocast`
    the arguments are cast as those of `torch.nn.functional.conv2d` are.

    Arguments:
        x: [B, I, H, W], float32, bfloat16, float16 or float64.
        active_weight: [Oa, Ia, K, K'], frozen; depthwise [Ca, 1, K, K'].
        free_weight: [Of, I, K, K']; depthwise [Cf, 1, K, K'] with Ca + Cf = I.
        active_bias: [Oa], frozen; given if and only if `free_bias` is.
        free_bias: [Of].
        stride, dilation: pixels, at least 1; one number or two.
        padding: pixels of zeros on each side, at least 0; one number or two.
        depthwise: one filter per channel.
        activation: "none" or "relu", applied to all outputs.
        activity: also return the activity.
        full_input_grad: compute the gradient of the active inputs too.

    Returns:
        y [B, O, H', W'] with H' = (H + 2 padding - dilation (K - 1) - 1) // stride + 1, W' alike;
        with `activity` also [O], float32 (float64 for float64): the sum over batch and pixels of
        `|y|`. No gradient flows through the activity.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or the dtypes differ.
        ValueError: shapes or devices do not fit, one bias is missing, the activation is unknown, or
            a stride, padding or dilation is out of range.
    """
    geometry = _pairs(stride, padding, dilation)
    check_tensor("x", x, 4)
    tensors = _masked.autocast(x, active_weight, free_weight, active_bias, free_bias)
    _check(*tensors, *map(tuple, geometry), depthwise, activation)
    options = (*geometry, depthwise, activation, activity)
    active_in = active_weight.shape[0 if depthwise else 1]
    outputs = active_weight.shape[0] + free_weight.shape[0]
    # Without active inputs or without elements the restricted gradient is the whole one.
    if full_input_grad and active_in and outputs and x.numel():
        y, sums = _masked.with_full_input_grad(reference_fwd, tensors, *options)
    else:
        y, sums = call("masked_conv2d_fwd", *tensors, *options)
    return (y, sums) if activity else y


def masked_conv2d_fwd(
    x: Tensor,  # [B, I, H, W]
    active_weight: Tensor,  # [Oa, Ia, K, K']
    free_weight: Tensor,  # [Of, I, K, K']
    active_bias: Tensor | None,  # [Oa]
    free_bias: Tensor | None,  # [Of]
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    depthwise: bool,
    activation: str,
    activity: bool,
) -> tuple[Tensor, Tensor]:
    """The operator of `masked_conv2d`: y [B, O, H', W'] and activity [O] (or empty).

    `stride`, `padding` and `dilation` are two numbers each.

    Raises:
        TypeError, ValueError: as `masked_conv2d`.
    """
    geometry = _pairs(stride, padding, dilation)
    tensors = (x, active_weight, free_weight, active_bias, free_bias)
    _check(*tensors, *map(tuple, geometry), depthwise, activation)
    result = call("masked_conv2d_fwd", *tensors, *geometry, depthwise, activation, activity)
    return cast(tuple[Tensor, Tensor], result)


def masked_conv2d_relu_grad(
    grad_y: Tensor, y: Tensor, active: int, bias: bool = True
) -> tuple[Tensor, Tensor]:
    """Gradients before the ReLU and of the bias, of the outputs from `active` on, in one pass.

    Arguments:
        grad_y: [B, O, H', W'], gradient of the output.
        y: [B, O, H', W'], the output after the ReLU, same dtype and device.
        active: outputs to leave out at the front.
        bias: compute the gradient of the bias.

    Returns:
        [B, O - active, H', W'] in the memory format of `y`: `grad_y` where `y > 0`, else 0;
        and its sum over batch and pixels, [O - active] (an empty tensor without `bias`).

    Raises:
        TypeError, ValueError: dtypes, devices or shapes do not fit.
    """
    return _masked.relu_grad("masked_conv2d", "[B, O, H', W']", grad_y, y, active, bias)


def masked_conv2d_dgrad(
    grad_z: Tensor,
    x: Tensor,
    free_weight: Tensor,
    active: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    depthwise: bool = False,
) -> Tensor:
    """Gradient of the input.

    Arguments:
        grad_z: [B, Of, H', W'], gradient of the free outputs before the activation.
        x: [B, I, H, W], the input; only its shape and memory format are used.
        free_weight: [Of, I, K, K'], depthwise [Cf, 1, K, K'].
        active: Ia (depthwise Ca), the inputs at the front that get no gradient.
        stride, padding, dilation: two numbers each.
        depthwise: one filter per channel.

    Returns:
        [B, I, H, W] in the memory format of `x`: zero for the active inputs, for the others the
        gradient that comes from the free outputs.

    Raises:
        TypeError, ValueError: dtypes, devices or shapes do not fit, or `active` is out of range.
    """
    geometry = _pairs(stride, padding, dilation)
    check_tensor("grad_z", grad_z, 4)
    check_tensor("x", x, 4)
    check_count("active", active, x.shape[1], "inputs")
    _check_free_weight(free_weight, depthwise)
    _check_channels(x, active + free_weight.shape[0] if depthwise else free_weight.shape[1])
    for name, tensor in (("x", x), ("free_weight", free_weight)):
        check_alike(name, tensor, "grad_z", grad_z)
    _check_fits(x, free_weight.shape[2:], geometry)
    _check_grad(grad_z, free_weight.shape[0], x, free_weight.shape[2:], geometry)
    arguments = (grad_z, x, free_weight, active, *geometry, depthwise)
    return cast(Tensor, call("masked_conv2d_dgrad", *arguments))


def masked_conv2d_wgrad(
    grad_z: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    depthwise: bool = False,
    bias: bool = True,
) -> tuple[Tensor, Tensor]:
    """Gradients of the free weight and the free bias.

    Arguments:
        grad_z: [B, Of, H', W'], gradient of the free outputs before the activation.
        x: [B, I, H, W], the input, all channels.
        kernel: K and K'.
        stride, padding, dilation: two numbers each.
        depthwise: one filter per channel.
        bias: compute the gradient of the bias.

    Returns:
        [Of, I, K, K'] (depthwise [Cf, 1, K, K']) in the memory format of `x`, and [Of] (an
        empty tensor without `bias`).

    Raises:
        TypeError, ValueError: dtypes, devices or shapes do not fit.
    """
    geometry = _pairs(stride, padding, dilation)
    check_tensor("grad_z", grad_z, 4)
    check_tensor("x", x, 4)
    check_alike("x", x, "grad_z", grad_z)
    kernel = _pair("kernel", kernel, 1)
    _check_fits(x, kernel, geometry)
    if depthwise and grad_z.shape[1] > x.shape[1]:
        wanted = f"at most {x.shape[1]} channels, those of x"
        raise ValueError(message("grad_z.shape", list(grad_z.shape), wanted))
    _check_grad(grad_z, grad_z.shape[1], x, kernel, geometry)
    arguments = (grad_z, x, kernel, *geometry, depthwise, bias)
    return cast(tuple[Tensor, Tensor], call("masked_conv2d_wgrad", *arguments))


Geometry = tuple[list[int], list[int], list[int]]
MOST = 2**31 - 1  # pixels; so that no product of sizes overflows


def _pairs(
    stride: int | Sequence[int], padding: int | Sequence[int], dilation: int | Sequence[int]
) -> Geometry:
    """Two numbers each, in range."""
    return (
        _pair("stride", stride, 1),
        _pair("padding", padding, 0),
        _pair("dilation", dilation, 1),
    )


def _pair(name: str, value: int | Sequence[int], least: int) -> list[int]:
    pair = [value, value] if isinstance(value, int) else value
    whole = isinstance(pair, (list, tuple)) and all(isinstance(n, int) for n in pair)
    if not whole or len(pair) != 2 or not least <= min(pair) <= max(pair) <= MOST:
        wanted = f"a whole number or two, at least {least}"
        raise ValueError(message(name, repr(value), wanted))
    return [*pair]


@once
def _check(x: Tensor, active_weight: Tensor, free_weight: Tensor, *rest: Any) -> None:
    """Raise unless all arguments of the operator fit together; `rest` are those up to the
    activation.
    """
    *biases, stride, padding, dilation, depthwise, activation = rest
    geometry = stride, padding, dilation
    check_choice("activation", activation, ACTIVATIONS)
    check_tensor("x", x, 4)
    check_tensor("active_weight", active_weight, 4)
    _check_free_weight(free_weight, depthwise)
    if active_weight.shape[2:] != free_weight.shape[2:]:
        wanted = f"kernel {list(free_weight.shape[2:])} like free_weight"
        raise ValueError(message("active_weight.shape", list(active_weight.shape), wanted))
    if depthwise:
        _check_one_input("active_weight", active_weight)
        channels = active_weight.shape[0] + free_weight.shape[0]
    else:
        channels = free_weight.shape[1]
        if active_weight.shape[1] > channels:
            wanted = f"at most {channels} inputs, the I of free_weight"
            raise ValueError(message("active_weight.shape", list(active_weight.shape), wanted))
    _check_channels(x, channels)
    _masked.check_biases(active_weight, free_weight, *biases)
    _masked.check_dtypes(x, active_weight, free_weight, *biases)
    _check_fits(x, free_weight.shape[2:], geometry)


def _check_free_weight(free_weight: Tensor, depthwise: bool) -> None:
    check_tensor("free_weight", free_weight, 4)
    if free_weight.shape[2] < 1 or free_weight.shape[3] < 1:
        wanted = "a kernel of at least 1 x 1"
        raise ValueError(message("free_weight.shape", list(free_weight.shape), wanted))
    if depthwise:
        _check_one_input("free_weight", free_weight)


def _check_one_input(name: str, weight: Tensor) -> None:
    if weight.shape[1] != 1:
        wanted = "1 input for each depthwise filter"
        raise ValueError(message(f"{name}.shape", list(weight.shape), wanted))


def _check_channels(x: Tensor, channels: int) -> None:
    if x.shape[1] != channels:
        wanted = f"[B, I, H, W] with I = {channels} of the weights"
        raise ValueError(message("x.shape", list(x.shape), wanted))


def _check_fits(x: Tensor, kernel: Sequence[int], geometry: Sequence[Sequence[int]]) -> None:
    """Raise unless the kernel fits into the padded image."""
    for d, letter in enumerate("HW"):
        extent = geometry[2][d] * (kernel[d] - 1) + 1
        if x.shape[2 + d] + 2 * geometry[1][d] < extent:
            wanted = f"{letter} at least {extent - 2 * geometry[1][d]}, so that the kernel fits in"
            raise ValueError(message("x.shape", list(x.shape), wanted))


def _check_grad(
    grad_z: Tensor, outputs: int, x: Tensor, kernel: Sequence[int], geometry: Geometry
) -> None:
    size = output_size(x, kernel, *geometry)
    check_shape("grad_z", grad_z, (x.shape[0], outputs, *size), "[B, outputs, H', W']")
