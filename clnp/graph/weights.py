"""Layers found by the weights that an operation takes: F.linear, F.conv2d, F.batch_norm, ...

A weight is a parameter, or was computed from parameters without the input (a weight norm, a
standardised or masked weight). The second is folded: the layer starts with its present numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .axes import Step, UnclearError
from .channels import MIXES
from .operations import OPS, Attrs
from .recognised import pair
from .statics import Static
from .trace import argument

LINEAR = (F.linear, torch.matmul, "matmul", torch.mm, "mm", "__matmul__")
CONVOLUTIONS: dict[Any, int] = {F.conv2d: 2, torch.conv2d: 2, F.conv1d: 1, torch.conv1d: 1}
CONVOLUTIONS |= {F.conv3d: 3, torch.conv3d: 3}
TRANSPOSED: dict[Any, int] = {
    **{F.conv_transpose2d: 2, torch.conv_transpose2d: 2},
    **{F.conv_transpose1d: 1, torch.conv_transpose1d: 1},
}


@dataclass
class Layer:
    """A layer, with what is done before and behind it.

    Attributes:
        op, attrs: operation of the graph.
        tensors: "weight", "bias", "running_mean" and "running_var" -> the tensor, or None.
        before, after: steps around it.
    """

    op: str
    attrs: Attrs
    tensors: dict[str, Static | None]
    before: list[Step] = field(default_factory=list)
    after: list[Step] = field(default_factory=list)

    def module(self) -> nn.Module:
        """Build the dense module, which shares parameters and buffers with the network."""
        make = OPS[self.op].make
        assert make is not None
        with torch.device("meta"):
            module = make(**{name: self.attrs[name] for name in OPS[self.op].attrs})
        for name, static in self.tensors.items():
            if static is None:
                continue
            value: Any = static.value
            if name.startswith("running"):
                module.register_buffer(name, value)
            else:
                if not isinstance(value, nn.Parameter):
                    value = nn.Parameter(value.detach().clone())
                setattr(module, name, value)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            device = module.running_mean.device  # type: ignore[union-attr]
            module.num_batches_tracked = torch.zeros((), dtype=torch.long, device=device)
        return module


def static_of(value: Any) -> Static | None:
    """Return the description of an argument that doesn't depend on the input, else None."""
    found = value.meta.get("static") if isinstance(value, fx.Node) else None
    return found if isinstance(found, Static) else None


def _needed(value: Any) -> Static:
    found = static_of(value)
    if found is None:
        raise UnclearError("its weight depends on the input")
    return found


def _optional(value: Any) -> Static | None:
    return None if value is None else _needed(value)


def changed(static: Static, value: Tensor) -> Static:
    """Return a description of a tensor computed from another."""
    return Static(value, "", static.learned, static.random)


def linear(node: fx.Node) -> Layer:
    """Read F.linear(x, weight, bias), and x @ weight."""
    weight = _needed(argument(node, 1, "weight", None) or node.kwargs.get("other"))
    bias = None
    if node.target is F.linear:
        bias = _optional(argument(node, 2, "bias", None))
    elif weight.value.dim() == 2:
        weight = changed(weight, weight.value.detach().t())
    if weight.value.dim() != 2:
        raise UnclearError(f"its weight has {weight.value.dim()} axes, expected two")
    outputs, inputs = weight.value.shape
    attrs: Attrs = {"in_features": inputs, "out_features": outputs, "bias": bias is not None}
    return Layer("linear", attrs, {"weight": weight, "bias": bias})


def convolution(node: fx.Node, dims: int) -> Layer:
    """Read F.conv3d, F.conv2d, and F.conv1d as a convolution of images one pixel high."""
    weight, bias = _needed(argument(node, 1, "weight", None)), _bias(node)
    padding = argument(node, 4, "padding", 0)
    numbers = {
        "stride": pair(argument(node, 3, "stride", 1), dims),
        "padding": padding if isinstance(padding, str) else pair(padding, dims),
        "dilation": pair(argument(node, 5, "dilation", 1), dims),
        "groups": int(argument(node, 6, "groups", 1)),
    }
    return conv_layer(weight, bias, numbers, dims)


def _bias(node: fx.Node) -> Static | None:
    return _optional(argument(node, 2, "bias", None))


