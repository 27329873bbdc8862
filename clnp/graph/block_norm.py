"""Layer and RMS norms of a task's network, in plain PyTorch: each task's channels in their turn.

Block a has the channels that task a added. It is normalised with the mean and the variance of the
channels of blocks 1 to a, so it does not depend on what later tasks add.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMS = ("layer_norm", "rms_norm")
NORMS_OPTIONAL = ("ends", "order")  # attributes of a task's network
Blocks = list[int] | None


class _BlockNorm(nn.Module):
    """Base of both norms.

    Arguments:
        ends: ends of the blocks, ascending; the last is the number of channels C.
        kinds: "weight" and "bias", which it has [C].
        order: the channels, block after block, as indices of the input's; None if they stand so.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self, ends: Sequence[int], kinds: Sequence[str], order: Sequence[int] | None
    ) -> None:
        super().__init__()
        if not ends or any(a >= b for a, b in pairwise((0, *ends))):
            raise ValueError(f"ends: expected ascending ends of blocks, got {list(ends)}")
        if order is not None and sorted(order) != list(range(ends[-1])):
            raise ValueError("order: expected every channel once")
        self.ends, self.order = tuple(ends), None if order is None else list(order)
        for kind, value in (("weight", 1.0), ("bias", 0.0)):
            tensor = torch.full((ends[-1],), value) if kind in kinds else None
            self.register_parameter(kind, None if tensor is None else nn.Parameter(tensor))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.ends[-1]:
            raise ValueError(f"x: expected {self.ends[-1]} channels, got {x.shape[-1]}")
        ordered = x if self.order is None else x[..., self.order]
        blocks = [
            self.normalised(ordered[..., :stop])[..., start:]
            for start, stop in pairwise((0, *self.ends))
        ]
        y = torch.cat(blocks, dim=-1)
        if self.order is not None:
            y = y[..., [self.order.index(i) for i in range(len(self.order))]]
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise the last axis of x [..., n] with its own statistics."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"ends={list(self.ends)}"


class BlockLayerNorm(_BlockNorm):
    """Layer norm of [..., C], block by block.

    Arguments:
        ends: ends of the blocks, ascending; the last is C.
        eps: added to the variance.
        affine, bias: has weights; and, with these, biases.
        order: the channels, block after block; None if they stand so.
    """

    def __init__(
        self,
        ends: Sequence[int],
        eps: float,
        affine: bool,
        bias: bool,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__(ends, ("weight", "bias")[: 1 + bias] if affine else (), order)
        self.eps = eps

    def normalised(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.eps)


class BlockRMSNorm(_BlockNorm):
    """RMS norm of [..., C], block by block.

    Arguments:
        ends: ends of the blocks, ascending; the last is C.
        eps: added to the mean square; None for the precision of the input.
        affine: has weights.
        order: the channels, block after block; None if they stand so.
    """

    def __init__(
        self,
        ends: Sequence[int],
        eps: float | None,
        affine: bool,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__(ends, ("weight",) if affine else (), order)
        self.eps = eps

    def normalised(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps)


def layer_norm(
    num_features: int,
    eps: float,
    affine: bool,
    bias: bool,
    ends: Blocks = None,
    order: Blocks = None,
) -> nn.Module:
    """Build a layer norm: PyTorch's for one block of channels."""
    if ends is None or len(ends) == 1:
        return nn.LayerNorm(num_features, eps, affine, bias)
    return BlockLayerNorm(ends, eps, affine, bias, order)


def rms_norm(
    num_features: int, eps: float | None, affine: bool, ends: Blocks = None, order: Blocks = None
) -> nn.Module:
    """Build an RMS norm: PyTorch's for one block of channels."""
    if ends is None or len(ends) == 1:
        return nn.RMSNorm(num_features, eps, affine)
    return BlockRMSNorm(ends, eps, affine, order)
