"""The kernels of `partial_batch_norm`."""

import triton
import triton.language as tl

from ._product import NUMBERS, offsets_of
from .channel_activity import channels_at, offsets_in, places, sizes_of

ROWS, CHANNELS = 64, 16  # of a block of the passes over channels


@triton.jit(do_not_specialize=NUMBERS)
def sums_kernel(
    x,  # [P, Cf, Q]
    grad,  # [P, Cf, Q], of y; only with GRAD
    y,  # [P, Cf, Q]; only with GRAD and RELU
    mean,  # [Cf]; only with GRAD
    first,  # [stripes, Cf] float32: sums of x - shift, or of the gradient
    second,  # [stripes, Cf] float32: of (x - shift)^2, or of gradient * (x - mean)
    C,
    Q,
    count,
    x_p,
    x_c,
    x_q,
    grad_p,
    grad_c,
    grad_q,
    y_p,
    y_c,
    y_q,
    blocks,  # per stripe
    GRAD: tl.constexpr,
    RELU: tl.constexpr,
    ALIGN: tl.constexpr,
    NEXT: tl.constexpr,
    FLAT: tl.constexpr,
    NARROW: tl.constexpr,
    LENGTH: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    C, Q, count = sizes_of(C, Q, count, ALIGN, NEXT)
    stripe = tl.program_id(1)
    c = offsets_of(tl.program_id(0), CHANNELS)
    inside = c < C
    # Distances from some value of the channel, its first: squares of far values would cancel.
    if GRAD:
        shift = tl.load(mean + c, mask=inside, other=0.0).to(tl.float32)
    else:
        shift = tl.load(x + channels_at(c, x_c, ALIGN, NEXT), mask=inside, other=0.0).to(tl.float32)
    one, two = tl.zeros((CHANNELS,), tl.float32), tl.zeros((CHANNELS,), tl.float32)
    for block in range(stripe * blocks, stripe * blocks + blocks):
        p, q, exists = places(block, count, Q, ALIGN, NEXT, FLAT, NARROW, LENGTH)
        mask = exists[:, None] & inside[None, :]
        at = offsets_in(p, q, c, x_p, x_c, x_q, ALIGN, NEXT)
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        distance = tl.where(mask, value - shift[None, :], 0.0)
        if GRAD:
            at = offsets_in(p, q, c, grad_p, grad_c, grad_q, ALIGN, NEXT)
            weight = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
            if RELU:
                at = offsets_in(p, q, c, y_p, y_c, y_q, ALIGN, NEXT)
                out = tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
                weight = tl.where(out <= 0.0, 0.0, weight)
            one += tl.sum(weight, 0)
            two += tl.sum(weight * distance, 0)
        else:
            one += tl.sum(distance, 0)
            two += tl.sum(distance * distance, 0)
    at = stripe.to(tl.int64) * C + c
    tl.store(first + at, one, mask=inside)
    tl.store(second + at, two, mask=inside)


@triton.jit
def total(partial, stripes, c, C, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """[CHANNELS] float64: the sum over the stripes, ROWS of them at a time."""
    acc = tl.zeros((CHANNELS,), tl.float64)
    for start in range(0, stripes, ROWS):
        stripe = start + tl.arange(0, ROWS).to(tl.int64)
        mask = (stripe < stripes)[:, None] & (c < C)[None, :]
        part = tl.load(partial + (stripe[:, None] * C + c[None, :]), mask=mask, other=0.0)
        acc += tl.sum(part.to(tl.float64), 0)
    return acc


@triton.jit(do_not_specialize=NUMBERS)
def forward_numbers_kernel(
    x,  # the first value of each free channel, at c * x_c
    first,  # [stripes, Cf]
    second,  # [stripes, Cf]
    active_mean,  # [Ca]
    active_var,  # [Ca]
    free_mean,  # [Cf]
    free_var,  # [Cf]
    active_weight,  # [Ca]
    free_weight,  # [Cf]
    active_bias,  # [Ca]
    free_bias,  # [Cf]
    batch_mean,  # [Cf] float32
    batch_var,  # [Cf] float32
    scale,  # [C] float32
    offset,  # [C] float32
    Ca,
    Cf,
    stripes,
    count,
    x_c,
    eps,
    TRAINING: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """y = x * scale + offset for each channel, and the statistics of the batch."""
    c = offsets_of(tl.program_id(0), CHANNELS)
    f = c - Ca
    active, free = c < Ca, (c >= Ca) & (f < Cf)
    mean = tl.load(active_mean + c, mask=active, other=0.0).to(tl.float64)
    var = tl.load(active_var + c, mask=active, other=1.0).to(tl.float64)
    if TRAINING:
        inside = tl.where(free, f, Cf)
        shift = tl.load(x + f * x_c, mask=free, other=0.0).to(tl.float64)
        distance = total(first, stripes, inside, Cf, ROWS, CHANNELS) / count
        square = total(second, stripes, inside, Cf, ROWS, CHANNELS) / count
        spread = square - distance * distance
        spread = tl.where(spread < 0.0, 0.0, spread)  # a NaN stays
        tl.store(batch_mean + f, (shift + distance).to(tl.float32), mask=free)
        tl.store(batch_var + f, spread.to(tl.float32), mask=free)
        mean, var = tl.where(free, shift + distance, mean), tl.where(free, spread, var)
    else:
        running = tl.load(free_mean + f, mask=free, other=0.0).to(tl.float64)
        mean = tl.where(free, running, mean)
        running = tl.load(free_var + f, mask=free, other=0.0).to(tl.float64)
        var = tl.where(free, running, var)
    factor = 1.0 / tl.sqrt(var + eps)
    if WEIGHT:
        weight = tl.load(active_weight + c, mask=active, other=0.0).to(tl.float64)
        other = tl.load(free_weight + f, mask=free, other=0.0).to(tl.float64)
        factor *= tl.where(active, weight, other)
    shifted = -mean * factor
    if BIAS:
        bias = tl.load(active_bias + c, mask=active, other=0.0).to(tl.float64)
        other = tl.load(free_bias + f, mask=free, other=0.0).to(tl.float64)
        shifted += tl.where(active, bias, other)
    tl.store(scale + c, factor.to(tl.float32), mask=active | free)
    tl.store(offset + c, shifted.to(tl.float32), mask=active | free)


@triton.jit(do_not_specialize=NUMBERS)
def normal_kernel(
    x,  # [P, C, Q]
    y,  # [P, C, Q]
    scale,  # [C]
    offset,  # [C]
    partial,  # [stripes, C] float32
    C,
    Q,
    count,
    x_p,
    x_c,
    x_q,
    y_p,
    y_c,
    y_q,
    blocks,  # per stripe
    RELU: tl.constexpr,
    ACTIVITY: tl.constexpr,
    ALIGN: tl.constexpr,
    NEXT: tl.constexpr,
    FLAT: tl.constexpr,
    NARROW: tl.constexpr,
    LENGTH: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    C, Q, count = sizes_of(C, Q, count, ALIGN, NEXT)
    stripe = tl.program_id(1)
    c = offsets_of(tl.program_id(0), CHANNELS)
    inside = c < C
    factor = tl.load(scale + c, mask=inside, other=0.0)
    shift = tl.load(offset + c, mask=inside, other=0.0)
    sums = tl.zeros((CHANNELS,), tl.float32)
    for block in range(stripe * blocks, stripe * blocks + blocks):
        p, q, exists = places(block, count, Q, ALIGN, NEXT, FLAT, NARROW, LENGTH)
        mask = exists[:, None] & inside[None, :]
        at = offsets_in(p, q, c, x_p, x_c, x_q, ALIGN, NEXT)
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        value = value * factor[None, :] + shift[None, :]
        if RELU:  # a NaN stays
            value = tl.where(value <= 0.0, 0.0, value)
        out = value.to(y.dtype.element_ty)
        at = offsets_in(p, q, c, y_p, y_c, y_q, ALIGN, NEXT)
        tl.store(y + at, out, mask=mask)
        if ACTIVITY:
            sums += tl.sum(tl.where(mask, tl.abs(out.to(tl.float32)), 0.0), 0)
    if ACTIVITY:
        tl.store(partial + (stripe.to(tl.int64) * C + c), sums, mask=inside)


@triton.jit(do_not_specialize=NUMBERS)
def backward_numbers_kernel(
    first,  # [stripes, Cf]: sums of the gradient
    second,  # [stripes, Cf]: sums of gradient * (x - mean)
    free_mean,  # [Cf]
    free_var,  # [Cf]
    free_weight,  # [Cf]
    grad_weight,  # [Cf] float32
    grad_bias,  # [Cf] float32
    numbers,  # [4, Cf] float32: scale, mean, slope, offset
    Cf,
    stripes,
    count,
    eps,
    TRAINING: tl.constexpr,
    WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """grad_x = grad * scale + (x - mean) * slope + offset for each free channel."""
    f = offsets_of(tl.program_id(0), CHANNELS)
    free = f < Cf
    var = tl.load(free_var + f, mask=free, other=1.0).to(tl.float64)
    invstd = 1.0 / tl.sqrt(var + eps)
    scale = invstd
    if WEIGHT:
        scale *= tl.load(free_weight + f, mask=free, other=0.0).to(tl.float64)
    sum_grad = total(first, stripes, f, Cf, ROWS, CHANNELS)
    sum_moment = total(second, stripes, f, Cf, ROWS, CHANNELS)
    tl.store(grad_bias + f, sum_grad.to(tl.float32), mask=free)
    tl.store(grad_weight + f, (sum_moment * invstd).to(tl.float32), mask=free)
    slope, offset = tl.zeros((CHANNELS,), tl.float64), tl.zeros((CHANNELS,), tl.float64)
    if TRAINING:
        slope = -scale * invstd * invstd * (sum_moment / count)
        offset = -scale * (sum_grad / count)
    mean = tl.load(free_mean + f, mask=free, other=0.0).to(tl.float32)
    row = tl.full([], 0, tl.int64) + Cf
    tl.store(numbers + f, scale.to(tl.float32), mask=free)
    tl.store(numbers + (row + f), mean, mask=free)
    tl.store(numbers + (row * 2 + f), slope.to(tl.float32), mask=free)
    tl.store(numbers + (row * 3 + f), offset.to(tl.float32), mask=free)


@triton.jit(do_not_specialize=NUMBERS)
def slope_kernel(
    x,  # [P, C, Q]
    grad,  # [P, C, Q]
    y,  # [P, C, Q]; only with RELU
    grad_x,  # [P, C, Q]
    numbers,  # [4, Cf]
    Ca,
    C,
    Q,
    count,
    x_p,
    x_c,
    x_q,
    grad_p,
    grad_c,
    grad_q,
    y_p,
    y_c,
    y_q,
    grad_x_p,
    grad_x_c,
    grad_x_q,
    blocks,
    RELU: tl.constexpr,
    TRAINING: tl.constexpr,
    SPLIT: tl.constexpr,  # unit of Ca
    ALIGN: tl.constexpr,
    NEXT: tl.constexpr,
    FLAT: tl.constexpr,
    NARROW: tl.constexpr,
    LENGTH: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Active channels are not read and get zero."""
    C, Q, count = sizes_of(C, Q, count, ALIGN, NEXT)
    Ca *= SPLIT
    stripe = tl.program_id(1)
    c = offsets_of(tl.program_id(0), CHANNELS)
    inside = c < C
    free = inside & (c >= Ca)
    f, row = c - Ca, tl.full([], 0, tl.int64) + C - Ca
    scale = tl.load(numbers + f, mask=free, other=0.0)
    mean = tl.load(numbers + (row + f), mask=free, other=0.0)
    slope = tl.load(numbers + (row * 2 + f), mask=free, other=0.0)
    offset = tl.load(numbers + (row * 3 + f), mask=free, other=0.0)
    for block in range(stripe * blocks, stripe * blocks + blocks):
        p, q, exists = places(block, count, Q, ALIGN, NEXT, FLAT, NARROW, LENGTH)
        read = exists[:, None] & free[None, :]
        at = offsets_in(p, q, c, grad_p, grad_c, grad_q, ALIGN, NEXT)
        value = tl.load(grad + at, mask=read, other=0.0).to(tl.float32)
        if RELU:
            at = offsets_in(p, q, c, y_p, y_c, y_q, ALIGN, NEXT)
            out = tl.load(y + at, mask=read, other=0.0).to(tl.float32)
            value = tl.where(out <= 0.0, 0.0, value)
        value = value * scale[None, :]
        if TRAINING:
            at = offsets_in(p, q, c, x_p, x_c, x_q, ALIGN, NEXT)
            near = tl.load(x + at, mask=read, other=0.0).to(tl.float32) - mean[None, :]
            value += tl.where(read, near * slope[None, :] + offset[None, :], 0.0)
        at = offsets_in(p, q, c, grad_x_p, grad_x_c, grad_x_q, ALIGN, NEXT)
        value = tl.where(read, value, 0.0).to(grad_x.dtype.element_ty)
        tl.store(grad_x + at, value, mask=exists[:, None] & inside[None, :])