def conv_layer(weight: Static, bias: Static | None, numbers: Attrs, dims: int) -> Layer:
    """Build a convolution from its weight [O, I, ...] and numbers per axis.

    Raises:
        UnclearError: more than three axes, or groups of a volume's channels.
    """
    outputs, per_group, *kernel = weight.value.shape
    groups = numbers["groups"]
    if len(kernel) != dims or dims > 3 or (dims == 3 and groups > 1):
        grouped = f" in {groups} groups" if groups > 1 else ""
        raise UnclearError(f"it is a convolution over {len(kernel)} axes{grouped}")
    inputs = per_group * groups
    numbers = dict(numbers)
    before, numbers["padding"] = _padding(numbers["padding"], kernel, numbers["dilation"])
    around: tuple[list[Step], list[Step]] = ([], [])
    if dims == 1:
        around = [("insert_axis", {"dim": 2})], [("squeeze", {"dim": 2})]
        weight = changed(weight, weight.value.detach().unsqueeze(2))
        kernel = [1, *kernel]
        one = {"stride": 1, "padding": 0, "dilation": 1}
        numbers |= {name: [value, *numbers[name]] for name, value in one.items()}
    op = "conv3d" if dims == 3 else kind_of_conv(groups, inputs, outputs)
    attrs: Attrs = {"in_channels": inputs, "out_channels": outputs, "kernel_size": kernel}
    attrs |= numbers | {"bias": bias is not None}
    tensors: dict[str, Static | None] = {"weight": weight, "bias": bias}
    return Layer(op, attrs, tensors, [*before, *around[0]], around[1])


def constant_filter(node: fx.Node, channels: tuple[int | None, int]) -> list[Step]:
    """Steps of F.conv2d with one constant filter for every channel, as of a blur, else none."""
    weight = static_of(argument(node, 1, "weight", None))
    if weight is None or weight.learned or weight.random or weight.value.dim() != 4:
        return []
    groups, filters = int(argument(node, 6, "groups", 1)), weight.value.detach()
    depthwise = len(filters) == groups and channels[1] in (0, groups)  # 0: the network's input
    alike = depthwise and bool((filters == filters[:1]).all())
    if not alike or argument(node, 2, "bias", None) is not None:
        return []
    padding, kernel = argument(node, 4, "padding", 0), list(filters.shape[2:])
    dilation = pair(argument(node, 5, "dilation", 1))
    padding = padding if isinstance(padding, str) else pair(padding)
    before, padding = _padding(padding, kernel, dilation)
    attrs: Attrs = {"kernel": filters[0, 0].tolist(), "padding": padding, "dilation": dilation}
    return [*before, ("filter", attrs | {"stride": pair(argument(node, 3, "stride", 1))})]


def kind_of_conv(groups: int, inputs: int, outputs: int) -> str:
    """Return the operation of a dense, depthwise or grouped convolution."""
    if groups == 1:
        return "conv2d"
    return "depthwise_conv2d" if groups == inputs == outputs else "grouped_conv2d"


