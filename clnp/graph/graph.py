"""Networks as data: a list of named operations, with JSON form and construction of modules.

`convert` lowers a user's module to a `Graph` once. The masked network, the narrow plain network of
each task, and the checkpoint (hence without pickle) are all made from it. Only operations in `OPS`
can be built, so a graph from a file runs no other code.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from clnp_kernels.nn import Dropout

from .plain import StochasticDepth

Attrs = dict[str, Any]


@dataclass(frozen=True)
class Op:
    """A kind of operation.

    Attributes:
        role: effect on channels: "input", "layer" (new channels from all channels it reads),
            "channelwise" (weights per channel), "elementwise", "spatial" (within each channel of
            images [B, C, H, W]), "unsqueeze" ([B, C] to images of one pixel), "flatten" (images to
            [B, C * P]; its attribute "positions" is P) or "merge" (joins tensors, whose channels
            are then pruned together).
        make: attributes -> plain `torch.nn` module; None for a function.
        function: function of the inputs and attributes if there is no module.
        attrs: names of the required attributes.
    """

    role: str
    make: Callable[..., nn.Module] | None = None
    function: Callable[..., Any] | None = None
    attrs: tuple[str, ...] = ()


CONV = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "bias",
)
NORM = ("num_features", "eps", "momentum", "affine")
MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
AVG_POOL = (
    "kernel_size",
    "stride",
    "padding",
    "ceil_mode",
    "count_include_pad",
    "divisor_override",
)


def _upsample(size: Any, scale_factor: Any, mode: str) -> nn.Upsample:
    # torch expects tuples, which JSON turns into lists
    size = tuple(size) if isinstance(size, list) else size
    factor = tuple(scale_factor) if isinstance(scale_factor, list) else scale_factor
    return nn.Upsample(size, factor, mode)


OPS: dict[str, Op] = {
    "input": Op("input", attrs=("shape",)),
    "linear": Op("layer", nn.Linear, attrs=("in_features", "out_features", "bias")),
    "conv2d": Op("layer", nn.Conv2d, attrs=CONV),
    "depthwise_conv2d": Op("channelwise", nn.Conv2d, attrs=CONV),
    "batch_norm1d": Op("channelwise", nn.BatchNorm1d, attrs=NORM),
    "batch_norm2d": Op("channelwise", nn.BatchNorm2d, attrs=NORM),
    "relu": Op("elementwise", nn.ReLU),
    "relu6": Op("elementwise", nn.ReLU6),
    "leaky_relu": Op("elementwise", nn.LeakyReLU, attrs=("negative_slope",)),
    "elu": Op("elementwise", nn.ELU, attrs=("alpha",)),
    "selu": Op("elementwise", nn.SELU),
    "silu": Op("elementwise", nn.SiLU),
    "mish": Op("elementwise", nn.Mish),
    "gelu": Op("elementwise", nn.GELU, attrs=("approximate",)),
    "hardswish": Op("elementwise", nn.Hardswish),
    "hardsigmoid": Op("elementwise", nn.Hardsigmoid),
    "hardtanh": Op("elementwise", nn.Hardtanh, attrs=("min_val", "max_val")),
    "softplus": Op("elementwise", nn.Softplus, attrs=("beta", "threshold")),
    "tanh": Op("elementwise", nn.Tanh),
    "sigmoid": Op("elementwise", nn.Sigmoid),
    "identity": Op("elementwise", nn.Identity),
    "dropout": Op("elementwise", nn.Dropout, attrs=("p",)),
    "stochastic_depth": Op("elementwise", StochasticDepth, attrs=("p", "mode")),
    "dropout2d": Op("spatial", nn.Dropout2d, attrs=("p",)),
    "max_pool2d": Op("spatial", nn.MaxPool2d, attrs=MAX_POOL),
    "avg_pool2d": Op("spatial", nn.AvgPool2d, attrs=AVG_POOL),
    "adaptive_avg_pool2d": Op("spatial", nn.AdaptiveAvgPool2d, attrs=("output_size",)),
    "adaptive_max_pool2d": Op("spatial", nn.AdaptiveMaxPool2d, attrs=("output_size",)),
    "zero_pad2d": Op("spatial", nn.ZeroPad2d, attrs=("padding",)),
    "upsample": Op("spatial", _upsample, attrs=("size", "scale_factor", "mode")),
    "spatial_mean": Op("flatten", lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())),
    "unsqueeze": Op("unsqueeze", lambda: nn.Unflatten(1, (-1, 1, 1))),
    "flatten": Op("flatten", nn.Flatten, attrs=("start_dim", "end_dim")),
    "log_softmax": Op("elementwise", nn.LogSoftmax, attrs=("dim",)),
    "add": Op("merge", function=operator.add),
    "sub": Op("merge", function=operator.sub),
    "mul": Op("merge", function=operator.mul),
    "add_number": Op("elementwise", function=operator.add, attrs=("value",)),
    "sub_number": Op("elementwise", function=operator.sub, attrs=("value",)),
    "mul_number": Op("elementwise", function=operator.mul, attrs=("value",)),
    "div_number": Op("elementwise", function=operator.truediv, attrs=("value",)),
}
WITH_WEIGHTS = ("layer", "channelwise")
# torch.fx writes names into the code that it runs and looks them up as attributes, so a name from a
# file must be neither code nor a path to a class.
NAME = re.compile(r"(?!__)[\w -]+(\.(?!__)[\w -]+)*")


@dataclass(frozen=True)
class Node:
    """One operation of a graph.

    Attributes:
        name: unique qualified name.
        op: kind, a key of `OPS`.
        inputs: names of the nodes it reads.
        attrs: attributes of the operation.
    """

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    attrs: Attrs = field(default_factory=dict)

    @property
    def role(self) -> str:
        return OPS[self.op].role


@dataclass(frozen=True)
class Graph:
    """Operations in execution order.

    Attributes:
        nodes: the operations; the first is the input.
        output: name of the returned node.
    """

    nodes: tuple[Node, ...]
    output: str

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for node in self.nodes:
            if not NAME.fullmatch(node.name):
                raise ValueError(
                    f"node: expected a name of letters, digits, '_', '-' and '.', got {node.name!r}"
                )
            if node.op not in OPS:
                raise ValueError(f"node {node.name!r}: expected a known op, got {node.op!r}")
            missing = set(OPS[node.op].attrs) - set(node.attrs)
            if missing:
                raise ValueError(
                    f"node {node.name!r} ({node.op}): expected {list(OPS[node.op].attrs)}, got no "
                    f"{', '.join(sorted(missing))}"
                )
            if node.op.endswith("_number") and not isinstance(node.attrs["value"], (int, float)):
                raise ValueError(
                    f"node {node.name!r} ({node.op}): expected a number, got "
                    f"{node.attrs['value']!r}"
                )
            if node.name in seen:
                raise ValueError(f"node {node.name!r}: expected a unique name, got it twice")
            if not set(node.inputs) <= seen:
                raise ValueError(
                    f"node {node.name!r}: expected earlier nodes as inputs, got "
                    f"{set(node.inputs) - seen}"
                )
            seen.add(node.name)
        if self.output not in seen:
            raise ValueError(f"output: expected the name of a node, got {self.output!r}")

    @functools.cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    def __getitem__(self, name: str) -> Node:
        return self._by_name[name]

    @property
    def layers(self) -> list[Node]:
        """The nodes that make new channels, in execution order."""
        return [node for node in self.nodes if node.role == "layer"]

    @property
    def weighted(self) -> list[Node]:
        """The nodes with weights, in execution order: layers, depthwise layers and batch norms."""
        return [node for node in self.nodes if node.role in WITH_WEIGHTS]

    def readers(self, name: str) -> list[Node]:
        """Return the nodes that read `name`."""
        return [node for node in self.nodes if name in node.inputs]

    def up_to(self, output: str) -> Graph:
        """Return the graph that ends with the given node; the whole one for an empty name."""
        if not output:
            return self
        names = [node.name for node in self.nodes]
        return Graph(self.nodes[: names.index(output) + 1], output)

    def to_json(self) -> dict[str, Any]:
        """Return lists and dictionaries for JSON, the inverse of `from_json`."""
        return {
            "nodes": [
                {"name": n.name, "op": n.op, "inputs": list(n.inputs), "attrs": n.attrs}
                for n in self.nodes
            ],
            "output": self.output,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Graph:
        """Rebuild a graph.

        Raises:
            ValueError, KeyError, TypeError: `data` isn't a graph.
        """
        nodes = tuple(
            Node(str(n["name"]), str(n["op"]), tuple(map(str, n["inputs"])), dict(n["attrs"]))
            for n in data["nodes"]
        )
        return cls(nodes, str(data["output"]))


def fuse_relu(graph: Graph) -> Graph:
    """Fold each ReLU into the operation with weights before it, as attribute `activation="relu"`.

    Only if the ReLU is the sole reader of that operation.
    """
    fused = {
        node.name: node.inputs[0]
        for node in graph.nodes
        if node.op == "relu"
        and graph[node.inputs[0]].role in WITH_WEIGHTS
        and len(graph.readers(node.inputs[0])) == 1
        and graph.output != node.inputs[0]
    }
    nodes = []
    for node in graph.nodes:
        if node.name in fused:
            continue
        inputs = tuple(fused.get(name, name) for name in node.inputs)
        attrs = dict(node.attrs)
        if node.name in fused.values():
            attrs["activation"] = "relu"
        nodes.append(replace(node, inputs=inputs, attrs=attrs))
    return Graph(tuple(nodes), fused.get(graph.output, graph.output))


def for_inference(graph: Graph) -> Graph:
    """Replace training-only operations that `torch.nn` lacks by identities."""
    nodes = tuple(
        replace(node, op="identity", attrs={}) if node.op == "stochastic_depth" else node
        for node in graph.nodes
    )
    return Graph(nodes, graph.output)


def _may_overwrite(graph: Graph, name: str) -> bool:
    """Return whether the reader of a value may change it in place.

    It must be the only reader, and the producer must not need the value for its gradients.
    """
    node = graph[name]
    unneeded = node.op in ("add", "sub") or (
        node.role in WITH_WEIGHTS and "activation" not in node.attrs
    )
    return unneeded and len(graph.readers(name)) == 1 and graph.output != name


def add_into(a: Tensor, b: Tensor) -> Tensor:
    """Return a + b, computed in the memory of `a` if the sum has its shape and dtype.

    A view is never changed, because operators return views of memory that they keep.
    """
    if isinstance(a, fx.Proxy):  # unpickling traces a network anew
        return a.tracer.create_proxy("call_function", add_into, (a, b), {})
    if torch.compiler.is_compiling() or a.shape != b.shape or a.dtype != b.dtype or a._is_view():
        return a + b
    return a.add_(b)


def build(
    graph: Graph, layers: Mapping[str, nn.Module], *, kernels: bool = False
) -> fx.GraphModule:
    """Build a `torch.fx.GraphModule` from a graph.

    Arguments:
        graph: the operations.
        layers: node name -> module, for every node with weights; other modules are made here.
        kernels: use the dropout of `clnp_kernels`, and add residual branches in place where that
            is safe (for training). Otherwise all operations are PyTorch's.

    Returns:
        a module from one tensor to one tensor, with submodules named as the nodes.
    """
    out = fx.Graph()
    root: dict[str, nn.Module] = {}
    values: dict[str, fx.Node] = {}
    for node in graph.nodes:
        op = OPS[node.op]
        args = tuple(values[name] for name in node.inputs)
        if op.role == "input":
            values[node.name] = out.placeholder("x")
        elif op.function is not None:
            numbers = tuple(node.attrs[name] for name in op.attrs)
            function = op.function
            if kernels and node.op == "add" and _may_overwrite(graph, node.inputs[0]):
                function = add_into
            values[node.name] = out.call_function(function, (*args, *numbers))
        else:
            if op.role in WITH_WEIGHTS:
                root[node.name] = layers[node.name]
            else:
                assert op.make is not None
                options = {name: node.attrs[name] for name in op.attrs}
                if node.op == "relu" and _may_overwrite(graph, node.inputs[0]):
                    options["inplace"] = True
                make = Dropout if kernels and node.op == "dropout" else op.make
                root[node.name] = make(**options)
            values[node.name] = out.call_module(node.name, args)
    out.output(values[graph.output])
    return fx.GraphModule(root, out)
