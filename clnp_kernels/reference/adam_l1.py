"""Definition of `adam_l1`."""

from collections.abc import Sequence

import torch
from torch import Tensor


def gradient_l1(
    param: Tensor,
    grad: Tensor,
    l1: float,
    weight_decay: float,
    maximize: bool,
    scale: Tensor | None,
) -> Tensor:
    """The step's gradient `grad / scale + weight_decay * w + l1 * sign(w)`, `sign(0) = 0`.

    float16 and bfloat16 are computed in float32.
    """
    wide = torch.float64 if param.dtype == torch.float64 else torch.float32
    w, g = param.to(wide), grad.to(wide)
    if scale is not None:
        g = g / scale.to(g.device)
    if maximize:
        g = -g
    if weight_decay:
        g = g + weight_decay * w
    return g + l1 * w.sign() if l1 else g


def adam_l1(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    lr: Tensor,
    l1: Sequence[float],
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """One step of Adam (Kingma & Ba 2015, Algorithm 1) with a coupled L1 subgradient, in place."""
    if found_inf is not None and found_inf.item():
        return
    rate = float(lr)
    tensors = zip(params, grads, exp_avgs, exp_avg_sqs, steps, l1, strict=True)
    for param, grad, exp_avg, exp_avg_sq, step, alpha in tensors:
        step += 1
        g = gradient_l1(param, grad, alpha, weight_decay, maximize, grad_scale)
        m = exp_avg.to(g.dtype).lerp(g, 1 - beta1)
        v = exp_avg_sq.to(g.dtype) * beta2 + (1 - beta2) * g * g
        correction1, correction2 = 1 - beta1 ** float(step), 1 - beta2 ** float(step)
        denominator = v.sqrt() / correction2**0.5 + eps
        param.copy_(param.to(g.dtype) - (rate / correction1) * m / denominator)
        exp_avg.copy_(m)
        exp_avg_sq.copy_(v)
