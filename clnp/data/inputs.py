"""Checks of inputs x: tensors or numpy arrays of finite floats."""

from __future__ import annotations

import warnings
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError
from ..files.checkpoint import dtype_name

Split: TypeAlias = "tuple[Tensor, Tensor] | Dataset[Any]"
SPLITS = ("train", "validation", "test")

FLOATS = (torch.float32, torch.float64, torch.bfloat16)
# Elements checked at a time, so that a check needs no second copy of x.
PIECE = 1 << 20


def as_tensor(array: Any, where: str) -> Tensor:
    """Convert a tensor or numpy array to a tensor, without a copy if torch allows it.

    Raises:
        DataError: another type, or a dtype that torch lacks.
    """
    if isinstance(array, Tensor):
        return array.detach()
    if not isinstance(array, np.ndarray):
        raise DataError(
            f"{where}: expected a torch tensor or a numpy array, got {type(array).__name__}"
        )
    # torch refuses negative strides and foreign byte order; only such arrays are copied.
    if any(stride < 0 for stride in array.strides) or not array.dtype.isnative:
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    try:
        with warnings.catch_warnings():
            # Read-only arrays (memory maps, npz) are fine, because nothing writes to the data.
            warnings.filterwarnings("ignore", message=".*not writable.*")
            return torch.from_numpy(array)
    except TypeError:
        raise DataError(
            f"{where}: expected float32, float64 or integers, got numpy dtype {array.dtype}"
        ) from None


def as_input(x: Any, where: str) -> Tensor:
    """Convert x to a tensor of floats, or of int64 for networks that begin with an embedding.

    Raises:
        DataError: another type or dtype; the message has an expression in x that converts it.
    """
    tensor = as_tensor(x, where)
    if tensor.dtype in FLOATS or tensor.dtype == torch.int64:
        return tensor
    floats = "x.float()" if isinstance(x, Tensor) else 'x.astype("float32")'
    way_out = (
        f"{floats} / 255 turns images into pixels in [0, 1]"
        if tensor.dtype == torch.uint8
        else f"convert with {floats}"
    )
    raise DataError(
        f"{where}: expected {', '.join(map(dtype_name, FLOATS))}, got {dtype_name(tensor.dtype)}; "
        f"{way_out}"
    )


def first_bad(x: Tensor) -> list[int] | None:
    """Return the index of the first number of x [B, ...] that is not finite, or None."""
    rows = max(1, PIECE // max(1, x[0].numel()))
    for start in range(0, len(x), rows):
        finite = torch.isfinite(x[start : start + rows])
        if not bool(finite.all()):
            index: list[int] = (~finite).nonzero()[0].tolist()
            return [index[0] + start, *index[1:]]
    return None


def check_finite(x: Tensor, where: str) -> None:
    """Raise DataError with the index if x [B, ...] holds NaN or Inf."""
    index = first_bad(x)
    if index is not None:
        raise DataError(
            f"{where}: expected finite numbers, got {float(x[tuple(index)])} at index {index}"
        )


def check_int(name: str, value: Any, least: int) -> None:
    """Raise DataError unless an argument is an int (not a bool) of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise DataError(f"{name}: expected an int of at least {least}, got {value!r}")
