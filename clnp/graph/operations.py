"""The table of operations: every kind that a `Graph` may contain, one row each.

A row says what an operation does to the channels, how it is built again, and under which name the
documentation and refusals list it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .plain import StochasticDepth

Attrs = dict[str, Any]
Moved = tuple[int | None, int]  # axis of the channels (None for a raw input), number of axes
WITH_WEIGHTS = ("layer", "channelwise", "grouped", "norm_across")


@dataclass(frozen=True)
class Op:
    """A kind of operation.

    Attributes:
        role: effect on channels: "input", "layer" (new channels from all channels it reads),
            "channelwise" (weights per channel), "elementwise", "spatial" (within each channel of
            images [B, C, H, W]), "axes" (along axes other than that of the channels), "unsqueeze"
            ([B, C] to images of one pixel), "grouped" (weights per group of channels), "units"
            (mixes groups of channels), "pixels" (channels become pixels), "concat", "shuffle" and
            "parts" (channels are put together anew), "flatten" (its attribute "positions" is the
            number of entries per channel afterwards), "unflatten", "merge" (joins tensors, whose
            channels are then pruned together), "norm_across" (a norm over channels, block by
            block), "heads" and "packed" (an axis of channels becomes one of heads), "product" (a
            matrix product within each channel) or "attention".
        make: attributes -> plain `torch.nn` module; None for a function.
        function: (inputs, attributes) -> result, if there is no module.
        attrs: names of the required attributes.
        touches: for "axes": (attributes, number of axes) -> axes that it works along.
        moves: for "axes": (attributes, axis of the channels, number of axes) -> both afterwards.
        kind: row of the documentation's table; "" for what is not listed.
        label: name in that table.
    """

    role: str
    make: Callable[..., nn.Module] | None = None
    function: Callable[..., Any] | None = None
    attrs: tuple[str, ...] = ()
    touches: Callable[[Attrs, int], Collection[int]] = lambda attrs, dims: ()
    moves: Callable[[Attrs, int | None, int], Moved] = lambda attrs, axis, dims: (axis, dims)
    kind: str = ""
    label: str = ""


CONV = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"),
    *("groups", "bias"),
)
NORM = ("num_features", "eps", "momentum", "affine")
MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
AVG_POOL = (
    *("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    "divisor_override",
)


def _upsample(
    size: Any, scale_factor: Any, mode: str, align_corners: bool | None = None
) -> nn.Upsample:
    # torch expects tuples, which JSON turns into lists
    size = tuple(size) if isinstance(size, list) else size
    factor = tuple(scale_factor) if isinstance(scale_factor, list) else scale_factor
    return nn.Upsample(size, factor, mode, align_corners)


def _concat(*inputs: Any, dim: int, sizes: list[int]) -> Any:
    return torch.cat(inputs, dim)


def _shuffled(x: Any, groups: int) -> Any:
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _parts(*inputs: Any, dim: int, parts: list[list[int]]) -> Any:
    slices = [_part(inputs[i], dim, start, stop, 1) for i, start, stop in parts]
    return slices[0] if len(slices) == 1 else torch.cat(slices, dim)


def _picked(*inputs: Any, dim: int, index: list[int]) -> Any:
    x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim)
    place: Any = (*[slice(None)] * dim, index)
    return x[place]


def _group_norm(x: Any, each: int, eps: float) -> Any:
    return F.group_norm(x, x.shape[1] // each, eps=eps)


def _filtered(
    x: Any, kernel: list[Any], stride: list[int], padding: list[int], dilation: list[int]
) -> Any:
    channels, rows, columns = x.shape[1], len(kernel), len(kernel[0])
    weight = x.new_tensor(kernel).expand(channels, 1, rows, columns)
    return F.conv2d(x, weight, None, stride, padding, dilation, channels)


def _part(x: Any, dim: int, start: int, stop: int, step: int) -> Any:
    return x[(*[slice(None)] * dim, slice(start, stop, step))]


def _one(attrs: Attrs, dims: int) -> Collection[int]:
    return (attrs["dim"],)


def _several(attrs: Attrs, dims: int) -> Collection[int]:
    return tuple(attrs["dim"])


def _padded(attrs: Attrs, dims: int) -> Collection[int]:
    pads = attrs["pad"]
    return [dims - 1 - i // 2 for i in range(len(pads)) if pads[i]]


def _expanded(attrs: Attrs, dims: int) -> Collection[int]:
    return [i for i, size in enumerate(attrs["sizes"]) if size != -1]


def _without(attrs: Attrs, axis: int | None, dims: int) -> Moved:
    """Axes after those in `dim` are gone."""
    gone = attrs["dim"] if isinstance(attrs["dim"], list) else [attrs["dim"]]
    return (None if axis is None else axis - sum(d < axis for d in gone)), dims - len(gone)


def _reduced(attrs: Attrs, axis: int | None, dims: int) -> Moved:
    return (axis, dims) if attrs["keepdim"] else _without(attrs, axis, dims)


def _inserted(attrs: Attrs, axis: int | None, dims: int) -> Moved:
    return (None if axis is None else axis + (attrs["dim"] <= axis)), dims + 1


def _permuted(attrs: Attrs, axis: int | None, dims: int) -> Moved:
    return (None if axis is None else attrs["dims"].index(axis)), dims


def _along(function: Any, *attrs: str, label: str = "", moves: Any = None) -> Op:
    """Row of a function along the axis or axes `dim`."""
    several = "dims" if "keepdim" in attrs else "dim"
    return Op(
        "axes",
        function=function,
        attrs=attrs,
        touches=_several if several == "dims" else _one,
        moves=moves or Op.moves,
        kind="other axes",
        label=label,
    )


def _activation(make: Callable[..., nn.Module], *attrs: str) -> Op:
    return Op("elementwise", make, attrs=attrs, kind="activations", label=make.__name__)


def _layer(
    make: Callable[..., nn.Module], role: str, attrs: tuple[str, ...], label: str, kind: str = ""
) -> Op:
    return Op(role, make, attrs=attrs, kind=kind or "layers", label=label)


def _pool(make: Callable[..., nn.Module], *attrs: str) -> Op:
    return Op("spatial", make, attrs=attrs, kind="images", label=make.__name__)


def _volume(make: Callable[..., nn.Module], *attrs: str) -> Op:
    """Row of a pool over the last three axes."""
    return Op(
        *("axes", make, None, attrs, lambda attrs, dims: range(dims - 3, dims)),
        kind="images",
        label=make.__name__,
    )


def _number(function: Callable[..., Any], label: str = "") -> Op:
    return Op("elementwise", function=function, attrs=("value",), kind="numbers", label=label)


def _merge(function: Callable[..., Any], label: str) -> Op:
    return Op("merge", function=function, kind="sums", label=label)


def carrier(function: Callable[[Any, Any, int], Any], label: str) -> Op:
    """Row of a function of a value and a weight [C, ...], whose axis 0 meets that of the channels.

    "fresh" is the weight of a channel that no task has used.
    """

    def apply(x: Any, weight: Any, axis: int) -> Any:
        return function(x, weight.movedim(0, axis), axis)

    def make(axis: int, channels: int, shape: list[int], fresh: float) -> nn.Module:
        return nn.ParameterDict({"weight": torch.full((channels, *shape), fresh)})

    attrs = ("axis", "channels", "shape", "fresh")
    return Op("channelwise", make, apply, attrs, kind="layers", label=label)


def _constant(function: Callable[[Any, Tensor], Any]) -> Op:
    """Row of a function with a constant tensor that is the same for all channels."""

    def with_tensor(x: Any, value: list[Any], axis: int) -> Any:
        return function(x, x.new_tensor(value))

    return Op("constant", function=with_tensor, attrs=("value", "axis"), kind="numbers", label="")


OPS: dict[str, Op] = {
    "input": Op("input", attrs=("shape",)),
    "linear": _layer(nn.Linear, "layer", ("in_features", "out_features", "bias"), "Linear"),
    "conv2d": _layer(nn.Conv2d, "layer", CONV, "Conv2d, Conv1d, ConvTranspose2d, ConvTranspose1d"),
    "depthwise_conv2d": _layer(nn.Conv2d, "channelwise", CONV, "depthwise convolutions"),
    "grouped_conv2d": _layer(nn.Conv2d, "grouped", CONV, "grouped convolutions"),
    "batch_norm1d": _layer(nn.BatchNorm1d, "channelwise", NORM, "BatchNorm1d", "norms"),
    "batch_norm2d": _layer(
        nn.BatchNorm2d, "channelwise", NORM, "BatchNorm2d, SyncBatchNorm", "norms"
    ),
    "relu": _activation(nn.ReLU),
    "relu6": _activation(nn.ReLU6),
    "leaky_relu": _activation(nn.LeakyReLU, "negative_slope"),
    "elu": _activation(nn.ELU, "alpha"),
    "celu": _activation(nn.CELU, "alpha"),
    "selu": _activation(nn.SELU),
    "silu": _activation(nn.SiLU),
    "mish": _activation(nn.Mish),
    "gelu": _activation(nn.GELU, "approximate"),
    "hardswish": _activation(nn.Hardswish),
    "hardsigmoid": _activation(nn.Hardsigmoid),
    "hardtanh": _activation(nn.Hardtanh, "min_val", "max_val"),
    "softplus": _activation(nn.Softplus, "beta", "threshold"),
    "softsign": _activation(nn.Softsign),
    "logsigmoid": _activation(nn.LogSigmoid),
    "tanhshrink": _activation(nn.Tanhshrink),
    "hardshrink": _activation(nn.Hardshrink, "lambd"),
    "softshrink": _activation(nn.Softshrink, "lambd"),
    "threshold": _activation(nn.Threshold, "threshold", "value"),
    "tanh": _activation(nn.Tanh),
    "sigmoid": _activation(nn.Sigmoid),
    "identity": Op("elementwise", nn.Identity),
    "contiguous": Op("elementwise", function=lambda x: x.contiguous()),
    "dropout": Op("elementwise", nn.Dropout, attrs=("p",), kind="random", label="Dropout"),
    "stochastic_depth": Op(
        *("elementwise", StochasticDepth),
        attrs=("p", "mode"),
        kind="random",
        label="stochastic depth (DropPath)",
    ),
    "dropout2d": Op("spatial", nn.Dropout2d, attrs=("p",), kind="random", label="Dropout2d"),
    "max_pool2d": _pool(nn.MaxPool2d, *MAX_POOL),
    "avg_pool2d": _pool(nn.AvgPool2d, *AVG_POOL),
    "lp_pool2d": _pool(nn.LPPool2d, "norm_type", "kernel_size", "stride", "ceil_mode"),
    "adaptive_avg_pool2d": _pool(nn.AdaptiveAvgPool2d, "output_size"),
    "adaptive_max_pool2d": _pool(nn.AdaptiveMaxPool2d, "output_size"),
    "zero_pad2d": _pool(nn.ZeroPad2d, "padding"),
    "upsample": Op(
        *("spatial", _upsample),
        attrs=("size", "scale_factor", "mode"),
        kind="images",
        label="Upsample, interpolate",
    ),
    "instance_norm": Op(
        *("spatial", None, lambda x, eps: F.instance_norm(x, eps=eps), ("eps",)),
        kind="norms",
        label="InstanceNorm2d, GroupNorm with a group per channel",
    ),
    "group_norm": Op(
        *("units", None, _group_norm, ("each", "eps")), kind="norms", label="GroupNorm"
    ),
    "filter": Op(
        *("spatial", None, _filtered, ("kernel", "stride", "padding", "dilation")),
        kind="images",
        label="blurs (one constant filter for all channels)",
    ),
    "pixel_shuffle": Op(
        *("pixels", None, lambda x, factor: F.pixel_shuffle(x, factor), ("factor",)),
        kind="images",
        label="PixelShuffle",
    ),
    "concat": Op("concat", None, _concat, ("dim", "sizes"), kind="sums", label="cat"),
    "channel_shuffle": Op(
        *("shuffle", None, _shuffled, ("groups",)), kind="shapes", label="channel shuffle"
    ),
    "parts": Op("parts", None, _parts, ("dim", "parts")),
    "picked": Op("parts", None, _picked, ("dim", "index")),
    "spatial_mean": Op("flatten", lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())),
    "unsqueeze": Op("unsqueeze", lambda: nn.Unflatten(1, (-1, 1, 1))),
    "flatten": Op(
        *("flatten", nn.Flatten, None, ("start_dim", "end_dim")),
        kind="shapes",
        label="view, reshape, flatten, unflatten, squeeze, unsqueeze",
    ),
    "unflatten": Op("unflatten", function=torch.unflatten, attrs=("dim", "sizes")),
    "permute": Op(
        *("axes", None, torch.permute, ("dims",)),
        moves=_permuted,
        kind="other axes",
        label="permute, transpose, movedim",
    ),
    "squeeze": _along(torch.squeeze, "dim", moves=_without),
    "insert_axis": Op("axes", None, torch.unsqueeze, ("dim",), moves=_inserted),
    "select": _along(torch.select, "dim", "index", label="select", moves=_without),
    "slice": _along(_part, "dim", "start", "stop", "step", label="slices, chunk, split, unbind"),
    "mean": _along(torch.mean, "dim", "keepdim", label="mean", moves=_reduced),
    "sum": _along(torch.sum, "dim", "keepdim", label="sum", moves=_reduced),
    "amax": _along(torch.amax, "dim", "keepdim", label="amax", moves=_reduced),
    "amin": _along(torch.amin, "dim", "keepdim", label="amin", moves=_reduced),
    "softmax": _along(torch.softmax, "dim", label="softmax"),
    "flip": Op(
        "axes", None, torch.flip, ("dims",), lambda a, d: a["dims"], kind="other axes", label="flip"
    ),
    "roll": Op(
        *("axes", None, torch.roll, ("shifts", "dims"), lambda a, d: a["dims"]),
        kind="other axes",
        label="roll",
    ),
    "pad": Op(
        *("axes", None, F.pad, ("pad", "mode", "value"), _padded), kind="other axes", label="pad"
    ),
    "expand": Op(
        *("axes", None, lambda x, sizes: x.expand(*sizes), ("sizes",), _expanded),
        kind="other axes",
        label="expand",
    ),
    "log_softmax": Op("elementwise", nn.LogSoftmax, attrs=("dim",)),
    "add": _merge(operator.add, "`+`"),
    "sub": _merge(operator.sub, "`-`"),
    "mul": _merge(operator.mul, "`*`"),
    "div": _merge(operator.truediv, "`/`"),
    "maximum": _merge(torch.maximum, "maximum"),
    "minimum": _merge(torch.minimum, "minimum"),
    "add_number": _number(lambda x, value: x + value, "`x + 1`"),
    "sub_number": _number(lambda x, value: x - value, "`x - 1`"),
    "mul_number": _number(lambda x, value: x * value, "`2 * x`"),
    "div_number": _number(lambda x, value: x / value, "`x / 2`"),
    "pow_number": _number(lambda x, value: x**value, "`x ** 2`"),
    "rsub_number": _number(lambda x, value: value - x, "`1 - x`"),
    "rdiv_number": _number(lambda x, value: value / x, "`1 / x`"),
    "clamp": Op("elementwise", None, torch.clamp, ("min", "max"), kind="numbers", label="clamp"),
    "add_constant": _constant(operator.add),
    "mul_constant": _constant(operator.mul),
    "scale": carrier(lambda x, w, axis: x * w, "layer scale and other factors per channel"),
    "shift": carrier(lambda x, w, axis: x + w, "offsets per channel"),
    "prelu": carrier(lambda x, w, axis: torch.where(x > 0, x, x * w), "PReLU"),
}
OPS |= {
    "conv3d": _layer(nn.Conv3d, "layer", CONV, "Conv3d"),
    "max_pool3d": _volume(nn.MaxPool3d, *MAX_POOL),
    "avg_pool3d": _volume(nn.AvgPool3d, *AVG_POOL),
    "adaptive_avg_pool3d": _volume(nn.AdaptiveAvgPool3d, "output_size"),
    "adaptive_max_pool3d": _volume(nn.AdaptiveMaxPool3d, "output_size"),
}
MATHS = (
    *("neg", "abs", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "square", "reciprocal"),
    *("sin", "cos", "erf", "sign", "floor", "ceil", "round", "atan"),
)
OPS |= {
    name: Op("elementwise", function=getattr(torch, name), kind="maths", label=name)
    for name in MATHS
}


def documented() -> dict[str, str]:
    """Return what conversion understands: kind -> names, for the documentation and refusals."""
    kinds: dict[str, list[str]] = {}
    for op in OPS.values():
        if op.label:
            kinds.setdefault(op.kind, []).append(op.label)
    return {kind: ", ".join(labels) for kind, labels in kinds.items()}
