"""A rule per kind of operation without weights: a recorded call -> steps of a graph.

A rule reads a `Place`: the call, and shapes and channels of its first input. It raises
`UnclearError` with a reason, or returns None if it doesn't understand the arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx

from .axes import Step, UnclearError, index_steps, is_divided, permutation, reshape_steps
from .calls import name_of
from .channels import Value
from .operations import OPS, Attrs
from .recognised import (
    BINARY,
    CALLS,
    CASTS,
    EXPANDS,
    HARMLESS,
    PERMUTES,
    REDUCTIONS,
    RESHAPES,
    UNARY,
    pair,
)
from .trace import DROPOUTS, argument

Shape = tuple[int, ...]
Steps = list[Step]


@dataclass(frozen=True)
class Place:
    """A call within a record.

    Attributes:
        node: the call.
        before, after: shapes of its first input and of its result.
        value: channels of its first input.
        batch: axes of the batch before and after.
        same_dtype: whether input and result have one dtype.
        off: whether it is a dropout that is off.
    """

    node: fx.Node
    before: Shape
    after: Shape
    value: Value
    batch: tuple[tuple[int, ...], tuple[int, ...]]
    same_dtype: bool
    off: bool

    @property
    def name(self) -> str:
        """Name of the function or method, without the underscore of in-place ones."""
        if self.node.target is getattr:
            return str(self.node.args[1])
        return name_of(self.node.target).rstrip("_")


def steps_of(place: Place) -> Steps | None:
    """Return the steps of a call with one tensor that depends on the input, else None."""
    for names, rule in RULES:
        if place.name in names:
            return rule(place)
    return None


def _unary(place: Place) -> Steps | None:
    if set(place.node.kwargs) <= HARMLESS and len(place.node.args) <= 1 + (place.name == "relu"):
        return [(UNARY[place.name], {})]
    return None


def _call(place: Place) -> Steps | None:
    if place.node.kwargs.get("return_indices"):
        return None
    return [(place.name, CALLS[place.name](place.node))]


def _dropout(place: Place) -> Steps | None:
    if place.off:
        return [("identity", {})]
    return [(DROPOUTS[place.node.target], {"p": float(argument(place.node, 1, "p", 0.5))})]


def _stochastic_depth(place: Place) -> Steps | None:
    _, p, mode = place.node.args
    return [("stochastic_depth", {"p": p, "mode": mode})]


def reshaped(place: Place) -> Steps:
    """Steps of a reshape, judged by the shapes."""
    before, after = place.before, place.after
    if before == after:
        return [("identity", {})]
    plain = place.batch == ((0,), (0,)) and place.value.axis in (None, 1)
    if plain and len(after) == 2 and after[0] == before[0] and place.value.positions == 1:
        positions = torch.Size(before[2:]).numel()
        return [("flatten", {"start_dim": 1, "end_dim": -1, "positions": positions})]
    if plain and len(before) == 2 and after == (*before, 1, 1) and place.value.positions == 1:
        return [("unsqueeze", {})]
    try:
        divided = partial(is_divided, place.node, len(after))
        return reshape_steps(before, after, place.value, place.batch, divided)
    except UnclearError as error:
        raise UnclearError(f"it turns shape {list(before)} into {list(after)}; {error}") from error


def _permuted(place: Place) -> Steps:
    return [("permute", {"dims": permutation(place.node, len(place.before))})]


def _expanded(place: Place) -> Steps | None:
    """Broadcasting before a product or sum, which broadcasts by itself, is left out."""
    before, after, users = place.before, place.after, place.node.users
    if before == after:
        return [("identity", {})]
    joined = all(name_of(u.target).rstrip("_") in BINARY and len(u.args) == 2 for u in users)
    if len(before) == len(after) and users and joined:
        return [("identity", {})]
    new = len(after) - len(before)
    steps: Steps = [("insert_axis", {"dim": 0})] * new
    sizes = [n if m != n else -1 for m, n in zip((1,) * new + before, after, strict=True)]
    if any(sizes[axis] != -1 for axis in place.batch[1]):
        return None
    return [*steps, ("expand", {"sizes": sizes})]


def _axes(given: Any, dims: int) -> list[int]:
    axes = [given] if isinstance(given, int) else list(given or ())
    return sorted(int(axis) % dims for axis in axes)


def _reduced(place: Place) -> Steps | None:
    node, dims = place.node, len(place.before)
    if set(node.kwargs) - {"input", "dim", "axis", "keepdim"} or len(node.args) > 3:
        return None
    axes = _axes(argument(node, 1, "dim", node.kwargs.get("axis")), dims)
    keepdim = bool(argument(node, 2, "keepdim", False))
    if not axes or set(axes) & set(place.batch[0]):
        raise UnclearError("it reduces over the batch; name the axes, as x.mean((2, 3))")
    images = dims == 4 and place.value.axis in (None, 1) and axes == [2, 3]
    if place.name == "mean" and images and place.value.positions == 1:
        if keepdim:
            return [("adaptive_avg_pool2d", {"output_size": [1, 1]})]
        return [("spatial_mean", {"positions": 1})]
    return [(place.name, {"dim": axes, "keepdim": keepdim})]


def _index(place: Place) -> Steps:
    steps = index_steps(place.node.args[1], place.before)
    if any(op in ("slice", "select") and attrs["dim"] in place.batch[0] for op, attrs in steps):
        raise UnclearError("it takes a part of the batch")
    return steps or [("identity", {})]


def _select(place: Place) -> Steps:
    dims = len(place.before)
    dim, index = (int(argument(place.node, i, n, 0)) for i, n in ((1, "dim"), (2, "index")))
    return [("select", {"dim": dim % dims, "index": index % place.before[dim]})]


def _narrow(place: Place) -> Steps:
    names = ("dim", "start", "length")
    dim, start, length = (int(argument(place.node, i + 1, n, 0)) for i, n in enumerate(names))
    start %= place.before[dim]
    dim %= len(place.before)
    return [("slice", {"dim": dim, "start": start, "stop": start + length, "step": 1})]


def _pad(place: Place) -> Steps:
    pads = [int(p) for p in argument(place.node, 1, "pad", ())]
    mode = str(argument(place.node, 2, "mode", "constant"))
    value = float(argument(place.node, 3, "value", None) or 0.0)
    if len(place.before) == 4 and mode == "constant" and value == 0 and len(pads) == 4:
        return [("pad", {"pad": pads, "mode": mode, "value": value})]
    return [("pad", {"pad": pads, "mode": mode, "value": value})]


def _interpolated(place: Place) -> Steps | None:
    node = place.node
    names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
    defaults = (None, None, "nearest", None, None, False)
    size, factor, mode, corners, recompute, antialias = (
        argument(node, i + 1, n, d) for i, (n, d) in enumerate(zip(names, defaults, strict=True))
    )
    if antialias or recompute or len(place.before) != 4:
        return None
    attrs: Attrs = {
        "size": None if size is None else pair(size),
        "scale_factor": None if factor is None else _floats(factor),
        "mode": str(mode),
        "align_corners": corners,
    }
    if corners is None:
        del attrs["align_corners"]
    return [("upsample", attrs)]


def _floats(value: Any) -> Any:
    return [float(v) for v in value] if isinstance(value, list | tuple) else float(value)


def _softmax(place: Place) -> Steps | None:
    dim = argument(place.node, 1, "dim", None)
    if not isinstance(dim, int) or place.node.kwargs.get("dtype"):
        return None
    axis = dim % len(place.before)
    if axis == place.value.axis:
        return None
    return [("softmax", {"dim": axis})]


def _log_softmax(place: Place) -> Steps | None:
    dim = argument(place.node, 1, "dim", -1)
    if dim in (1, -1) and not place.node.kwargs.get("dtype"):
        return [("log_softmax", {"dim": dim})]
    return None


def _cast(place: Place) -> Steps | None:
    return [("identity", {})] if place.same_dtype else None


def _clamp(place: Place) -> Steps | None:
    low, high = (argument(place.node, i, n, None) for i, n in ((1, "min"), (2, "max")))
    low = low if place.name != "clamp_max" else None
    if place.name == "clamp_max":
        high = argument(place.node, 1, "max", None)
    if isinstance(low, fx.Node) or isinstance(high, fx.Node):
        return None
    return [("clamp", {"min": low, "max": high})]


def _rolled(place: Place) -> Steps | None:
    node, dims = place.node, len(place.before)
    if place.name == "flip":
        given = node.args[1:] or (node.kwargs.get("dims"),)
        first: Any = given[0]
        axes = _axes(first if isinstance(first, list | tuple) else given, dims)
        return [("flip", {"dims": axes})]
    shifts, axis = argument(node, 1, "shifts", None), argument(node, 2, "dims", None)
    if axis is None:
        return None
    axes = [int(d) % dims for d in (axis if isinstance(axis, list | tuple) else [axis])]
    return [("roll", {"shifts": pair(shifts, 1), "dims": axes})]


def _max_over_axis(place: Place) -> Steps | None:
    """Values of x.max(dim), whose indices are not used."""
    dim = argument(place.node, 1, "dim", None)
    if not isinstance(dim, int):
        return None
    op = "amax" if place.name == "max" else "amin"
    keepdim = bool(argument(place.node, 2, "keepdim", False))
    return [(op, {"dim": [dim % len(place.before)], "keepdim": keepdim})]


def _pool1d(place: Place) -> Steps | None:
    """A pool over [B, C, L] as one over images one pixel high."""
    node, name = place.node, place.name.replace("1d", "2d")
    if len(place.before) != 3 or node.kwargs.get("return_indices"):
        return None
    attrs = CALLS[name](node)
    for key, value in attrs.items():
        if isinstance(value, list):
            attrs[key] = [{"padding": 0}.get(key, 1), value[-1]]
    attrs.pop("divisor_override", None)
    if name == "avg_pool2d":
        attrs["divisor_override"] = None
    return [("insert_axis", {"dim": 2}), (name, attrs), ("squeeze", {"dim": 2})]


def _factor(place: Place) -> int:
    return int(argument(place.node, 1, "upscale_factor", 1))


def _groups(place: Place) -> Attrs:
    return {"groups": int(argument(place.node, 1, "groups", 1))}


def _norm_within(place: Place) -> Steps | None:
    """A norm without weights over axes behind that of the channels."""
    shape = argument(place.node, 1, "normalized_shape", ())
    dims = 1 if isinstance(shape, int) else len(shape)
    at, default = (4, 1e-5) if place.name == "layer_norm" else (3, None)
    eps = argument(place.node, at, "eps", default)
    return [(f"{place.name}_within", {"dims": dims, "eps": eps})]


def _normalized(place: Place) -> Steps | None:
    p, dim, eps = (
        argument(place.node, i, name, default)
        for i, name, default in ((1, "p", 2.0), (2, "dim", 1), (3, "eps", 1e-12))
    )
    if not isinstance(dim, int):
        return None
    return [("normalize", {"dim": dim % len(place.before), "p": float(p), "eps": float(eps)})]


def _repeated(place: Place) -> Steps | None:
    """Every entry of an axis several times, one behind the other."""
    repeats, dim = argument(place.node, 1, "repeats", None), argument(place.node, 2, "dim", None)
    if not isinstance(dim, int) or not isinstance(repeats, int) or place.value.positions > 1:
        return None
    dims = len(place.before)
    dim %= dims
    sizes = [-1] * (dim + 1) + [repeats] + [-1] * (dims - dim - 1)
    flat: Attrs = {"start_dim": dim, "end_dim": dim + 1}
    flat |= {"positions": repeats} if dim == place.value.axis else {}
    return [("insert_axis", {"dim": dim + 1}), ("expand", {"sizes": sizes}), ("flatten", flat)]


RULES: tuple[tuple[Any, Callable[[Place], Steps | None]], ...] = (
    (UNARY, _unary),
    (CALLS, _call),
    (("dropout", "dropout2d"), _dropout),
    (("stochastic_depth",), _stochastic_depth),
    (RESHAPES, reshaped),
    (PERMUTES, _permuted),
    (EXPANDS, _expanded),
    (REDUCTIONS, _reduced),
    (("getitem",), _index),
    (("select",), _select),
    (("narrow",), _narrow),
    (("pad",), _pad),
    (("interpolate", "upsample"), _interpolated),
    (("softmax",), _softmax),
    (("log_softmax",), _log_softmax),
    (CASTS, _cast),
    (("clamp", "clamp_min", "clamp_max", "clip"), _clamp),
    (("roll", "flip"), _rolled),
    (("pixel_shuffle",), lambda p: [("pixel_shuffle", {"factor": _factor(p)})]),
    (("channel_shuffle", "native_channel_shuffle"), lambda p: [("channel_shuffle", _groups(p))]),
    (("max", "min"), _max_over_axis),
    (("max_pool1d", "avg_pool1d", "adaptive_avg_pool1d", "adaptive_max_pool1d"), _pool1d),
    (("layer_norm", "rms_norm"), _norm_within),
    (("normalize",), _normalized),
    (("repeat_interleave",), _repeated),
)
assert set(CALLS) <= set(OPS)
