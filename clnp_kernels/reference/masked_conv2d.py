"""Definition of `masked_conv2d` and of its gradients.

PyTorch's convolution refuses images without channels or without elements, so these are computed
apart. `geometry` is stride, padding and dilation, two numbers each, and whether it is depthwise.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from .channel_activity import accumulator, channel_activity


def memory_format(x: Tensor) -> torch.memory_format:
    """Return `torch.channels_last` or `torch.contiguous_format`, the latter for tensors that
    are not [B, C, H, W].

    PyTorch's rule: the order of the strides decides, so a slice of channels has the format of its
    whole.
    """
    smallest = 0
    if x.ndim != 4 or x.stride(1) == 0:
        return torch.contiguous_format
    for dim in (1, 3, 2, 0):
        size, stride = x.shape[dim], x.stride(dim)
        if size == 0 or stride < smallest or (dim == 0 and smallest == x.stride(1)):
            return torch.contiguous_format
        smallest = stride * max(size, 1)
    return torch.channels_last


def dense(t: Tensor, layout: torch.memory_format) -> Tensor:
    """A tensor [B, C, H, W] in a memory format, with the strides of that format.

    One channel or one pixel is dense in both formats, with the strides of either, by which PyTorch
    chooses the algorithm of a convolution.
    """
    t, step, strides = t.contiguous(memory_format=layout), 1, [0] * 4
    for dim in (1, 3, 2, 0) if layout == torch.channels_last else (3, 2, 1, 0):
        strides[dim], step = step, step * max(t.shape[dim], 1)
    return t.as_strided(t.shape, strides) if t.numel() else t


def output_size(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """H and W of the output."""
    return [
        (x.shape[2 + d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1
        for d in (0, 1)
    ]


def convolve(
    x: Tensor,  # [B, I, H, W]
    weight: Tensor,  # [O, I, K, K'], depthwise [O, 1, K, K']
    bias: Tensor | None,  # [O]
    *geometry: Any,
) -> Tensor:
    """The plain convolution [B, O, H', W'] in the memory format of `x`."""
    stride, padding, dilation, depthwise = geometry
    outputs, kernel = weight.shape[0], weight.shape[2:]
    if x.numel() and outputs:
        format_x = memory_format(x)
        groups = x.shape[1] if depthwise else 1
        # A weight in channels_last would decide the format of the output.
        x, weight = dense(x, format_x), dense(weight, format_x)
        y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        return y.contiguous(memory_format=format_x)
    sizes = output_size(x, kernel, stride, padding, dilation)
    y = x.new_zeros(x.shape[0], outputs, *sizes)
    return y if bias is None else y + bias[:, None, None]


def input_gradient(
    grad_z: Tensor,  # [B, O, H', W']
    shape: Sequence[int],  # B, I, H, W
    weight: Tensor,  # [O, I, K, K'], depthwise [O, 1, K, K']
    *geometry: Any,
) -> Tensor:
    """The gradient [B, I, H, W] of the input of `convolve`."""
    stride, padding, dilation, depthwise = geometry
    if 0 in shape or not grad_z.numel():
        return grad_z.new_zeros(shape)
    groups, layout = shape[1] if depthwise else 1, memory_format(grad_z)
    grad_z, weight = dense(grad_z, layout), dense(weight, layout)
    return conv2d_input(list(shape), weight, grad_z, stride, padding, dilation, groups)


def weight_gradient(
    grad_z: Tensor,  # [B, O, H', W']
    x: Tensor,  # [B, I, H, W]
    kernel: Sequence[int],
    *geometry: Any,
) -> Tensor:
    """The gradient of the weight of `convolve`: [O, I, K, K'], depthwise [O, 1, K, K']."""
    stride, padding, dilation, depthwise = geometry
    shape = [grad_z.shape[1], 1 if depthwise else x.shape[1], *kernel]
    if not (x.numel() and grad_z.numel()):
        return x.new_zeros(shape)
    groups = x.shape[1] if depthwise else 1
    if list(kernel) == [1, 1] and not any(padding) and not depthwise:
        # The strided form goes wrong in oneDNN on some processors, see csrc/cpu/masked_conv2d.cpp.
        x, stride = x[:, :, :: stride[0], :: stride[1]], (1, 1)
    return conv2d_weight(x, shape, grad_z, stride, padding, dilation, groups)


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
    depthwise = geometry[3]
    split = active_weight.shape[0] if depthwise else active_weight.shape[1]
    free_x = x[:, split:] if depthwise else x
    active = convolve(x[:, :split], active_weight, active_bias, *geometry)
    free = convolve(free_x, free_weight, free_bias, *geometry)
    y = torch.cat([active, free], 1).contiguous(memory_format=memory_format(x))
    if activation == "relu":
        y = y.relu()
    if activity:
        return y, channel_activity(y, 1)
    return y, y.new_empty(0, dtype=accumulator(y.dtype))


def masked_conv2d_relu_grad(
    grad_y: Tensor, y: Tensor, active: int, bias: bool
) -> tuple[Tensor, Tensor]:
    """Gradients before the ReLU and of the bias, of the outputs from `active` on.

    [B, O, H', W'] twice -> [B, O - active, H', W'], [O - active] (empty without bias).
    """
    grad_z = grad_y[:, active:].masked_fill(y[:, active:] <= 0, 0)
    grad_z = grad_z.contiguous(memory_format=memory_format(y))
    return grad_z, grad_z.sum((0, 2, 3)) if bias else grad_z.new_empty(0)


def masked_conv2d_dgrad(
    grad_z: Tensor,  # [B, Of, H', W']
    x: Tensor,  # [B, I, H, W]: only its shape and memory format are used
    free_weight: Tensor,  # [Of, I, K, K'], depthwise [Cf, 1, K, K']
    active: int,  # Ia, depthwise Ca
    *geometry: Any,
) -> Tensor:
    """Gradient of the input, [B, I, H, W]: zero for active inputs."""
    depthwise = geometry[3]
    weight = free_weight if depthwise else free_weight[:, active:]
    free = input_gradient(grad_z, x[:, active:].shape, weight, *geometry)
    grad_x = torch.cat([torch.zeros_like(x[:, :active]), free], 1)
    return grad_x.contiguous(memory_format=memory_format(x))


def masked_conv2d_wgrad(
    grad_z: Tensor,  # [B, Of, H', W']
    x: Tensor,  # [B, I, H, W]
    kernel: Sequence[int],
    *rest: Any,  # geometry and whether there is a bias
) -> tuple[Tensor, Tensor]:
    """Gradients of the free weight [Of, I, K, K'] ([Cf, 1, K, K']) and bias [Of] (or empty)."""
    *geometry, bias = rest
    format_x = memory_format(x)
    if geometry[3]:
        x = x[:, x.shape[1] - grad_z.shape[1] :]
    weight = weight_gradient(grad_z, x, kernel, *geometry)
    grad_bias = grad_z.sum((0, 2, 3)) if bias else grad_z.new_empty(0)
    return weight.contiguous(memory_format=format_x), grad_bias
