"""Definition of `channel_activity`."""

import torch
from torch import Tensor


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over values of `dtype`: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def channel_activity(x: Tensor, dim: int) -> Tensor:
    """Sum of `|x|` over every dimension but `dim`: [..., C, ...] -> [C]."""
    dtype = accumulator(x.dtype)
    return x.abs().movedim(dim, 0).unsqueeze(-1).flatten(1).sum(1, dtype=dtype)
