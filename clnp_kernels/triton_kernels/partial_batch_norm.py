"""`partial_batch_norm` in Triton: a pass for sums, a small one per channel, one over the images.

Images are [P, C, Q]: in channels_last P goes over all pixels and Q is 1, in planes Q goes over the
pixels of an image; no copy of either. Sums over stripes are written apart and added in a fixed
order, in float64, without atomics: the same numbers in every run.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from ..reference.masked_conv2d import memory_format
from ..reference.partial_batch_norm import Vectors
from . import _launch
from ._norm import (
    CHANNELS,
    ROWS,
    backward_numbers_kernel,
    forward_numbers_kernel,
    normal_kernel,
    slope_kernel,
    sums_kernel,
)
from .channel_activity import grid_of


def _planes(t: Tensor, last: bool) -> Tensor:
    """[B, C, H, W] as [P, C, Q], a view where the pixels are evenly spaced, else a copy."""
    batch, channels, height, width = t.shape
    if last:
        rows = t.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
        return rows[:, :, None]
    return t.reshape(batch, channels, height * width)


def _contiguous(vectors: dict[str, Any]) -> dict[str, Any]:
    return {name: None if t is None else t.contiguous() for name, t in vectors.items()}


def _sums(
    x: Tensor, grad: Tensor | None, y: Tensor | None, mean: Tensor | None
) -> tuple[Tensor, Tensor]:
    """[stripes, C] float32 twice, as `sums_kernel` says."""
    programs, arguments = grid_of(x=x, grad=grad, y=y)
    first, second = (x.new_empty(programs[1], x.shape[1], dtype=torch.float32) for _ in range(2))
    arguments |= {"mean": mean, "first": first, "second": second}
    arguments |= {"GRAD": grad is not None, "RELU": y is not None}
    _launch.launch(sums_kernel, programs, x, arguments)
    return first, second


def partial_batch_norm_fwd(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y [B, C, H, W], activity [C] or empty, the free channels' batch mean and variance [Cf]."""
    vectors, (training, eps, activation, activity) = Vectors(*rest[:8]), rest[8:]
    split, free = len(vectors.active_mean), len(vectors.free_mean)
    layout, channels = memory_format(x), x.shape[1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)
    mean, var = (x.new_empty(free if training else 0, dtype=torch.float32) for _ in range(2))
    if x.numel() == 0:
        sums = x.new_zeros(channels if activity else 0, dtype=torch.float32)
        return y, sums, mean.fill_(torch.nan), var.fill_(torch.nan)
    planes = _planes(x, layout == torch.channels_last)
    inner = planes[:, split:]
    parts = x.new_empty(0, free, dtype=torch.float32)
    first, second = _sums(inner, None, None, None) if training and free else (parts, parts)
    scale = x.new_empty(channels, dtype=torch.float32)
    offset = torch.empty_like(scale)
    arguments: dict[str, Any] = {
        "x": inner,
        "first": first,
        "second": second,
        **_contiguous(vectors._asdict()),
        "batch_mean": mean,
        "batch_var": var,
        "scale": scale,
        "offset": offset,
        "Ca": split,
        "Cf": free,
        "stripes": first.shape[0],
        "count": planes.shape[0] * planes.shape[2],
        "x_c": planes.stride(1),
        "eps": eps,
        "TRAINING": training,
        "WEIGHT": vectors.free_weight is not None,
        "BIAS": vectors.free_bias is not None,
        "ROWS": ROWS,
        "CHANNELS": CHANNELS,
    }
    programs: tuple[int, ...] = (triton.cdiv(channels, CHANNELS),)
    _launch.launch(forward_numbers_kernel, programs, x, arguments)
    programs, arguments = grid_of(x=planes, y=_planes(y, layout == torch.channels_last))
    partial = x.new_empty(programs[1] if activity else 0, channels, dtype=torch.float32)
    arguments |= {"scale": scale, "offset": offset, "partial": partial}
    arguments |= {"RELU": activation == "relu", "ACTIVITY": activity}
    _launch.launch(normal_kernel, programs, x, arguments)
    return y, _launch.sum_parts(partial) if activity else partial.view(-1), mean, var


def partial_batch_norm_bwd(
    grad_y: Tensor,  # [B, C, H, W]
    x: Tensor,  # [B, C, H, W]
    y: Tensor | None,  # [B, C, H, W], the output, if it went through a ReLU
    free_mean: Tensor,  # [Cf], of the batch if training
    free_var: Tensor,  # [Cf], of the batch if training
    free_weight: Tensor | None,  # [Cf]
    training: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x [B, C, H, W], zero for active channels, and of the free weight and bias
    [Cf].
    """
    layout, channels, free = memory_format(x), x.shape[1], len(free_mean)
    split = channels - free
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)
    grad_weight, grad_bias = (x.new_empty(free, dtype=torch.float32) for _ in range(2))
    if x.numel() == 0:
        return grad_x, grad_weight.zero_(), grad_bias.zero_()
    last = layout == torch.channels_last
    planes, grads = _planes(x, last), _planes(grad_y, last)
    outs = None if y is None else _planes(y, last)
    mean = free_mean.contiguous()
    parts = x.new_empty(0, free, dtype=torch.float32)
    first, second = parts, parts
    if free:
        inner = None if outs is None else outs[:, split:]
        first, second = _sums(planes[:, split:], grads[:, split:], inner, mean)
    numbers = x.new_empty(4, free, dtype=torch.float32)
    vectors = {"free_mean": mean, "free_var": free_var, "free_weight": free_weight}
    arguments: dict[str, Any] = {
        "first": first,
        "second": second,
        **_contiguous(vectors),
        "grad_weight": grad_weight,
        "grad_bias": grad_bias,
        "numbers": numbers,
        "Cf": free,
        "stripes": first.shape[0],
        "count": planes.shape[0] * planes.shape[2],
        "eps": eps,
        "TRAINING": training,
        "WEIGHT": free_weight is not None,
        "ROWS": ROWS,
        "CHANNELS": CHANNELS,
    }
    programs: tuple[int, ...] = (triton.cdiv(free, CHANNELS),)
    if free:
        _launch.launch(backward_numbers_kernel, programs, x, arguments)
    programs, arguments = grid_of(x=planes, grad=grads, y=outs, grad_x=_planes(grad_x, last))
    unit = _launch.align_of(split)
    arguments |= {"numbers": numbers, "Ca": split // unit, "SPLIT": unit}
    arguments |= {"RELU": outs is not None, "TRAINING": training}
    _launch.launch(slope_kernel, programs, x, arguments)
    return grad_x, grad_weight, grad_bias
