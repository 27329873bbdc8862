"""`adam_l1` in Triton: a small launch that advances the steps, and one for all tensors."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.adam_l1 import Options
from . import _optimizers as tables
from ._optimizers import (
    column_of,
    elements_of,
    entry,
    factor_of,
    integer,
    penalised,
    pointers,
    rate_of,
    read,
    write,
    write_row,
)


@triton.jit(do_not_specialize=["at"])
def advance_kernel(
    table,  # [rows, WIDTH] int64
    numbers,  # [4, WIDTH] float32: factor, l1, rate and correction
    at,  # column of the first tensor
    start,
    count,
    state,
    steps,  # addresses of the numbers of steps, float32
    rates,
    l1,
    log_beta1,
    log_beta2,
    sign,
    grad_scale,
    found_inf,
    HOST: tl.constexpr,
    DOUBLE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Steps and what follows from them, and the table. A launch of its own, so that no program of
    the next one reads a step that another one has advanced.
    """
    i = tl.program_id(0)
    place = at + i
    go = write_row(table, place, i, start, count, state, found_inf, WIDTH)
    address = integer(steps, i).to(tl.pointer_type(tl.float32), bitcast=True)
    before = tl.load(address)
    tl.store(address, tl.where(go, before + 1.0, before))
    step = (before + 1.0).to(tl.float64)
    rate = rate_of(rates, i, DOUBLE, HOST) / (1.0 - tl.exp(step * log_beta1))
    correction = 1.0 / tl.sqrt(1.0 - tl.exp(step * log_beta2))
    tl.store(numbers + place, factor_of(grad_scale, sign).to(tl.float32))
    tl.store(numbers + (WIDTH + place), entry(l1, i))
    tl.store(numbers + (2 * WIDTH + place), rate.to(tl.float32))
    tl.store(numbers + (3 * WIDTH + place), correction.to(tl.float32))


@triton.jit
def adam(
    param, grad, first, second, exists, own, decay, one_minus_beta1, beta2, one_minus_beta2, eps,
    WIDTH: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Step the elements at these pointers; `own` are the numbers of their tensor."""
    factor, l1 = tl.load(own), tl.load(own + WIDTH)
    rate, correction = tl.load(own + 2 * WIDTH), tl.load(own + 3 * WIDTH)
    w, m, v = read(param, exists, WHOLE), read(first, exists, WHOLE), read(second, exists, WHOLE)
    g = penalised(w, read(grad, exists, WHOLE), factor, decay, l1)
    m += one_minus_beta1 * (g - m)
    v = beta2 * v + one_minus_beta2 * g * g
    w -= tl.div_rn(rate * m, tl.sqrt_rn(v) * correction + eps)
    write(param, w, exists, WHOLE)
    write(first, m, exists, WHOLE)
    write(second, v, exists, WHOLE)


@triton.jit(do_not_specialize=["tensors"])
def adam_kernel(
    table,
    numbers,
    like,  # any tensor of the dtype
    tensors,
    decay,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    eps,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    i = column_of(table, tensors, WIDTH)
    at, rest = elements_of(table, i, WIDTH, CHUNK)
    param = pointers(table, 0, i, at, like, WIDTH, ALIGNED)
    grad = pointers(table, 1, i, at, like, WIDTH, ALIGNED)
    first = pointers(table, 2, i, at, like, WIDTH, ALIGNED)
    second = pointers(table, 3, i, at, like, WIDTH, ALIGNED)
    exists = tl.arange(0, CHUNK) < rest
    own = numbers + i
    if rest >= CHUNK:
        adam(param, grad, first, second, exists, own, decay, one_minus_beta1, beta2,
             one_minus_beta2, eps, WIDTH, True)  # fmt: skip
    else:
        adam(param, grad, first, second, exists, own, decay, one_minus_beta1, beta2,
             one_minus_beta2, eps, WIDTH, False)  # fmt: skip


def adam_l1(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *rest: Any,
) -> None:
    """One step of Adam with a coupled L1 subgradient, in place; `rest` are `Options`.

    Steps on the CPU are copied to the device and back, which waits for the device.
    """
    options, device = Options(*rest), params[0].device
    counts = list(steps)
    if any(step.device != device for step in steps):
        counts = list(torch.stack([step.to(device) for step in steps]).unbind())
    rates, kinds = tables.rates_of(options.lr, params[0])

    def own(places: list[int]) -> dict[str, Any]:
        return {
            "steps": tables.coded([counts[k].data_ptr() for k in places]),
            "log_beta1": _log(options.beta1),
            "log_beta2": _log(options.beta2),
        }

    advance = tables.prepared(advance_kernel, params[0], options, rates, kinds, own)

    numbers = {
        "decay": float(options.weight_decay),
        "one_minus_beta1": 1 - options.beta1,
        "beta2": float(options.beta2),
        "one_minus_beta2": 1 - options.beta2,
        "eps": float(options.eps),
    }
    lists = (params, grads, exp_avgs, exp_avg_sqs)
    for group in tables.together(lists):
        tables.step(group, lists, advance, adam_kernel, 4, numbers)
    for step, count in zip(steps, counts, strict=True):
        if step is not count:
            step.copy_(count)


def _log(beta: float) -> float:
    return math.log(beta) if beta else -math.inf
