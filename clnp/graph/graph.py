"""Networks as data: a list of named operations, with JSON form and construction of modules.

`convert` lowers a user's module to a `Graph` once. The masked network, the narrow plain network of
each task, and the checkpoint (hence without pickle) are all made from it. Only operations in `OPS`
can be built, so a graph from a file runs no other code.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from clnp_kernels.nn import Dropout

from .operations import OPS as OPS
from .operations import WITH_WEIGHTS as WITH_WEIGHTS
from .operations import Attrs as Attrs
from .transformer_operations import IN_UNITS

FUSES = (
    "linear",
    "conv2d",
    "conv3d",
    "depthwise_conv2d",
    "grouped_conv2d",
    "batch_norm1d",
    "batch_norm2d",
)
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
                raise ValueError(
                    f"node {node.name!r}: expected a known op, got {node.op!r}; "
                    "a module of your own needs clnp.graph.register first"
                )
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
    head = graph.layers[-1].name
    fused = {
        node.name: node.inputs[0]
        for node in graph.nodes
        if node.op == "relu"
        and graph[node.inputs[0]].role in WITH_WEIGHTS
        and len(graph.readers(node.inputs[0])) == 1
        and graph[node.inputs[0]].op in FUSES
        and node.inputs[0] != head  # the head has no activation
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
        for node in in_units(graph).nodes
    )
    return Graph(nodes, graph.output)


def in_units(graph: Graph) -> Graph:
    """Replace operations of the dense network by those on values whose units are adjacent."""
    nodes = tuple(
        replace(node, op=IN_UNITS[node.op]) if node.op in IN_UNITS else node for node in graph.nodes
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


def _is_permuted(graph: Graph, name: str) -> bool:
    """Return whether a value may not be contiguous.

    PyTorch rounds the product of such a value with a matrix in one of two ways, and which one
    depends on whether the matrix needs a gradient.
    """
    node = graph[name]
    while node.role in ("elementwise", "axes", "merge", "constant"):
        if node.op == "permute":
            return True
        node = graph[node.inputs[0]]
    return False


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
        layers: node name -> module, for every node with weights, and for others that are not to be
            made here.
        kernels: build the network in training, of masked layers: use the dropout of `clnp_kernels`,
            and add residual branches in place where that is safe. Otherwise all operations are
            PyTorch's.

    Returns:
        a module from one tensor to one tensor, with submodules named as the nodes.
    """
    out = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(out)
    root: dict[str, Any] = {}
    values: dict[str, fx.Node] = {}
    for node in graph.nodes:
        op = OPS[node.op]
        args = tuple(values[name] for name in node.inputs)
        if node.op == "linear" and not kernels and _is_permuted(graph, node.inputs[0]):
            args = (out.call_method("contiguous", args),)
        proxies = [fx.Proxy(value, tracer) for value in args]
        if op.role == "input":
            values[node.name] = out.placeholder("x")
        elif op.function is not None and op.role in WITH_WEIGHTS and not kernels:
            root[f"{node.name}.weight"] = layers[node.name].weight
            weight = out.get_attr(f"{node.name}.weight")
            applied = op.function(*proxies, fx.Proxy(weight, tracer), node.attrs["axis"])
            values[node.name] = applied.node
        elif node.name in layers and op.role not in WITH_WEIGHTS:
            root[node.name] = layers[node.name]
            values[node.name] = out.call_module(node.name, args)
        elif op.function is not None and op.role not in WITH_WEIGHTS:
            attrs = {name: node.attrs[name] for name in op.attrs}
            function = op.function
            if kernels and node.op == "add" and _may_overwrite(graph, node.inputs[0]):
                function = add_into
            # The function writes the calls it makes of PyTorch into the graph.
            values[node.name] = function(*proxies, **attrs).node
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
