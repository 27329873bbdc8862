"""A method's run as named tensors and plain data, so that it can stop and go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with `prefix` before every name."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the tensors whose names begin with `prefix`, which is taken off."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def as_tensor(data: Any) -> Tensor:
    """JSON-able data as bytes in a tensor [n] uint8."""
    return torch.frombuffer(bytearray(json.dumps(data).encode()), dtype=torch.uint8)


def from_tensor(tensor: Tensor) -> Any:
    """The inverse of `as_tensor`."""
    return json.loads(bytes(tensor.cpu().tolist()))
