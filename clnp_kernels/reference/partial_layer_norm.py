"""Definition of `partial_layer_norm` and of its gradients, computed in float64."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .channel_activity import accumulator, channel_activity


def free_start(boundaries: Sequence[int]) -> int:
    """Ca: where the last block, the free one, begins."""
    return boundaries[-2] if len(boundaries) > 1 else 0


def joined(active: Tensor | None, free: Tensor | None) -> Tensor | None:
    """The vector [C] of a frozen [Ca] and a free part [Cf]; [Ca] is None where there is no block
    in front.
    """
    return free if active is None or free is None else torch.cat([active, free])


def partial_layer_norm_fwd(
    x: Tensor,  # [M, C]
    boundaries: Sequence[int],  # ends of the blocks, the last one is C
    active_weight: Tensor | None,  # [Ca]
    free_weight: Tensor | None,  # [Cf]
    active_bias: Tensor | None,  # [Ca]
    free_bias: Tensor | None,  # [Cf]
    eps: float,
    rms: bool,
    skip_active: bool,
    activity: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y [M, C] ([M, Cf] with `skip_active`), its activity (or an empty tensor), mean and 1 /
    deviation [M] of the last block (the mean is empty if `rms`).
    """
    wide, start, parts = x.double(), 0, []
    mean, rstd = wide.new_zeros(len(x), 1), wide.new_full((len(x), 1), eps).rsqrt()
    for end in boundaries:
        # A copy, so that its sums are those of x[:, :end] alone.
        prefix = wide[:, :end].contiguous()
        if end and not rms:
            mean = prefix.mean(1, keepdim=True)
        if end:
            rstd = ((prefix - mean).square().mean(1, keepdim=True) + eps).rsqrt()
        parts.append((prefix[:, start:] - mean) * rstd)
        start = end
    y, split = torch.cat(parts, 1), free_start(boundaries)
    weight, bias = joined(active_weight, free_weight), joined(active_bias, free_bias)
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    y, dtype = y[:, split if skip_active else 0 :].to(x.dtype).contiguous(), accumulator(x.dtype)
    sums = channel_activity(y, 1) if activity else x.new_empty(0, dtype=dtype)
    return y, sums, mean.flatten()[: 0 if rms else None].to(dtype), rstd.flatten().to(dtype)


def partial_layer_norm_bwd(
    grad_y: Tensor,  # [M, Cf]
    x: Tensor,  # [M, C]
    mean: Tensor,  # [M], of the last block; empty if rms
    rstd: Tensor,  # [M], of the last block
    free_weight: Tensor | None,  # [Cf]
    rms: bool,
    affine: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x [M, C], zero for active channels, and of the free weight and bias [Cf] (empty
    unless `affine`).
    """
    channels, dtype = x.shape[1], accumulator(x.dtype)
    split = channels - grad_y.shape[1]
    grad, centre = grad_y.double(), 0 if rms else mean.double()[:, None]
    normal = (x[:, split:].double() - centre) * rstd.double()[:, None]
    grad_bias, grad_weight = grad.sum(0), (grad * normal).sum(0)
    if free_weight is not None:
        grad = grad * free_weight
    free = grad - normal * ((grad * normal).sum(1, keepdim=True) / max(channels, 1))
    if not rms:
        free = free - grad.sum(1, keepdim=True) / max(channels, 1)
    free = free * rstd.double()[:, None]
    grad_x = torch.cat([free.new_zeros(len(x), split), free], 1).to(x.dtype)
    count = None if affine else 0
    return grad_x, grad_weight[:count].to(dtype), grad_bias[:count].to(dtype)
