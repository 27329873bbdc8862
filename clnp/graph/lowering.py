"""Lowering of a traced forward to a `Graph`.

Every operation is either recognised exactly or refused by name, so that no converted network
silently computes something else.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..errors import ConvertError
from .graph import OPS, WITH_WEIGHTS, Attrs, Graph, Node
from .mutation import make_functional
from .reasons import HELP, reason_for
from .recognised import BINARY, CALLS, EXPANDS, HARMLESS, MEANS, MODULES, RESHAPES, SYMMETRIC, UNARY
from .trace import DROPOUTS, Traced, argument, is_stochastic_depth, place_of


def lower(net: nn.Module, traced: Traced) -> Graph:
    """Lower a network to a graph.

    Arguments:
        net: the network, which is not changed.
        traced: its trace, in which in-place operations are replaced by ordinary ones.

    Raises:
        ConvertError: naming the first operation that can't be converted exactly, and the reason.
    """
    return _Lowering(net, traced).run()


class _Lowering:
    """Conversion of fx nodes to `Node`s, for those that the output depends on."""

    def __init__(self, net: nn.Module, traced: Traced) -> None:
        self.traced, self.off = traced.module, traced.off
        self.shapes = dict(traced.run.shapes)
        self.input_shape = tuple(traced.x.shape)
        self.modules = dict(net.named_modules(remove_duplicate=False))
        make_functional(traced.module, traced.run, self.modules)
        self.names: dict[fx.Node, str] = {}
        self.taken: set[str] = set()
        self.called: set[int] = set()
        self.nodes: list[Node] = []

    def run(self) -> Graph:
        output = next(n for n in self.traced.graph.nodes if n.op == "output")
        result = output.args[0]
        if not isinstance(result, fx.Node):
            raise ConvertError("the network: expected one tensor (the logits) as its result")
        needed = self._needed(result)
        # Reserve the names of layers first, so that no function takes one of them.
        for node in needed:
            if node.op == "call_module" and str(node.target) not in self.taken:
                self.names[node] = str(node.target)
                self.taken.add(str(node.target))
        for node in needed:
            base = "input" if node.op == "placeholder" else node.name
            if node not in self.names:
                self.names[node] = self._unique(base)
            self.nodes.append(self._lower(node))
        shape = self.shapes[result.name]
        if len(shape) != 2 or shape[0] != self.input_shape[0]:
            raise ConvertError(
                f"the network: expected logits [B, classes], got shape {list(shape)} for an input "
                f"of shape {list(self.input_shape)}"
            )
        return Graph(tuple(self.nodes), self.names[result])

    def _needed(self, result: fx.Node) -> list[fx.Node]:
        """Return the tensor-valued nodes that the result depends on, in execution order."""
        found: set[fx.Node] = set()
        stack = [result]
        while stack:
            node = stack.pop()
            if node in found:
                continue
            if node.op not in ("placeholder", "get_attr") and node.name not in self.shapes:
                raise self._refusal(node, "it doesn't return one tensor")
            found.add(node)
            stack.extend(self._tensor_inputs(node))
        order = [n for n in self.traced.graph.nodes if n in found or n.op == "placeholder"]
        if not any(n.op == "placeholder" and n in found for n in order):
            raise ConvertError("the network: expected an output that depends on its input")
        return order

    def _tensor_inputs(self, node: fx.Node) -> list[fx.Node]:
        if node.target in RESHAPES or node.target in EXPANDS:
            first = node.args[0] if node.args else node.kwargs.get("input")
            return [first] if isinstance(first, fx.Node) else []
        if node.target in BINARY:  # y * y has two inputs, which all_input_nodes gives once
            return [arg for arg in node.args if isinstance(arg, fx.Node)]
        return list(node.all_input_nodes)

    def _unique(self, base: str) -> str:
        name, count = base, 1
        while name in self.taken:
            name, count = f"{base}_{count}", count + 1
        self.taken.add(name)
        return name

    def _lower(self, node: fx.Node) -> Node:
        name = self.names[node]
        if node.op == "placeholder":
            return Node(name, "input", attrs={"shape": list(self.input_shape)})
        if "refusal" in node.meta:
            raise self._refusal(node, node.meta["refusal"])
        if node.op == "get_attr":
            raise self._direct_use(str(node.target))
        inputs = tuple(self.names[n] for n in self._tensor_inputs(node))
        try:
            op, attrs = self._module(node) if node.op == "call_module" else self._function(node)
        except (TypeError, ValueError) as error:
            if isinstance(error, ConvertError):
                raise
            raise self._refusal(node, f"its arguments aren't plain numbers ({error})") from error
        return Node(name, op, inputs, attrs)

    def _direct_use(self, name: str) -> ConvertError:
        """Build the refusal of a tensor that isn't computed from the input."""
        if name.startswith("_tensor_constant"):
            return ConvertError(
                "forward uses a tensor that it makes, or that a module holds as a plain attribute; "
                f"use a number instead. {HELP}"
            )
        path, _, key = name.rpartition(".")
        parameters = self.modules[path]._parameters if path in self.modules else {}
        kind = "parameter" if key in parameters else "buffer"
        return ConvertError(f"the {kind} {name!r} is used directly in forward. {HELP}")

    def _where(self, node: fx.Node) -> tuple[str, str]:
        """Name a node for messages, with its module; return the name and the kind."""
        if node.op == "call_module":
            kind = type(self.modules[str(node.target)]).__name__
        else:
            kind = getattr(node.target, "__name__", str(node.target))
        return f"{place_of(node)} ({kind})", kind

    def _refusal(self, node: fx.Node, reason: str | None = None) -> ConvertError:
        where, kind = self._where(node)
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        shapes = [self.shapes.get(n.name) for n in node.all_input_nodes[:1]]
        reason = reason_for(node, kind, module, shapes[0] if shapes else None) or reason
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
            self._check_shape(node, module, where)
        if op == "max_pool2d" and getattr(module, "return_indices", False):
            raise self._refusal(node, "it returns indices too")
        if isinstance(module, nn.Upsample) and module.mode != "nearest":
            raise self._refusal(node, f"mode={module.mode!r}; only 'nearest' is supported")
        if op == "log_softmax" and module.dim not in (None, 1, -1):
            raise ConvertError(
                f"{where}: expected dim=1 or dim=-1, the class axis, got dim={module.dim}"
            )
        return op, attrs(module)

    def _check_weights(self, module: nn.Module, where: str) -> None:
        if id(module) in self.called:
            raise ConvertError(
                f"{where} is called twice; use a layer per call, because shared weights can't be "
                "pruned separately"
            )
        self.called.add(id(module))
        if not all(p.requires_grad for p in module.parameters(recurse=False)):
            raise ConvertError(
                f"{where} is frozen (requires_grad=False); convert the network before freezing it"
            )
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is None:
            raise ConvertError(
                f"{where}: expected track_running_stats=True, got False; a learned task needs its "
                "frozen running statistics"
            )

    def _check_shape(self, node: fx.Node, module: nn.Module, where: str) -> None:
        shape = self.shapes[self._tensor_inputs(node)[0].name]
        if isinstance(module, nn.Conv2d) and len(shape) != 4:
            raise ConvertError(
                f"{where}: expected a batch of images [B, C, H, W], got shape {list(shape)}"
            )
        if isinstance(module, nn.BatchNorm1d) and len(shape) != 2:
            raise ConvertError(f"{where}: expected an input [B, C], got shape {list(shape)}")

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
        if target in UNARY and set(node.kwargs) <= HARMLESS:
            return UNARY[target], {}
        if target in CALLS and not node.kwargs.get("return_indices"):
            op, attrs = CALLS[target]
            return op, attrs(node)
        if target in (F.log_softmax, torch.log_softmax, "log_softmax"):
            dim = argument(node, 1, "dim", -1)
            if dim in (1, -1) and not node.kwargs.get("dtype"):
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
        """Recognise a sum or product of two hidden values, or of one and a number."""
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
        # Pixels may be broadcast (squeeze-and-excitation), channels may not.
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
        plain = len(node.args) <= 3 and set(node.kwargs) <= {"input", "dim", "keepdim"}
        if len(shape) != 4 or {int(d) % 4 for d in dims} != {2, 3} or not plain:
            raise self._refusal(node, "only the mean over both axes of an image is supported")
        if argument(node, 2, "keepdim", False):
            return "adaptive_avg_pool2d", {"output_size": [1, 1]}
        return "spatial_mean", {"positions": 1}

    def _expand(self, node: fx.Node) -> tuple[str, Attrs]:
        """Recognise broadcasting before a product or sum, which broadcasts by itself."""
        source = self._tensor_inputs(node)[0]
        before, after = self.shapes[source.name], self.shapes[node.name]
        if before == after or (
            len(before) == len(after) == 4
            and before[:2] == after[:2]
            and all(user.target in BINARY and len(user.all_input_nodes) == 2 for user in node.users)
        ):
            self.shapes[node.name] = before
            return "identity", {}
        raise self._refusal(node, f"it expands shape {list(before)} to {list(after)}")

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
            f"{where}: expected flattening to [batch, features], got shape {list(before)} turned "
            f"into {list(after)}"
        )


def _kind_of_conv(module: nn.Conv2d, where: str) -> str:
    reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    if module.padding == "same" and any(r % 2 for r in reach):
        raise ConvertError(
            f"{where}: padding='same' pads unevenly for an even kernel; use nn.ZeroPad2d before "
            "it, and padding=0"
        )
    if module.padding_mode != "zeros":
        raise ConvertError(f"{where}: expected padding_mode='zeros', got {module.padding_mode!r}")
    if module.groups == 1:
        return "conv2d"
    if module.groups == module.in_channels == module.out_channels:
        return "depthwise_conv2d"
    raise ConvertError(
        f"{where}: expected groups=1 (dense) or groups = inputs = outputs (depthwise), got "
        f"{module.groups} groups for {module.in_channels} inputs and {module.out_channels} "
        "outputs; channels of other groups can't be pruned separately"
    )
