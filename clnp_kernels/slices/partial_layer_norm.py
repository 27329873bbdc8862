"""`partial_layer_norm` by PyTorch's layer normalisation, or on slices of blocks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference.channel_activity import accumulator
from ..reference.partial_layer_norm import free_start, joined
from ._vectors import widened
from .channel_activity import channel_activity


def partial_layer_norm_fwd(
    x: Tensor,  # [M, C]
    boundaries: Sequence[int],
    active_weight: Tensor | None,  # [Ca]
    free_weight: Tensor | None,  # [Cf]
    active_bias: Tensor | None,  # [Ca]
    free_bias: Tensor | None,  # [Cf]
    eps: float,
    rms: bool,
    skip_active: bool,
    activity: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y [M, C] or [M, Cf], its activity (or an empty tensor), mean and rstd [M]."""
    split, dtype = free_start(boundaries), accumulator(x.dtype)
    wide = x.to(dtype)
    weight = widened(joined(active_weight, free_weight), dtype)
    bias = widened(joined(active_bias, free_bias), dtype)
    if split == 0 and not rms and x.numel():
        y, mean, rstd = torch.native_layer_norm(wide, [x.shape[1]], weight, bias, eps)
        mean, rstd = mean.flatten(), rstd.flatten()
    else:
        y, mean, rstd = _normal(wide, boundaries, eps, rms)
        y = y if weight is None else y.mul_(weight)
        y = (y if bias is None else y.add_(bias))[:, split if skip_active else 0 :]
    y = y.to(x.dtype).contiguous()
    sums = channel_activity(y, 1) if activity else x.new_empty(0, dtype=dtype)
    return y, sums, mean, rstd


def _normal(
    x: Tensor, boundaries: Sequence[int], eps: float, rms: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """x without mean and deviation, and both of the last block."""
    y, start = torch.empty_like(x), 0
    mean, squares = x.new_zeros(x.shape[0], 1), x.new_zeros(x.shape[0], 1)
    rstd = torch.full_like(squares, eps).rsqrt()
    for end in boundaries if len(x) else ():
        block, count = x[:, start:end], end - start
        if count and rms:
            squares = squares + block.square().sum(1, keepdim=True)
        elif count:
            # Chan, Golub & LeVeque 1979: squares around the common mean
            var, near = torch.var_mean(block, 1, correction=0, keepdim=True)
            apart = near - mean
            mean = mean + apart * (count / end)
            squares = squares + var * count + apart.square() * (start * count / end)
        if count:
            rstd = (squares / end + eps).rsqrt()
            y[:, start:end] = (block - mean) * rstd
        start = end
    return y, mean.flatten()[: 0 if rms else None], rstd.flatten()


def partial_layer_norm_bwd(
    grad_y: Tensor,  # [M, Cf]
    x: Tensor,  # [M, C]
    mean: Tensor,  # [M]
    rstd: Tensor,  # [M]
    free_weight: Tensor | None,  # [Cf]
    rms: bool,
    affine: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x [M, C], zero for active channels, and of the free weight and bias [Cf] (empty
    unless `affine`).
    """
    channels, dtype = x.shape[1], accumulator(x.dtype)
    split = channels - grad_y.shape[1]
    grad, wide, weight = grad_y.to(dtype), x.to(dtype), widened(free_weight, dtype)
    if split == 0 and not rms and x.numel():
        w = wide.new_ones(channels) if weight is None else weight
        grads = torch.ops.aten.native_layer_norm_backward(
            grad, wide, [channels], mean[:, None], rstd[:, None], w, w, [True, affine, affine]
        )
        nothing = grad.new_empty(0)
        sums = grads[1:] if affine else (nothing, nothing.clone())
        return grads[0].to(x.dtype), *sums
    normal = (wide[:, split:] if rms else wide[:, split:] - mean[:, None]) * rstd[:, None]
    of_weight, of_bias = ((grad * normal).sum(0), grad.sum(0)) if affine else grad.new_empty(2, 0)
    grad = grad if weight is None else grad * weight
    free = grad - normal * ((grad * normal).sum(1, keepdim=True) / max(channels, 1))
    if not rms:
        free = free - grad.sum(1, keepdim=True) / max(channels, 1)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grad_x[:, :split] = 0
    grad_x[:, split:] = free * rstd[:, None]
    return grad_x, of_weight.clone(), of_bias.clone()
