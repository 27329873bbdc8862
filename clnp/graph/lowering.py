"""Lowering of a recorded forward to a `Graph`.

Every call, whether module, function or method, must be understood with all its arguments. Anything
else raises `ConvertError` with its name, so that no converted network silently computes something
else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx, nn

from ..errors import ConvertError, first_line
from . import norms as norms
from .attention import JOINED, multi_head
from .axes import Step, UnclearError, parts_of, shuffle_before
from .calls import name_of
from .channels import Value, Walk
from .graph import Graph, Node
from .head import is_linear_per_pixel, linear_of, one_head, sum_of_heads, with_linear, with_one_head
from .mutation import make_functional
from .operands import Operands
from .operations import OPS, WITH_WEIGHTS, Attrs
from .reasons import HELP, reason_for
from .recognised import MODULES, PARTS
from .rules import Place, reshaped, steps_of
from .statics import Static
from .tokens import joined
from .trace import Traced, argument, place_of
from .weights import Layer, kind_of_conv, layers_of, static_of


@dataclass
class Lowered:
    """A network as a graph.

    Attributes:
        graph: its operations.
        layers: name -> dense module, for every node with weights; they share the parameters and
            buffers of the network, where they are not folded.
        tensors: (layer, name of a parameter or buffer of the network that it uses).
        folded: layers whose weights are computed from parameters.
    """

    graph: Graph
    layers: dict[str, nn.Module]
    tensors: list[tuple[str, str]] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)


def lower(net: nn.Module, traced: Traced) -> Lowered:
    """Lower a network to a graph.

    Arguments:
        net: the network, which is not changed.
        traced: its record, in which in-place operations are replaced by ordinary ones.

    Raises:
        ConvertError: naming the first operation that can't be converted exactly, and the reason.
    """
    return _Lowering(net, traced).run()


LEARNED = ("weight", "bias")
SIDES = ("moved", "in", "out")  # of an output layer of pixels
# Operations of several steps or inputs -> the method that reads them
SPECIAL = {
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), "_concat"),
    **dict.fromkeys(("view", "reshape", "flatten"), "_shuffled"),
    "glu": "_glu",
}


class _Lowering:
    """Conversion of the nodes of a record that the output depends on."""

    def __init__(self, net: nn.Module, traced: Traced) -> None:
        self.traced, self.run_record = traced, traced.run
        self.shapes = traced.run.shapes
        self.modules = dict(net.named_modules(remove_duplicate=False))
        self.parameters = dict(net.named_parameters(remove_duplicate=False))
        make_functional(traced.graph, traced.run, self.modules)
        self.walk = Walk()
        self.names: dict[fx.Node, str] = {}  # name of a node's value
        self.taken: set[str] = set()
        self.used: dict[str, str] = {}  # weight -> the layer that has it
        self.owners: dict[str, fx.Node] = {}  # weight -> the call that uses it
        self.layers: dict[str, nn.Module] = {}
        self.tensors: list[tuple[str, str]] = []
        self.folded: list[str] = []
        self.nodes: list[Node] = []
        self.shuffles: dict[fx.Node, tuple[fx.Node, int]] = {}
        self.inside: set[fx.Node] = set()  # nodes within a shuffle

    def run(self) -> Lowered:
        output = next(n for n in self.traced.graph.nodes if n.op == "output")
        result = output.args[0]
        if not isinstance(result, fx.Node) or result.name not in self.shapes:
            raise ConvertError("the network: expected one tensor (the logits) as its result")
        needed = self._needed(result)
        self._reserve(needed)
        self._find_shuffles(needed)
        for node in needed:
            try:
                self._lower(node)
            except ConvertError:
                raise
            except UnclearError as error:
                raise self._refusal(node, str(error)) from error
            except Exception as error:  # a rule met arguments that it doesn't expect
                reason = f"its arguments aren't understood ({first_line(error)})"
                raise self._refusal(node, reason) from error
        shape = self.shapes[result.name]
        if len(shape) < 2 or self.traced.batched[result.name] != (0,):
            shown = [
                "B" if i in self.traced.batched[result.name] else n for i, n in enumerate(shape)
            ]
            raise ConvertError(
                f"the network: expected outputs [B, ...], got shape {_text(shown)} for an input "
                f"of shape {_text(['B', *self.traced.x.shape[1:]])}"
            )
        last = self._end(self.names[result])
        graph = Graph(tuple(self.nodes), last)
        return Lowered(graph, self.layers, self.tensors, self.folded)

    def _end(self, last: str) -> str:
        """Write the output layer as one Linear; return the name of the result."""
        key = self.walk.values[last].key
        shapes = {name: self.shapes.get(node.name, ()) for node, name in self.names.items()}
        while (joined := sum_of_heads(self.nodes, key)) is not None:
            parts = [node for name in joined.inputs for node in self.nodes if node.name == name]
            read = [list(shapes.get(part.inputs[0], ())) for part in parts]
            dim = len(read[0]) - 1 if parts[0].op == "linear" else 1
            if len(read[0]) < 2 or _without(read[0], dim) != _without(read[1], dim):
                break  # one is broadcast over the places of the other
            concat = self._name(f"{key}_inputs".replace(".", "_"))
            shapes[concat] = tuple(read[0])  # but for the axis of the inputs
            self.nodes = with_one_head(self.nodes, joined, key, dim, concat)
            self.layers[key] = one_head(*(self.layers.pop(part.name) for part in parts))
            self.folded.append(key)
            last = key if last == joined.name else last
        if any(is_linear_per_pixel(node) for node in self.nodes if node.name == key):
            sides = [self._name(f"{key}_{side}".replace(".", "_")) for side in SIDES]
            self.nodes = with_linear(self.nodes, key, sides)
            self.layers[key] = linear_of(self.layers[key])
            last = sides[-1] if last == key else last
        return last

    def _needed(self, result: fx.Node) -> list[fx.Node]:
        """Return the nodes that the result depends on, without weights, in execution order."""
        found: set[fx.Node] = set()
        stack = [result]
        while stack:
            node = stack.pop()
            if node not in found and static_of(node) is None:
                found.add(node)
                stack.extend(node.all_input_nodes)
        order = [n for n in self.traced.graph.nodes if n in found or n.op == "placeholder"]
        if not any(n.op == "placeholder" and n in found for n in order):
            raise ConvertError("the network: expected an output that depends on its input")
        return order

    def _reserve(self, needed: list[fx.Node]) -> None:
        """Give modules their own names first, so that no function takes one of them."""
        targets = [str(node.target) for node in needed if node.op == "call_module"]
        for target in targets:
            parts = target.split(".")
            self.taken |= {".".join(parts[: i + 1]) for i in range(len(parts))}
        self.free = set(targets)

    def _name(self, base: str) -> str:
        """Return a name for a node: its module's if that is free, else one like it."""
        if base in self.free:
            self.free.discard(base)
            return base
        name, count = base, 1
        while name in self.taken:
            name, count = f"{base}_{count}", count + 1
        self.taken.add(name)
        return name

    def _emit(self, op: str, inputs: list[str], attrs: Attrs, base: str) -> str:
        node = Node(self._name(base), op, tuple(inputs), attrs)
        self.walk.visit(node)
        self.nodes.append(node)
        return node.name

    def _chain(self, node: fx.Node, inputs: list[str], steps: list[Step], base: str = "") -> None:
        """Emit steps one behind the other; the last is the value of `node`."""
        base = base or (str(node.target) if node.op == "call_module" else node.name)
        name = inputs[0]
        for i, (op, attrs) in enumerate(steps):
            last = i == len(steps) - 1
            name = self._emit(op, inputs, attrs, base if last else f"{node.name}_{op}")
            inputs = [name]
        self.names[node] = name

    # Kinds of nodes

    def _lower(self, node: fx.Node) -> None:
        if node in self.inside:
            return
        if node.op == "placeholder":
            attrs: Attrs = {"shape": list(self.traced.x.shape)}
            attrs |= {} if self.traced.x.is_floating_point() else {"integers": True}
            self.names[node] = self._emit("input", [], attrs, "input")
            return
        if "refusal" in node.meta:
            raise self._refusal(node, node.meta["refusal"])
        if node.name not in self.shapes:
            if name_of(node.target) in (*PARTS, "max", "min"):
                return  # its parts are read one by one
            if name_of(node.target) == "multi_head_attention_forward":
                multi_head(self, node)
                return
            raise self._refusal(node, "it doesn't return one tensor")
        if node.op == "call_module":
            self._module(node)
            return
        first = node.args[0] if node.args else node.kwargs.get("input")
        if isinstance(first, fx.Node) and first.name not in self.shapes:
            self._item(node, first)
            return
        special = SPECIAL.get(name_of(node.target))
        if special is not None and getattr(self, special)(node):
            return
        reader = JOINED.get(name_of(node.target))
        if reader is not None and reader(self, node):
            return
        layers = layers_of(node, self._shape(first), self._channels(first))
        for i, layer in enumerate(layers):
            if isinstance(layer, Layer):
                self._layer(node, layer)
            else:
                self._chain(node, [self.names[node if i else node.all_input_nodes[0]]], layer)
        if layers:
            return
        operands = Operands.of(node, self.shapes)
        if operands is not None:
            inputs, steps = self._joined(node, operands)
        else:
            inputs, steps = self._inputs(node)[:1], self._steps(node)
        if isinstance(steps, Layer):
            self._layer(node, steps)
        else:
            self._chain(node, inputs, steps)

    def _inputs(self, node: fx.Node) -> list[str]:
        return [self.names[n] for n in node.all_input_nodes if n in self.names]

    def _shape(self, node: object) -> tuple[int, ...]:
        return self.shapes.get(node.name, ()) if isinstance(node, fx.Node) else ()

    def _value(self, node: fx.Node) -> Value:
        return self.walk.values[self.names[node]]

    def _channels(self, node: object) -> tuple[int | None, int]:
        """Return axis and number of the channels of a value."""
        if not isinstance(node, fx.Node) or node not in self.names:
            return None, 0
        value, shape = self._value(node), self.shapes[node.name]
        return value.axis, 0 if value.axis is None else shape[value.axis] // value.positions

    def _place(self, node: fx.Node, source: fx.Node) -> Place:
        places, batched = self.run_record.places, self.traced.batched
        return Place(
            node,
            self.shapes[source.name],
            self.shapes[node.name],
            self._value(source),
            (batched.get(source.name, (0,)), batched.get(node.name, (0,))),
            places[source.name][4] == places[node.name][4],
            node.name in self.traced.off,
        )

    def _steps(self, node: fx.Node) -> list[Step]:
        first = node.args[0] if node.args else node.kwargs.get("input")
        if not isinstance(first, fx.Node) or first not in self.names:
            raise self._refusal(node)
        steps = steps_of(self._place(node, first))
        if steps is None:
            raise self._refusal(node)
        return steps

    def _item(self, node: fx.Node, whole: fx.Node) -> None:
        """Lower one part of a chunk, split or unbind, or the values of x.max(dim)."""
        source, index = whole.args[0], node.args[1]
        if whole in self.names and index == 0:  # an attention, without its weights
            self.names[node] = self.names[whole]
            return
        if not isinstance(source, fx.Node) or not isinstance(index, int):
            raise self._refusal(whole)
        if "refusal" in whole.meta:
            raise self._refusal(whole, whole.meta["refusal"])
        if name_of(whole.target) in PARTS:
            default = 1 if name_of(whole.target) == "unbind" else 2
            dim = argument(whole, default, "dim", 0)
            value = self._value(source)
            dims = value.dims
            if not isinstance(dim, int) or dim % dims in self.traced.batched[source.name]:
                raise self._refusal(whole)
            items: list[Any] = sorted(whole.users, key=lambda item: int(str(item.args[1])))
            sizes: list[Sequence[int]] = [self.shapes[item.name] for item in items]
            steps = parts_of(whole, sizes, dim % dims, index)
        else:
            found = steps_of(replace(self._place(node, source), node=whole)) if index == 0 else None
            if found is None:
                raise self._refusal(whole)
            steps = found
        self._chain(node, [self.names[source]], steps)

    # Channels that are put together anew

    def _concat(self, node: fx.Node) -> bool:
        given = argument(node, 0, "tensors", ())
        dim = argument(node, 1, "dim", node.kwargs.get("axis", 0))
        if not isinstance(given, list | tuple) or not isinstance(dim, int):
            return False
        if joined(self, node):
            return True
        if any(not isinstance(n, fx.Node) or n not in self.names for n in given):
            raise UnclearError("it joins a value with tensors that don't depend on the input")
        shape = self.shapes[node.name]
        dim %= len(shape)
        if dim in self.traced.batched[node.name]:
            raise UnclearError("it makes a larger batch")
        inputs = [self.names[n] for n in given]
        if name_of(node.target) == "stack":
            inputs = [
                self._emit("insert_axis", [n], {"dim": dim}, f"{node.name}_axis") for n in inputs
            ]
            sizes = [1] * len(given)
        else:
            sizes = [self.shapes[n.name][dim] for n in given]
        self._chain(node, inputs, [("concat", {"dim": dim, "sizes": sizes})])
        return True

    def _glu(self, node: fx.Node) -> bool:
        """The first half of the channels times the sigmoid of the second."""
        source, dim = node.args[0], argument(node, 1, "dim", -1)
        if not isinstance(source, fx.Node) or source not in self.names:
            return False
        shape = self.shapes[source.name]
        dim %= len(shape)
        half, inputs = shape[dim] // 2, [self.names[source]]
        parts = [{"dim": dim, "start": s, "stop": s + half, "step": 1} for s in (0, half)]
        first, second = (self._emit("slice", inputs, a, f"{node.name}_part") for a in parts)
        gate = self._emit("sigmoid", [second], {}, f"{node.name}_gate")
        self._chain(node, [first, gate], [("mul", {})])
        return True

    def _shuffled(self, node: fx.Node) -> bool:
        """The end of view(B, G, C / G, ...), transpose(1, 2), view(B, C, ...)."""
        if node not in self.shuffles:
            return False
        source, groups = self.shuffles[node]
        self._chain(node, [self.names[source]], [("channel_shuffle", {"groups": groups})])
        return True

    def _find_shuffles(self, needed: list[fx.Node]) -> None:
        """Recognise shuffles of channels that are written as reshapes."""
        for last in needed:
            found = shuffle_before(last, self.shapes)
            if found is not None:
                source, groups, between = found
                self.shuffles[last] = source, groups
                self.inside.update(between)

    # Values that are joined

    def _joined(self, node: fx.Node, operands: Operands) -> tuple[list[str], list[Step] | Layer]:
        if operands.static is not None:
            axis, channels = self._channels(operands.first)
            shape = self.shapes[operands.first.name]
            self._check_learned(operands.static, node)
            return [self.names[operands.first]], operands.with_static(axis, channels, shape)
        if operands.second is None:
            return [self.names[operands.first]], operands.with_number()
        pair = [operands.first, operands.second]
        values = [self._value(n) for n in pair]
        shapes = [self.shapes[n.name] for n in pair]
        steps = operands.merged(values, shapes)
        return [self.names[n] for n in pair], steps

    # Layers

    def _layer(self, node: fx.Node, layer: Layer) -> None:
        if not all(s.learned for key, s in layer.tensors.items() if s and key in LEARNED):
            raise UnclearError("its weight is a constant, which no task could learn")
        path = self._path_of(node, layer)
        name = self._layer_name(path or node.name)
        source = next(n for n in (node, *node.all_input_nodes) if n in self.names)
        self._chain(node, [self.names[source]], layer.before, f"{node.name}_before")
        self.names[node] = self._add_layer(node, layer, name, self.names[node])
        self._chain(node, [self.names[node]], layer.after, node.name)

    def _add_layer(self, node: fx.Node, layer: Layer, name: str, source: str) -> str:
        """Emit a layer without the steps around it; return its name."""
        statics = [static for static in layer.tensors.values() if static is not None]
        for static in statics:
            self._check_learned(static, node)
        self._claim(node, name, [n for s in statics for n in ([s.name] if s.name else s.learned)])
        self.taken.discard(name)
        self._emit(layer.op, [source], layer.attrs, name)
        self.layers[name] = layer.module()
        if any(not static.name for static in statics):
            self.folded.append(name)
        return name

    @staticmethod
    def _path_of(node: fx.Node, layer: Layer) -> str:
        """Return the module that a layer belongs to, or the parameter that is one per channel."""
        statics = [layer.tensors["weight"], layer.tensors.get("running_mean")]
        names = [n for s in statics if s for n in ([s.name] if s.name else sorted(s.learned))]
        name = names[0] if names else ""
        path, _, key = name.rpartition(".")
        if key in ("weight", "running_mean"):
            return path
        inside = [p for p in node.meta.get("nn_module_stack", ()) if p]
        named = ("scale", "shift", "before", "behind")
        return name if layer.op in named else inside[-1] if inside else path

    def _layer_name(self, path: str) -> str:
        """Return a name that is not within another layer, because it names a submodule."""
        inner = any(t == path or t.startswith(f"{path}.") for t in self.taken)
        return self._name(path.replace(".", "_") if inner else path)

    def _claim(self, node: fx.Node, layer: str, names: list[str]) -> None:
        for name in names:
            if self.owners.get(name) is node:  # other rows of it
                continue
            if name in self.used:
                where, _ = self._where(node)
                raise ConvertError(
                    f"{where} is called twice, or uses {name!r} of {self.used[name]!r}; use a "
                    "layer per call, because shared weights can't be pruned separately"
                )
            self.used[name], self.owners[name] = layer, node
            self.tensors.append((layer, name))

    def _check_learned(self, static: Static, node: fx.Node) -> None:
        if static.random:
            raise self._refusal(node, "it uses random numbers that forward draws")
        frozen = [n for n in static.learned if not self.parameters[n].requires_grad]
        if frozen:
            where, _ = self._where(node)
            raise ConvertError(
                f"{where} is frozen (requires_grad=False); convert the network before freezing it"
            )

    # Modules

    def _module(self, node: fx.Node) -> None:
        module = self.modules[str(node.target)]
        source = node.args[0] if node.args else node.kwargs.get("input")
        if type(module) not in MODULES or not isinstance(source, fx.Node):
            raise self._refusal(node)
        where, _ = self._where(node)
        op, attrs = MODULES[type(module)]
        steps = [(op, attrs(module))]
        if op == "flatten":
            steps = reshaped(self._place(node, source))
        elif OPS[op].role in WITH_WEIGHTS:
            steps = [(self._weighted(node, module, where, op), attrs(module))]
        elif getattr(module, "return_indices", False):
            raise self._refusal(node, "it returns indices too")
        elif op == "log_softmax" and module.dim not in (None, 1, -1):
            raise ConvertError(
                f"{where}: expected dim=1 or dim=-1, the class axis, got dim={module.dim}"
            )
        self._chain(node, [self.names[source]], steps)

    def _weighted(self, node: fx.Node, module: nn.Module, where: str, op: str) -> str:
        path = str(node.target)
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if any(f"{path}.{key}" in self.used for key, _ in own):
            raise ConvertError(
                f"{where} is called twice; use a layer per call, because shared weights can't be "
                "pruned separately"
            )
        if not all(p.requires_grad for p in module.parameters(recurse=False)):
            raise ConvertError(
                f"{where} is frozen (requires_grad=False); convert the network before freezing it"
            )
        self._claim(node, path, [f"{path}.{key}" for key, _ in own])
        self.layers[path] = module
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is None:
            raise ConvertError(
                f"{where}: expected track_running_stats=True, got False; a learned task needs its "
                "frozen running statistics"
            )
        if isinstance(module, nn.Conv2d):
            return kind_of_conv(module.groups, module.in_channels, module.out_channels)
        return op

    # Refusals

    def _where(self, node: fx.Node) -> tuple[str, str]:
        """Name a node for messages, with its module; return the name and the kind."""
        if node.op == "call_module":
            kind = type(self.modules[str(node.target)]).__name__
        else:
            kind = name_of(node.target)
        return f"{place_of(node)} ({kind})", kind

    def _refusal(self, node: fx.Node, reason: str | None = None) -> ConvertError:
        where, kind = self._where(node)
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        shapes = [self.shapes.get(n.name) for n in node.all_input_nodes[:1]]
        found = reason or reason_for(node, kind, module, shapes[0] if shapes else None)
        return ConvertError(f"{where} can't be converted{f': {found}' if found else ''}. {HELP}")


def _text(shape: Sequence[object]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _without(shape: list[int], dim: int) -> list[int]:
    return [*shape[:dim], *shape[dim + 1 :]]