def _padding(padding: Any, kernel: list[int], dilation: list[int]) -> tuple[list[Step], list[int]]:
    """Turn padding='same' or 'valid' into numbers, with a step for an odd one."""
    if padding == "valid":
        return [], [0] * len(kernel)
    if padding != "same":
        return [], list(padding)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if not any(r % 2 for r in reach):
        return [], [r // 2 for r in reach]
    pads = [p for r in reversed(reach) for p in (r // 2, r - r // 2)]
    return [("pad", {"pad": pads, "mode": "constant", "value": 0.0})], [0] * len(kernel)


def transposed(node: fx.Node, dims: int) -> Layer:
    """Read F.conv_transpose2d: a convolution of the input with zeros between its pixels.

    The zeros cost time; the result is the same to rounding.
    """
    weight, bias = _needed(argument(node, 1, "weight", None)), _bias(node)
    names = ("stride", "padding", "output_padding")
    stride, padding, extra = (
        pair(argument(node, 3 + i, name, 1 if i == 0 else 0), dims) for i, name in enumerate(names)
    )
    dilation = pair(argument(node, 7, "dilation", 1), dims)
    groups = int(argument(node, 6, "groups", 1))
    value = weight.value.detach().flip(list(range(2, 2 + dims)))
    kernel = list(value.shape[2:])
    parts = [part.transpose(0, 1) for part in value.chunk(groups)]
    value = parts[0] if groups == 1 else torch.cat(parts)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    margins = [(r - p, r - p + e) for r, p, e in zip(reach, padding, extra, strict=True)]
    numbers: Attrs = {"stride": [1] * dims, "padding": [0] * dims, "dilation": dilation}
    layer = conv_layer(changed(weight, value), bias, numbers | {"groups": groups}, dims)
    spread = [step for i, s in enumerate(stride) if s > 1 for step in _spread(2 + i, s, dims)]
    pads = [p for margin in reversed(margins) for p in margin]
    pad: Step = ("pad", {"pad": pads, "mode": "constant", "value": 0.0})
    layer.before = [*spread, pad, *layer.before]
    return layer


def _spread(dim: int, stride: int, dims: int) -> list[Step]:
    """Put stride - 1 zeros between the entries of an axis of [B, C, ...] with `dims` axes more."""
    behind = dims + 1 - dim  # axes behind this one
    pads = [0, 0] * behind + [0, stride - 1]
    return [
        ("insert_axis", {"dim": dim + 1}),
        ("pad", {"pad": pads, "mode": "constant", "value": 0.0}),
        ("flatten", {"start_dim": dim, "end_dim": dim + 1}),
        ("pad", {"pad": [0, 0] * behind + [0, 1 - stride], "mode": "constant", "value": 0.0}),
    ]


def batch_norm(node: fx.Node, shape: Sequence[int]) -> Layer:
    """Read F.batch_norm of values [B, C], [B, C, L], [B, C, H, W] or [B, C, D, H, W].

    Raises:
        UnclearError: no running statistics, or another number of axes.
    """
    names = ("running_mean", "running_var", "weight", "bias")
    mean, var, weight, bias = (
        _optional(argument(node, i + 1, name, None)) for i, name in enumerate(names)
    )
    if mean is None or var is None:
        raise UnclearError(
            "expected track_running_stats=True, got False; a learned task needs its frozen running "
            "statistics"
        )
    if (weight is None) != (bias is None):
        raise UnclearError("it has one of weight and bias; it needs both or none")
    dims = len(shape)
    if dims not in (2, 3, 4, 5):
        raise UnclearError(f"expected [B, C] and up to three axes of pixels, got {dims} axes")
    attrs: Attrs = {
        "num_features": len(mean.value),
        "eps": float(argument(node, 7, "eps", 1e-5)),
        "momentum": float(argument(node, 6, "momentum", 0.1)),
        "affine": weight is not None,
    }
    tensors = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    layer = Layer("batch_norm1d" if dims == 2 else "batch_norm2d", attrs, tensors)
    if dims == 3:
        layer.before, layer.after = [("insert_axis", {"dim": 3})], [("squeeze", {"dim": 3})]
    elif dims == 5:
        layer.before = [("flatten", {"start_dim": 2, "end_dim": 3})]
        layer.after = [("unflatten", {"dim": 2, "sizes": [int(n) for n in shape[2:4]]})]
    return layer


def per_channel(op: str, static: Static, axis: int, dims: int, channels: int) -> Layer:
    """Build a carrier: a parameter that is stored with the channels first.

    Arguments:
        op: "scale", "shift" or "prelu".
        static: the parameter; it broadcasts with a value of `dims` axes.
        axis: axis of the channels of that value.
        channels: their number; a parameter that they share gets a copy for each.
    """
    value = static.value.detach()
    value = value.reshape(*[1] * (dims - value.dim()), *value.shape)
    value = value.movedim(axis, 0)
    value = value.expand(channels, *value.shape[1:]).contiguous()
    fresh = 0.0 if op == "shift" else float(value.double().mean())
    attrs: Attrs = {"axis": axis, "channels": channels, "shape": list(value.shape[1:])}
    attrs["fresh"] = fresh
    return Layer(op, attrs, {"weight": changed(static, value)})


def layers_of(
    node: fx.Node, shape: Sequence[int], channels: tuple[int | None, int]
) -> Sequence[Layer | list[Step]]:
    """Return the layers, or steps without weights, that a call computes, one behind the other.

    None if it has neither weights nor takes any.

    Arguments:
        node: the call.
        shape: shape of its first input.
        channels: axis and number of the channels of that.

    Raises:
        UnclearError: it has weights, and is not supported.
    """
    target, dims = node.target, len(shape)
    if target in LINEAR and node.args and static_of(node.args[0]) is None:
        second = argument(node, 1, "weight", None) or node.kwargs.get("other")
        return [linear(node)] if target is F.linear or static_of(second) else []
    if target in CONVOLUTIONS and (blur := constant_filter(node, channels)):
        return [blur]
    if target in CONVOLUTIONS:
        return [convolution(node, CONVOLUTIONS[target])]
    if target in TRANSPOSED:
        return [transposed(node, TRANSPOSED[target])]
    if target is F.batch_norm:
        return [batch_norm(node, shape)]
    if target in (F.prelu, torch.prelu, "prelu"):
        return [_prelu(node, dims, channels)]
    if target is F.instance_norm:
        names = ("running_mean", "running_var", "weight", "bias")
        mean, _, *affine = (argument(node, i + 1, name, None) for i, name in enumerate(names))
        if mean is not None:
            raise UnclearError("its running statistics are not supported; use BatchNorm2d")
        return _apart(affine, argument(node, 7, "eps", 1e-5), dims, channels)
    if target in (F.group_norm, torch.group_norm):
        affine = [argument(node, i, name, None) for i, name in ((2, "weight"), (3, "bias"))]
        eps, groups = argument(node, 4, "eps", 1e-5), int(argument(node, 1, "num_groups", 1))
        if groups == channels[1]:
            return _apart(affine, eps, dims, channels)
        if channels[0] != 1 or dims < 3:
            raise UnclearError(f"expected channels on axis 1 of images, got {dims} axes")
        if groups == 1:
            raise UnclearError(f"{MIXES}; use a norm of several groups, or BatchNorm2d")
        step: Step = ("group_norm", {"each": channels[1] // groups, "eps": float(eps)})
        return _with_affine(step, affine, dims, channels)
    return other_layers(node, dims, channels)


def _apart(
    affine: list[Any], eps: Any, dims: int, channels: tuple[int | None, int]
) -> Sequence[Layer | list[Step]]:
    """Layers of a norm of each channel of an image: the norm, a factor and an offset."""
    if channels[0] != 1 or dims < 3:
        raise UnclearError(f"expected channels on axis 1 of images, got {dims} axes")
    step: Step = ("instance_norm", {"eps": float(eps)})
    if dims != 4:
        step = ("group_norm", {"each": 1, "eps": float(eps)})
    return _with_affine(step, affine, dims, channels)


def _with_affine(
    step: Step, affine: list[Any], dims: int, channels: tuple[int | None, int]
) -> Sequence[Layer | list[Step]]:
    """A norm, and a factor and an offset per channel where it has them."""
    found: list[Layer | list[Step]] = [[step]]
    for op, value in zip(("scale", "shift"), affine, strict=True):
        static = _optional(value)
        if static is not None:
            shaped = changed(static, static.value.detach().view(-1, *[1] * (dims - 2)))
            found.append(per_channel(op, shaped, 1, dims, channels[1]))
    return found


def _prelu(node: fx.Node, dims: int, channels: tuple[int | None, int]) -> Layer:
    weight = _needed(argument(node, 1, "weight", None))
    axis = 1 if channels[0] is None else channels[0]
    slopes = weight.value.detach()
    count = channels[1] or len(slopes)
    if len(slopes) > 1:
        if axis != 1:
            raise UnclearError("its slopes are along another axis than the channels")
        slopes = slopes.reshape(-1, *[1] * (dims - 2))
    return per_channel("prelu", changed(weight, slopes), axis, dims, count)


def other_layers(node: fx.Node, dims: int, channels: tuple[int | None, int]) -> list[Layer]:
    """Return the layers of a call whose reader is registered in `READERS`."""
    reader = READERS.get(node.target)
    return reader(node, dims, channels) if reader else []


Reader = Callable[[fx.Node, int, tuple[int | None, int]], list[Layer]]
READERS: dict[Any, Reader] = {}  # further functions -> (call, axes, channels) -> its layers
