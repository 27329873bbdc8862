"""Depthwise convolutions in Triton: no matrix product, one pass over the images per operator."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _launch
from ._conv import pixel_of
from ._images import Geometry, sizes_of, strides_of, weight_strides
from ._product import NUMBERS, offsets_of, store_outputs

# pixels and channels of a block; the most parts that the sum of a weight's gradient is cut into
PIXELS, CHANNELS, PARTS = 32, 64, 128


@triton.jit
def tap_weights(active_weight, free_weight, c, Ca, C, kh, kw, active_o, active_kh, active_kw,
                free_o, free_kh, free_kw):  # fmt: skip
    """[CHANNELS] float32: the weights of a tap, of active and free channels."""
    active_at = c * active_o + (kh * active_kh + kw * active_kw)
    free_at = (c - Ca) * free_o + (kh * free_kh + kw * free_kw)
    active = tl.load(active_weight + active_at, mask=c < Ca, other=0.0)
    free = tl.load(free_weight + free_at, mask=(c >= Ca) & (c < C), other=0.0)
    return tl.where(c < Ca, active.to(tl.float32), free.to(tl.float32))


@triton.jit(do_not_specialize=NUMBERS)
def fwd_kernel(
    x,  # [B, C, H, W]
    active_weight,  # [Ca, 1, K, K']
    free_weight,  # [Cf, 1, K, K']
    active_bias,  # [Ca]
    free_bias,  # [Cf]
    y,  # [pixels, C], contiguous
    partial,  # [programs, C] float32
    pixels,
    Ca,
    C,
    H,
    W,
    out_H,
    out_W,
    x_b,
    x_h,
    x_w,
    active_o,
    active_kh,
    active_kw,
    free_o,
    free_kh,
    free_kw,
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    ACTIVITY: tl.constexpr,
    ALIGN: tl.constexpr,  # unit of channels and strides of images
    NARROW: tl.constexpr,
    G: tl.constexpr,  # _images.Geometry
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    Ca, C, x_b, x_h, x_w = Ca * ALIGN, C * ALIGN, x_b * ALIGN, x_h * ALIGN, x_w * ALIGN
    m = tl.program_id(0)
    i, c = offsets_of(m, BP), offsets_of(tl.program_id(1), BC)
    exists, inside = i < pixels, c < C
    b, h, w = pixel_of(i, out_H, out_W, NARROW)
    zero = tl.full([], 0, tl.int64)
    acc = tl.zeros((BP, BC), tl.float32)
    for tap in range(G.K_H * G.K_W):
        kh, kw = tap // G.K_W, tap % G.K_W
        line, column = h * G.S_H - G.P_H + kh * G.D_H, w * G.S_W - G.P_W + kw * G.D_W
        seen = exists & (line >= 0) & (line < H) & (column >= 0) & (column < W)
        at = b * x_b + (line.to(tl.int64) * x_h + column.to(tl.int64) * x_w)
        value = tl.load(x + (at[:, None] + c[None, :]), mask=seen[:, None] & inside[None, :],
                        other=0.0)  # fmt: skip
        weight = tap_weights(active_weight, free_weight, c, Ca, C, zero + kh, zero + kw, active_o,
                             active_kh, active_kw, free_o, free_kh, free_kw)  # fmt: skip
        # where no pixel is, nothing is added, not even of a weight that is not finite
        acc += tl.where(seen[:, None], value.to(tl.float32) * weight[None, :], 0.0)
    if BIAS:
        active = tl.load(active_bias + c, mask=c < Ca, other=0.0).to(tl.float32)
        free = tl.load(free_bias + (c - Ca), mask=(c >= Ca) & inside, other=0.0).to(tl.float32)
        acc += tl.where(c < Ca, active, free)[None, :]
    store_outputs(acc, y, partial, i, exists, c, inside, m, C, RELU, ACTIVITY)


@triton.jit(do_not_specialize=NUMBERS)
def dgrad_kernel(
    grad_z,  # [B, Cf, H', W']
    free_weight,  # [Cf, 1, K, K']
    grad_x,  # [pixels, C], contiguous
    pixels,
    Ca,
    C,
    H,
    W,
    out_H,
    out_W,
    grad_b,
    grad_h,
    grad_w,
    free_o,
    free_kh,
    free_kw,
    ALIGN: tl.constexpr,  # unit of channels and strides of images
    NARROW: tl.constexpr,
    G: tl.constexpr,  # _images.Geometry
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    Ca, C = Ca * ALIGN, C * ALIGN
    grad_b, grad_h, grad_w = grad_b * ALIGN, grad_h * ALIGN, grad_w * ALIGN
    i, c = offsets_of(tl.program_id(0), BP), offsets_of(tl.program_id(1), BC)
    exists, inside = i < pixels, c < C
    b, h, w = pixel_of(i, H, W, NARROW)
    zero = tl.full([], 0, tl.int64)
    free = inside & (c >= Ca)
    acc = tl.zeros((BP, BC), tl.float32)
    for tap in range(G.K_H * G.K_W):
        kh, kw = tap // G.K_W, tap % G.K_W
        line, column = h + G.P_H - kh * G.D_H, w + G.P_W - kw * G.D_W
        seen = exists & (line >= 0) & (line % G.S_H == 0) & (line // G.S_H < out_H)
        seen = seen & (column >= 0) & (column % G.S_W == 0) & (column // G.S_W < out_W)
        at = (line // G.S_H).to(tl.int64) * grad_h + (column // G.S_W).to(tl.int64) * grad_w
        at += b * grad_b
        met = seen[:, None] & free[None, :]
        grad = tl.load(grad_z + (at[:, None] + (c - Ca)[None, :]), mask=met, other=0.0)
        tap_at = (c - Ca) * free_o + ((zero + kh) * free_kh + (zero + kw) * free_kw)
        weight = tl.load(free_weight + tap_at, mask=free, other=0.0).to(tl.float32)
        acc += tl.where(met, grad.to(tl.float32) * weight[None, :], 0.0)
    value = acc.to(grad_x.dtype.element_ty)
    tl.store(grad_x + (i[:, None] * C + c[None, :]), value, mask=exists[:, None] & inside[None, :])


@triton.jit(do_not_specialize=NUMBERS)
def wgrad_kernel(
    grad_z,  # [B, Cf, H', W']
    x,  # [B, Cf, H, W]
    partial,  # [parts, K * K', Cf] float32, contiguous
    pixels,
    blocks,  # of BP pixels, per part
    C,
    H,
    W,
    out_H,
    out_W,
    grad_b,
    grad_h,
    grad_w,
    x_b,
    x_h,
    x_w,
    ALIGN: tl.constexpr,  # unit of channels and strides of images
    NARROW: tl.constexpr,
    G: tl.constexpr,  # _images.Geometry
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """One tap, some channels and a part of the pixels."""
    C, x_b, x_h, x_w = C * ALIGN, x_b * ALIGN, x_h * ALIGN, x_w * ALIGN
    grad_b, grad_h, grad_w = grad_b * ALIGN, grad_h * ALIGN, grad_w * ALIGN
    tap, part = tl.program_id(0), tl.program_id(2)
    c = offsets_of(tl.program_id(1), BC)
    inside = c < C
    shift_h, shift_w = (tap // G.K_W) * G.D_H - G.P_H, (tap % G.K_W) * G.D_W - G.P_W
    sums = tl.zeros((BC,), tl.float32)
    for block in range(part * blocks, part * blocks + blocks):
        i = block * tl.full([], BP, tl.int64) + tl.arange(0, BP)
        b, h, w = pixel_of(i, out_H, out_W, NARROW)
        line, column = h * G.S_H + shift_h, w * G.S_W + shift_w
        seen = (i < pixels) & (line >= 0) & (line < H) & (column >= 0) & (column < W)
        mask = seen[:, None] & inside[None, :]
        grads = b * grad_b + (h.to(tl.int64) * grad_h + w.to(tl.int64) * grad_w)
        images = b * x_b + (line.to(tl.int64) * x_h + column.to(tl.int64) * x_w)
        grad = tl.load(grad_z + (grads[:, None] + c[None, :]), mask=mask, other=0.0)
        value = tl.load(x + (images[:, None] + c[None, :]), mask=mask, other=0.0)
        sums += tl.sum(grad.to(tl.float32) * value.to(tl.float32), 0)
    tl.store(partial + ((part.to(tl.int64) * (G.K_H * G.K_W) + tap) * C + c), sums, mask=inside)


# sizes of the blocks of all three kernels
BLOCKS = {"BP": PIXELS, "BC": CHANNELS}


def _sizes(**numbers: int) -> dict[str, int]:
    """Numbers of channels and strides of images in their unit, and the unit."""
    unit = _launch.align_of(*numbers.values())
    return {**_launch.in_units(unit, **numbers), "ALIGN": unit}


def fwd(
    x: Tensor,  # [B, C, H, W]
    active_weight: Tensor,  # [Ca, 1, K, K']
    free_weight: Tensor,  # [Cf, 1, K, K']
    y: Tensor,  # [B, C, H', W'], dense in channels_last, is written
    geometry: Geometry,
    outputs: dict[str, Any],
) -> Tensor:
    """Fill `y`; its activity [C] (or an empty tensor). `outputs` as of `_launch`."""
    channels, pixels = y.shape[1], y.numel() // y.shape[1]
    programs = (triton.cdiv(pixels, PIXELS), triton.cdiv(channels, CHANNELS))
    activity = outputs["ACTIVITY"]
    partial = x.new_empty(programs[0] if activity else 0, channels, dtype=torch.float32)
    arguments: dict[str, Any] = {
        "x": x,
        "y": y,
        "partial": partial,
        **_sizes(Ca=active_weight.shape[0], C=channels, **strides_of("x", x)),
        "active_weight": active_weight,
        "free_weight": free_weight,
        **weight_strides("active", active_weight),
        **weight_strides("free", free_weight),
        **sizes_of(x, y, pixels, geometry),
        **outputs,
        **BLOCKS,
    }
    _launch.launch(fwd_kernel, programs, x, arguments)
    return partial.sum(0) if activity else partial.view(-1)


def dgrad(grad: Tensor, free_weight: Tensor, grad_x: Tensor, geometry: Geometry) -> None:
    """Fill `grad_x` [B, C, H, W], dense in channels_last, from `grad` [B, Cf, H', W'] and the
    weight [Cf, 1, K, K']; active channels with zeros.
    """
    channels, pixels = grad_x.shape[1], grad_x.numel() // grad_x.shape[1]
    arguments: dict[str, Any] = {
        "grad_z": grad,
        "grad_x": grad_x,
        **_sizes(Ca=channels - free_weight.shape[0], C=channels, **strides_of("grad", grad)),
        "free_weight": free_weight,
        **weight_strides("free", free_weight),
        **sizes_of(grad_x, grad, pixels, geometry),
        **BLOCKS,
    }
    programs = (triton.cdiv(pixels, PIXELS), triton.cdiv(channels, CHANNELS))
    _launch.launch(dgrad_kernel, programs, grad, arguments)


def wgrad(grad: Tensor, x: Tensor, taps: int, geometry: Geometry) -> Tensor:
    """[parts, taps, Cf, 1] float32, of `grad` [B, Cf, H', W'] and `x` [B, Cf, H, W]."""
    channels, pixels = grad.shape[1], grad.numel() // grad.shape[1]
    blocks = triton.cdiv(pixels, PIXELS)
    blocks = triton.cdiv(blocks, min(PARTS, blocks))
    parts = triton.cdiv(pixels, blocks * PIXELS)
    partial = x.new_empty(parts, taps, channels, dtype=torch.float32)
    arguments: dict[str, Any] = {
        "grad_z": grad,
        "x": x,
        "partial": partial,
        "blocks": blocks,
        **_sizes(C=channels, **strides_of("grad", grad), **strides_of("x", x)),
        **sizes_of(x, grad, pixels, geometry),
        **BLOCKS,
    }
    programs = (taps, triton.cdiv(channels, CHANNELS), parts)
    _launch.launch(wgrad_kernel, programs, grad, arguments)
    return partial[..., None]
