"""Attention as a module of a task's network, in plain PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .constants import AddTensor


class Attention(nn.Module):
    """Scaled dot-product attention of [B, H, T, D], with dropout in training.

    Arguments:
        p: probability that a weight is dropped.
        causal: a place sees itself and the places before it.
        scale: factor of the products; None for 1 / sqrt(D).
        shared: several heads of the queries share one of the keys and values.
        mask: added to the products, as of `encoded`; None for no mask.
    """

    def __init__(
        self, p: float, causal: bool, scale: float | None, shared: bool, mask: Any
    ) -> None:
        super().__init__()
        self.p, self.causal, self.scale, self.shared = p, causal, scale, shared
        self.mask = None if mask is None else AddTensor(mask, None)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(
            *(q, k, v),
            attn_mask=None if self.mask is None else self.mask.matched(q),
            dropout_p=self.p if self.training else 0.0,
            is_causal=self.causal,
            scale=self.scale,
            enable_gqa=self.shared,
        )

    def extra_repr(self) -> str:
        return f"p={self.p}, causal={self.causal}, scale={self.scale}, shared={self.shared}"
