"""`partial_batch_norm` by PyTorch's batch normalisation on slices of channels."""

from typing import Any

import torch
from torch import Tensor

from ..reference.channel_activity import accumulator
from ..reference.masked_conv2d import memory_format
from ..reference.partial_batch_norm import Vectors
from .channel_activity import channel_activity


def _wide(vector: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if vector is None else vector.to(dtype)


def _batch_var(invstd: Tensor, eps: float) -> Tensor:
    """The variance (divided by the number of values) from 1 / sqrt(variance + eps)."""
    return (invstd.double().pow(-2) - eps).clamp_min(0).to(invstd.dtype)


def partial_batch_norm_fwd(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y [B, C, H, W], activity [C] or empty, the free channels' batch mean and variance [Cf]."""
    vectors, (training, eps, activation, activity) = Vectors(*rest[:8]), rest[8:]
    free_weight, free_count = vectors.free_weight, len(vectors.free_mean)
    split, dtype = len(vectors.active_mean), accumulator(x.dtype)
    parts: list[Tensor] = []
    mean, var = x.new_empty(0, dtype=dtype), x.new_empty(0, dtype=dtype)
    if split or not training:
        stop = split if training else x.shape[1]
        chosen = vectors.active() if training else vectors.joined()
        m, v, w, b = (_wide(vector, dtype) for vector in chosen)
        parts.append(torch.native_batch_norm(x[:, :stop], w, b, m, v, False, 0.0, eps)[0])
    if training:
        # Without weights PyTorch's statistics on the CPU are rounded to the dtype of x.
        w = x.new_ones(free_count, dtype=dtype) if free_weight is None else free_weight.to(dtype)
        b = _wide(vectors.free_bias, dtype)
        if x.numel() and free_count:
            arguments = (w, b, None, None, True, 0.0, eps)
            free, mean, invstd = torch.native_batch_norm(x[:, split:], *arguments)
            var = _batch_var(invstd, eps)
        else:  # what the mean of no values is
            free = x[:, split:].clone()
            mean = var = x.new_full((free_count,), float("nan"), dtype=dtype)
        parts.append(free)
    y = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    y = y.contiguous(memory_format=memory_format(x))
    if activation == "relu":
        y.relu_()
    sums = channel_activity(y, 1) if activity else x.new_empty(0, dtype=dtype)
    return y, sums, mean, var.clone() if var is mean else var


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
    split, dtype = x.shape[1] - len(free_mean), accumulator(x.dtype)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    grad_x[:, :split] = 0
    free, inner = grad_y[:, split:], x[:, split:]
    if y is not None:
        free = free.masked_fill(y[:, split:] <= 0, 0)
    if not inner.numel():
        zeros = x.new_zeros(len(free_mean), dtype=dtype)
        return grad_x, zeros, zeros.clone()
    mean, var, w = free_mean.to(dtype), free_var.to(dtype), _wide(free_weight, dtype)
    invstd = (var + eps).rsqrt()
    stored = (None, None) if training else (mean, var)
    saved = (mean, invstd) if training else (None, None)
    if w is None:  # gradients of it are wanted all the same
        w = torch.ones_like(mean)
    grads = torch.ops.aten.native_batch_norm_backward(
        free.contiguous(memory_format=memory_format(x)), inner, w, *stored, *saved, training, eps,
        [True, True, True],
    )  # fmt: skip
    grad_x[:, split:] = grads[0]
    return grad_x, grads[1].to(dtype), grads[2].to(dtype)
