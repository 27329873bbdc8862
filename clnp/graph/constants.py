"""Constant tensors in a graph: masks, rotations, and the like, as JSON."""

from __future__ import annotations

import base64
import math
import zlib
from typing import Any

import torch
from torch import Tensor, nn

MOST_NUMBERS = 4096  # entries of a constant that is a plain list
MOST_BYTES = 1 << 28  # of any other
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool)
}


def encoded(value: Tensor) -> Any:
    """Return a tensor for JSON: nested lists, or compressed bytes if it is large."""
    value = value.detach().cpu()
    if value.numel() <= MOST_NUMBERS and value.dtype != torch.bool:
        return value.tolist()
    if str(value.dtype).removeprefix("torch.") not in DTYPES:
        value = value.to(torch.float32)
    raw = value.contiguous().view(torch.uint8).numpy().tobytes()
    return {
        "dtype": str(value.dtype).removeprefix("torch."),
        "shape": list(value.shape),
        "data": base64.b64encode(zlib.compress(raw, 9)).decode(),
    }


def decoded(value: Any) -> Tensor:
    """Return the tensor of `encoded`, on the CPU.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    if not isinstance(value, dict):
        return torch.tensor(value, dtype=torch.float64, device="cpu")
    dtype, shape = DTYPES[value["dtype"]], [int(size) for size in value["shape"]]
    size = math.prod(shape) * dtype.itemsize
    if any(n < 0 for n in shape) or size > MOST_BYTES:
        raise ValueError(f"constant: expected at most {MOST_BYTES} bytes, got shape {shape}")
    raw = zlib.decompressobj().decompress(base64.b64decode(value["data"]), size + 1)
    if len(raw) != size:
        raise ValueError(f"constant: expected {size} bytes, got {len(raw)}")
    if not size:
        return torch.empty(shape, dtype=dtype, device="cpu")
    return torch.frombuffer(bytearray(raw), dtype=dtype).view(shape)


class _WithTensor(nn.Module):
    """Base of operations with a constant tensor, which follows the module's device and dtype.

    Arguments:
        value: as of `encoded`.
        axis: axis of the channels, along which the tensor has one entry.
    """

    tensor: Tensor

    def __init__(self, value: Any, axis: int | None) -> None:
        super().__init__()
        self.value = value
        tensor = decoded(value)
        if tensor.is_floating_point():
            tensor = tensor.to(torch.get_default_dtype())
        self.register_buffer("tensor", tensor, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        if not self.tensor.is_meta:  # from all digits, and also after a stay on the meta device
            self.tensor = decoded(self.value).to(self.tensor.device, self.tensor.dtype)
        return self

    def matched(self, x: Tensor) -> Tensor:
        """Return the tensor in the dtype and on the device of x."""
        if self.tensor.dtype == torch.bool:
            return self.tensor.to(x.device)
        return self.tensor.to(x.device, x.dtype)


class AddTensor(_WithTensor):
    """x plus a constant tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.matched(x)


class MultiplyTensor(_WithTensor):
    """x times a constant tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.matched(x)


class Fill(_WithTensor):
    """x with a number where a constant tensor is true.

    Arguments:
        value: truth values, as of `encoded`.
        axis: axis of the channels, along which the tensor has one entry.
        number: the number.
    """

    def __init__(self, value: Any, axis: int | None, number: float) -> None:
        super().__init__(value, axis)
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        return x.masked_fill(self.matched(x).bool(), self.number)
