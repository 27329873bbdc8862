"""Tables of the modules, functions and methods that `convert` recognises, with their attributes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .graph import Attrs
from .trace import argument


def _pair(value: Any) -> list[int]:
    return [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)] * 2


def _conv(m: nn.Conv2d) -> Attrs:
    padding = m.padding if isinstance(m.padding, str) else _pair(m.padding)
    attrs: Attrs = {"in_channels": m.in_channels, "out_channels": m.out_channels}
    attrs |= {name: _pair(getattr(m, name)) for name in ("kernel_size", "stride", "dilation")}
    return attrs | {"padding": padding, "groups": m.groups, "bias": m.bias is not None}


def _norm(m: nn.BatchNorm1d | nn.BatchNorm2d) -> Attrs:
    return {
        "num_features": m.num_features,
        "eps": float(m.eps),
        "momentum": None if m.momentum is None else float(m.momentum),
        "affine": m.affine,
    }


def _max_pool(m: Any) -> Attrs:
    size = _pair(m.kernel_size)
    return {
        "kernel_size": size,
        "stride": _pair(m.stride) if m.stride else size,
        "padding": _pair(m.padding),
        "dilation": _pair(m.dilation),
        "ceil_mode": bool(m.ceil_mode),
    }


def _avg_pool(m: Any) -> Attrs:
    size = _pair(m.kernel_size)
    return {
        "kernel_size": size,
        "stride": _pair(m.stride) if m.stride else size,
        "padding": _pair(m.padding),
        "ceil_mode": bool(m.ceil_mode),
        "count_include_pad": bool(m.count_include_pad),
        "divisor_override": m.divisor_override,
    }


def _output_size(size: Any) -> Attrs:
    if isinstance(size, list | tuple):
        return {"output_size": [None if s is None else int(s) for s in size]}
    return {"output_size": [int(size)] * 2}


def _none(m: nn.Module) -> Attrs:
    return {}


# module type -> (operation, attributes)
MODULES: dict[type[nn.Module], tuple[str, Callable[[Any], Attrs]]] = {
    nn.Linear: (
        "linear",
        lambda m: {
            "in_features": m.in_features,
            "out_features": m.out_features,
            "bias": m.bias is not None,
        },
    ),
    nn.Conv2d: ("conv2d", _conv),
    nn.BatchNorm1d: ("batch_norm1d", _norm),
    nn.BatchNorm2d: ("batch_norm2d", _norm),
    nn.ReLU: ("relu", _none),
    nn.ReLU6: ("relu6", _none),
    nn.LeakyReLU: ("leaky_relu", lambda m: {"negative_slope": float(m.negative_slope)}),
    nn.ELU: ("elu", lambda m: {"alpha": float(m.alpha)}),
    nn.SELU: ("selu", _none),
    nn.SiLU: ("silu", _none),
    nn.Mish: ("mish", _none),
    nn.GELU: ("gelu", lambda m: {"approximate": m.approximate}),
    nn.Hardswish: ("hardswish", _none),
    nn.Hardsigmoid: ("hardsigmoid", _none),
    nn.Hardtanh: ("hardtanh", lambda m: {"min_val": float(m.min_val), "max_val": float(m.max_val)}),
    nn.Softplus: ("softplus", lambda m: {"beta": float(m.beta), "threshold": float(m.threshold)}),
    nn.Tanh: ("tanh", _none),
    nn.Sigmoid: ("sigmoid", _none),
    nn.Identity: ("identity", _none),
    nn.Dropout: ("dropout", lambda m: {"p": float(m.p)}),
    nn.Dropout2d: ("dropout2d", lambda m: {"p": float(m.p)}),
    nn.MaxPool2d: ("max_pool2d", _max_pool),
    nn.AvgPool2d: ("avg_pool2d", _avg_pool),
    nn.AdaptiveAvgPool2d: ("adaptive_avg_pool2d", lambda m: _output_size(m.output_size)),
    nn.AdaptiveMaxPool2d: ("adaptive_max_pool2d", lambda m: _output_size(m.output_size)),
    nn.ZeroPad2d: ("zero_pad2d", lambda m: {"padding": [int(p) for p in m.padding]}),
    nn.Upsample: (
        "upsample",
        lambda m: {"size": m.size, "scale_factor": m.scale_factor, "mode": m.mode},
    ),
    nn.Flatten: ("flatten", _none),
    nn.LogSoftmax: ("log_softmax", lambda m: {"dim": -1 if m.dim is None else m.dim}),
}

# function or method name -> operation; the tensor is the only argument apart from HARMLESS ones
UNARY: dict[Any, str] = {
    F.relu: "relu",
    F.relu_: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    "relu": "relu",
    "relu_": "relu",
    F.relu6: "relu6",
    F.selu: "selu",
    F.selu_: "selu",
    torch.selu: "selu",
    torch.selu_: "selu",
    F.silu: "silu",
    F.mish: "mish",
    F.hardswish: "hardswish",
    F.hardsigmoid: "hardsigmoid",
    torch.tanh: "tanh",
    torch.tanh_: "tanh",
    F.tanh: "tanh",
    "tanh": "tanh",
    "tanh_": "tanh",
    torch.sigmoid: "sigmoid",
    torch.sigmoid_: "sigmoid",
    F.sigmoid: "sigmoid",
    "sigmoid": "sigmoid",
    "sigmoid_": "sigmoid",
    "contiguous": "identity",
    torch.clone: "identity",
    "clone": "identity",
}

BINARY: dict[Any, str] = {
    operator.add: "add",
    operator.iadd: "add",
    torch.add: "add",
    "add": "add",
    "add_": "add",
    operator.sub: "sub",
    operator.isub: "sub",
    torch.sub: "sub",
    "sub": "sub",
    "sub_": "sub",
    operator.mul: "mul",
    operator.imul: "mul",
    torch.mul: "mul",
    "mul": "mul",
    "mul_": "mul",
    operator.truediv: "div",
    operator.itruediv: "div",
    torch.div: "div",
    "div": "div",
    "div_": "div",
}
SYMMETRIC = ("add", "mul")

RESHAPES: tuple[Any, ...] = (
    torch.flatten,
    torch.reshape,
    torch.squeeze,
    torch.unsqueeze,
    "flatten",
    "view",
    "reshape",
    "squeeze",
    "unsqueeze",
)
EXPANDS = ("expand", "expand_as")
MEANS: tuple[Any, ...] = (torch.mean, "mean")

# Arguments of UNARY calls that don't change the result.
HARMLESS = {"input", "inplace", "memory_format"}


class _Arguments:
    """Arguments of a functional call, as attributes named as those of the module."""

    def __init__(self, node: fx.Node, names: str, **defaults: Any) -> None:
        for position, name in enumerate(names.split(), start=1):
            setattr(self, name, argument(node, position, name, defaults.get(name)))


def _max_pool_call(node: fx.Node) -> Attrs:
    names = "kernel_size stride padding dilation ceil_mode"
    return _max_pool(_Arguments(node, names, padding=0, dilation=1, ceil_mode=False))


def _avg_pool_call(node: fx.Node) -> Attrs:
    names = "kernel_size stride padding ceil_mode count_include_pad divisor_override"
    defaults = {"padding": 0, "ceil_mode": False, "count_include_pad": True}
    return _avg_pool(_Arguments(node, names, **defaults))


def _leaky_relu_call(node: fx.Node) -> Attrs:
    return {"negative_slope": float(argument(node, 1, "negative_slope", 0.01))}


def _elu_call(node: fx.Node) -> Attrs:
    return {"alpha": float(argument(node, 1, "alpha", 1.0))}


def _hardtanh_call(node: fx.Node) -> Attrs:
    low, high = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
    return {"min_val": float(low), "max_val": float(high)}


# function -> (operation, attributes of a call)
CALLS: dict[Any, tuple[str, Callable[[fx.Node], Attrs]]] = {
    F.gelu: ("gelu", lambda n: {"approximate": n.kwargs.get("approximate", "none")}),
    F.leaky_relu: ("leaky_relu", _leaky_relu_call),
    F.leaky_relu_: ("leaky_relu", _leaky_relu_call),
    F.elu: ("elu", _elu_call),
    F.elu_: ("elu", _elu_call),
    F.hardtanh: ("hardtanh", _hardtanh_call),
    F.hardtanh_: ("hardtanh", _hardtanh_call),
    F.max_pool2d: ("max_pool2d", _max_pool_call),
    torch.max_pool2d: ("max_pool2d", _max_pool_call),
    F.avg_pool2d: ("avg_pool2d", _avg_pool_call),
    F.adaptive_avg_pool2d: (
        "adaptive_avg_pool2d",
        lambda n: _output_size(argument(n, 1, "output_size", 1)),
    ),
    F.adaptive_max_pool2d: (
        "adaptive_max_pool2d",
        lambda n: _output_size(argument(n, 1, "output_size", 1)),
    ),
}
