"""Definition of ``partial_batch_norm`` and of its gradients, computed in float64."""

import torch
from torch import Tensor

from .channel_activity import accumulator, channel_activity
from .masked_conv2d import memory_format


def _column(vector: Tensor) -> Tensor:
    return vector[:, None, None]


def partial_batch_norm_fwd(
    x: Tensor,  # [B, C, H, W]
    active_mean: Tensor,  # [Ca]
    active_var: Tensor,  # [Ca]
    free_mean: Tensor,  # [Cf]
    free_var: Tensor,  # [Cf]
    active_weight: Tensor | None,  # [Ca]
    free_weight: Tensor | None,  # [Cf]
    active_bias: Tensor | None,  # [Ca]
    free_bias: Tensor | None,  # [Cf]
    training: bool,
    eps: float,
    activation: str,
    activity: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y [B, C, H, W], activity [C] or empty, the free channels' batch mean and variance [Cf].

    The statistics are empty unless ``training``; the variance is divided by the number of values.
    """
    wide, dtype = x.double(), accumulator(x.dtype)
    batch_mean, batch_var = wide.new_empty(0), wide.new_empty(0)
    if training:
        free = wide[:, len(active_mean) :]
        batch_mean = free.mean((0, 2, 3))
        batch_var = (free - _column(batch_mean)).square().mean((0, 2, 3))
        free_mean, free_var = batch_mean, batch_var
    mean, var = torch.cat([active_mean, free_mean]), torch.cat([active_var, free_var])
    y = (wide - _column(mean)) * _column((var.double() + eps).rsqrt())
    if active_weight is not None and free_weight is not None:
        y = y * _column(torch.cat([active_weight, free_weight]))
    if active_bias is not None and free_bias is not None:
        y = y + _column(torch.cat([active_bias, free_bias]))
    y = y.to(x.dtype).contiguous(memory_format=memory_format(x))
    if activation == "relu":
        y = y.relu()
    sums = channel_activity(y, 1) if activity else wide.new_empty(0, dtype=dtype)
    return y, sums, batch_mean.to(dtype), batch_var.to(dtype)


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
    grad = grad_y.double()
    if y is not None:
        grad = grad.masked_fill(y <= 0, 0)
    free, invstd = grad[:, split:], (free_var.double() + eps).rsqrt()
    normal = (x[:, split:].double() - _column(free_mean)) * _column(invstd)
    grad_bias, grad_weight = free.sum((0, 2, 3)), (free * normal).sum((0, 2, 3))
    if training:
        count = max(x[:, 0].numel(), 1) if x.shape[1] else 1
        free = free - _column(grad_bias / count) - normal * _column(grad_weight / count)
    scale = invstd if free_weight is None else invstd * free_weight
    active = torch.zeros_like(grad[:, :split])
    grad_x = torch.cat([active, free * _column(scale)], 1).to(x.dtype)
    grad_x = grad_x.contiguous(memory_format=memory_format(x))
    return grad_x, grad_weight.to(dtype), grad_bias.to(dtype)
