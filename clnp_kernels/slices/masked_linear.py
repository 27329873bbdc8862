"""`masked_linear` by vendor products on slices.

A product without bias and ReLU goes straight into the columns of the output. With them it has a
matrix of its own, as cuBLAS adds a bias and takes the ReLU within the product only there, and one
copy joins the two.
"""

import torch
from torch import Tensor

from .. import torch_private as private
from ..reference.channel_activity import accumulator
from ..reference.masked_linear import masked_linear_wgrad
from .channel_activity import channel_activity

__all__ = [
    "masked_linear_dgrad",
    "masked_linear_fwd",
    "masked_linear_relu_grad",
    "masked_linear_wgrad",
]


def _linear(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    """activation(x @ weight.T + bias), contiguous."""
    if activation == "relu":
        return private.linear_relu(x, weight, bias)
    return torch.addmm(bias, x, weight.t())


@torch.no_grad()
def masked_linear_fwd(
    x: Tensor,  # [B, I]
    active_weight: Tensor,  # [Oa, Ia]
    free_weight: Tensor,  # [Of, I]
    active_bias: Tensor | None,  # [Oa]
    free_bias: Tensor | None,  # [Of]
    activation: str,
    activity: bool,
) -> tuple[Tensor, Tensor]:
    """y [B, O] and its activity [O] (or an empty tensor)."""
    active_out, active_in = active_weight.shape
    free_out = free_weight.shape[0]
    seen = x[:, :active_in]
    if active_bias is not None and free_bias is not None:
        parts = []
        if active_out:
            parts.append(_linear(seen, active_weight, active_bias, activation))
        if free_out or not active_out:
            parts.append(_linear(x, free_weight, free_bias, activation))
        y = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    else:
        y = x.new_empty(x.shape[0], active_out + free_out)
        if active_out:
            torch.mm(seen, active_weight.t(), out=y[:, :active_out])
        if free_out:
            torch.mm(x, free_weight.t(), out=y[:, active_out:])
        if activation == "relu":
            y.relu_()
    sums = channel_activity(y, 1) if activity else y.new_empty(0, dtype=accumulator(y.dtype))
    return y, sums


def masked_linear_relu_grad(
    grad_y: Tensor,  # [B, O]
    y: Tensor,  # [B, O]
    active: int,
    bias: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients before the ReLU [B, O - active] and of the bias [O - active] (or empty)."""
    grad_z = torch.ops.aten.threshold_backward(grad_y[:, active:], y[:, active:], 0).contiguous()
    return grad_z, grad_z.sum(0) if bias else grad_z.new_empty(0)


@torch.no_grad()
def masked_linear_dgrad(
    grad_z: Tensor,  # [B, Of]
    free_weight: Tensor,  # [Of, I]
    active: int,  # Ia
) -> Tensor:
    """Gradient of the input, [B, I]: zero for active inputs."""
    grad_x = grad_z.new_empty(grad_z.shape[0], free_weight.shape[1])
    if active:
        grad_x[:, :active].zero_()
    if active < grad_x.shape[1]:
        torch.mm(grad_z, free_weight[:, active:], out=grad_x[:, active:])
    return grad_x
