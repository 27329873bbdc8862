"""Definition of `partial_batch_norm` and of its gradients, computed in float64."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .channel_activity import accumulator, channel_activity
from .masked_conv2d import memory_format


def _column(vector: Tensor) -> Tensor:
    return vector[:, None, None]


class Vectors(NamedTuple):
    """Vectors of an operator's arguments, in their order; weights and biases may be None."""

    active_mean: Tensor  # [Ca]
    active_var: Tensor  # [Ca]
    free_mean: Tensor  # [Cf]
    free_var: Tensor  # [Cf]
    active_weight: Tensor | None  # [Ca]
    free_weight: Tensor | None  # [Cf]
    active_bias: Tensor | None  # [Ca]
    free_bias: Tensor | None  # [Cf]

    def active(self) -> tuple[Any, ...]:
        """Mean, variance, weight and bias of the active channels."""
        return self[0], self[1], self[4], self[6]

    def free(self) -> tuple[Any, ...]:
        """Mean, variance, weight and bias of the free channels."""
        return self[2], self[3], self[5], self[7]

    def joined(self) -> list[Any]:
        """Mean, variance, weight and bias of all channels."""
        pairs = zip(self.active(), self.free(), strict=True)
        return [None if a is None else torch.cat((a, f)) for a, f in pairs]


def partial_batch_norm_fwd(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y [B, C, H, W], activity [C] or empty, the free channels' batch mean and variance [Cf].

    The statistics are empty unless `training`; the variance is divided by the number of values.
    `rest` are the vectors, training, eps, activation and activity.
    """
    vectors, (training, eps, activation, activity) = Vectors(*rest[:8]), rest[8:]
    wide, dtype = x.double(), accumulator(x.dtype)
    batch_mean, batch_var = wide.new_empty(0), wide.new_empty(0)
    if training:
        free = wide[:, len(vectors.active_mean) :]
        batch_mean = free.mean((0, 2, 3))
        batch_var = (free - _column(batch_mean)).square().mean((0, 2, 3))
        vectors = vectors._replace(free_mean=batch_mean, free_var=batch_var)
    mean, var, weight, bias = vectors.joined()
    y = (wide - _column(mean)) * _column((var.double() + eps).rsqrt())
    if weight is not None:
        y = y * _column(weight)
    if bias is not None:
        y = y + _column(bias)
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
