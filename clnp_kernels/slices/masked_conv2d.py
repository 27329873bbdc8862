"""`masked_conv2d` by vendor convolutions on slices of channels.

1 x 1 convolutions of images in channels_last are `masked_linear` on their pixels, which is no copy.
Where nothing is frozen, or nothing is free, it is the plain convolution.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference.channel_activity import accumulator
from ..reference.masked_conv2d import (
    convolve,
    input_gradient,
    memory_format,
    output_size,
    weight_gradient,
)
from . import masked_linear as linear
from .channel_activity import channel_activity


def pixels_of(kernel: Sequence[int], geometry: Sequence[Any], *images: Tensor) -> list[Tensor]:
    """Images as matrices of pixels [M, C], views; [] unless a 1 x 1 convolution is a product of
    them.
    """
    stride, padding, _, depthwise = geometry
    if depthwise or (*kernel, *stride, *padding) != (1, 1, 1, 1, 0, 0):
        return []
    rows = [image.permute(0, 2, 3, 1) for image in images]
    if not all(row.is_contiguous() for row in rows):
        return []
    return [row.view(-1, row.shape[3]) for row in rows]


def images_of(rows: Tensor, batch: int, size: Sequence[int]) -> Tensor:
    """Pixels [M, C] as images [B, C, H, W], a view."""
    return rows.view(batch, *size, rows.shape[1]).permute(0, 3, 1, 2)


@torch.no_grad()
def masked_conv2d_fwd(
    x: Tensor,  # [B, I, H, W]
    active_weight: Tensor,  # [Oa, Ia, K, K'], depthwise [Ca, 1, K, K']
    free_weight: Tensor,  # [Of, I, K, K'], depthwise [Cf, 1, K, K']
    active_bias: Tensor | None,  # [Oa]
    free_bias: Tensor | None,  # [Of]
    *rest: Any,  # geometry, activation and activity
) -> tuple[Tensor, Tensor]:
    """y [B, O, H', W'] and its activity [O] (or an empty tensor)."""
    *geometry, activation, activity = rest
    kernel = free_weight.shape[2:]
    pixels = pixels_of(kernel, geometry, x)
    if pixels:
        weights = active_weight.flatten(1), free_weight.flatten(1)
        biases = active_bias, free_bias
        (flat,) = pixels
        y, sums = linear.masked_linear_fwd(flat, *weights, *biases, activation, activity)
        return images_of(y, x.shape[0], output_size(x, kernel, *geometry[:3])), sums
    depthwise, active_out = geometry[3], active_weight.shape[0]
    split = active_out if depthwise else active_weight.shape[1]
    seen = x[:, split:] if depthwise and split else x
    if not active_out:
        y = convolve(seen, free_weight, free_bias, *geometry)
    elif not free_weight.shape[0]:
        y = convolve(x[:, :split], active_weight, active_bias, *geometry)
    else:
        active = convolve(x[:, :split], active_weight, None, *geometry)
        free = convolve(seen, free_weight, None, *geometry)
        y = _joined((active, free), (active_bias, free_bias), memory_format(x))
    y = y.contiguous(memory_format=memory_format(x))
    if activation == "relu":
        y.relu_()
    return y, channel_activity(y, 1) if activity else y.new_empty(0, dtype=accumulator(y.dtype))


def _joined(
    parts: tuple[Tensor, Tensor],
    biases: tuple[Tensor | None, Tensor | None],
    layout: torch.memory_format,
) -> Tensor:
    """Both parts [B, ., H, W] in one tensor; the copy that joins them adds the biases."""
    active, free = parts
    if biases[0] is None or biases[1] is None:
        return torch.cat(parts, 1)
    split = active.shape[1]
    shape = (active.shape[0], split + free.shape[1], *active.shape[2:])
    y = torch.empty(shape, dtype=active.dtype, device=active.device, memory_format=layout)
    torch.add(active, biases[0][:, None, None], out=y[:, :split])
    torch.add(free, biases[1][:, None, None], out=y[:, split:])
    return y


def masked_conv2d_relu_grad(
    grad_y: Tensor,  # [B, O, H', W']
    y: Tensor,  # [B, O, H', W']
    active: int,
    bias: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients before the ReLU [B, O - active, H', W'] and of the bias [O - active] (or empty)."""
    grad_z = torch.ops.aten.threshold_backward(grad_y[:, active:], y[:, active:], 0)
    grad_z = grad_z.contiguous(memory_format=memory_format(y))
    return grad_z, grad_z.sum((0, 2, 3)) if bias else grad_z.new_empty(0)


@torch.no_grad()
def masked_conv2d_dgrad(
    grad_z: Tensor,  # [B, Of, H', W']
    x: Tensor,  # [B, I, H, W]: only its shape and memory format are used
    free_weight: Tensor,  # [Of, I, K, K'], depthwise [Cf, 1, K, K']
    active: int,  # Ia, depthwise Ca
    *geometry: Any,
) -> Tensor:
    """Gradient of the input, [B, I, H, W]: zero for active inputs."""
    pixels = pixels_of(free_weight.shape[2:], geometry, grad_z, x)
    if pixels:
        grad_x = linear.masked_linear_dgrad(pixels[0], free_weight.flatten(1), active)
        return images_of(grad_x, x.shape[0], x.shape[2:])
    layout = memory_format(x)
    weight = free_weight if geometry[3] or not active else free_weight[:, active:]
    free = input_gradient(grad_z, x[:, active:].shape, weight, *geometry)
    if not active:
        return free.contiguous(memory_format=layout)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)
    grad_x[:, :active].zero_()
    grad_x[:, active:].copy_(free)
    return grad_x


def masked_conv2d_wgrad(
    grad_z: Tensor,  # [B, Of, H', W']
    x: Tensor,  # [B, I, H, W]
    kernel: Sequence[int],
    *rest: Any,  # geometry and whether there is a bias
) -> tuple[Tensor, Tensor]:
    """Gradients of the free weight [Of, I, K, K'] ([Cf, 1, K, K']) and bias [Of] (or empty)."""
    *geometry, bias = rest
    layout = memory_format(x)
    grad_bias = grad_z.sum((0, 2, 3)) if bias else grad_z.new_empty(0)
    pixels = pixels_of(kernel, geometry, grad_z, x)
    if pixels:
        grad, flat = pixels
        weight = linear.masked_linear_wgrad(grad, flat, False)[0]
        weight = weight.view(grad_z.shape[1], x.shape[1], 1, 1)
    else:
        if geometry[3]:
            x = x[:, x.shape[1] - grad_z.shape[1] :]
        weight = weight_gradient(grad_z, x, kernel, *geometry)
    return weight.contiguous(memory_format=layout), grad_bias
