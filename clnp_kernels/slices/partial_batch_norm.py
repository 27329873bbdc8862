"""`partial_batch_norm` by PyTorch's batch normalisation.

The statistics of the batch are those of the free channels alone; then one pass over all channels
normalises each by the statistics that are its own, so nothing has to be joined.
"""

from typing import Any

import torch
from torch import Tensor

from ..reference.channel_activity import accumulator
from ..reference.masked_conv2d import memory_format
from ..reference.partial_batch_norm import Vectors
from ._vectors import widened
from .channel_activity import channel_activity


def _statistics(free: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and variance [Cf] of each channel, in `dtype`; NaN is what the mean of no values is."""
    channels = free.shape[1]
    if not free.numel():
        mean = free.new_full((channels,), float("nan"), dtype=dtype)
        return mean, mean.clone()
    # Without running statistics PyTorch's are rounded to the dtype of the images on the CPU.
    narrow = free.dtype != dtype
    running = [free.new_empty(channels, dtype=dtype) if narrow else None for _ in range(2)]
    mean, var = torch.batch_norm_update_stats(free, running[0], running[1], 0.0)
    return mean, var


def _joined(vectors: Vectors, dtype: torch.dtype) -> list[Tensor | None]:
    """Mean, variance, weight and bias [C] of all channels, in `dtype`, by one copy at most."""
    pairs = [*zip(vectors.active(), vectors.free(), strict=True)]
    if not len(vectors.active_mean):
        return [widened(free, dtype) for _, free in pairs]
    given = [vector.to(dtype) for pair in pairs for vector in pair if vector is not None]
    channels = len(vectors.active_mean) + len(vectors.free_mean)
    rows = iter(torch.cat(given).view(-1, channels).unbind())
    return [None if free is None else next(rows) for _, free in pairs]


@torch.no_grad()
def partial_batch_norm_fwd(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y [B, C, H, W], activity [C] or empty, the free channels' batch mean and variance [Cf]."""
    vectors, (training, eps, activation, activity) = Vectors(*rest[:8]), rest[8:]
    split, dtype = len(vectors.active_mean), accumulator(x.dtype)
    mean, var = x.new_empty(0, dtype=dtype), x.new_empty(0, dtype=dtype)
    if training:
        mean, var = _statistics(x[:, split:] if split else x, dtype)
        vectors = vectors._replace(free_mean=mean, free_var=var)
    if x.numel():
        m, v, w, b = _joined(vectors, dtype)
        y = torch.native_batch_norm(x, w, b, m, v, False, 0.0, eps)[0]
    else:
        y = torch.empty_like(x)
    y = y.contiguous(memory_format=memory_format(x))
    if activation == "relu":
        y.relu_()
    sums = channel_activity(y, 1) if activity else x.new_empty(0, dtype=dtype)
    return y, sums, mean, var


@torch.no_grad()
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
    split, dtype, layout = x.shape[1] - len(free_mean), accumulator(x.dtype), memory_format(x)
    free, inner = grad_y[:, split:], x[:, split:]
    if y is not None:
        free = torch.ops.aten.threshold_backward(free, y[:, split:], 0)
    if not inner.numel():
        none = x.new_zeros(len(free_mean), dtype=dtype)
        return torch.zeros_like(x, memory_format=layout), none, none.clone()
    mean, var, w = free_mean.to(dtype), free_var.to(dtype), widened(free_weight, dtype)
    invstd = (var + eps).rsqrt()
    stored = (None, None) if training else (mean, var)
    saved = (mean, invstd) if training else (None, None)
    if w is None:  # gradients of it are wanted all the same
        w = torch.ones_like(mean)
    inside, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
        free.contiguous(memory_format=layout), inner, w, *stored, *saved, training, eps,
        [True, True, True],
    )  # fmt: skip
    if split:
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)
        grad_x[:, :split].zero_()
        grad_x[:, split:].copy_(inside)
    else:
        grad_x = inside.contiguous(memory_format=layout)
    return grad_x, grad_weight.to(dtype), grad_bias.to(dtype)
