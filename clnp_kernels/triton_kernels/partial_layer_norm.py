"""`partial_layer_norm` in Triton: a program takes some rows and goes over their blocks.

Sums over rows are written apart and added in a fixed order, without atomics: the same numbers in
every run.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from ..reference.partial_layer_norm import free_start
from . import _launch
from ._layer_norm import normal_kernel, slope_kernel, sums_kernel
from .channel_activity import channel_activity

ROWS, CHANNELS = 8, 128  # of a tile; of the sums over rows it is [SUM_ROWS, SUM_CHANNELS]
SUM_ROWS, SUM_CHANNELS = 32, 64
STRIPES = 128  # the most sums over rows that are added apart


@lru_cache(maxsize=256)
def _ends_on(device: torch.device, boundaries: tuple[int, ...]) -> Tensor:
    """Boundaries on a device, in units. Kept, as a captured call can't copy them there."""
    return torch.tensor(boundaries, dtype=torch.int64, device=device)


def _contiguous(vector: Tensor | None, other: Tensor | None) -> Tensor | None:
    """A vector, or the other one where it is missing: nothing is read of it then."""
    chosen = other if vector is None else vector
    return None if chosen is None else chosen.contiguous()


def partial_layer_norm_fwd(
    x: Tensor,  # [M, C]
    boundaries: Sequence[int],
    active_weight: Tensor | None,  # [Ca]
    free_weight: Tensor | None,  # [Cf]
    active_bias: Tensor | None,  # [Ca]
    free_bias: Tensor | None,  # [Cf]
    eps: float,
    rms: bool,
    skip_active: bool,
    activity: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y [M, C] or [M, Cf], its activity (or an empty tensor), mean and rstd [M]."""
    (rows, channels), split = x.shape, free_start(boundaries)
    skipped = split if skip_active else 0
    y = x.new_empty(rows, channels - skipped)
    mean = x.new_empty(0 if rms else rows, dtype=torch.float32)
    rstd = x.new_empty(rows, dtype=torch.float32)
    x, ends = _launch.rows_of(x), tuple(map(int, boundaries))
    sizes = {"C": channels, "Ca": split, "skipped": skipped}
    sizes |= {"x_row": x.stride(0), "y_row": y.stride(0)}
    unit = _launch.align_of(*ends, *sizes.values())
    arguments: dict[str, Any] = {
        "x": x,
        "y": y,
        "ends": _ends_on(x.device, tuple(end // unit for end in ends)),
        "active_weight": _contiguous(active_weight, free_weight),
        "free_weight": _contiguous(free_weight, active_weight),
        "active_bias": _contiguous(active_bias, free_bias),
        "free_bias": _contiguous(free_bias, active_bias),
        "mean": mean,
        "rstd": rstd,
        "blocks": len(boundaries),
        "rows": rows,
        **_launch.in_units(unit, **sizes),
        "ALIGN": unit,
        "eps": eps,
        "RMS": rms,
        "WEIGHT": free_weight is not None,
        "BIAS": free_bias is not None,
        "ROWS": ROWS,
        "CHANNELS": CHANNELS,
    }
    if rows:
        _launch.launch(normal_kernel, (triton.cdiv(rows, ROWS),), x, arguments)
    sums = channel_activity(y, 1) if activity else y.new_empty(0, dtype=torch.float32)
    return y, sums, mean, rstd


def partial_layer_norm_bwd(
    grad_y: Tensor,  # [M, Cf]
    x: Tensor,  # [M, C]
    mean: Tensor,  # [M]
    rstd: Tensor,  # [M]
    free_weight: Tensor | None,  # [Cf]
    rms: bool,
    affine: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x [M, C], zero for active channels, and of the free weight and bias [Cf] (empty
    unless `affine`).
    """
    (rows, channels), free = x.shape, grad_y.shape[1]
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grad, x = _launch.rows_of(grad_y), _launch.rows_of(x)
    sizes = {"Ca": channels - free, "Cf": free, "grad_row": grad.stride(0), "x_row": x.stride(0)}
    unit = _launch.align_of(channels, *sizes.values())
    common: dict[str, Any] = {
        "grad": grad,
        "x": x,
        "mean": mean.contiguous(),
        "rstd": rstd.contiguous(),
        "rows": rows,
        **_launch.in_units(unit, **sizes),
        "ALIGN": unit,
        "RMS": rms,
    }
    arguments = common | {
        "grad_x": grad_x,
        "free_weight": _contiguous(free_weight, None),
        "C": channels // unit,
        "WEIGHT": free_weight is not None,
        "ROWS": ROWS,
        "CHANNELS": CHANNELS,
    }
    if x.numel():
        _launch.launch(slope_kernel, (triton.cdiv(rows, ROWS),), x, arguments)
    if not (affine and rows and free):
        zeros = x.new_zeros(2, free if affine else 0, dtype=torch.float32)
        return grad_x, zeros[0].clone(), zeros[1].clone()
    tiles = triton.cdiv(rows, SUM_ROWS * STRIPES)
    stripes = triton.cdiv(rows, SUM_ROWS * tiles)
    partial = x.new_empty(2, stripes, free, dtype=torch.float32)
    arguments = common | {
        "of_weight": partial[0],
        "of_bias": partial[1],
        "tiles": tiles,
        "ROWS": SUM_ROWS,
        "CHANNELS": SUM_CHANNELS,
    }
    programs = (triton.cdiv(free, SUM_CHANNELS), stripes)
    _launch.launch(sums_kernel, programs, x, arguments)
    return grad_x, partial[0].sum(0), partial[1].sum(0)
