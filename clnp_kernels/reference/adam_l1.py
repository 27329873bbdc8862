"""Definition of `adam_l1`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Options(NamedTuple):
    """Arguments of the operator behind the five lists of tensors, in their order."""

    lr: Sequence[Tensor]
    l1: Sequence[float]
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    maximize: bool
    grad_scale: Tensor | None
    found_inf: Tensor | None


def gradient_l1(param: Tensor, grad: Tensor, l1: float, options: Any) -> Tensor:
    """The step's gradient `grad / grad_scale + weight_decay * w + l1 * sign(w)`, `sign(0) = 0`.

    float16 and bfloat16 are computed in float32.
    """
    wide = torch.float64 if param.dtype == torch.float64 else torch.float32
    w, g = param.to(wide), grad.to(wide)
    if options.grad_scale is not None:
        g = g / options.grad_scale.to(g.device)
    if options.maximize:
        g = -g
    if options.weight_decay:
        g = g + options.weight_decay * w
    return g + l1 * w.sign() if l1 else g


def adam_l1(*arguments: Any) -> None:
    """One step of Adam (Kingma & Ba 2015, Algorithm 1) with a coupled L1 subgradient, in place.

    Arguments: params, grads, exp_avgs, exp_avg_sqs and steps, then `Options`.
    """
    lists, options = arguments[:5], Options(*arguments[5:])
    if options.found_inf is not None and options.found_inf.item():
        return
    beta1, beta2 = options.beta1, options.beta2
    for i, (param, grad, exp_avg, exp_avg_sq, step) in enumerate(zip(*lists, strict=True)):
        step += 1
        g = gradient_l1(param, grad, options.l1[i], options)
        m = exp_avg.to(g.dtype).lerp(g, 1 - beta1)
        v = exp_avg_sq.to(g.dtype) * beta2 + (1 - beta2) * g * g
        correction1, correction2 = 1 - beta1 ** float(step), 1 - beta2 ** float(step)
        denominator = v.sqrt() / correction2**0.5 + options.eps
        rate = float(options.lr[i]) / correction1
        param.copy_(param.to(g.dtype) - rate * m / denominator)
        exp_avg.copy_(m)
        exp_avg_sq.copy_(v)
