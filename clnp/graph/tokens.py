"""Lowering of tokens: tables of embeddings, and learned tokens before or behind others."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from .axes import UnclearError
from .trace import argument
from .weights import READERS, Layer, per_channel, static_of

Channels = tuple[int | None, int]  # axis and number of the channels of a value


def embedding(node: fx.Node, dims: int, channels: Channels) -> list[Layer]:
    """Read F.embedding(x, weight, padding_idx)."""
    if channels[0] is not None or static_of(node.args[0]) is not None:
        return []
    names = ("padding_idx", "max_norm")
    padding, most = (argument(node, 2 + i, name, None) for i, name in enumerate(names))
    if most is not None:
        raise UnclearError("its vectors change in every call (max_norm); leave that out")
    weight = static_of(argument(node, 1, "weight", None))
    if weight is None:
        raise UnclearError("its weight depends on the input")
    numbers, width = weight.value.shape
    padding = None if padding is None else int(padding) % numbers
    attrs = {"in_features": numbers, "out_features": width, "padding_idx": padding}
    return [Layer("embedding", attrs, {"weight": weight})]


def embedding_bag(node: fx.Node, dims: int, channels: Channels) -> list[Layer]:
    """Read F.embedding_bag of [B, T]: the sum, mean or maximum of T vectors."""
    names = (
        *("offsets", "max_norm", "norm_type", "scale_grad_by_freq", "mode", "sparse"),
        *("per_sample_weights", "include_last_offset", "padding_idx"),
    )
    given = {name: argument(node, 2 + i, name, None) for i, name in enumerate(names)}
    odd = [
        n
        for n in ("offsets", "max_norm", "per_sample_weights", "padding_idx")
        if given[n] is not None
    ]
    if odd or dims != 2:
        raise UnclearError(f"expected numbers [B, T] without {odd[0] if odd else 'offsets'}")
    mode = given["mode"] or "mean"
    weight = static_of(argument(node, 1, "weight", None))
    if weight is None:
        raise UnclearError("its weight depends on the input")
    numbers, width = weight.value.shape
    attrs = {"in_features": numbers, "out_features": width, "padding_idx": None}
    after = [({"max": "amax"}.get(mode, mode), {"dim": [1], "keepdim": False})]
    return [Layer("embedding", attrs, {"weight": weight}, after=after)]


READERS |= {F.embedding: embedding, torch.embedding: embedding, F.embedding_bag: embedding_bag}


def joined(low: Any, node: fx.Node) -> bool:
    """Read torch.cat([tokens, x], 1) of learned tokens, as a class token, and a value [B, T, C]."""
    given = argument(node, 0, "tensors", ())
    dim = argument(node, 1, "dim", node.kwargs.get("axis", 0))
    if not isinstance(given, list | tuple) or not isinstance(dim, int):
        return False
    hidden = [n for n in given if isinstance(n, fx.Node) and n in low.names]
    if len(hidden) != 1 or len(given) == 1:
        return False
    (source,) = hidden
    axis, channels = low._channels(source)
    dims, at = len(low.shapes[source.name]), list(given).index(source)
    dim %= dims
    if dims != 3 or axis is None or dim != 3 - axis:
        return False
    low.names[node] = low.names[source]
    for kind, tokens in (("before", given[:at][::-1]), ("behind", given[at + 1 :])):
        for token in tokens:
            static = static_of(token)
            if static is None or not static.learned:
                raise UnclearError("it joins a value with tokens that no task could learn")
            low._layer(node, per_channel(kind, _of_one(static), axis, dims, channels))
    return True


def _of_one(static: Any) -> Any:
    """Return tokens without the axis of the batch, to which they may be expanded."""
    value = static.value.detach()
    if value.dim() != 3 or not bool((value == value[:1]).all()):
        raise UnclearError("it joins a value with tokens that differ among the examples of a batch")
    return type(static)(value[:1], "", static.learned, static.random)
