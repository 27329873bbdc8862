"""Tables of the modules, functions and methods that `convert` recognises, with their attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from .operations import MATHS, Attrs
from .trace import argument


def pair(value: Any, count: int = 2) -> list[int]:
    """Return a number per axis, from a list of them or from one for all."""
    numbers = [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
    return numbers * count if len(numbers) == 1 else numbers


def _conv(m: nn.Conv2d) -> Attrs:
    padding = m.padding if isinstance(m.padding, str) else pair(m.padding)
    attrs: Attrs = {"in_channels": m.in_channels, "out_channels": m.out_channels}
    attrs |= {name: pair(getattr(m, name)) for name in ("kernel_size", "stride", "dilation")}
    return attrs | {"padding": padding, "groups": m.groups, "bias": m.bias is not None}


def _norm(m: nn.BatchNorm1d | nn.BatchNorm2d) -> Attrs:
    return {
        "num_features": m.num_features,
        "eps": float(m.eps),
        "momentum": None if m.momentum is None else float(m.momentum),
        "affine": m.affine,
    }


def _max_pool(m: Any, axes: int = 2) -> Attrs:
    size = pair(m.kernel_size, axes)
    return {
        "kernel_size": size,
        "stride": pair(m.stride, axes) if m.stride else size,
        "padding": pair(m.padding, axes),
        "dilation": pair(m.dilation, axes),
        "ceil_mode": bool(m.ceil_mode),
    }


def _avg_pool(m: Any, axes: int = 2) -> Attrs:
    size = pair(m.kernel_size, axes)
    return {
        "kernel_size": size,
        "stride": pair(m.stride, axes) if m.stride else size,
        "padding": pair(m.padding, axes),
        "ceil_mode": bool(m.ceil_mode),
        "count_include_pad": bool(m.count_include_pad),
        "divisor_override": m.divisor_override,
    }


def _output_size(size: Any, axes: int = 2) -> Attrs:
    if isinstance(size, list | tuple):
        return {"output_size": [None if s is None else int(s) for s in size]}
    return {"output_size": [int(size)] * axes}


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
    nn.LPPool2d: (
        "lp_pool2d",
        lambda m: {
            "norm_type": float(m.norm_type),
            "kernel_size": pair(m.kernel_size),
            "stride": pair(m.stride or m.kernel_size),
            "ceil_mode": bool(m.ceil_mode),
        },
    ),
    nn.AdaptiveAvgPool2d: ("adaptive_avg_pool2d", lambda m: _output_size(m.output_size)),
    nn.AdaptiveMaxPool2d: ("adaptive_max_pool2d", lambda m: _output_size(m.output_size)),
    nn.ZeroPad2d: ("zero_pad2d", lambda m: {"padding": [int(p) for p in m.padding]}),
    nn.Flatten: ("flatten", _none),
    nn.CELU: ("celu", lambda m: {"alpha": float(m.alpha)}),
    nn.Softsign: ("softsign", _none),
    nn.LogSigmoid: ("logsigmoid", _none),
    nn.Tanhshrink: ("tanhshrink", _none),
    nn.Hardshrink: ("hardshrink", lambda m: {"lambd": float(m.lambd)}),
    nn.Softshrink: ("softshrink", lambda m: {"lambd": float(m.lambd)}),
    nn.Threshold: ("threshold", lambda m: {"threshold": m.threshold, "value": m.value}),
    nn.LogSoftmax: ("log_softmax", lambda m: {"dim": -1 if m.dim is None else m.dim}),
}

# name of a function or method of one tensor -> operation, apart from HARMLESS arguments
UNARY: dict[str, str] = {
    **{name: name for name in MATHS},
    **{name: name for name in ("relu", "relu6", "selu", "silu", "mish", "hardswish", "tanh")},
    **{name: name for name in ("hardsigmoid", "sigmoid", "softsign", "logsigmoid", "tanhshrink")},
    **dict.fromkeys(("contiguous", "clone", "positive"), "identity"),
}
BINARY: dict[str, str] = {
    **{name: name for name in ("add", "sub", "mul", "div", "maximum", "minimum", "pow")},
    **{"subtract": "sub", "multiply": "mul", "divide": "div", "true_divide": "div"},
    **{"truediv": "div"},
}
# operations that only change the shape, judged by the shapes before and after
RESHAPES = (
    *("flatten", "reshape", "squeeze", "unsqueeze", "view", "unflatten", "ravel", "view_as"),
    *("reshape_as", "atleast_2d", "atleast_3d"),
)
PERMUTES = (
    *("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "T", "mT"),
)
EXPANDS = ("expand", "expand_as", "broadcast_to")
REDUCTIONS = ("mean", "sum", "amax", "amin")
PARTS = ("chunk", "split", "unbind", "tensor_split", "split_with_sizes")
# operations that return the same numbers if the dtype doesn't change
CASTS = ("to", "float", "double", "half", "bfloat16", "type", "type_as", "cpu", "cuda")

# Arguments of UNARY calls that don't change the result.
HARMLESS = {"input", "inplace", "memory_format"}


class _Arguments:
    """Arguments of a functional call, as attributes named as those of the module."""

    def __init__(self, node: fx.Node, names: str, **defaults: Any) -> None:
        for position, name in enumerate(names.split(), start=1):
            setattr(self, name, argument(node, position, name, defaults.get(name)))


def _max_pool_call(node: fx.Node, axes: int = 2) -> Attrs:
    names = "kernel_size stride padding dilation ceil_mode"
    return _max_pool(_Arguments(node, names, padding=0, dilation=1, ceil_mode=False), axes)


def _avg_pool_call(node: fx.Node, axes: int = 2) -> Attrs:
    names = "kernel_size stride padding ceil_mode count_include_pad divisor_override"
    defaults = {"padding": 0, "ceil_mode": False, "count_include_pad": True}
    return _avg_pool(_Arguments(node, names, **defaults), axes)


def _numbers(**defaults: float) -> Callable[[fx.Node], Attrs]:
    """Return a reader of the numbers behind the tensor, in this order."""

    def read(node: fx.Node) -> Attrs:
        found = enumerate(defaults.items(), start=1)
        return {name: float(argument(node, i, name, value)) for i, (name, value) in found}

    return read


def _output_size_call(node: fx.Node, axes: int = 2) -> Attrs:
    return _output_size(argument(node, 1, "output_size", 1), axes)


# name of a function of one tensor and numbers -> attributes of a call; the operation has that name
CALLS: dict[str, Callable[[fx.Node], Attrs]] = {
    "gelu": lambda n: {"approximate": n.kwargs.get("approximate", "none")},
    "leaky_relu": _numbers(negative_slope=0.01),
    "elu": _numbers(alpha=1.0),
    "celu": _numbers(alpha=1.0),
    "hardtanh": _numbers(min_val=-1.0, max_val=1.0),
    "softplus": _numbers(beta=1.0, threshold=20.0),
    "hardshrink": _numbers(lambd=0.5),
    "softshrink": _numbers(lambd=0.5),
    "threshold": _numbers(threshold=0.0, value=0.0),
    "max_pool2d": _max_pool_call,
    "avg_pool2d": _avg_pool_call,
    "adaptive_avg_pool2d": _output_size_call,
    "adaptive_max_pool2d": _output_size_call,
    "max_pool3d": lambda n: _max_pool_call(n, 3),
    "avg_pool3d": lambda n: _avg_pool_call(n, 3),
    "adaptive_avg_pool3d": lambda n: _output_size_call(n, 3),
    "adaptive_max_pool3d": lambda n: _output_size_call(n, 3),
}

# Modules of PyTorch that are refused as a whole, with a reason of their own.
WHOLE = (nn.RNNBase, nn.LocalResponseNorm, nn.Bilinear)


def is_leaf(module: nn.Module, args: tuple[Any, ...]) -> bool:
    """Return whether a call of a module is recorded as one operation."""
    if type(module) not in MODULES:
        return isinstance(module, WHOLE) and type(module).__module__.startswith("torch.nn")
    if isinstance(module, nn.Conv2d):
        plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return plain and args[0].dim() == 4
    return not isinstance(module, nn.BatchNorm1d) or args[0].dim() == 2
