"""Kinds of targets, and outputs brought into one shape with them."""

from __future__ import annotations

import math

import torch
from torch import Size, Tensor

from ..errors import DataError

CLASSES = "classes"  # int64 [N, ...]: a class per example, pixel or token
LABELS = "labels"  # 0 and 1 [N, K]: any number of K labels per example
NUMBERS = "numbers"  # floats [N] or [N, K]
KINDS = (CLASSES, LABELS, NUMBERS)
KNOWN_AXES = 2  # targets with more axes (pixels) are not kept as a whole


def channel_axis(shape: Size | tuple[int, ...]) -> int:
    """Axis of the channels of outputs [B, C], [B, T, C] or [B, C, H, W]."""
    return 1 if len(shape) > 3 else len(shape) - 1


def class_axis(outputs: Size | tuple[int, ...], y: Size | tuple[int, ...]) -> int:
    """Axis of the classes of outputs for targets y, one class per remaining place.

    Raises:
        DataError: no axis leaves the shape of the targets.
    """
    first = channel_axis(outputs)
    for axis in (first, len(outputs) - 1, 1):
        if axis > 0 and (*outputs[:axis], *outputs[axis + 1 :]) == tuple(y):
            return axis
    wanted = "[B, C] for targets [B], [B, C, H, W] for [B, H, W] or [B, T, C] for [B, T]"
    raise DataError(f"outputs: expected {wanted}, got {list(outputs)} for targets {list(y)}")


def matched(kind: str, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [n, C] and targets, [n] for classes and [n, C] otherwise, one row per place.

    Raises:
        DataError: the shapes do not belong together.
    """
    if kind == CLASSES:
        if outputs.dim() == 2 and y.dim() == 1 and len(outputs) == len(y):
            return outputs, y
        axis = class_axis(outputs.shape, y.shape)
        return outputs.movedim(axis, -1).flatten(0, -2), y.flatten()
    if y.dim() < outputs.dim():  # one output per place
        axis = channel_axis(outputs.shape)
        y = y.unsqueeze(axis)
    if outputs.shape != y.shape or outputs.dim() < 2:
        raise DataError(
            f"outputs: expected the shape of the targets, {list(y.shape)}, got "
            f"{list(outputs.shape)}"
        )
    axis = channel_axis(outputs.shape)
    return outputs.movedim(axis, -1).flatten(0, -2), y.movedim(axis, -1).flatten(0, -2)


def outputs_for(kind: str, sample: tuple[int, ...]) -> int | None:
    """Outputs of a network for labels or numbers of one example's shape; None if that is open."""
    if kind == CLASSES or len(sample) == 2:
        return None
    return sample[0] if sample else 1


def places(sample: tuple[int, ...]) -> int:
    """Number of classes per example whose targets have this shape."""
    return math.prod(sample)


def wide(x: Tensor) -> Tensor:
    """A copy in float64, for sums."""
    return x.detach().to(torch.float64)
