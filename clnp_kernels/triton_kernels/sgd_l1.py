"""`sgd_l1` in Triton: a small launch that fills a table, and one for all tensors of a dtype."""

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ..reference.sgd_l1 import Options
from . import _optimizers as tables
from ._optimizers import (
    column_of,
    elements_of,
    entry,
    factor_of,
    penalised,
    pointers,
    rate_of,
    read,
    write,
    write_row,
)


@triton.jit(do_not_specialize=["at"])
def prepare_kernel(
    table,  # [rows, WIDTH] int64
    numbers,  # [5, WIDTH] float32: factor, l1, rate, keep and take
    at,  # column of the first tensor
    start,
    count,
    state,
    rates,
    l1,
    keep,
    take,
    sign,
    grad_scale,
    found_inf,
    HOST: tl.constexpr,
    DOUBLE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    i = tl.program_id(0)
    place = at + i
    write_row(table, place, i, start, count, state, found_inf, WIDTH)
    tl.store(numbers + place, factor_of(grad_scale, sign).to(tl.float32))
    tl.store(numbers + (WIDTH + place), entry(l1, i))
    tl.store(numbers + (2 * WIDTH + place), rate_of(rates, i, DOUBLE, HOST).to(tl.float32))
    tl.store(numbers + (3 * WIDTH + place), entry(keep, i))
    tl.store(numbers + (4 * WIDTH + place), entry(take, i))


@triton.jit
def sgd(
    param, grad, buffer, exists, own, decay, of_gradient, of_buffer, MOMENTUM: tl.constexpr,
    WIDTH: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Step the elements at these pointers; `own` are the numbers of their tensor."""
    factor, l1, rate = tl.load(own), tl.load(own + WIDTH), tl.load(own + 2 * WIDTH)
    w = read(param, exists, WHOLE)
    g = penalised(w, read(grad, exists, WHOLE), factor, decay, l1)
    if MOMENTUM:
        keep, take = tl.load(own + 3 * WIDTH), tl.load(own + 4 * WIDTH)
        new = tl.zeros_like(w) + keep == 0.0  # a new buffer may hold anything
        kept = tl.where(new, 0.0, keep * read(buffer, exists, WHOLE)) + take * g
        write(buffer, kept, exists, WHOLE)
        g = of_gradient * g + of_buffer * kept
    write(param, w - rate * g, exists, WHOLE)


@triton.jit(do_not_specialize=["tensors"])
def sgd_kernel(
    table,
    numbers,
    like,  # any tensor of the dtype
    tensors,
    decay,
    of_gradient,
    of_buffer,
    MOMENTUM: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """The buffer becomes keep * buffer + take * gradient; the weight moves by of_gradient *
    gradient + of_buffer * buffer.
    """
    i = column_of(table, tensors, WIDTH)
    at, rest = elements_of(table, i, WIDTH, CHUNK)
    param = pointers(table, 0, i, at, like, WIDTH, ALIGNED)
    grad = pointers(table, 1, i, at, like, WIDTH, ALIGNED)
    buffer = pointers(table, 2, i, at, like, WIDTH, ALIGNED) if MOMENTUM else grad
    exists = tl.arange(0, CHUNK) < rest
    own = numbers + i
    if rest >= CHUNK:
        sgd(param, grad, buffer, exists, own, decay, of_gradient, of_buffer, MOMENTUM, WIDTH, True)
    else:
        sgd(param, grad, buffer, exists, own, decay, of_gradient, of_buffer, MOMENTUM, WIDTH, False)


def sgd_l1(
    params: Sequence[Tensor], grads: Sequence[Tensor], buffers: Sequence[Tensor], *rest: Any
) -> None:
    """One step of SGD with a coupled L1 subgradient, in place; `rest` are `Options`."""
    options = Options(*rest)
    momentum = float(options.momentum)
    rates, kinds = tables.rates_of(options.lr, params[0])

    def own(places: list[int]) -> dict[str, Any]:
        first = [options.first[k] for k in places]
        return {
            "keep": tuple(0.0 if new else momentum for new in first),
            "take": tuple(1.0 if new else 1.0 - options.dampening for new in first),
        }

    prepare = tables.prepared(prepare_kernel, params[0], options, rates, kinds, own)

    numbers = {
        "decay": float(options.weight_decay),
        "of_gradient": float(options.nesterov),
        "of_buffer": momentum if options.nesterov else 1.0,
        "MOMENTUM": momentum != 0,
    }
    lists = (params, grads, buffers) if momentum else (params, grads)
    for group in tables.together(lists):
        tables.step(group, lists, prepare, sgd_kernel, 5, numbers)
