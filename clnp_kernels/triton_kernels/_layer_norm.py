"""The kernels of `partial_layer_norm`.

Tiles of channels begin anew at every block. Sizes, ends of blocks and strides come in units of what
divides them all (`ALIGN`, up to 8 channels), so 16 bytes are loaded at once. Nothing else of them
is specialised: for each unit one binary serves all boundaries, so a block has the same bits
whatever lies behind it.
"""

import triton
import triton.language as tl

from ._product import offsets_of


@triton.jit
def run_of(first, LENGTH: tl.constexpr):
    """The LENGTH indices from `first` on, int64 as everything that is added to a pointer."""
    return tl.arange(0, LENGTH).to(tl.int64) + first


@triton.jit
def vector_of(active, free, c, Ca, C):
    """[CHANNELS] float32: elements of a vector whose first Ca elements are apart."""
    one = tl.load(active + c, mask=c < Ca, other=0.0).to(tl.float32)
    other = tl.load(free + (c - Ca), mask=(c >= Ca) & (c < C), other=0.0).to(tl.float32)
    return tl.where(c < Ca, one, other)


@triton.jit(do_not_specialize=["blocks", "rows", "C", "Ca", "skipped", "x_row", "y_row"])
def normal_kernel(
    x,  # [M, C]
    y,  # [M, C], without the first `skipped` columns
    ends,  # [blocks] int64, in units
    active_weight,  # [Ca]
    free_weight,  # [Cf]
    active_bias,  # [Ca]
    free_bias,  # [Cf]
    mean,  # [M] float32; only without RMS
    rstd,  # [M] float32
    blocks,
    rows,
    C,
    Ca,
    skipped,
    x_row,
    y_row,
    eps,
    RMS: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    ALIGN: tl.constexpr,  # unit of the ends, C, Ca, skipped and the strides
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    C, Ca, skipped, x_row, y_row = (
        C * ALIGN,
        Ca * ALIGN,
        skipped * ALIGN,
        x_row * ALIGN,
        y_row * ALIGN,
    )
    r = offsets_of(tl.program_id(0), ROWS)
    exists = r < rows
    centre, squares = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    factor = 1.0 / tl.sqrt(squares + eps)
    zero = tl.full([], 0, tl.int64)
    start = zero
    for b in range(blocks):
        end = tl.load(ends + (zero + b)) * ALIGN
        for first in range(start, end, CHANNELS):
            c = run_of(first, CHANNELS)
            mask = exists[:, None] & (c < end)[None, :]
            value = tl.load(x + (r[:, None] * x_row + c[None, :]), mask=mask, other=0.0)
            value = value.to(tl.float32)
            if RMS:
                squares += tl.sum(value * value, 1)
            else:  # Chan, Golub & LeVeque 1979: squares around the common mean
                before = zero + first
                count = tl.minimum(end - before, CHANNELS).to(tl.float32)
                share = count / (before.to(tl.float32) + count)
                near = tl.sum(value, 1) / count
                distance = tl.where(mask, value - near[:, None], 0.0)
                apart = near - centre
                squares += tl.sum(distance * distance, 1)
                squares += apart * apart * (before.to(tl.float32) * share)
                centre += apart * share
        if end > start:
            factor = 1.0 / tl.sqrt(squares / end.to(tl.float32) + eps)
        for first in range(tl.maximum(start, skipped), end, CHANNELS):
            c = run_of(first, CHANNELS)
            mask = exists[:, None] & (c < end)[None, :]
            value = tl.load(x + (r[:, None] * x_row + c[None, :]), mask=mask, other=0.0)
            value = (value.to(tl.float32) - centre[:, None]) * factor[:, None]
            if WEIGHT:
                value *= vector_of(active_weight, free_weight, c, Ca, C)[None, :]
            if BIAS:
                value += vector_of(active_bias, free_bias, c, Ca, C)[None, :]
            at = r[:, None] * y_row + (c - skipped)[None, :]
            tl.store(y + at, value.to(y.dtype.element_ty), mask=mask)
        start = end
    if not RMS:
        tl.store(mean + r, centre, mask=exists)
    tl.store(rstd + r, factor, mask=exists)


@triton.jit
def gradient_of(
    grad, x, weight, r, c, mask, centre, Ca, Cf, grad_row, x_row,
    RMS: tl.constexpr, WEIGHT: tl.constexpr,
):  # fmt: skip
    """[ROWS, CHANNELS] float32 twice: gradient times weight, and x - mean, of free channels c."""
    g = tl.load(grad + (r[:, None] * grad_row + c[None, :]), mask=mask, other=0.0).to(tl.float32)
    if WEIGHT:
        g *= tl.load(weight + c, mask=c < Cf, other=0.0).to(tl.float32)[None, :]
    d = tl.load(x + (r[:, None] * x_row + (c + Ca)[None, :]), mask=mask, other=0.0).to(tl.float32)
    if not RMS:
        d = tl.where(mask, d - centre[:, None], 0.0)
    return g, d


@triton.jit(do_not_specialize=["rows", "C", "Ca", "Cf", "grad_row", "x_row"])
def slope_kernel(
    grad,  # [M, Cf]
    x,  # [M, C]
    grad_x,  # [M, C]
    mean,  # [M]; only without RMS
    rstd,  # [M]
    free_weight,  # [Cf]; only with WEIGHT
    rows,
    C,
    Ca,
    Cf,
    grad_row,
    x_row,
    RMS: tl.constexpr,
    WEIGHT: tl.constexpr,
    ALIGN: tl.constexpr,  # unit of C, Ca, Cf and the strides
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """grad_x = grad * weight * rstd + (x - mean) * slope + offset; active channels get zero."""
    C, Ca, Cf, grad_row, x_row = C * ALIGN, Ca * ALIGN, Cf * ALIGN, grad_row * ALIGN, x_row * ALIGN
    r = offsets_of(tl.program_id(0), ROWS)
    exists = r < rows
    factor = tl.load(rstd + r, mask=exists, other=0.0)
    centre = factor
    if not RMS:
        centre = tl.load(mean + r, mask=exists, other=0.0)
    one, two = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    for first in range(0, Cf, CHANNELS):
        c = run_of(first, CHANNELS)
        mask = exists[:, None] & (c < Cf)[None, :]
        g, d = gradient_of(grad, x, free_weight, r, c, mask, centre, Ca, Cf, grad_row, x_row,
                           RMS, WEIGHT)  # fmt: skip
        one += tl.sum(g, 1)
        two += tl.sum(g * d, 1)
    slope = -factor * factor * factor * (two / C)
    offset = -factor * (one / C)
    out_row = tl.full([], 0, tl.int64) + C
    for first in range(0, Cf, CHANNELS):
        c = run_of(first, CHANNELS)
        mask = exists[:, None] & (c < Cf)[None, :]
        g, d = gradient_of(grad, x, free_weight, r, c, mask, centre, Ca, Cf, grad_row, x_row,
                           RMS, WEIGHT)  # fmt: skip
        value = g * factor[:, None] + d * slope[:, None]
        if not RMS:
            value += offset[:, None]
        at = r[:, None] * out_row + (c + Ca)[None, :]
        tl.store(grad_x + at, value.to(grad_x.dtype.element_ty), mask=mask)
    for first in range(0, Ca, CHANNELS):
        c = run_of(first, CHANNELS)
        zero = tl.zeros((ROWS, CHANNELS), grad_x.dtype.element_ty)
        mask = exists[:, None] & (c < Ca)[None, :]
        tl.store(grad_x + (r[:, None] * out_row + c[None, :]), zero, mask=mask)


@triton.jit(do_not_specialize=["rows", "Ca", "Cf", "grad_row", "x_row", "tiles"])
def sums_kernel(
    grad,  # [M, Cf]
    x,  # [M, C]
    mean,  # [M]; only without RMS
    rstd,  # [M]
    of_weight,  # [stripes, Cf] float32
    of_bias,  # [stripes, Cf] float32
    rows,
    Ca,
    Cf,
    grad_row,
    x_row,
    tiles,  # of rows, per stripe
    RMS: tl.constexpr,
    ALIGN: tl.constexpr,  # unit of Ca, Cf and the strides
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Sums over rows of the gradient times the normalised x, and of the gradient."""
    Ca, Cf, grad_row, x_row = Ca * ALIGN, Cf * ALIGN, grad_row * ALIGN, x_row * ALIGN
    stripe = tl.program_id(1)
    c = offsets_of(tl.program_id(0), CHANNELS)
    one, two = tl.zeros((CHANNELS,), tl.float32), tl.zeros((CHANNELS,), tl.float32)
    for tile in range(stripe * tiles, stripe * tiles + tiles):
        r = run_of(tl.full([], ROWS, tl.int64) * tile, ROWS)
        exists = r < rows
        mask = exists[:, None] & (c < Cf)[None, :]
        factor = tl.load(rstd + r, mask=exists, other=0.0)
        centre = factor
        if not RMS:
            centre = tl.load(mean + r, mask=exists, other=0.0)
        g, d = gradient_of(grad, x, grad, r, c, mask, centre, Ca, Cf, grad_row, x_row, RMS, False)
        one += tl.sum(g * d * factor[:, None], 0)
        two += tl.sum(g, 0)
    at = stripe.to(tl.int64) * Cf + c
    tl.store(of_weight + at, one, mask=c < Cf)
    tl.store(of_bias + at, two, mask=c < Cf)
