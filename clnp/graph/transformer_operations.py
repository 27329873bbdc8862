"""Rows of the table of operations for transformers: norms over channels, heads, attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .block_norm import NORMS, NORMS_OPTIONAL, layer_norm, rms_norm
from .constants import AddTensor, Fill, MultiplyTensor
from .operations import OPS, Attrs, Op, carrier
from .plain_attention import Attention


def _packed(x: Any, dim: int, sizes: list[int]) -> Any:
    heads, parts, *within = sizes
    return x.unflatten(dim, (parts, heads, *within))


def _packed_units(x: Any, dim: int, sizes: list[int]) -> Any:
    """Do the same with all entries of a head adjacent, as in a masked or narrow network."""
    return x.unflatten(dim, sizes).movedim(dim + 1, dim)


def _tiled(x: Any, start: int, end: int, times: int) -> Any:
    return x.flatten(start, end)


def _tiled_units(x: Any, start: int, end: int, times: int) -> Any:
    """Do the same with all entries of a channel adjacent, as in a masked or narrow network."""
    return x.movedim(end, start).flatten(start, end)


def _before(x: Any, tokens: Any, axis: int) -> Any:
    return torch.cat([tokens.expand(x.shape[0], -1, -1), x], 3 - axis)


def _behind(x: Any, tokens: Any, axis: int) -> Any:
    return torch.cat([x, tokens.expand(x.shape[0], -1, -1)], 3 - axis)


def _embedding(in_features: int, out_features: int, padding_idx: int | None) -> nn.Embedding:
    return nn.Embedding(in_features, out_features, padding_idx)


def _within(function: Any) -> Any:
    def apply(x: Any, dims: int, eps: float | None) -> Any:
        return function(x, x.shape[-dims:], eps=eps)

    return apply


def _last(attrs: Attrs, dims: int) -> range:
    return range(dims - attrs["dims"], dims)


def _axes(function: Any, attrs: tuple[str, ...], touches: Any, label: str = "") -> Op:
    return Op("axes", None, function, attrs, touches, kind="other axes", label=label)


def _norm(make: Any, attrs: tuple[str, ...], label: str) -> Op:
    return Op("norm_across", make, attrs=attrs, kind="norms", label=label)


SPLIT: tuple[str, ...] = ("dim", "sizes")
ROWS: dict[str, Op] = {
    "embedding": Op(
        *("layer", _embedding),
        attrs=("in_features", "out_features", "padding_idx"),
        kind="layers",
        label="Embedding, EmbeddingBag",
    ),
    "before": carrier(_before, "class tokens and the like"),
    "behind": carrier(_behind, ""),
    "layer_norm": _norm(layer_norm, ("num_features", "eps", "affine", "bias"), "LayerNorm"),
    "rms_norm": _norm(rms_norm, ("num_features", "eps", "affine"), "RMSNorm"),
    "layer_norm_within": _axes(_within(F.layer_norm), ("dims", "eps"), _last),
    "rms_norm_within": _axes(_within(F.rms_norm), ("dims", "eps"), _last),
    "normalize": _axes(
        lambda x, dim, p, eps: F.normalize(x, p, dim, eps),
        *(("dim", "p", "eps"), lambda attrs, dims: (attrs["dim"],), "normalize"),
    ),
    "heads": Op("heads", None, torch.unflatten, SPLIT),
    "packed": Op("packed", None, _packed, SPLIT),
    "packed_units": Op("packed", None, _packed_units, SPLIT),
    "tiled": Op("tiled", None, _tiled, ("start", "end", "times")),
    "tiled_units": Op("tiled", None, _tiled_units, ("start", "end", "times")),
    "product": Op("product", None, torch.matmul, kind="attention", label="matmul, bmm"),
    "einsum": Op(
        *("einsum", None, lambda a, b, equation: torch.einsum(equation, a, b), ("equation",)),
        kind="attention",
        label="einsum",
    ),
    "attention": Op(
        *("attention", Attention),
        attrs=("p", "causal", "scale", "shared", "mask"),
        kind="attention",
        label="scaled_dot_product_attention, MultiheadAttention",
    ),
    "add_tensor": Op("constant", AddTensor, attrs=("value", "axis")),
    "mul_tensor": Op("constant", MultiplyTensor, attrs=("value", "axis")),
    "fill": Op(
        *("constant", Fill),
        attrs=("value", "axis", "number"),
        kind="attention",
        label="masked_fill, where",
    ),
}
OPS |= ROWS
# operations of the dense network -> those on values whose units are adjacent
IN_UNITS = {"packed": "packed_units", "tiled": "tiled_units"}


def arguments(op: str, attrs: Attrs) -> Attrs:
    """Return the keyword arguments that build an operation's module."""
    names = OPS[op].attrs + (NORMS_OPTIONAL if op in NORMS else ())
    return {name: attrs[name] for name in names if name in attrs}
