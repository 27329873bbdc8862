"""Linear layers of several networks that share their frozen channels, as one product.

The networks differ in their free weights alone (grid points of one task): inputs that come from
frozen channels are the same for all and are stored once.
"""

from typing import Any

import torch
from torch import Tensor

from .errors import message


def stacked_linear(shared: Tensor, own: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y[p] = [shared, own[p]] @ weight[p]^T + bias[p] for P networks at once.

    No gradient flows into `shared`. Under autocast the products are in its dtype.

    Arguments:
        shared: [B, S], inputs that all networks have in common.
        own: [P, B, N], the rest of each network's inputs.
        weight: [P, O, S + N].
        bias: [P, O] or None.

    Returns:
        [P, B, O].

    Raises:
        ValueError: shapes that do not fit.
    """
    networks, outputs, inputs = weight.shape
    if own.shape[:2] != (networks, len(shared)) or shared.shape[1] + own.shape[2] != inputs:
        wanted = f"[{networks}, {len(shared)}, {inputs - shared.shape[1]}]"
        raise ValueError(message("own.shape", list(own.shape), wanted))
    if bias is not None and bias.shape != (networks, outputs):
        raise ValueError(message("bias.shape", list(bias.shape), f"[{networks}, {outputs}]"))
    y = _StackedProduct.apply(shared, own, weight)
    assert isinstance(y, Tensor)
    return y if bias is None else y + bias[:, None].to(y.dtype)


class _StackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shared: Tensor, own: Tensor, weight: Tensor) -> Tensor:
        kind, ctx.dtypes = weight.device.type, (own.dtype, weight.dtype)
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            shared, own, weight = shared.to(dtype), own.to(dtype), weight.to(dtype)
        ctx.save_for_backward(shared, own, weight)
        with torch.autocast(kind, enabled=False):
            split = shared.shape[1]
            if split == 0:
                return own @ weight.mT
            if own.shape[2] == 0:
                # One product for all networks, as there is but one input.
                y = shared @ weight.flatten(0, 1).T
                return y.unflatten(1, weight.shape[:2]).transpose(0, 1)
            y = shared.expand(len(own), -1, -1) @ weight[:, :, :split].mT
            return y.baddbmm_(own, weight[:, :, split:].mT)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        shared, own, weight = ctx.saved_tensors
        grad, split = grads[0], shared.shape[1]
        own_dtype, weight_dtype = ctx.dtypes
        grad_own = None
        if ctx.needs_input_grad[1]:
            grad_own = (grad @ weight[:, :, split:]).to(own_dtype)
        grad_weight = torch.empty_like(weight)
        across = grad.mT
        grad_weight[:, :, :split] = across @ shared
        grad_weight[:, :, split:] = across @ own
        return None, grad_own, grad_weight.to(weight_dtype)
