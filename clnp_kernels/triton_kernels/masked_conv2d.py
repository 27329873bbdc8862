"""`masked_conv2d` in Triton: implicit matrix products on images in channels_last.

A product's rows are pixels, its columns channels, and its sum goes over the taps of the kernel and
the channels that a side of the frozen/free boundary has; as in `masked_linear` a tile is on one
side. 1 x 1 kernels are `masked_linear` on the pixels. Images in planes are copied to
channels_last and the result back. Depthwise: `depthwise`.

Letters as in `ops.masked_conv2d`, geometry as in `reference.masked_conv2d`. A pixel is one of the
M = B * H * W of an image batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ..reference.masked_conv2d import dense, memory_format, output_size
from . import _images, _launch, depthwise
from . import masked_linear as linear
from ._conv import dgrad_kernel, fwd_kernel, wgrad_kernel
from .channel_activity import channel_activity
from .tiles import CONV, of_convolution

# wgrad: programs per multiprocessor that are worth splitting the sum over the pixels for, and the
# least pixels of a part
WAVES, PART = 2, 1024


def _pointwise(kernel: Sequence[int], sides: Sequence[Sequence[int]], depthwise: bool) -> bool:
    stride, padding, _ = sides
    return not depthwise and (*kernel, *stride, *padding) == (1, 1, 1, 1, 0, 0)


def masked_conv2d_fwd(
    x: Tensor,  # [B, I, H, W]
    active_weight: Tensor,  # [Oa, Ia, K, K'], depthwise [Ca, 1, K, K']
    free_weight: Tensor,  # [Of, I, K, K'], depthwise [Cf, 1, K, K']
    active_bias: Tensor | None,  # [Oa]
    free_bias: Tensor | None,  # [Of]
    *rest: Any,  # geometry, activation and activity
) -> tuple[Tensor, Tensor]:
    """y [B, O, H', W'] and its activity [O] (or an empty tensor)."""
    *sides, depthwise_, activation, activity = rest
    kernel, layout = free_weight.shape[2:], memory_format(x)
    outputs = active_weight.shape[0] + free_weight.shape[0]
    size = output_size(x, kernel, *sides)
    if _pointwise(kernel, sides, depthwise_):
        matrices = _images.rows_of_images(x), active_weight.flatten(1), free_weight.flatten(1)
        biases = active_bias, free_bias
        with of_convolution():
            y, sums = linear.masked_linear_fwd(*matrices, *biases, activation, activity)
        return _as_images(y, x.shape[0], size).contiguous(memory_format=layout), sums
    y = _images.new_images(x, x.shape[0], outputs, size)
    pixels = y.numel() // outputs if outputs else 0
    if pixels == 0:
        sums = x.new_zeros(outputs if activity else 0, dtype=torch.float32)
        return dense(y, layout), sums
    x = _images.images_of(x)
    geometry = _images.geometry_of(kernel, *sides)
    writes = _launch.output_arguments(active_bias, free_bias, activation, activity)
    if depthwise_:
        sums = depthwise.fwd(x, active_weight, free_weight, y, geometry, writes)
        return dense(y, layout), sums
    active, free = _images.images_of(active_weight), _images.images_of(free_weight)
    strides = _launch.Strides(
        _images.strides_of("x", x),
        _images.weight_strides("active", active),
        _images.weight_strides("free", free),
    )
    arguments = {**_images.sizes_of(x, y, pixels, geometry), **writes}
    operands = (x, active, free)
    sums = _launch.launch_fwd(fwd_kernel, pixels, operands, strides, y, arguments, CONV)
    return dense(y, layout), sums


def _as_images(rows: Tensor, batch: int, size: Sequence[int]) -> Tensor:
    """[M, C] -> [B, C, H, W], a view."""
    return rows.view(batch, *size, rows.shape[1]).permute(0, 3, 1, 2)


def masked_conv2d_relu_grad(
    grad_y: Tensor, y: Tensor, active: int, bias: bool
) -> tuple[Tensor, Tensor]:
    """Gradients before the ReLU [B, O - active, H', W'] and of the bias [O - active] (or empty)."""
    grad_z, sums = linear.masked_linear_relu_grad(
        _images.rows_of_images(grad_y), _images.rows_of_images(y), active, bias
    )
    images = _as_images(grad_z, y.shape[0], y.shape[2:])
    return images.contiguous(memory_format=memory_format(y)), sums


def masked_conv2d_dgrad(
    grad_z: Tensor,  # [B, Of, H', W']
    x: Tensor,  # [B, I, H, W]: only its shape and memory format are used
    free_weight: Tensor,  # [Of, I, K, K'], depthwise [Cf, 1, K, K']
    active: int,  # Ia, depthwise Ca
    *rest: Any,  # geometry
) -> Tensor:
    """Gradient of the input, [B, I, H, W]: zero for active inputs."""
    *sides, depthwise_ = rest
    kernel, layout = free_weight.shape[2:], memory_format(x)
    size = x.shape[2:]
    if _pointwise(kernel, sides, depthwise_):
        matrices = _images.rows_of_images(grad_z), free_weight.flatten(1)
        with of_convolution():
            rows = linear.masked_linear_dgrad(*matrices, active)
        return _as_images(rows, x.shape[0], size).contiguous(memory_format=layout)
    grad_x = _images.new_images(x, x.shape[0], x.shape[1], size)
    if grad_x.numel() == 0:
        return dense(grad_x, layout)
    grad = _images.images_of(grad_z)
    geometry = _images.geometry_of(kernel, *sides)
    if depthwise_:
        depthwise.dgrad(grad, free_weight, grad_x, geometry)
        return dense(grad_x, layout)
    free = _images.images_of(free_weight)
    # classes of pixels: those that the same taps meet
    class_h, class_w = (triton.cdiv(n, s) for n, s in zip(size, sides[0], strict=True))
    pixels, classes = x.shape[0] * class_h * class_w, geometry.S_H * geometry.S_W
    arguments = {
        "class_H": class_h,
        "class_W": class_w,
        **_images.sizes_of(x, grad, pixels, geometry),
    }
    strides = _images.strides_of("grad", grad), _images.weight_strides("free", free)
    of_x = (grad_x, active, arguments, classes, CONV)
    _launch.launch_dgrad(dgrad_kernel, pixels, (grad, free), strides, *of_x)
    return dense(grad_x, layout)


def masked_conv2d_wgrad(
    grad_z: Tensor,  # [B, Of, H', W']
    x: Tensor,  # [B, I, H, W]
    kernel: Sequence[int],
    *rest: Any,  # geometry and whether there is a bias
) -> tuple[Tensor, Tensor]:
    """Gradients of the free weight [Of, I, K, K'] ([Cf, 1, K, K']) and bias [Of] (or empty)."""
    *sides, depthwise_, bias = rest
    layout, (free_out, inputs) = memory_format(x), (grad_z.shape[1], x.shape[1])
    columns = 1 if depthwise_ else inputs
    shape = (free_out, columns, *kernel)
    if bias:
        grad_bias = channel_activity(grad_z, 1, absolute=False).to(grad_z.dtype)
    else:
        grad_bias = grad_z.new_empty(0)
    if _pointwise(kernel, sides, depthwise_):
        rows = _images.rows_of_images(grad_z), _images.rows_of_images(x)
        with of_convolution():
            weight = linear.masked_linear_wgrad(*rows, False)[0]
        return weight.view(shape).contiguous(memory_format=layout), grad_bias
    pixels = grad_z.shape[0] * grad_z.shape[2] * grad_z.shape[3]
    taps = kernel[0] * kernel[1]
    if pixels == 0 or free_out * columns == 0:
        zeros = torch.zeros(shape, dtype=x.dtype, device=x.device)
        return zeros.contiguous(memory_format=layout), grad_bias
    grad, x = _images.images_of(grad_z), _images.images_of(x)
    geometry = _images.geometry_of(kernel, *sides)
    if depthwise_:
        partial = depthwise.wgrad(grad, x[:, inputs - free_out :], taps, geometry)
    else:
        partial = _wgrad_parts(grad, x, taps, geometry)
    # [parts, taps, O, I] float32, added in a fixed order
    weight = _launch.sum_parts(partial).to(x.dtype).permute(1, 2, 0).reshape(shape)
    return weight.contiguous(memory_format=layout), grad_bias


def _wgrad_parts(grad: Tensor, x: Tensor, taps: int, geometry: _images.Geometry) -> Tensor:
    """[parts, taps, Of, I] float32: sums over parts of the pixels."""
    pixels, free_out, inputs = grad.numel() // grad.shape[1], grad.shape[1], x.shape[1]
    strides = _images.strides_of("grad", grad), _images.strides_of("x", x)
    arguments, unit = _launch.wgrad_arguments((grad, x), strides)
    options = _launch.product_options(free_out, (inputs,) * taps, (grad, x), unit, CONV)
    tiles = triton.cdiv(free_out, options["BM"]) * triton.cdiv(inputs, options["BN"]) * taps
    processors = _launch.describe(grad.device).processors
    wanted = max(1, WAVES * processors // tiles)
    blocks = triton.cdiv(pixels, options["BK"])
    parts = max(1, min(wanted, blocks * options["BK"] // PART))
    blocks = triton.cdiv(blocks, parts)
    parts = triton.cdiv(pixels, blocks * options["BK"])
    partial = x.new_empty(parts, taps, free_out, inputs, dtype=torch.float32)
    arguments |= {"partial": partial, "blocks": blocks}
    arguments |= _images.sizes_of(x, grad, pixels, geometry)
    _launch.launch(wgrad_kernel, (tiles, parts), grad, arguments | options)
    return partial
