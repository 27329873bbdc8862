"""Images in channels_last: the channels of a pixel side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor


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


def like_x(t: Tensor, layout: torch.memory_format) -> Tensor:
    """The images in a format; channels_last ones get the strides that PyTorch gives them."""
    if layout != torch.channels_last:
        return t.contiguous()
    channels, height, width = t.shape[1:]
    strides = (height * width * channels, 1, width * channels, channels)
    return t.as_strided(t.shape, strides) if t.numel() else t.contiguous(memory_format=layout)
