"""`adam_l1` by PyTorch's fused Adam, or by tensor operations; nothing waits for the device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import torch_private as private
from ..reference.adam_l1 import Options, gradient_l1

FUSED = (torch.float32, torch.float64)  # in narrower ones the penalty would be rounded apart


def adam_l1(*arguments: Any) -> None:
    """One step of Adam (Kingma & Ba 2015, Algorithm 1) with a coupled L1 subgradient, in place."""
    state, options = arguments[:5], Options(*arguments[5:])
    together: dict[tuple[torch.dtype, int], list[int]] = {}  # by dtype and rate
    for i, tensors in enumerate(zip(*state, strict=True)):
        if tensors[0].dtype in FUSED and _fusible(*tensors):
            together.setdefault((tensors[0].dtype, id(options.lr[i])), []).append(i)
        else:
            _one(tensors, i, options)
    for chosen in together.values():
        lists = [[part[i] for i in chosen] for part in state]
        _fused(lists, options.lr[chosen[0]], [options.l1[i] for i in chosen], options)


def _fusible(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor
) -> bool:
    """Return whether the fused step may take these tensors. It reads them as runs of memory and
    ignores their strides.
    """
    if step.device != param.device:
        return False
    last = param.ndim == 4 and param.is_contiguous(memory_format=torch.channels_last)
    alike = all(t.stride() == param.stride() for t in (grad, exp_avg, exp_avg_sq))
    return alike and (last or param.is_contiguous())


def _fused(state: list[list[Tensor]], lr: Tensor, l1: list[float], options: Options) -> None:
    """Tensors of one dtype and rate at once."""
    params, grads, firsts, seconds, steps = state
    found_inf = options.found_inf
    if options.grad_scale is not None:
        grads = list(private.foreach_div(grads, options.grad_scale))
    if any(l1):
        signs = private.foreach_sign(params)
        private.foreach_mul_(signs, [-alpha if options.maximize else alpha for alpha in l1])
        grads = list(private.foreach_add(signs, grads))
    private.foreach_add_(steps, 1)
    if lr.is_cuda:
        lr = lr.float()  # the only dtype that the fused step reads on a GPU
    private.fused_adam_(
        params, grads, firsts, seconds, steps, lr=lr, beta1=options.beta1, beta2=options.beta2,
        weight_decay=options.weight_decay, eps=options.eps, maximize=options.maximize,
        found_inf=found_inf,
    )  # fmt: skip
    if found_inf is not None:
        private.foreach_sub_(steps, [found_inf.reshape(())] * len(steps))


def _one(state: Sequence[Tensor], i: int, options: Options) -> None:
    """Tensor i: the definition, in operations that a CUDA graph can hold."""
    param, grad, exp_avg, exp_avg_sq, step = state
    beta1, beta2, found_inf = options.beta1, options.beta2, options.found_inf
    before = [tensor.clone() for tensor in (param, exp_avg, exp_avg_sq, step)]
    step += 1
    g = gradient_l1(param, grad, options.l1[i], options)
    count = step.double()
    m = exp_avg.to(g.dtype).lerp(g, 1 - beta1)
    v = exp_avg_sq.to(g.dtype) * beta2 + (1 - beta2) * g * g
    rate = options.lr[i].double() / (1 - beta1**count)
    correction = (1 - beta2**count).sqrt()
    denominator = v.sqrt() / correction.to(g.dtype) + options.eps
    param.copy_(param.to(g.dtype) - rate.to(g.dtype) * m / denominator)
    exp_avg.copy_(m)
    exp_avg_sq.copy_(v)
    if found_inf is not None:
        skip = found_inf.reshape(()) != 0
        for tensor, old in zip((param, exp_avg, exp_avg_sq, step), before, strict=True):
            tensor.copy_(torch.where(skip.to(tensor.device), old, tensor))
