"""`masked_linear` in Triton: each operator is one launch, sums of tiles apart.

A tile of the result is on one side of the frozen/free boundary, so the boundary need not be
aligned: the columns of each side are covered by tiles of their own, and each tile sums over the
inputs that its side has. Tiles of the free side, which sum over more, come first.

Letters as in `ops.masked_linear`. Sums over tiles (activity, bias gradient) are written per tile
and added in a fixed order, without atomics: the same numbers in every run.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _launch
from ._product import NUMBERS, offsets_of, product, store_outputs, tile_of
from .tiles import parts_of

# relu_grad: elements of a block (rows by whether at least 8 bytes are loaded at once), and the most
# stripes of rows that are summed apart
BLOCK_ROWS, BLOCK_COLUMNS, STRIPES = {True: 32, False: 8}, 128, 256


@triton.jit(do_not_specialize=NUMBERS)
def fwd_kernel(
    x,  # [B, I]
    active_weight,  # [Oa, Ia]
    free_weight,  # [Of, I]
    active_bias,  # [Oa]
    free_bias,  # [Of]
    y,  # [B, O], contiguous
    partial,  # [tiles_m, O] float32
    B,
    Ia,
    I,  # noqa: E741
    Oa,
    Of,
    x_stride,
    active_stride,
    free_stride,
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    ACTIVITY: tl.constexpr,
    IN: tl.constexpr,  # unit of I and the strides of x and free_weight
    ACTIVE: tl.constexpr,  # of Ia and active_stride
    OUT: tl.constexpr,  # of Oa and Of
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    I, x_stride, free_stride = I * IN, x_stride * IN, free_stride * IN  # noqa: E741
    Ia, active_stride, Oa, Of = Ia * ACTIVE, active_stride * ACTIVE, Oa * OUT, Of * OUT
    tiles_free = tl.cdiv(Of, BN)
    tiles_n = tiles_free + tl.cdiv(Oa, BN)
    m, n = tile_of(tl.program_id(0), tl.cdiv(B, BM), tiles_n, GROUP)
    i = offsets_of(m, BM)
    acc = tl.zeros((BM, BN), tl.float32)
    # Two loops, not one on chosen pointers: each keeps the alignment that its side has.
    if n < tiles_free:
        j = offsets_of(n, BN)
        inside = j < Of
        acc = product(acc, x, x_stride, 1, free_weight, 1, free_stride, i, j, B, Of, I,
                      PRECISION, WIDEN, BK)  # fmt: skip
        if BIAS:
            acc += tl.load(free_bias + j, mask=inside, other=0.0).to(tl.float32)[None, :]
        column = Oa + j
    else:
        j = offsets_of(n - tiles_free, BN)
        inside = j < Oa
        acc = product(acc, x, x_stride, 1, active_weight, 1, active_stride, i, j, B, Oa, Ia,
                      PRECISION, WIDEN, BK)  # fmt: skip
        if BIAS:
            acc += tl.load(active_bias + j, mask=inside, other=0.0).to(tl.float32)[None, :]
        column = j
    outputs = tl.full([], 0, tl.int64) + Oa + Of
    store_outputs(acc, y, partial, i, i < B, column, inside, m, outputs, RELU, ACTIVITY)


@triton.jit(do_not_specialize=NUMBERS)
def relu_grad_kernel(
    grad_y,  # [B, O], from the first wanted column on
    y,  # [B, O], from the first wanted column on
    grad_z,  # [B, columns], contiguous
    partial,  # [stripes, columns] float32
    B,
    columns,
    grad_stride,
    y_stride,
    blocks,  # of rows, per stripe
    BIAS: tl.constexpr,
    ALIGN: tl.constexpr,  # unit of columns and strides
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    columns, grad_stride, y_stride = columns * ALIGN, grad_stride * ALIGN, y_stride * ALIGN
    stripe = tl.program_id(1)
    j = offsets_of(tl.program_id(0), COLUMNS)
    sums = tl.zeros((COLUMNS,), tl.float32)
    for block in range(stripe * blocks, stripe * blocks + blocks):
        i = block * tl.full([], ROWS, tl.int64) + tl.arange(0, ROWS)
        mask = (i < B)[:, None] & (j < columns)[None, :]
        grad = tl.load(grad_y + (i[:, None] * grad_stride + j[None, :]), mask=mask, other=0.0)
        value = tl.load(y + (i[:, None] * y_stride + j[None, :]), mask=mask, other=0.0)
        kept = tl.where(value.to(tl.float32) <= 0.0, 0.0, grad.to(tl.float32))
        tl.store(grad_z + (i[:, None] * columns + j[None, :]), kept, mask=mask)
        if BIAS:
            sums += tl.sum(tl.where(mask, kept, 0.0), 0)
    if BIAS:
        tl.store(partial + (stripe.to(tl.int64) * columns + j), sums, mask=j < columns)


@triton.jit(do_not_specialize=NUMBERS)
def dgrad_kernel(
    grad_z,  # [B, Of]
    free_weight,  # [Of, I]
    grad_x,  # [B, I], contiguous
    B,
    Ia,
    I,  # noqa: E741
    Of,
    grad_stride,
    free_stride,
    IN: tl.constexpr,  # unit of Ia, I and free_stride
    OUT: tl.constexpr,  # of Of and grad_stride
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    Ia, I, free_stride = Ia * IN, I * IN, free_stride * IN  # noqa: E741
    Of, grad_stride = Of * OUT, grad_stride * OUT
    tiles_free = tl.cdiv(I - Ia, BN)
    tiles_n = tiles_free + tl.cdiv(Ia, BN)
    m, n = tile_of(tl.program_id(0), tl.cdiv(B, BM), tiles_n, GROUP)
    i = offsets_of(m, BM)
    acc = tl.zeros((BM, BN), tl.float32)
    zero = tl.full([], 0, tl.int64)
    if n < tiles_free:
        j = offsets_of(n, BN)
        inside = j < I - Ia
        acc = product(acc, grad_z, grad_stride, 1, free_weight + (zero + Ia), free_stride, 1, i,
                      j, B, I - Ia, Of, PRECISION, WIDEN, BK)  # fmt: skip
        column = Ia + j
    else:  # zero
        j = offsets_of(n - tiles_free, BN)
        inside = j < Ia
        column = j
    mask = (i < B)[:, None] & inside[None, :]
    value = acc.to(grad_x.dtype.element_ty)
    tl.store(grad_x + (i[:, None] * I + column[None, :]), value, mask=mask)


@triton.jit(do_not_specialize=NUMBERS)
def wgrad_kernel(
    grad_z,  # [B, Of]
    x,  # [B, I]
    grad_weight,  # [parts, Of, I], contiguous
    grad_bias,  # [parts, Of]
    B,
    I,  # noqa: E741
    Of,
    grad_stride,
    x_stride,
    blocks,  # of BK rows, per part
    BIAS: tl.constexpr,
    IN: tl.constexpr,  # unit of I and x_stride
    OUT: tl.constexpr,  # of Of and grad_stride
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    I, x_stride, Of, grad_stride = I * IN, x_stride * IN, Of * OUT, grad_stride * OUT  # noqa: E741
    tiles_m = tl.cdiv(Of, BM)
    tiles_n = tl.cdiv(I, BN)
    program, part = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first = part * blocks * BK
    rows = tl.minimum(B - first, blocks * BK).to(tl.int32)
    grad_z += first * grad_stride
    x += first * x_stride
    if program < tiles_m * tiles_n:
        m, n = tile_of(program, tiles_m, tiles_n, GROUP)
        i, j = offsets_of(m, BM), offsets_of(n, BN)
        acc = tl.zeros((BM, BN), tl.float32)
        acc = product(acc, grad_z, 1, grad_stride, x, x_stride, 1, i, j, Of, I, rows,
                      PRECISION, WIDEN, BK)  # fmt: skip
        mask = (i < Of)[:, None] & (j < I)[None, :]
        value = acc.to(grad_weight.dtype.element_ty)
        tl.store(grad_weight + ((part * Of + i)[:, None] * I + j[None, :]), value, mask=mask)
    elif BIAS:  # programs of their own: a sum within the product's loop would slow the product
        i = offsets_of(program - tiles_m * tiles_n, BM)
        sums = tl.zeros((BM,), tl.float32)
        for start in range(0, rows, BK):
            k = start + tl.arange(0, BK).to(tl.int64)
            mask = (k < rows)[:, None] & (i < Of)[None, :]
            grad = tl.load(grad_z + (k[:, None] * grad_stride + i[None, :]), mask=mask, other=0.0)
            sums += tl.sum(grad.to(tl.float32), 0)
        tl.store(grad_bias + (part * Of + i), sums.to(grad_bias.dtype.element_ty), mask=i < Of)


def masked_linear_fwd(
    x: Tensor,  # [B, I]
    active_weight: Tensor,  # [Oa, Ia]
    free_weight: Tensor,  # [Of, I]
    active_bias: Tensor | None,  # [Oa]
    free_bias: Tensor | None,  # [Of]
    activation: str,
    activity: bool,
) -> tuple[Tensor, Tensor]:
    """y [B, O] and its activity [O] (or an empty tensor)."""
    rows, outputs = x.shape[0], active_weight.shape[0] + free_weight.shape[0]
    y = x.new_empty(rows, outputs)
    if rows == 0 or outputs == 0:
        return y, x.new_zeros(outputs if activity else 0, dtype=torch.float32)
    x, active, free = map(_launch.rows_of, (x, active_weight, free_weight))
    strides = _launch.Strides(
        {"x_stride": x.stride(0)},
        {"active_stride": active.stride(0)},
        {"free_stride": free.stride(0)},
    )
    writes = _launch.output_arguments(active_bias, free_bias, activation, activity)
    operands = (x, active, free)
    return y, _launch.launch_fwd(fwd_kernel, rows, operands, strides, y, {"B": rows, **writes})


def masked_linear_relu_grad(
    grad_y: Tensor,  # [B, O]
    y: Tensor,  # [B, O]
    active: int,
    bias: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients before the ReLU [B, O - active] and of the bias [O - active] (or empty)."""
    grad, y = (_launch.rows_of(t)[:, active:] for t in (grad_y, y))
    rows, columns = grad.shape
    grad_z = grad.new_empty(rows, columns)
    if rows == 0 or columns == 0:
        return grad_z, grad.new_zeros(columns if bias else 0)
    strides = {"grad_stride": grad.stride(0), "y_stride": y.stride(0)}
    unit = _launch.align_of(columns, *strides.values())
    block_rows = BLOCK_ROWS[unit * grad.itemsize >= 8]
    blocks = triton.cdiv(rows, block_rows * STRIPES)
    stripes = triton.cdiv(rows, block_rows * blocks)
    partial = grad.new_empty(stripes if bias else 0, columns, dtype=torch.float32)
    arguments: dict[str, Any] = {
        "grad_y": grad,
        "y": y,
        "grad_z": grad_z,
        "partial": partial,
        "B": rows,
        "blocks": blocks,
        **_launch.in_units(unit, columns=columns, **strides),
        "BIAS": bias,
        "ALIGN": unit,
        "ROWS": block_rows,
        "COLUMNS": BLOCK_COLUMNS,
    }
    programs = (triton.cdiv(columns, BLOCK_COLUMNS), stripes)
    _launch.launch(relu_grad_kernel, programs, grad, arguments)
    return grad_z, (_launch.sum_parts(partial) if bias else partial.view(-1)).to(grad.dtype)


