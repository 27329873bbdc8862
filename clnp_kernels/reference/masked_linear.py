"""Definition of ``masked_linear`` and of its gradients."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .channel_activity import accumulator, channel_activity


def masked_linear_fwd(
    x: Tensor,  # [B, I]
    active_weight: Tensor,  # [Oa, Ia]
    free_weight: Tensor,  # [Of, I]
    active_bias: Tensor | None,  # [Oa]
    free_bias: Tensor | None,  # [Of]
    activation: str,
    activity: bool,
) -> tuple[Tensor, Tensor]:
    """y [B, O] and its activity [O] (an empty tensor unless asked for)."""
    active_in = active_weight.shape[1]
    active = F.linear(x[:, :active_in], active_weight, active_bias)
    y = torch.cat([active, F.linear(x, free_weight, free_bias)], dim=1)
    if activation == "relu":
        y = y.relu()
    if activity:
        return y, channel_activity(y, 1)
    return y, y.new_empty(0, dtype=accumulator(y.dtype))


def masked_linear_relu_grad(
    grad_y: Tensor, y: Tensor, active: int, bias: bool
) -> tuple[Tensor, Tensor]:
    """Gradients before the ReLU and of the bias, of the outputs from ``active`` on.

    [B, O], [B, O] -> [B, O - active], [O - active] (empty without bias).
    """
    grad_z = grad_y[:, active:].masked_fill(y[:, active:] <= 0, 0)
    return grad_z, grad_z.sum(0) if bias else grad_z.new_empty(0)


def masked_linear_dgrad(
    grad_z: Tensor,  # [B, Of]
    free_weight: Tensor,  # [Of, I]
    active: int,  # Ia
) -> Tensor:
    """Gradient of the input, [B, I]: zero for active inputs."""
    grad_free = grad_z @ free_weight[:, active:]
    return torch.cat([grad_z.new_zeros(grad_z.shape[0], active), grad_free], dim=1)


def masked_linear_wgrad(grad_z: Tensor, x: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    """Gradients of the free weight [Of, I] and bias [Of] (empty without ``bias``).

    ``grad_z`` is [B, Of] and ``x`` [B, I].
    """
    grad_bias = grad_z.sum(0) if bias else grad_z.new_empty(0)
    return grad_z.t() @ x, grad_bias
