"""Lowering a user's module to a `Graph`, with torch.fx.

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
from torch.nn.utils import parametrize

from clnp.errors import ConvertError
from clnp.graph import Graph, Node

# module type -> (operation, attributes)
MODULES: dict[type[nn.Module], tuple[str, Callable[[Any], dict[str, Any]]]] = {
    nn.Linear: (
        "linear",
        lambda m: {
            "in_features": m.in_features,
            "out_features": m.out_features,
            "bias": m.bias is not None,
        },
    ),
    nn.ReLU: ("relu", lambda m: {}),
    nn.ReLU6: ("relu6", lambda m: {}),
    nn.LeakyReLU: ("leaky_relu", lambda m: {"negative_slope": float(m.negative_slope)}),
    nn.ELU: ("elu", lambda m: {"alpha": float(m.alpha)}),
    nn.SiLU: ("silu", lambda m: {}),
    nn.GELU: ("gelu", lambda m: {"approximate": m.approximate}),
    nn.Hardswish: ("hardswish", lambda m: {}),
    nn.Tanh: ("tanh", lambda m: {}),
    nn.Sigmoid: ("sigmoid", lambda m: {}),
    nn.Identity: ("identity", lambda m: {}),
    nn.Dropout: ("dropout", lambda m: {"p": float(m.p)}),
    nn.Flatten: ("flatten", lambda m: {"start_dim": m.start_dim, "end_dim": m.end_dim}),
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
    F.silu: "silu",
    F.hardswish: "hardswish",
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
    torch.mul: "mul",
    "mul": "mul",
}

RESHAPES: tuple[Any, ...] = (torch.flatten, torch.reshape, "flatten", "view", "reshape")

HELP = (
    "Supported are Linear, activations, Dropout, Flatten, sums and products of hidden values, "
    "and modules built of them."
)


def trace(net: nn.Module, example_input: Tensor) -> Graph:
    """Lowers `net` to a graph.

    Arguments:
        net: the module; it is not changed.
        example_input: a batch [B, ...] that the module accepts.

    Raises:
        ConvertError: naming the first thing that can't be converted exactly, and why.
    """
    _refuse_hidden_state(net)
    shapes, training = _symbolic(net, example_input, train=True)
    _, evaluating = _symbolic(net, example_input, train=False)
    dropout_off = _compare_modes(training, evaluating)
    lowering = _Lowering(net, training, shapes, dropout_off)
    return lowering.run(tuple(example_input.shape))


def _refuse_hidden_state(net: nn.Module) -> None:
    for name, module in net.named_modules():
        where = f"{name or 'the network'} ({type(module).__name__})"
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        if any(getattr(module, kind) for kind in hooks):
            raise ConvertError(f"{where} has hooks, which conversion would lose; remove them first")
        if parametrize.is_parametrized(module):
            raise ConvertError(
                f"{where} is parametrized; call "
                "torch.nn.utils.parametrize.remove_parametrizations first"
            )
    if any(
        isinstance(m, (nn.DataParallel, nn.parallel.DistributedDataParallel)) for m in net.modules()
    ):
        raise ConvertError(
            "the network is wrapped for parallel training; pass the inner module (.module)"
        )


def _symbolic(
    net: nn.Module, example: Tensor, train: bool
) -> tuple[dict[str, tuple[int, ...]], fx.GraphModule]:
    """Traces in one mode and runs the trace in evaluation mode to learn every tensor's shape."""
    modes = {name: module.training for name, module in net.named_modules()}
    try:
        net.train(train)
        traced = fx.GraphModule(net, fx.Tracer().trace(net))
    except Exception as error:
        raise ConvertError(
            f"{type(net).__name__} can't be traced with torch.fx: {error}. Control flow that "
            "depends on the data, "
            "and inputs other than one tensor, can't be converted"
        ) from error
    finally:
        for name, module in net.named_modules():
            module.training = modes[name]
    shapes: dict[str, tuple[int, ...]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                shapes[n.name] = tuple(value.shape)
            return value

    if sum(node.op == "placeholder" for node in traced.graph.nodes) != 1:
        raise ConvertError(f"{type(net).__name__} takes more than one input; one tensor is wanted")
    traced.eval()
    with torch.no_grad():
        try:
            Recorder(traced).run(example)
        except Exception as error:
            raise ConvertError(
                f"{type(net).__name__} does not accept example_input of shape "
                f"{list(example.shape)}, "
                f"{example.dtype}: {error}"
            ) from error
        finally:
            for name, module in net.named_modules():
                module.training = modes[name]
    return shapes, traced


def _is_dropout(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is F.dropout


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def _compare_modes(training: fx.GraphModule, evaluating: fx.GraphModule) -> set[str]:
    """The two traces may differ in `F.dropout(training=...)` only; returns the dropouts that are
    off in both.
    """
    first, second = list(training.graph.nodes), list(evaluating.graph.nodes)
    if [(n.op, str(n.target)) for n in first] != [(n.op, str(n.target)) for n in second]:
        raise ConvertError(
            "the network's forward takes another path in training than in evaluation mode"
        )
    off = set()
    for a, b in zip(first, second, strict=True):
        if not _is_dropout(a):
            continue
        if _argument(b, 2, "training", True):
            raise ConvertError(
                f"{a.name!r}: F.dropout is on in evaluation mode too; pass "
                "training=self.training, or use nn.Dropout"
            )
        if not _argument(a, 2, "training", True):
            off.add(a.name)
    return off


class _Lowering:
    """Turns the nodes of one fx trace into `Node`s, from the output backwards only as far as it
    reads.
    """

    def __init__(
        self,
        net: nn.Module,
        traced: fx.GraphModule,
        shapes: dict[str, tuple[int, ...]],
        dropout_off: set[str],
    ) -> None:
        self.net, self.traced, self.shapes, self.dropout_off = net, traced, shapes, dropout_off
        self.modules = dict(net.named_modules(remove_duplicate=False))
        self.names: dict[fx.Node, str] = {}
        self.taken: set[str] = set()
        self.layer_ids: dict[int, str] = {}
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
                raise ConvertError(f"{node.name!r} returns something other than one tensor. {HELP}")
            found.add(node)
            stack.extend(self._tensor_inputs(node))
        order = [n for n in self.traced.graph.nodes if n in found or n.op == "placeholder"]
        if not any(n.op == "placeholder" and n in found for n in order):
            raise ConvertError("the network's output does not depend on its input")
        return order

    def _tensor_inputs(self, node: fx.Node) -> list[fx.Node]:
        if node.target in RESHAPES:
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

    def _module(self, node: fx.Node) -> tuple[str, dict[str, Any]]:
        module = self.modules[str(node.target)]
        where = f"{node.target!r} ({type(module).__name__})"
        if type(module) not in MODULES:
            raise ConvertError(f"{where} can't be converted. {HELP}")
        op, attrs = MODULES[type(module)]
        if op == "linear":
            if id(module) in self.layer_ids:
                raise ConvertError(
                    f"{where} is called twice; layers that share their weights can't be pruned "
                    "apart"
                )
            self.layer_ids[id(module)] = str(node.target)
            if not module.weight.requires_grad:
                raise ConvertError(
                    f"{where} is frozen (requires_grad=False); convert the network before "
                    "freezing it"
                )
        if op == "flatten":
            return self._flatten(node, where)
        if op == "log_softmax" and module.dim not in (None, 1, -1):
            raise ConvertError(
                f"{where}: dim={module.dim}; only the class axis (1 or -1) is supported"
            )
        return op, attrs(module)

    def _function(self, node: fx.Node) -> tuple[str, dict[str, Any]]:
        label = getattr(node.target, "__name__", str(node.target))
        where = f"{node.name!r} ({label})"
        if node.target in RESHAPES:
            return self._flatten(node, where)
        if _is_dropout(node):
            if node.name in self.dropout_off:
                return "identity", {}
            return "dropout", {"p": float(_argument(node, 1, "p", 0.5))}
        if node.target in UNARY:
            return UNARY[node.target], {}
        if node.target is F.gelu:
            return "gelu", {"approximate": node.kwargs.get("approximate", "none")}
        if node.target is F.leaky_relu:
            return "leaky_relu", {
                "negative_slope": float(_argument(node, 1, "negative_slope", 0.01))
            }
        if node.target in (F.log_softmax, torch.log_softmax, "log_softmax"):
            dim = _argument(node, 1, "dim", -1)
            if dim in (1, -1):
                return "log_softmax", {"dim": dim}
        if node.target in BINARY and self._plain_pair(node):
            return BINARY[node.target], {}
        raise ConvertError(f"{where} can't be converted. {HELP}")

    def _plain_pair(self, node: fx.Node) -> bool:
        pair = [a for a in node.args if isinstance(a, fx.Node)]
        if len(node.args) != 2 or len(pair) != 2 or node.kwargs:
            return False
        first, second = (self.shapes[n.name] for n in pair)
        if first != second:
            raise ConvertError(
                f"{node.name!r} joins values of shape {list(first)} and {list(second)}; "
                "broadcasting can't be pruned"
            )
        return True

    def _flatten(self, node: fx.Node, where: str) -> tuple[str, dict[str, Any]]:
        source = self._tensor_inputs(node)[0]
        before, after = self.shapes[source.name], self.shapes[node.name]
        if before == after:
            return "identity", {}
        if len(after) == 2 and after[0] == before[0]:
            return "flatten", {"start_dim": 1, "end_dim": -1}
        raise ConvertError(
            f"{where} turns shape {list(before)} into {list(after)}; only flattening to [batch, "
            "features] is supported"
        )
