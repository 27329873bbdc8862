"""`channel_activity` by PyTorch's reduction, which needs no copy of any layout."""

from torch import Tensor

from ..reference.channel_activity import accumulator


def channel_activity(x: Tensor, dim: int) -> Tensor:
    """Sum of `|x|` over every dimension but `dim`: [..., C, ...] -> [C]."""
    dtype, others = accumulator(x.dtype), [d for d in range(x.ndim) if d != dim]
    # torch.linalg.vector_norm would be one pass, but adds one by one on the CPU
    return x.abs().sum(others, dtype=dtype) if others else x.abs().to(dtype)
