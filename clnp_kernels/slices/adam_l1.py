"""``adam_l1`` by PyTorch's fused Adam, or by tensor operations; nothing waits for the device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import torch_private as private
from ..reference.adam_l1 import gradient_l1

FUSED = (torch.float32, torch.float64)  # in narrower ones the penalty would be rounded apart


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
    state = (params, grads, exp_avgs, exp_avg_sqs, steps)
    numbers = (beta1, beta2, eps, weight_decay, maximize)
    together: dict[torch.dtype, list[int]] = {dtype: [] for dtype in FUSED}
    for i, alpha in enumerate(l1):
        tensors = [part[i] for part in state]
        if params[i].dtype in FUSED and _fusible(*tensors):
            together[params[i].dtype].append(i)
        else:
            _one(tensors, lr, alpha, numbers, grad_scale, found_inf)
    for chosen in filter(None, together.values()):
        lists = tuple([part[i] for i in chosen] for part in state)
        _fused(lists, lr, [l1[i] for i in chosen], numbers, grad_scale, found_inf)


def _fusible(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor
) -> bool:
    """Whether the fused step may take these: it reads them as runs of memory, whatever their
    strides are.
    """
    if step.device != param.device:
        return False
    last = param.ndim == 4 and param.is_contiguous(memory_format=torch.channels_last)
    alike = all(t.stride() == param.stride() for t in (grad, exp_avg, exp_avg_sq))
    return alike and (last or param.is_contiguous())


def _fused(
    state: tuple[Sequence[Tensor], ...],
    lr: Tensor,
    l1: Sequence[float],
    numbers: tuple[Any, ...],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """All tensors, of one dtype, at once."""
    beta1, beta2, eps, weight_decay, maximize = numbers
    params, grads, firsts, seconds, steps = map(list, state)
    if grad_scale is not None:
        grads = list(private.foreach_div(grads, grad_scale))
    if any(l1):
        signs = private.foreach_sign(params)
        private.foreach_mul_(signs, [-alpha if maximize else alpha for alpha in l1])
        grads = list(private.foreach_add(signs, grads))
    private.foreach_add_(steps, 1)
    if lr.is_cuda:
        lr = lr.float()  # the only dtype that it reads there
    private.fused_adam_(
        params, grads, firsts, seconds, steps, lr=lr, beta1=beta1, beta2=beta2,
        weight_decay=weight_decay, eps=eps, maximize=maximize, found_inf=found_inf,
    )  # fmt: skip
    if found_inf is not None:
        private.foreach_sub_(steps, [found_inf.reshape(())] * len(steps))


def _one(
    state: list[Tensor],
    lr: Tensor,
    l1: float,
    numbers: tuple[Any, ...],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """One tensor: the definition, in operations that a CUDA graph can hold."""
    param, grad, exp_avg, exp_avg_sq, step = state
    beta1, beta2, eps, weight_decay, maximize = numbers
    before = [tensor.clone() for tensor in (param, exp_avg, exp_avg_sq, step)]
    step += 1
    g = gradient_l1(param, grad, l1, weight_decay, maximize, grad_scale)
    count = step.double()
    m = exp_avg.to(g.dtype).lerp(g, 1 - beta1)
    v = exp_avg_sq.to(g.dtype) * beta2 + (1 - beta2) * g * g
    rate = lr.double() / (1 - beta1**count)
    correction = (1 - beta2**count).sqrt()
    denominator = v.sqrt() / correction.to(g.dtype) + eps
    param.copy_(param.to(g.dtype) - rate.to(g.dtype) * m / denominator)
    exp_avg.copy_(m)
    exp_avg_sq.copy_(v)
    if found_inf is not None:
        skip = found_inf.reshape(()) != 0
        for tensor, old in zip((param, exp_avg, exp_avg_sq, step), before, strict=True):
            tensor.copy_(torch.where(skip.to(tensor.device), old, tensor))
