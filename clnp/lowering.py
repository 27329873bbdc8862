"""From a traced forward to a `Graph`.

Every operation is either recognised exactly or refused by name: a converted network that silently
computes something else would be worse than none.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from clnp.errors import ConvertError
from clnp.graph import OPS, WITH_WEIGHTS, Attrs, Graph, Node
from clnp.trace import DROPOUTS, Traced, argument, is_stochastic_depth, place_of, read

HELP = (
    "Supported are Linear, Conv2d (dense or depthwise), BatchNorm, activations, pooling, Dropout, "
    "Flatten, sums and products of hidden values, and modules built of them."
)
MIXES = "it computes on several channels at once, so earlier tasks would feel the channels of later"
REASONS = {
    "LayerNorm": MIXES,
    "layer_norm": MIXES,
    "GroupNorm": MIXES,
    "group_norm": MIXES,
    "LocalResponseNorm": MIXES,
    "MultiheadAttention": MIXES,
    "scaled_dot_product_attention": MIXES,
    "softmax": MIXES,
    "Softmax": MIXES,
    "cat": "concatenated channels belong to several layers at once, which pruning can't follow",
    "chunk": "parts of a layer's channels can't be pruned apart from the others",
    "split": "parts of a layer's channels can't be pruned apart from the others",
    "PReLU": "its slopes are weights that all tasks would share; use LeakyReLU",
    "SyncBatchNorm": "use BatchNorm2d",
}


def one(value: Any) -> list[int]:
    """A number, or two of them, as a list of two."""
    return [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)] * 2


def _conv(m: nn.Conv2d) -> Attrs:
    padding = m.padding if isinstance(m.padding, str) else one(m.padding)
    attrs: Attrs = {"in_channels": m.in_channels, "out_channels": m.out_channels}
    attrs |= {name: one(getattr(m, name)) for name in ("kernel_size", "stride", "dilation")}
    return attrs | {"padding": padding, "groups": m.groups, "bias": m.bias is not None}


def _norm(m: nn.BatchNorm1d | nn.BatchNorm2d) -> Attrs:
    return {
        "num_features": m.num_features,
        "eps": float(m.eps),
        "momentum": None if m.momentum is None else float(m.momentum),
        "affine": m.affine,
    }


def _max_pool(m: Any) -> Attrs:
    size = one(m.kernel_size)
    return {
        "kernel_size": size,
        "stride": one(m.stride) if m.stride else size,
        "padding": one(m.padding),
        "dilation": one(m.dilation),
        "ceil_mode": bool(m.ceil_mode),
    }


def _avg_pool(m: Any) -> Attrs:
    size = one(m.kernel_size)
    return {
        "kernel_size": size,
        "stride": one(m.stride) if m.stride else size,
        "padding": one(m.padding),
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
    nn.Hardtanh: (
        "hardtanh",
        lambda m: {"min_val": float(m.min_val), "max_val": float(m.max_val)},
    ),
    nn.Softplus: (
        "softplus",
        lambda m: {"beta": float(m.beta), "threshold": float(m.threshold)},
    ),
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

# function or method name -> operation, where the tensor is the only argument (bar `inplace`)
UNARY: dict[Any, str] = {
    F.relu: "relu",
    F.relu_: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    "relu": "relu",
    "relu_": "relu",
    F.relu6: "relu6",
    F.selu: "selu",
    torch.selu: "selu",
    F.silu: "silu",
    F.mish: "mish",
    F.hardswish: "hardswish",
    F.hardsigmoid: "hardsigmoid",
    torch.tanh: "tanh",
    F.tanh: "tanh",
    "tanh": "tanh",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    "sigmoid": "sigmoid",
    "contiguous": "identity",
}

BINARY: dict[Any, str] = {
    operator.add: "add",
    operator.iadd: "add",
    torch.add: "add",
    "add": "add",
    "add_": "add",
    operator.sub: "sub",
    torch.sub: "sub",
    "sub": "sub",
    operator.mul: "mul",
    operator.imul: "mul",
    torch.mul: "mul",
    "mul": "mul",
    "mul_": "mul",
    operator.truediv: "div",
    torch.div: "div",
    "div": "div",
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


class _Arguments:
    """The arguments of a functional call, as attributes like those of the module."""

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


# function -> (operation, attributes of a call)
CALLS: dict[Any, tuple[str, Callable[[fx.Node], Attrs]]] = {
    F.gelu: ("gelu", lambda n: {"approximate": n.kwargs.get("approximate", "none")}),
    F.leaky_relu: (
        "leaky_relu",
        lambda n: {"negative_slope": float(argument(n, 1, "negative_slope", 0.01))},
    ),
    F.elu: ("elu", lambda n: {"alpha": float(argument(n, 1, "alpha", 1.0))}),
    F.hardtanh: (
        "hardtanh",
        lambda n: {
            "min_val": float(argument(n, 1, "min_val", -1.0)),
            "max_val": float(argument(n, 2, "max_val", 1.0)),
        },
    ),
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


def lower(net: nn.Module, example_input: Tensor) -> Graph:
    """Lowers `net`, which is not changed, to a graph.

    Arguments:
        net: the module.
        example_input: a batch [B, ...] that it accepts.

    Raises:
        ConvertError: naming the first thing that can't be converted exactly, and why.
    """
    return _Lowering(net, read(net, example_input)).run(tuple(example_input.shape))


class _Lowering:
    """Turns the nodes of one fx trace into `Node`s, as far as the output depends on them."""

    def __init__(self, net: nn.Module, traced: Traced) -> None:
        self.traced, self.shapes, self.off = traced.module, traced.shapes, traced.off
        self.modules = dict(net.named_modules(remove_duplicate=False))
        self.names: dict[fx.Node, str] = {}
        self.taken: set[str] = set()
        self.seen: set[int] = set()
        self.nodes: list[Node] = []

    def run(self, input_shape: tuple[int, ...]) -> Graph:
        output = next(n for n in self.traced.graph.nodes if n.op == "output")
        result = output.args[0]
        if not isinstance(result, fx.Node):
            raise ConvertError("the network has to return one tensor (the logits)")
        needed = self._needed(result)
        # Names of layers are reserved first: a function called "fc" must not take the name of a
        # layer.
        for node in needed:
            if node.op == "call_module" and str(node.target) not in self.taken:
                self.names[node] = str(node.target)
                self.taken.add(str(node.target))
        for node in needed:
            base = "input" if node.op == "placeholder" else node.name
            if node not in self.names:
                self.names[node] = self._unique(base)
            self.nodes.append(self._lower(node, input_shape))
        return Graph(tuple(self.nodes), self.names[result])

    def _needed(self, result: fx.Node) -> list[fx.Node]:
        """The tensor-valued nodes that the result depends on, in execution order."""
        found: set[fx.Node] = set()
        stack = [result]
        while stack:
            node = stack.pop()
            if node in found:
                continue
            if node.op not in ("placeholder", "get_attr") and node.name not in self.shapes:
                raise self._refusal(node, "it returns something other than one tensor")
            found.add(node)
            stack.extend(self._tensor_inputs(node))
        order = [n for n in self.traced.graph.nodes if n in found or n.op == "placeholder"]
        if not any(n.op == "placeholder" and n in found for n in order):
            raise ConvertError("the network's output does not depend on its input")
        return order

    def _tensor_inputs(self, node: fx.Node) -> list[fx.Node]:
        if node.target in RESHAPES or node.target in EXPANDS:
            first = node.args[0] if node.args else node.kwargs.get("input")
            return [first] if isinstance(first, fx.Node) else []
        return list(node.all_input_nodes)

    def _unique(self, base: str) -> str:
        name, count = base, 1
        while name in self.taken:
            name, count = f"{base}_{count}", count + 1
        self.taken.add(name)
        return name

    def _lower(self, node: fx.Node, input_shape: tuple[int, ...]) -> Node:
        name = self.names[node]
        if node.op == "placeholder":
            return Node(name, "input", attrs={"shape": list(input_shape)})
        if node.op == "get_attr":
            raise ConvertError(f"the parameter {node.target!r} is used directly in forward. {HELP}")
        inputs = tuple(self.names[n] for n in self._tensor_inputs(node))
        op, attrs = self._module(node) if node.op == "call_module" else self._function(node)
        return Node(name, op, inputs, attrs)

    def _where(self, node: fx.Node) -> tuple[str, str]:
        """How a node is called in messages, with the module that it is in, and its kind."""
        if node.op == "call_module":
            kind = type(self.modules[str(node.target)]).__name__
        else:
            kind = getattr(node.target, "__name__", str(node.target))
        return f"{place_of(node)} ({kind})", kind

    def _refusal(self, node: fx.Node, reason: str | None = None) -> ConvertError:
        where, kind = self._where(node)
        reason = REASONS.get(kind, reason)
        return ConvertError(f"{where} can't be converted{f': {reason}' if reason else ''}. {HELP}")

    # Modules

    def _module(self, node: fx.Node) -> tuple[str, Attrs]:
        module = self.modules[str(node.target)]
        where, _ = self._where(node)
        if type(module) not in MODULES:
            raise self._refusal(node)
        op, attrs = MODULES[type(module)]
        if op == "flatten":
            return self._reshape(node, where)
        if OPS[op].role in WITH_WEIGHTS:
            self._check_weights(module, where)
        if isinstance(module, nn.Conv2d):
            op = _kind_of_conv(module, where)
        if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm1d | nn.BatchNorm2d):
            self._check_rank(node, module, where)
        if op == "max_pool2d" and getattr(module, "return_indices", False):
            raise self._refusal(node, "it returns indices too")
        if isinstance(module, nn.Upsample) and module.mode != "nearest":
            raise self._refusal(node, f"mode={module.mode!r}; only 'nearest' is supported")
        if op == "log_softmax" and module.dim not in (None, 1, -1):
            raise ConvertError(
                f"{where}: dim={module.dim}; only the class axis (1 or -1) is supported"
            )
        return op, attrs(module)

    def _check_weights(self, module: nn.Module, where: str) -> None:
        if id(module) in self.seen:
            raise ConvertError(
                f"{where} is called twice; layers that share their weights can't be pruned apart"
            )
        self.seen.add(id(module))
        if not all(p.requires_grad for p in module.parameters(recurse=False)):
            raise ConvertError(
                f"{where} is frozen (requires_grad=False); convert the network before freezing it"
            )
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is None:
            raise ConvertError(
                f"{where} keeps no running statistics (track_running_stats=False); a learned task "
                "needs them, frozen"
            )

    def _check_rank(self, node: fx.Node, module: nn.Module, where: str) -> None:
        shape = self.shapes[self._tensor_inputs(node)[0].name]
        if isinstance(module, nn.Conv2d) and len(shape) != 4:
            raise ConvertError(
                f"{where} reads a value of shape {list(shape)}; a batch of images [B, C, H, W] is "
                "wanted"
            )
        if isinstance(module, nn.BatchNorm1d) and len(shape) != 2:
            raise ConvertError(
                f"{where} reads a value of shape {list(shape)}; only [B, C] is supported"
            )

    # Functions and methods

    def _function(self, node: fx.Node) -> tuple[str, Attrs]:
        where, _ = self._where(node)
        target = node.target
        if target in RESHAPES:
            return self._reshape(node, where)
        if target in EXPANDS:
            return self._expand(node)
        if target in MEANS:
            return self._mean(node)
        if target in DROPOUTS or is_stochastic_depth(node):
            return self._dropout(node)
        if target in UNARY:
            return UNARY[target], {}
        if target in CALLS and not node.kwargs.get("return_indices"):
            op, attrs = CALLS[target]
            return op, attrs(node)
        if target in (F.log_softmax, torch.log_softmax, "log_softmax"):
            dim = argument(node, 1, "dim", -1)
            if dim in (1, -1):
                return "log_softmax", {"dim": dim}
        if target in BINARY:
            found = self._binary(node, BINARY[target])
            if found:
                return found
        raise self._refusal(node)

    def _dropout(self, node: fx.Node) -> tuple[str, Attrs]:
        if node.name in self.off:
            return "identity", {}
        if is_stochastic_depth(node):
            return "stochastic_depth", {
                "p": float(argument(node, 1, "p", 0.0)),
                "mode": str(argument(node, 2, "mode", "row")),
            }
        return DROPOUTS[node.target], {"p": float(argument(node, 1, "p", 0.5))}  # type: ignore[index]

    def _binary(self, node: fx.Node, op: str) -> tuple[str, Attrs] | None:
        """A sum or product of two hidden values, or of one and a number."""
        if len(node.args) != 2 or node.kwargs:
            return None
        first, second = node.args
        if isinstance(first, fx.Node) and isinstance(second, int | float):
            return f"{op}_number", {"value": second}
        if isinstance(second, fx.Node) and isinstance(first, int | float) and op in SYMMETRIC:
            return f"{op}_number", {"value": first}
        if not isinstance(first, fx.Node) or not isinstance(second, fx.Node) or op == "div":
            return None
        a, b = self.shapes[first.name], self.shapes[second.name]
        # Pixels may be broadcast (squeeze-and-excite), channels may not.
        pixels = len(a) == len(b) == 4 and a[:2] == b[:2]
        if a != b and not (
            pixels and all(1 in (m, n) or m == n for m, n in zip(a[2:], b[2:], strict=True))
        ):
            raise ConvertError(
                f"{node.name!r} joins values of shape {list(a)} and {list(b)}; broadcasting over "
                "channels can't be pruned"
            )
        return op, {}

    def _mean(self, node: fx.Node) -> tuple[str, Attrs]:
        shape = self.shapes[self._tensor_inputs(node)[0].name]
        dims = argument(node, 1, "dim", None)
        dims = [dims] if isinstance(dims, int) else list(dims or ())
        if len(shape) != 4 or {int(d) % 4 for d in dims} != {2, 3}:
            raise self._refusal(node, "only the mean over both axes of an image is")
        if argument(node, 2, "keepdim", False):
            return "adaptive_avg_pool2d", {"output_size": [1, 1]}
        return "spatial_mean", {"positions": 1}

    def _expand(self, node: fx.Node) -> tuple[str, Attrs]:
        """Broadcasting before a product or sum that would do it by itself."""
        source = self._tensor_inputs(node)[0]
        before, after = self.shapes[source.name], self.shapes[node.name]
        if before == after or (
            len(before) == len(after) == 4
            and before[:2] == after[:2]
            and all(user.target in BINARY and len(user.all_input_nodes) == 2 for user in node.users)
        ):
            self.shapes[node.name] = before
            return "identity", {}
        raise self._refusal(node, f"shape {list(before)} becomes {list(after)}")

    def _reshape(self, node: fx.Node, where: str) -> tuple[str, Attrs]:
        source = self._tensor_inputs(node)[0]
        before, after = self.shapes[source.name], self.shapes[node.name]
        if before == after:
            return "identity", {}
        if len(after) == 2 and after[0] == before[0]:
            positions = torch.Size(before[2:]).numel()
            return "flatten", {"start_dim": 1, "end_dim": -1, "positions": positions}
        if len(before) == 2 and after == (*before, 1, 1):
            return "unsqueeze", {}
        raise ConvertError(
            f"{where} turns shape {list(before)} into {list(after)}; only flattening to [batch, "
            "features] is supported"
        )


def _kind_of_conv(module: nn.Conv2d, where: str) -> str:
    if module.padding_mode != "zeros":
        raise ConvertError(
            f"{where}: padding_mode={module.padding_mode!r}; only zeros are supported"
        )
    if module.groups == 1:
        return "conv2d"
    if module.groups == module.in_channels == module.out_channels:
        return "depthwise_conv2d"
    raise ConvertError(
        f"{where} has {module.groups} groups for {module.in_channels} inputs and "
        f"{module.out_channels} outputs: a group mixes its own channels only, so channels can't be "
        "pruned apart. Dense (groups=1) and depthwise (groups = inputs = outputs) convolutions are "
        "supported"
    )
