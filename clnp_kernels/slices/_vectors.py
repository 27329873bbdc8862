"""Vectors per channel, in the dtype that sums are in."""

import torch
from torch import Tensor


def widened(vector: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The vector [C] in a dtype; None stays."""
    return None if vector is None else vector.to(dtype)
