"""Named tensors and JSON data in one dictionary of tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put `prefix` before every name."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors whose names begin with `prefix`, and strip it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def as_tensor(data: Any) -> Tensor:
    """JSON-able data as bytes in a tensor [n] uint8."""
    return torch.frombuffer(bytearray(json.dumps(data).encode()), dtype=torch.uint8)


def from_tensor(tensor: Tensor) -> Any:
    """Decode the result of `as_tensor`."""
    return json.loads(bytes(tensor.cpu().tolist()))
