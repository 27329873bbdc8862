"""Layer and RMS norms, found by the functions that compute them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from .axes import UnclearError
from .statics import Static
from .trace import argument
from .weights import READERS, Layer, changed, per_channel, static_of

Channels = tuple[int | None, int]  # axis and number of the channels of a value


def layer_norm(node: fx.Node, dims: int, channels: Channels) -> list[Layer]:
    """Read F.layer_norm(x, shape, weight, bias, eps)."""
    weight, bias = (_static(argument(node, i, n, None)) for i, n in ((2, "weight"), (3, "bias")))
    eps = float(argument(node, 4, "eps", 1e-5))
    return _norm(node, "layer_norm", {"eps": eps}, (weight, bias), dims, channels)


def rms_norm(node: fx.Node, dims: int, channels: Channels) -> list[Layer]:
    """Read F.rms_norm(x, shape, weight, eps)."""
    eps = argument(node, 3, "eps", None)
    attrs = {"eps": None if eps is None else float(eps)}
    vectors = (_static(argument(node, 2, "weight", None)), None)
    return _norm(node, "rms_norm", attrs, vectors, dims, channels)


def _static(value: Any) -> Static | None:
    if value is None:
        return None
    found = static_of(value)
    if found is None:
        raise UnclearError("its weight depends on the input")
    return found


def _norm(
    node: fx.Node,
    op: str,
    attrs: dict[str, Any],
    vectors: tuple[Static | None, Static | None],
    dims: int,
    channels: Channels,
) -> list[Layer]:
    shape = argument(node, 1, "normalized_shape", ())
    sizes = [shape] if isinstance(shape, int) else [int(size) for size in shape]
    first = dims - len(sizes)
    axis = dims - 1 if channels[0] is None else channels[0]
    if axis < first:
        return _within(op, attrs, sizes, vectors, dims, channels)
    if len(sizes) > 1:
        raise UnclearError(
            f"it normalises over channels and other axes at once, shape {sizes}; normalise over "
            "the channels only, or use GroupNorm of several groups"
        )
    weight, bias = vectors
    if weight is None and bias is not None:
        raise UnclearError("it has a bias without a weight")
    attrs = {"num_features": sizes[0], **attrs, "affine": weight is not None}
    if op == "layer_norm":
        attrs["bias"] = bias is not None
    return [Layer(op, attrs, {"weight": weight, "bias": bias})]


def _within(
    op: str,
    attrs: dict[str, Any],
    sizes: list[int],
    vectors: tuple[Static | None, Static | None],
    dims: int,
    channels: Channels,
) -> list[Layer]:
    """A norm within each channel: a step without weights, a factor and an offset per channel."""
    axis, count = channels
    assert axis is not None
    layers = [
        per_channel(kind, changed(vector, vector.value.detach()), axis, dims, count)
        for kind, vector in zip(("scale", "shift"), vectors, strict=True)
        if vector is not None
    ]
    step = (f"{op}_within", {"dims": len(sizes), "eps": attrs["eps"]})
    if not layers:
        raise UnclearError("it has no weights within each channel")
    layers[0].before = [step]
    return layers


READERS |= dict.fromkeys((F.layer_norm, torch.layer_norm), layer_norm)
READERS |= dict.fromkeys((F.rms_norm, torch.rms_norm), rms_norm)
