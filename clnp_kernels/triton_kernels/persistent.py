"""`masked_linear_fwd` by programs that stay, one per multiprocessor, and copy tiles by TMA.

Each program goes over tiles of the output in one loop. A tile is on one side of the frozen/free
boundary, which decides its descriptors and how long its sum is: Ia or I. Descriptors end where
their side ends, and what they read beyond it is zero, so no mask is computed.

They need pointers and rows at multiples of 16 bytes, and matrix instructions (2-byte types, or
float32 as TF32); other calls are left to `masked_linear`. `clnp tune` chooses them from sm_90 on.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _launch, masked_linear, tiles
from ._product import NUMBERS, offsets_of, store_outputs, tile_of

BYTES = 16  # alignment of what a descriptor describes


@triton.jit(do_not_specialize=NUMBERS)
def persistent_kernel(
    x,  # descriptor of [B, I], tiles [BM, BK]
    seen,  # of [B, Ia], the inputs that active outputs see
    active_weight,  # of [Oa, Ia], tiles [BN, BK]
    free_weight,  # of [Of, I]
    active_bias,  # [Oa]
    free_bias,  # [Of]
    y,  # [B, O], contiguous
    partial,  # [tiles_m, O] float32
    B,
    Ia,
    I,  # noqa: E741
    Oa,
    Of,
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    ACTIVITY: tl.constexpr,
    OUT: tl.constexpr,  # unit of Oa and Of
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    Oa, Of = Oa * OUT, Of * OUT
    tiles_free, tiles_m = tl.cdiv(Of, BN), tl.cdiv(B, BM)
    tiles_n = tiles_free + tl.cdiv(Oa, BN)
    outputs = tl.full([], 0, tl.int64) + Oa + Of
    for tile in range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        m, n = tile_of(tile, tiles_m, tiles_n, GROUP)
        if n < tiles_free:
            left, right, bias = x, free_weight, free_bias
            place, start, size, depth = n, Oa, Of, I
        else:
            left, right, bias = seen, active_weight, active_bias
            place, start, size, depth = n - tiles_free, Oa * 0, Oa, Ia
        acc = tl.zeros((BM, BN), tl.float32)
        for k in range(0, depth, BK):
            a, b = left.load([m * BM, k]), right.load([place * BN, k])
            if WIDEN:  # the interpreter's bfloat16 products are wrong
                a, b = a.to(tl.float32), b.to(tl.float32)
            acc = tl.dot(a, b.T, acc, input_precision=PRECISION)
        i, j = offsets_of(m, BM), offsets_of(place, BN)
        inside = j < size
        if BIAS:
            acc += tl.load(bias + j, mask=inside, other=0.0).to(tl.float32)[None, :]
        store_outputs(acc, y, partial, i, i < B, start + j, inside, m, outputs, RELU, ACTIVITY)


def takes(*tensors: Tensor) -> bool:
    """Return whether descriptors can describe these matrices, and products have instructions."""
    whole = all(
        t.stride(1) == 1
        and t.data_ptr() % BYTES == 0
        and t.stride(0) * t.itemsize % BYTES == 0
        and max(t.shape) < 1 << 31
        for t in tensors
    )
    conv = tiles.within_convolution()
    return whole and tiles.precision_of(tensors[0].dtype, conv=conv) != "ieee"


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
    writes = _launch.output_arguments(active_bias, free_bias, activation, activity)
    used = [t for t in (x, active_weight, free_weight) if t.numel()]
    sides = free_weight.shape[0], active_weight.shape[0]
    if not x.numel() or len(used) < 2 or not takes(*used):
        rest = active_bias, free_bias, activation, activity
        return masked_linear.masked_linear_fwd(x, active_weight, free_weight, *rest)
    y = x.new_empty(x.shape[0], sum(sides))
    options = _launch.product_options(len(x), sides, tuple(used), _launch.WIDEST)
    tiles_m = triton.cdiv(len(x), options["BM"])
    tiles_n = sum(triton.cdiv(side, options["BN"]) for side in sides)
    partial = x.new_empty(tiles_m if activity else 0, sum(sides), dtype=torch.float32)
    unit = _launch.align_of(*sides)
    arguments = {
        **_descriptors(x, active_weight, free_weight, options),
        "y": y,
        "partial": partial,
        "B": len(x),
        "Ia": active_weight.shape[1],
        "I": x.shape[1],
        **_launch.in_units(unit, Oa=sides[1], Of=sides[0]),
        "OUT": unit,
        **writes,
        **options,
    }
    programs = min(tiles_m * tiles_n, _launch.describe(x.device).processors)
    _launch.launch(persistent_kernel, (programs,), x, arguments)
    return y, _launch.sum_parts(partial) if activity else partial.view(-1)


def _descriptors(
    x: Tensor, active: Tensor, free: Tensor, options: dict[str, Any]
) -> dict[str, Any]:
    """Descriptors of the operands; an empty one, of which nothing is read, is the other side's."""
    from triton.tools.tensor_descriptor import TensorDescriptor  # not in old versions

    left, right = [options["BM"], options["BK"]], [options["BN"], options["BK"]]
    seen = x[:, : active.shape[1]]
    return {
        "x": TensorDescriptor.from_tensor(x, left),
        "seen": TensorDescriptor.from_tensor(seen if seen.numel() else x, left),
        "active_weight": TensorDescriptor.from_tensor(active if active.numel() else free, right),
        "free_weight": TensorDescriptor.from_tensor(free if free.numel() else active, right),
    }
