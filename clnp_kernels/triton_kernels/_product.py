"""Parts that the kernels of `masked_linear` and `masked_conv2d` share.

Sizes and strides come in units of a power of two that divides them (`_launch.align_of`) and are
multiplied again in the kernel, so the compiler knows what they are multiples of: 16 bytes are then
loaded at once. Triton's own specialisation asks for multiples of 16 elements, and compiles anew
whenever a boundary moves from one to something else; so it is off for these numbers.
"""

import triton
import triton.language as tl

NUMBERS = (
    *("B", "I", "Ia", "Oa", "Of", "x_stride", "active_stride", "free_stride", "grad_stride"),
    *("y_stride", "columns", "blocks", "pixels", "H", "W", "out_H", "out_W", "class_H", "class_W"),
    *("x_b", "x_h", "x_w", "grad_b", "grad_h", "grad_w", "active_o", "active_kh", "active_kw"),
    *(
        "free_o",
        "free_kh",
        "free_kw",
        "C",
        "Ca",
        "Cf",
        "Q",
        "count",
        "stripes",
        "x_p",
        "x_c",
        "x_q",
    ),
    *("y_p", "y_c", "y_q", "grad_p", "grad_c", "grad_q", "grad_x_p", "grad_x_c", "grad_x_q"),
)


@triton.jit
def tile_of(program, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Row and column of a program's tile: GROUP rows of tiles at a time, for reuse in the cache."""
    width = GROUP * tiles_n
    first = program // width * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    inner = program % width
    return first + inner % height, inner // height


@triton.jit
def offsets_of(tile, BLOCK: tl.constexpr):
    """The BLOCK indices of a tile, int64 as everything that is multiplied by a stride."""
    return tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def product(
    acc,  # [BM, BN] float32
    a,  # element [i, k] at i * a_row + k * a_depth
    a_row,
    a_depth,
    b,  # element [k, j] at k * b_depth + j * b_column
    b_depth,
    b_column,
    i,  # [BM] rows of a
    j,  # [BN] columns of b
    rows,
    columns,
    depth,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BK: tl.constexpr,
):
    """acc + a[i, :depth] @ b[:depth, j]; elements outside [rows, columns] count as zero."""
    k = tl.arange(0, BK).to(tl.int64)
    lefts = a + (i[:, None] * a_row + k[None, :] * a_depth)
    rights = b + (k[:, None] * b_depth + j[None, :] * b_column)
    left_step = tl.full([], BK, tl.int64) * a_depth
    right_step = tl.full([], BK, tl.int64) * b_depth
    for start in range(0, depth, BK):
        inside = k < depth - start
        left = tl.load(lefts, mask=(i < rows)[:, None] & inside[None, :], other=0.0)
        right = tl.load(rights, mask=inside[:, None] & (j < columns)[None, :], other=0.0)
        if WIDEN:  # the interpreter's bfloat16 products are wrong
            left, right = left.to(tl.float32), right.to(tl.float32)
        acc = tl.dot(left, right, acc, input_precision=PRECISION)
        lefts += left_step
        rights += right_step
    return acc


@triton.jit
def store_outputs(
    acc,  # [BM, BN] float32
    y,  # [rows, outputs], contiguous
    partial,  # [tiles, outputs] float32
    i,  # [BM] rows
    exists,  # [BM] whether the row exists
    column,  # [BN] columns of y
    inside,  # [BN] whether the column exists
    tile,  # of the rows
    outputs,
    RELU: tl.constexpr,
    ACTIVITY: tl.constexpr,
):
    """Write a tile of outputs after the activation, and its sums of `|y|`."""
    outputs = tl.full([], 0, tl.int64) + outputs
    if RELU:  # a NaN stays
        acc = tl.where(acc <= 0.0, 0.0, acc)
    value = acc.to(y.dtype.element_ty)
    mask = exists[:, None] & inside[None, :]
    tl.store(y + (i[:, None] * outputs + column[None, :]), value, mask=mask)
    if ACTIVITY:
        sums = tl.sum(tl.where(mask, tl.abs(value.to(tl.float32)), 0.0), 0)
        tl.store(partial + (tile * outputs + column), sums, mask=inside)