def masked_linear_dgrad(
    grad_z: Tensor,  # [B, Of]
    free_weight: Tensor,  # [Of, I]
    active: int,  # Ia
) -> Tensor:
    """Gradient of the input, [B, I]: zero for active inputs."""
    rows, inputs = grad_z.shape[0], free_weight.shape[1]
    grad_x = grad_z.new_empty(rows, inputs)
    if rows == 0 or inputs == 0:
        return grad_x
    grad, free = _launch.rows_of(grad_z), _launch.rows_of(free_weight)
    strides = {"grad_stride": grad.stride(0)}, {"free_stride": free.stride(0)}
    operands = (grad, free)
    _launch.launch_dgrad(dgrad_kernel, rows, operands, strides, grad_x, active, {"B": rows})
    return grad_x


def masked_linear_wgrad(grad_z: Tensor, x: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    """Gradients of the free weight [Of, I] and bias [Of] (empty without `bias`).

    `grad_z` is [B, Of] and `x` [B, I].
    """
    (rows, free_out), inputs = grad_z.shape, x.shape[1]
    grad, x = map(_launch.rows_of, (grad_z, x))
    strides = {"grad_stride": grad.stride(0)}, {"x_stride": x.stride(0)}
    arguments, unit = _launch.wgrad_arguments((grad, x), strides)
    options = _launch.product_options(free_out, (inputs,), (grad, x), unit)
    tiles_m = triton.cdiv(free_out, options["BM"])
    tiles_n, processors = triton.cdiv(inputs, options["BN"]), _launch.describe(x.device).processors
    blocks = triton.cdiv(rows, parts_of(tiles_m * tiles_n, rows, processors) * options["BK"])
    parts = max(1, triton.cdiv(rows, blocks * options["BK"])) if blocks else 1
    dtype = grad.dtype if parts == 1 else torch.float32
    grad_weight = grad.new_empty(parts, free_out, inputs, dtype=dtype)
    grad_bias = grad.new_empty(parts, free_out if bias else 0, dtype=dtype)
    programs = tiles_m * (tiles_n + bias), parts
    if programs[0]:
        arguments |= {"grad_weight": grad_weight, "grad_bias": grad_bias, "B": rows, "BIAS": bias}
        arguments["blocks"] = blocks
        _launch.launch(wgrad_kernel, programs, grad, arguments | options)
    weight, sums = (
        _launch.sum_parts(partial).to(grad.dtype) for partial in (grad_weight, grad_bias)
    )
    return weight, sums
