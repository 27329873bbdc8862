"""Removal of in-place operations from a trace.

Values of a `Graph` never change. After `y.relu_()`, every later reader of `y`, or of another name
of the same numbers, reads the result instead. If such a name is a view of another shape, or shares
memory in one mode only, no value replaces it, and the network is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from ..errors import ConvertError
from .calls import is_in_place
from .recorder import Run, stochastic_depth
from .trace import DROPOUTS, place_of

# Operations that return their input in some modes or memory formats, and a copy in others.
MAY_COPY = (
    *("contiguous", "reshape", "reshape_as", "flatten", "ravel", "to", "type", "type_as"),
    *("float", "double", "half", "bfloat16", "cpu", "cuda"),
)
# Operations that return their input if the shape doesn't change.
VIEWS_OF_ONE_SHAPE = ("reshape", "reshape_as", "flatten", "ravel", "Flatten")


@dataclass
class _Memory:
    """Memory shared by the values of the nodes visited so far (union-find over storages).

    Attributes:
        run: record of one run of the trace.
        modules: qualified name -> module.
        order: node -> its position.
        parent: storage -> a storage that may be the same (a forest).
        members: root of the forest -> nodes whose values are in it.
        copies: node -> the node that may have copied its value; None if none does.
    """

    run: Run
    modules: Mapping[str, nn.Module]
    order: dict[fx.Node, int]
    parent: dict[int, int] = field(default_factory=dict)
    members: dict[int, list[fx.Node]] = field(default_factory=dict)
    copies: dict[fx.Node, fx.Node | None] = field(default_factory=dict)

    def root(self, storage: int) -> int:
        while self.parent.get(storage, storage) != storage:
            storage = self.parent[storage]
        return storage

    def region(self, node: fx.Node) -> set[int]:
        """Return the roots of the storages that may hold a node's value."""
        return {self.root(s) for s in self.run.storages.get(node.name, ())}

    def join(self, storages: set[int]) -> None:
        """Record that some storages may be the same."""
        first, *others = storages
        for other in others:
            self.parent[other] = first
            self.members.setdefault(first, []).extend(self.members.pop(other, []))

    def add(self, node: fx.Node, written: fx.Node | None) -> None:
        """Record a node's value."""
        region = self.region(node)
        for storage in region:
            self.members.setdefault(storage, []).append(node)
        self.copies[node] = None
        for source in [written] if written else node.all_input_nodes:
            if may_copy(node, self.modules) and self.region(source):
                if not (
                    self.same(source, node) and _kind(node, self.modules) in VIEWS_OF_ONE_SHAPE
                ):
                    self.copies[node] = node
                self.join(self.region(source) | self.region(node))
            elif region & self.region(source):
                self.copies[node] = self.copies[node] or self.copies[source]

    def same(self, a: fx.Node, b: fx.Node) -> bool:
        """Return whether two nodes are the same numbers in every mode and memory format."""
        places = self.run.places
        known = a.name in places and places[a.name] == places.get(b.name)
        return known and self.copies[a] is self.copies[b]

    def sharing(self, region: set[int]) -> list[fx.Node]:
        """Return the nodes whose values may be in a region."""
        return [node for root in region for node in self.members.get(root, ())]

    def is_after(self, node: fx.Node) -> Callable[[fx.Node], bool]:
        """Return a test for nodes later than `node`."""
        return lambda other: self.order[other] > self.order[node]


def make_functional(traced: fx.Graph, run: Run, modules: Mapping[str, nn.Module]) -> None:
    """Make readers of a changed value read the result of the change.

    Arguments:
        traced: the trace, which is changed.
        run: record of one run of it.
        modules: qualified name -> module.

    Raises:
        ConvertError: naming an in-place change that a later operation sees, and that can't be
            expressed without writing in place.
    """
    memory = _Memory(run, modules, {node: i for i, node in enumerate(traced.nodes)})
    stale: list[tuple[fx.Node, fx.Node, fx.Node]] = []
    for node in list(traced.nodes):
        if node.op == "output":
            break
        written = written_by(node, modules)
        memory.add(node, written)
        region = memory.region(written) if written else set()
        region |= {memory.root(s) for s in run.changed[node.name]}
        for value in memory.sharing(region):
            if value.op == "get_attr":
                if not value.meta["static"].name:
                    raise ConvertError(
                        f"{place_of(node)} writes into a tensor that forward makes; put the value "
                        "together with torch.cat or arithmetic instead"
                    )
                raise ConvertError(
                    f"{place_of(node)} changes {str(value.target)!r} in place; a network that "
                    "changes its own tensors in every call can't be converted"
                )
            if value is node:
                continue
            if written and memory.same(value, written) and memory.same(node, written):
                value.replace_all_uses_with(node, memory.is_after(node))
            later = filter(memory.is_after(node), value.users)
            stale += [(node, value, user) for user in later]
    _refuse_stale(traced, stale)


def _refuse_stale(traced: fx.Graph, stale: list[tuple[fx.Node, fx.Node, fx.Node]]) -> None:
    """Refuse reads of a value that was changed under another name, if they affect the output."""
    needed = ancestors(traced)
    for node, value, user in stale:
        if user in needed:
            reader = "the output" if user.op == "output" else place_of(user)
            if node.target is operator.setitem:
                raise ConvertError(
                    f"{place_of(node)} assigns to a part of {place_of(value)}, as in x[i] = y, and "
                    f"{reader} reads it afterwards; this can't be converted"
                )
            raise ConvertError(
                f"{place_of(node)} changes a value in place that {reader} reads afterwards as "
                f"{place_of(value)}, a view of it or the same tensor in some modes only; write it "
                "out of place, as y = torch.relu(x) for x.relu_()"
            )


def ancestors(traced: fx.Graph) -> set[fx.Node]:
    """Return the nodes that the output depends on."""
    stack = [node for node in traced.nodes if node.op == "output"]
    found: set[fx.Node] = set()
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found


def written_by(node: fx.Node, modules: Mapping[str, nn.Module]) -> fx.Node | None:
    """Return the value that an operation changes in place, judged by its name and arguments."""
    out = node.kwargs.get("out")
    if isinstance(out, fx.Node):
        return out
    if not _is_inplace(node, modules):
        return None
    first = node.args[0] if node.args else node.kwargs.get("input")
    return first if isinstance(first, fx.Node) else None


def _is_inplace(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.target is operator.setitem:
        return True
    name = _kind(node, modules).split(".")[0]
    if name.endswith("_") and not name.endswith("__"):
        return True
    return node.op == "call_function" and is_in_place(node.target, node.args, dict(node.kwargs))


def may_copy(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Return whether the result shares memory with the input in some modes or formats only."""
    if written_by(node, modules) is not None:
        return False
    if node.target in DROPOUTS or node.target is stochastic_depth:
        return True
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.modules.dropout._DropoutNd | nn.Flatten)
    return _kind(node, modules) in MAY_COPY


def _kind(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """Return the name of a function, method or module class."""
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__
    return str(getattr(node.target, "__name__", node.target))
