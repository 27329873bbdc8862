"""``masked_conv2d``: a convolution whose first outputs are frozen and see the first inputs only.

Letters: B batch, I/O inputs/outputs, Ia/Oa active (frozen), If/Of free, I = Ia + If, O = Oa + Of,
C = Ca + Cf channels of a depthwise convolution, H/W height and width, K, K' kernel. ``z`` is the
output before the activation.
"""

from collections.abc import Sequence
from typing import cast

from torch import Tensor

from .._checks import check_alike, check_choice, check_count, check_shape, check_tensor
from .._register import call
from ..errors import message
from ..reference.masked_conv2d import output_size
from . import _masked_conv2d  # noqa: F401  (registers the operators)
from .masked_linear import ACTIVATIONS, _autocast, _check_dtypes


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

    The gradient with respect to ``x`` is *defined* as zero for the first Ia (Ca) inputs: these are
    active channels, which depend on frozen weights only, so nothing trainable lies behind them.
    ``full_input_grad=True`` computes the true gradient. Frozen weights and biases get no gradient.

    The output lies in memory as ``x`` does: channels_last, or contiguous. Under ``torch.autocast``
    the arguments are cast as those of ``torch.nn.functional.conv2d`` are.

    Arguments:
        x: [B, I, H, W], float32, bfloat16, float16 or float64.
        active_weight: [Oa, Ia, K, K'], frozen; depthwise [Ca, 1, K, K'].
        free_weight: [Of, I, K, K']; depthwise [Cf, 1, K, K'] with Ca + Cf = I.
        active_bias: [Oa], frozen; given if and only if ``free_bias`` is.
        free_bias: [Of].
        stride, dilation: pixels, at least 1; one number or two.
        padding: pixels of zeros on each side, at least 0; one number or two.
        depthwise: one filter per channel.
        activation: "none" or "relu", applied to all outputs.
        activity: also return the activity.
        full_input_grad: compute the gradient of the active inputs too.

    Returns:
        y [B, O, H', W'] with H' = (H + 2 padding - dilation (K - 1) - 1) // stride + 1, W' alike;
        with ``activity`` also [O], float32 (float64 for float64): the sum over batch and pixels of
        ``|y|``. No gradient flows through the activity.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or the dtypes differ.
        ValueError: shapes or devices do not fit, one bias is missing, the activation is unknown, or
            a stride, padding or dilation is out of range.
    """
    stride, padding, dilation = _pairs(stride, padding, dilation)
    check_tensor("x", x, 4)
    tensors = _autocast(x, active_weight, free_weight, active_bias, free_bias)
    x, active_weight, free_weight, active_bias, free_bias = tensors
    y, sums = masked_conv2d_fwd(
        x,
        active_weight,
        free_weight,
        active_bias,
        free_bias,
        stride,
        padding,
        dilation,
        depthwise,
        activation,
        activity,
        full_input_grad,
    )
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
    full_input_grad: bool = False,
) -> tuple[Tensor, Tensor]:
    """The operator of :func:`masked_conv2d`: y [B, O, H', W'] and activity [O] (or empty).

    ``stride``, ``padding`` and ``dilation`` are two numbers each.

    Raises:
        TypeError, ValueError: as :func:`masked_conv2d`.
    """
    check_choice("activation", activation, ACTIVATIONS)
    geometry = _pairs(stride, padding, dilation)
    check_tensor("x", x, 4)
    _check_weights(x, active_weight, free_weight, depthwise)
    _check_biases(active_weight, free_weight, active_bias, free_bias)
    _check_dtypes(x, active_weight, free_weight, active_bias, free_bias)
    _check_fits(x, free_weight.shape[2:], geometry)
    arguments = (x, active_weight, free_weight, active_bias, free_bias, *geometry, depthwise)
    result = call("masked_conv2d_fwd", *arguments, activation, activity, full_input_grad)
    return cast(tuple[Tensor, Tensor], result)


def masked_conv2d_relu_grad(
    grad_y: Tensor, y: Tensor, active: int, bias: bool = True
) -> tuple[Tensor, Tensor]:
    """Gradients before the ReLU and of the bias, of the outputs from ``active`` on, in one pass.

    Arguments:
        grad_y: [B, O, H', W'], gradient of the output.
        y: [B, O, H', W'], the output after the ReLU, same dtype and device.
        active: outputs to leave out at the front.
        bias: compute the gradient of the bias.

    Returns:
        [B, O - active, H', W'], which lies as ``y`` does: ``grad_y`` where ``y > 0``, else 0; and
        its sum over batch and pixels, [O - active] (an empty tensor without ``bias``).

    Raises:
        TypeError, ValueError: dtypes, devices or shapes do not fit.
    """
    check_tensor("grad_y", grad_y, 4)
    check_tensor("y", y, 4)
    check_alike("y", y, "grad_y", grad_y)
    check_shape("y", y, grad_y.shape, "[B, O, H', W']")
    check_count("active", active, grad_y.shape[1], "outputs")
    result = call("masked_conv2d_relu_grad", grad_y, y, active, bias)
    return cast(tuple[Tensor, Tensor], result)


def masked_conv2d_dgrad(
    grad_z: Tensor,
    x: Tensor,
    active_weight: Tensor,
    free_weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    depthwise: bool = False,
    full_input_grad: bool = False,
) -> Tensor:
    """Gradient of the input.

    Arguments:
        grad_z: [B, Of, H', W'], gradient of the free outputs before the activation; with
            ``full_input_grad`` [B, O, H', W'], of all outputs.
        x: [B, I, H, W], the input; only its shape and memory format are looked at.
        active_weight: [Oa, Ia, K, K'], depthwise [Ca, 1, K, K'].
        free_weight: [Of, I, K, K'], depthwise [Cf, 1, K, K'].
        stride, padding, dilation: two numbers each.
        depthwise: one filter per channel.
        full_input_grad: compute the gradient of the active inputs too.

    Returns:
        [B, I, H, W], which lies as ``x`` does: zero for the active inputs, for the others the
        gradient that comes from the free outputs.

    Raises:
        TypeError, ValueError: dtypes, devices or shapes do not fit.
    """
    geometry = _pairs(stride, padding, dilation)
    check_tensor("grad_z", grad_z, 4)
    check_tensor("x", x, 4)
    _check_weights(x, active_weight, free_weight, depthwise)
    for name, tensor in (("x", x), ("active_weight", active_weight), ("free_weight", free_weight)):
        check_alike(name, tensor, "grad_z", grad_z)
    _check_fits(x, free_weight.shape[2:], geometry)
    outputs = free_weight.shape[0] + (active_weight.shape[0] if full_input_grad else 0)
    _check_grad(grad_z, outputs, x, free_weight.shape[2:], geometry)
    arguments = (grad_z, x, active_weight, free_weight, *geometry, depthwise, full_input_grad)
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
        [Of, I, K, K'] (depthwise [Cf, 1, K, K']), which lies as ``x`` does, and [Of] (an empty
        tensor without ``bias``).

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


def _check_weights(x: Tensor, active_weight: Tensor, free_weight: Tensor, depthwise: bool) -> None:
    """Raise unless the weights fit together and to the channels of ``x``."""
    check_tensor("active_weight", active_weight, 4)
    check_tensor("free_weight", free_weight, 4)
    if free_weight.shape[2] < 1 or free_weight.shape[3] < 1:
        wanted = "a kernel of at least 1 x 1"
        raise ValueError(message("free_weight.shape", list(free_weight.shape), wanted))
    if active_weight.shape[2:] != free_weight.shape[2:]:
        wanted = f"kernel {list(free_weight.shape[2:])} like free_weight"
        raise ValueError(message("active_weight.shape", list(active_weight.shape), wanted))
    channels = x.shape[1]
    if depthwise:
        for name, weight in (("active_weight", active_weight), ("free_weight", free_weight)):
            if weight.shape[1] != 1:
                wanted = "1 input for each depthwise filter"
                raise ValueError(message(f"{name}.shape", list(weight.shape), wanted))
        channels = active_weight.shape[0] + free_weight.shape[0]
    elif active_weight.shape[1] > free_weight.shape[1]:
        wanted = f"at most {free_weight.shape[1]} inputs, the I of free_weight"
        raise ValueError(message("active_weight.shape", list(active_weight.shape), wanted))
    else:
        channels = free_weight.shape[1]
    if x.shape[1] != channels:
        wanted = f"[B, I, H, W] with I = {channels} of the weights"
        raise ValueError(message("x.shape", list(x.shape), wanted))


def _check_biases(
    active_weight: Tensor,
    free_weight: Tensor,
    active_bias: Tensor | None,
    free_bias: Tensor | None,
) -> None:
    """Raise unless both biases fit or both are None."""
    if (active_bias is None) != (free_bias is None):
        missing = "active_bias" if active_bias is None else "free_bias"
        raise ValueError(message(missing, None, "a tensor, as the other bias is one"))
    if active_bias is not None and free_bias is not None:
        check_tensor("active_bias", active_bias)
        check_tensor("free_bias", free_bias)
        check_shape("active_bias", active_bias, active_weight.shape[:1], "[Oa]")
        check_shape("free_bias", free_bias, free_weight.shape[:1], "[Of]")


def _check_fits(x: Tensor, kernel: Sequence[int], geometry: Geometry) -> None:
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
