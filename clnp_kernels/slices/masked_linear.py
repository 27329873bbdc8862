"""``masked_linear`` by vendor products on slices, written straight into the output's columns."""

import torch
from torch import Tensor

from ..reference.channel_activity import accumulator
from ..reference.masked_linear import masked_linear_relu_grad, masked_linear_wgrad
from .channel_activity import channel_activity

__all__ = [
    "masked_linear_dgrad",
    "masked_linear_fwd",
    "masked_linear_relu_grad",
    "masked_linear_wgrad",
]


def _product(out: Tensor, a: Tensor, b: Tensor, bias: Tensor | None = None) -> None:
    """out = a @ b (+ bias), where ``out`` may be a slice of columns."""
    if bias is None:
        torch.mm(a, b, out=out)
    else:
        torch.addmm(bias, a, b, out=out)


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
    active_out, active_in = active_weight.shape
    y = x.new_empty(x.shape[0], active_out + free_weight.shape[0])
    with torch.no_grad():
        _product(y[:, :active_out], x[:, :active_in], active_weight.t(), active_bias)
        _product(y[:, active_out:], x, free_weight.t(), free_bias)
        if activation == "relu":
            y.relu_()
    sums = channel_activity(y, 1) if activity else y.new_empty(0, dtype=accumulator(y.dtype))
    return y, sums


def masked_linear_dgrad(
    grad_z: Tensor,  # [B, Of]
    free_weight: Tensor,  # [Of, I]
    active: int,  # Ia
) -> Tensor:
    """Gradient of the input, [B, I]: zero for active inputs."""
    grad_x = grad_z.new_empty(grad_z.shape[0], free_weight.shape[1])
    with torch.no_grad():
        grad_x[:, :active] = 0
        _product(grad_x[:, active:], grad_z, free_weight[:, active:])
    return grad_x
