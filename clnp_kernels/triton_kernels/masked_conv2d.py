"""`masked_conv2d` in Triton: implicit matrix products on images in channels_last.

A product's rows are pixels, its columns channels, and its sum goes over the taps of the kernel and
the channels that a side of the frozen/free boundary has; as in `masked_linear` a tile is on one
side. 1 x 1 kernels are `masked_linear` on the pixels. Images in planes are copied to
channels_last and the result back. Depthwise: `depthwise`.

Letters as in `ops.masked_conv2d`. A pixel is one of the M = B * H * W of an image batch.
"""

from collections.abc import Sequence
from math import gcd
from typing import Any

import torch
import triton
from torch import Tensor

from ..reference.masked_conv2d import memory_format, output_size
from . import _launch, depthwise
from . import masked_linear as linear
from ._conv import dgrad_kernel, fwd_kernel, wgrad_kernel
from ._images import images_of, like_x, new_images, rows_of_images
from .channel_activity import channel_activity
from .tiles import CONV, of_convolution

# wgrad: programs per multiprocessor that are worth splitting the sum over the pixels for, and the
# least pixels of a part
WAVES, PART = 2, 1024


def _geometry(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> dict[str, int]:
    """Constants of the kernels; STEP: distance of the taps that meet one class of pixels."""
    steps = [s // gcd(s, d) for s, d in zip(stride, dilation, strict=True)]
    names = ("K", "S", "P", "D", "STEP")
    values = (kernel, stride, padding, dilation, steps)
    return {
        f"{name}_{letter}": pair[i]
        for name, pair in zip(names, values, strict=True)
        for i, letter in enumerate("HW")
    }


def _strides(prefix: str, t: Tensor) -> dict[str, int]:
    """Distances from image to image, row to row and pixel to pixel."""
    names = (f"{prefix}_b", f"{prefix}_h", f"{prefix}_w")
    return dict(zip(names, (t.stride(0), t.stride(2), t.stride(3)), strict=True))


def _weight(prefix: str, t: Tensor) -> dict[str, int]:
    """Distances from output to output and from tap to tap."""
    names = (f"{prefix}_o", f"{prefix}_kh", f"{prefix}_kw")
    return dict(zip(names, (t.stride(0), t.stride(2), t.stride(3)), strict=True))


def _pointwise(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], depthwise: bool
) -> bool:
    plain = [*kernel] == [1, 1] and [*stride] == [1, 1] and [*padding] == [0, 0]
    return plain and not depthwise


def masked_conv2d_fwd(
    x: Tensor,  # [B, I, H, W]
    active_weight: Tensor,  # [Oa, Ia, K, K'], depthwise [Ca, 1, K, K']
    free_weight: Tensor,  # [Of, I, K, K'], depthwise [Cf, 1, K, K']
    active_bias: Tensor | None,  # [Oa]
    free_bias: Tensor | None,  # [Of]
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    depthwise_: bool,
    activation: str,
    activity: bool,
) -> tuple[Tensor, Tensor]:
    """y [B, O, H', W'] and its activity [O] (or an empty tensor)."""
    kernel, layout = free_weight.shape[2:], memory_format(x)
    (active_out, active_in), (free_out, inputs) = active_weight.shape[:2], free_weight.shape[:2]
    outputs = active_out + free_out
    size = output_size(x, kernel, stride, padding, dilation)
    if _pointwise(kernel, stride, padding, depthwise_):
        matrices = rows_of_images(x), active_weight.flatten(1), free_weight.flatten(1)
        biases = active_bias, free_bias
        with of_convolution():
            y, sums = linear.masked_linear_fwd(*matrices, *biases, activation, activity)
        return _as_images(y, x.shape[0], size).contiguous(memory_format=layout), sums
    y = new_images(x, x.shape[0], outputs, size)
    pixels = y.numel() // outputs if outputs else 0
    if pixels == 0:
        sums = x.new_zeros(outputs if activity else 0, dtype=torch.float32)
        return like_x(y, layout), sums
    x = images_of(x)
    geometry = _geometry(kernel, stride, padding, dilation)
    if depthwise_:
        biases = (active_bias, free_bias)
        sums = depthwise.fwd(x, active_weight, free_weight, *biases, y, geometry, activation,
                             activity)  # fmt: skip
        return like_x(y, layout), sums
    active, free = images_of(active_weight), images_of(free_weight)
    operands = (x, active, free) if active_out else (x, free)
    numbers = [inputs, active_in, *_strides("x", x).values(), *_weight("free", free).values()]
    numbers += _weight("active", active).values() if active_out else []
    options_ = _launch.tile_options(pixels, (free_out, active_out), operands, tuple(numbers), CONV)
    tiles_m = triton.cdiv(pixels, options_["BM"])
    tiles_n = sum(triton.cdiv(count, options_["BN"]) for count in (active_out, free_out))
    partial = x.new_empty(tiles_m if activity else 0, outputs, dtype=torch.float32)
    arguments: dict[str, Any] = {
        "x": x,
        "active_weight": active,
        "free_weight": free,
        "active_bias": None if active_bias is None else active_bias.contiguous(),
        "free_bias": None if free_bias is None else free_bias.contiguous(),
        "y": y,
        "partial": partial,
        "pixels": pixels,
        "Ia": active_in,
        "I": inputs,
        "Oa": active_out,
        "Of": free_out,
        "H": x.shape[2],
        "W": x.shape[3],
        "out_H": size[0],
        "out_W": size[1],
        **_strides("x", x),
        **_weight("active", active),
        **_weight("free", free),
        "BIAS": free_bias is not None,
        "RELU": activation == "relu",
        "ACTIVITY": activity,
        "NARROW": pixels < 1 << 30,
        **geometry,
    }
    _launch.launch(fwd_kernel, (tiles_m * tiles_n,), x, arguments | options_ | linear.GROUPS)
    return like_x(y, layout), linear._sum(partial) if activity else partial.view(-1)


def _as_images(rows: Tensor, batch: int, size: Sequence[int]) -> Tensor:
    """[M, C] -> [B, C, H, W], a view."""
    return rows.view(batch, *size, rows.shape[1]).permute(0, 3, 1, 2)


def masked_conv2d_relu_grad(
    grad_y: Tensor, y: Tensor, active: int, bias: bool
) -> tuple[Tensor, Tensor]:
    """Gradients before the ReLU [B, O - active, H', W'] and of the bias [O - active] (or empty)."""
    grad_z, sums = linear.masked_linear_relu_grad(
        rows_of_images(grad_y), rows_of_images(y), active, bias
    )
    images = _as_images(grad_z, y.shape[0], y.shape[2:])
    return images.contiguous(memory_format=memory_format(y)), sums


def masked_conv2d_dgrad(
    grad_z: Tensor,  # [B, Of, H', W']
    x: Tensor,  # [B, I, H, W]: only its shape and memory format are used
    free_weight: Tensor,  # [Of, I, K, K'], depthwise [Cf, 1, K, K']
    active: int,  # Ia, depthwise Ca
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    depthwise_: bool,
) -> Tensor:
    """Gradient of the input, [B, I, H, W]: zero for active inputs."""
    kernel, layout = free_weight.shape[2:], memory_format(x)
    (free_out, inputs), size = free_weight.shape[:2], x.shape[2:]
    if _pointwise(kernel, stride, padding, depthwise_):
        matrices = rows_of_images(grad_z), free_weight.flatten(1)
        with of_convolution():
            rows = linear.masked_linear_dgrad(*matrices, active)
        return _as_images(rows, x.shape[0], size).contiguous(memory_format=layout)
    grad_x = new_images(x, x.shape[0], x.shape[1], size)
    if grad_x.numel() == 0:
        return like_x(grad_x, layout)
    grad = images_of(grad_z)
    geometry = _geometry(kernel, stride, padding, dilation)
    if depthwise_:
        depthwise.dgrad(grad, free_weight, grad_x, geometry)
        return like_x(grad_x, layout)
    free = images_of(free_weight)
    numbers = [inputs, active, free_out, *_strides("grad", grad).values()]
    numbers += _weight("free", free).values()
    # classes of pixels: those that the same taps meet
    sizes = [triton.cdiv(n, s) for n, s in zip(size, stride, strict=True)]
    pixels = x.shape[0] * sizes[0] * sizes[1]
    sides = (inputs - active, 0)
    options = _launch.tile_options(pixels, sides, (grad, free), tuple(numbers), CONV)
    tiles_n = sum(triton.cdiv(n, options["BN"]) for n in (active, inputs - active))
    arguments: dict[str, Any] = {
        "grad_z": grad,
        "free_weight": free,
        "grad_x": grad_x,
        "pixels": pixels,
        "Ia": active,
        "I": inputs,
        "Of": free_out,
        "H": size[0],
        "W": size[1],
        "out_H": grad.shape[2],
        "out_W": grad.shape[3],
        "class_H": sizes[0],
        "class_W": sizes[1],
        **_strides("grad", grad),
        **_weight("free", free),
        "NARROW": pixels < 1 << 30,
        **geometry,
    }
    programs = (triton.cdiv(pixels, options["BM"]) * tiles_n, stride[0] * stride[1])
    _launch.launch(dgrad_kernel, programs, grad, arguments | options | linear.GROUPS)
    return like_x(grad_x, layout)


def masked_conv2d_wgrad(
    grad_z: Tensor,  # [B, Of, H', W']
    x: Tensor,  # [B, I, H, W]
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    depthwise_: bool,
    bias: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the free weight [Of, I, K, K'] ([Cf, 1, K, K']) and bias [Of] (or empty)."""
    layout, (free_out, inputs) = memory_format(x), (grad_z.shape[1], x.shape[1])
    columns = 1 if depthwise_ else inputs
    shape = (free_out, columns, *kernel)
    if bias:
        grad_bias = channel_activity(grad_z, 1, absolute=False).to(grad_z.dtype)
    else:
        grad_bias = grad_z.new_empty(0)
    if _pointwise(kernel, stride, padding, depthwise_):
        rows = rows_of_images(grad_z), rows_of_images(x)
        with of_convolution():
            weight = linear.masked_linear_wgrad(*rows, False)[0]
        return weight.view(shape).contiguous(memory_format=layout), grad_bias
    pixels = grad_z.shape[0] * grad_z.shape[2] * grad_z.shape[3]
    taps = kernel[0] * kernel[1]
    if pixels == 0 or free_out * columns == 0:
        zeros = torch.zeros(shape, dtype=x.dtype, device=x.device)
        return zeros.contiguous(memory_format=layout), grad_bias
    grad, x = images_of(grad_z), images_of(x)
    geometry = _geometry(kernel, stride, padding, dilation)
    if depthwise_:
        partial = depthwise.wgrad(grad, x[:, inputs - free_out :], taps, geometry)
    else:
        partial = _wgrad_parts(grad, x, taps, geometry)
    # [parts, taps, O, I] float32, added in a fixed order
    sums = partial[0] if partial.shape[0] == 1 else partial.sum(0)
    weight = sums.to(x.dtype).permute(1, 2, 0).reshape(shape)
    return weight.contiguous(memory_format=layout), grad_bias


def _wgrad_parts(grad: Tensor, x: Tensor, taps: int, geometry: dict[str, int]) -> Tensor:
    """[parts, taps, Of, I] float32: sums over parts of the pixels."""
    pixels, free_out, inputs = grad.numel() // grad.shape[1], grad.shape[1], x.shape[1]
    numbers = (*_strides("grad", grad).values(), *_strides("x", x).values(), free_out, inputs)
    options = _launch.tile_options(free_out, (inputs,) * taps, (grad, x), numbers, CONV)
    tiles = triton.cdiv(free_out, options["BM"]) * triton.cdiv(inputs, options["BN"]) * taps
    processors = _launch.describe(grad.device).processors
    wanted = max(1, WAVES * processors // tiles)
    blocks = triton.cdiv(pixels, options["BK"])
    parts = max(1, min(wanted, blocks * options["BK"] // PART))
    blocks = triton.cdiv(blocks, parts)
    parts = triton.cdiv(pixels, blocks * options["BK"])
    partial = x.new_empty(parts, taps, free_out, inputs, dtype=torch.float32)
    arguments: dict[str, Any] = {
        "grad_z": grad,
        "x": x,
        "partial": partial,
        "pixels": pixels,
        "blocks": blocks,
        "I": inputs,
        "Of": free_out,
        "H": x.shape[2],
        "W": x.shape[3],
        "out_H": grad.shape[2],
        "out_W": grad.shape[3],
        **_strides("grad", grad),
        **_strides("x", x),
        "NARROW": pixels < 1 << 30,
        **geometry,
    }
    _launch.launch(wgrad_kernel, (tiles, parts), grad, arguments | options | linear.GROUPS)
    return partial
