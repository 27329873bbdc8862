"""`channel_activity` in Triton: one pass over memory, channels last or channels first.

Each program sums a stripe for some channels; the stripes are added in a fixed order, without
atomics: the same numbers in every run.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._planes import as_planes
from . import _launch
from ._product import offsets_of

# elements of a block [along the sum, channels] by whether channels are next to each other in
# memory, and the most stripes that are summed apart
BLOCKS = {True: (32, 128), False: (512, 4)}
STRIPES = 512


@triton.jit
def places(block, count, Q, NARROW: tl.constexpr, LENGTH: tl.constexpr):
    """p and q of the elements of a block along the sum, and which of them exist."""
    start = block * tl.full([], LENGTH, tl.int64)
    inner = start % Q
    if NARROW:  # many divisions follow, and in 64 bits they are slow
        inner = inner.to(tl.int32)
    inner += tl.arange(0, LENGTH)
    exists = start + tl.arange(0, LENGTH) < count
    return start // Q + inner // Q, (inner % Q).to(tl.int64), exists


@triton.jit
def activity_kernel(
    x,  # element [p, c, q] at p * p_stride + c * c_stride + q * q_stride
    partial,  # [stripes, C] float32
    C,
    Q,
    count,  # P * Q
    p_stride,
    c_stride,
    q_stride,
    blocks,  # per stripe
    ABS: tl.constexpr,
    NARROW: tl.constexpr,
    LENGTH: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    stripe = tl.program_id(1)
    c = offsets_of(tl.program_id(0), CHANNELS)
    sums = tl.zeros((CHANNELS,), tl.float32)
    for block in range(stripe * blocks, stripe * blocks + blocks):
        p, q, exists = places(block, count, Q, NARROW, LENGTH)
        at = p[:, None] * p_stride + q[:, None] * q_stride + c[None, :] * c_stride
        mask = exists[:, None] & (c < C)[None, :]
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        sums += tl.sum(tl.abs(value) if ABS else value, 0)
    tl.store(partial + (stripe.to(tl.int64) * C + c), sums, mask=c < C)


def channel_activity(x: Tensor, dim: int, absolute: bool = True) -> Tensor:
    """Sum of `|x|`, or of x, over every dimension but `dim`: [..., C, ...] -> [C] float32."""
    channels = x.shape[dim]
    count = x.numel() // channels if channels else 0
    if count == 0:
        return x.new_zeros(channels, dtype=torch.float32)
    view = as_planes(x, dim)
    programs, sizes = grid_of(view)
    partial = x.new_empty(programs[1], channels, dtype=torch.float32)
    strides = dict(zip(("p_stride", "c_stride", "q_stride"), view.stride(), strict=True))
    arguments = {"x": view, "partial": partial, "ABS": absolute, **sizes, **strides}
    _launch.launch(activity_kernel, programs, x, arguments)
    return _launch.sum_parts(partial)


def grid_of(planes: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    """Programs of a pass over [P, C, Q], and its sizes."""
    channels, count = planes.shape[1], planes.shape[0] * planes.shape[2]
    length, width = BLOCKS[planes.stride(1) == 1]
    blocks = triton.cdiv(count, length * STRIPES)
    stripes = triton.cdiv(count, length * blocks)
    sizes = {"C": channels, "Q": planes.shape[2], "count": count, "blocks": blocks}
    sizes |= {"NARROW": planes.shape[2] < 1 << 30, "LENGTH": length, "CHANNELS": width}
    return (triton.cdiv(channels, width), stripes), sizes


def strides_of(prefix: str, planes: Tensor) -> dict[str, int]:
    """Distances from plane to plane, channel to channel and place to place."""
    return {f"{prefix}_{letter}": planes.stride(d) for d, letter in enumerate("pcq")}
