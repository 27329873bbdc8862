"""Images in channels_last, the channels of a pixel side by side, and arguments of their kernels."""

from collections import namedtuple
from collections.abc import Sequence
from math import gcd
from typing import Any

import torch
from torch import Tensor

# Constants of the kernels: kernel, stride, padding and dilation, and the distance of the taps that
# meet one class of pixels.
Geometry = namedtuple("Geometry", "K_H S_H P_H D_H STEP_H K_W S_W P_W D_W STEP_W")


def geometry_of(*pairs: Sequence[int]) -> Geometry:
    """The constants of kernel, stride, padding and dilation."""
    sides = [(k, s, p, d, s // gcd(s, d)) for k, s, p, d in zip(*pairs, strict=True)]
    return Geometry(*sides[0], *sides[1])


def sizes_of(x: Tensor, z: Tensor, pixels: int, geometry: Geometry) -> dict[str, Any]:
    """Sizes of input and output, and the constants of a kernel over `pixels`."""
    sizes = dict(zip(("H", "W", "out_H", "out_W"), (*x.shape[2:], *z.shape[2:]), strict=True))
    return {**sizes, "pixels": pixels, "NARROW": pixels < 1 << 30, "G": geometry}


def strides_of(prefix: str, t: Tensor) -> dict[str, int]:
    """Distances from image to image, row to row and pixel to pixel."""
    names = (f"{prefix}_b", f"{prefix}_h", f"{prefix}_w")
    return dict(zip(names, (t.stride(0), t.stride(2), t.stride(3)), strict=True))


def weight_strides(name: str, weight: Tensor) -> dict[str, int]:
    """Distances from output to output and from tap to tap."""
    names = (f"{name}_o", f"{name}_kh", f"{name}_kw")
    return dict(zip(names, (weight.stride(0), *weight.stride()[2:]), strict=True))


def images_of(t: Tensor) -> Tensor:
    """[B, C, H, W] whose channels are side by side in memory: itself, or a copy."""
    if t.stride(1) == 1 or t.shape[1] <= 1:
        return t
    return t.contiguous(memory_format=torch.channels_last)


def rows_of_images(t: Tensor) -> Tensor:
    """[B, C, H, W] -> [M, C], a view where the pixels are evenly spaced, else a copy."""
    pixels = t.shape[0] * t.shape[2] * t.shape[3]
    return t.permute(0, 2, 3, 1).reshape(pixels, t.shape[1])


def new_images(like: Tensor, batch: int, channels: int, size: Sequence[int]) -> Tensor:
    """Empty images, dense in channels_last whatever the sizes are."""
    return like.new_empty(batch, *size, channels).permute(0, 3, 1, 2)
