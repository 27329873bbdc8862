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
from ._product import NUMBERS, offsets_of

STRIPES = 512  # the most that are summed apart
# of a block: elements by whether at least 8 bytes are loaded at once, the least and most channels
ELEMENTS, WIDTHS = {True: 4096, False: 1024}, (16, 128)
PLANES = (512, 4)  # places and channels of a block where places are next to each other in memory


@triton.jit
def places(
    block, count, Q, ALIGN: tl.constexpr, NEXT: tl.constexpr, FLAT: tl.constexpr,
    NARROW: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """p and q of the elements of a block along the sum, and which of them exist. FLAT: Q is 1."""
    start = block * tl.full([], LENGTH, tl.int64)
    exists = start + tl.arange(0, LENGTH) < count
    if FLAT:
        p = start + tl.arange(0, LENGTH)
        q = p * 0
    else:
        inner = start % Q
        if NARROW:  # many divisions follow, and in 64 bits they are slow
            inner = inner.to(tl.int32)
        inner += tl.arange(0, LENGTH)
        p, q = start // Q + inner // Q, (inner % Q).to(tl.int64)
        if NEXT == "q":  # Q is a multiple of ALIGN: that many places are in one plane
            p, q = tl.max_constancy(p, ALIGN), tl.max_contiguous(tl.multiple_of(q, ALIGN), ALIGN)
    return p, q, exists


@triton.jit
def channels_at(c, c_stride, ALIGN: tl.constexpr, NEXT: tl.constexpr):
    """Offsets of the channels c; NEXT is the dimension of [P, C, Q] whose elements are next to each
    other, "c", "q" or "" for none. Strides are in units of ALIGN.
    """
    if NEXT == "c":
        return c
    return c * (c_stride * ALIGN)


@triton.jit
def offsets_in(p, q, c, p_stride, c_stride, q_stride, ALIGN: tl.constexpr, NEXT: tl.constexpr):
    """Offsets of the elements [p, c] of [P, C, Q]."""
    at = p * (p_stride * ALIGN)
    if NEXT == "q":
        at += q
    else:
        at += q * (q_stride * ALIGN)
    return at[:, None] + channels_at(c, c_stride, ALIGN, NEXT)[None, :]


@triton.jit
def sizes_of(C, Q, count, ALIGN: tl.constexpr, NEXT: tl.constexpr):
    """C, Q and count, from what `grid_of` passes."""
    if NEXT == "c":
        C *= ALIGN
    if NEXT == "q":
        Q *= ALIGN
        count *= ALIGN
    return C, Q, count


@triton.jit(do_not_specialize=NUMBERS)
def activity_kernel(
    x,  # [P, C, Q]
    partial,  # [stripes, C] float32
    C,
    Q,
    count,  # P * Q
    x_p,
    x_c,
    x_q,
    blocks,  # per stripe
    ABS: tl.constexpr,
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
    sums = tl.zeros((CHANNELS,), tl.float32)
    for block in range(stripe * blocks, stripe * blocks + blocks):
        p, q, exists = places(block, count, Q, ALIGN, NEXT, FLAT, NARROW, LENGTH)
        at = offsets_in(p, q, c, x_p, x_c, x_q, ALIGN, NEXT)
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
    programs, arguments = grid_of(x=as_planes(x, dim))
    partial = x.new_empty(programs[1], channels, dtype=torch.float32)
    arguments |= {"partial": partial, "ABS": absolute}
    _launch.launch(activity_kernel, programs, x, arguments)
    return _launch.sum_parts(partial)


def grid_of(**planes: Tensor | None) -> tuple[tuple[int, int], dict[str, Any]]:
    """Programs of a pass over tensors [P, C, Q], and its arguments: tensors, strides and sizes.

    Arguments:
        planes: tensors of one shape, or None, by the names of the kernel's arguments.
    """
    given = {name: one for name, one in planes.items() if one is not None}
    first, *others = given.values()
    channels, count, after = first.shape[1], first.shape[0] * first.shape[2], _next(first)
    if any(_next(other) != after for other in others):
        after = ""
    # Strides of 1 and those of dimensions of size 1 are not read.
    read = [d for d, letter in enumerate("pcq") if letter != after and first.shape[d] > 1]
    strides = {f"{name}_{'pcq'[d]}": one.stride(d) for name, one in given.items() for d in read}
    ends = {"c": {"C": channels}, "q": {"Q": first.shape[2], "count": count}, "": {}}[after]
    unit = _launch.align_of(*strides.values(), *ends.values())
    length, width = PLANES
    if first.stride(1) == 1:
        width = min(max(triton.next_power_of_2(channels), WIDTHS[0]), WIDTHS[1])
        length = ELEMENTS[unit * first.itemsize >= 8] // width
    blocks = triton.cdiv(count, length * STRIPES)
    stripes = triton.cdiv(count, length * blocks)
    return (triton.cdiv(channels, width), stripes), {
        **planes,
        **{f"{name}_{letter}": 0 for name in planes for letter in "pcq"},
        **{"C": channels, "Q": first.shape[2], "count": count, "blocks": blocks},
        **_launch.in_units(unit, **strides, **ends),
        **{"ALIGN": unit, "NEXT": after, "FLAT": first.shape[2] == 1},
        **{"NARROW": first.shape[2] < 1 << 30, "LENGTH": length, "CHANNELS": width},
    }


def _next(planes: Tensor) -> str:
    """The dimension of [P, C, Q] whose elements are next to each other, "c" or "q", or ''."""
    if planes.stride(1) == 1:
        return "c"
    return "q" if planes.stride(2) == 1 else ""
