"""Groups of channels that are pruned together.

A pruned channel disappears from the layer that makes it and from every layer that reads it. Tensors
that are added share their channels. `find_groups` walks the graph once and collects the producers
and consumers of each such group. Activity, thresholds and boundaries of CLNP are per group.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConvertError
from .graph import WITH_WEIGHTS, Graph, Node


@dataclass(frozen=True)
class Group:
    """A group of channels.

    Attributes:
        name: the first layer that makes them; "input" for the network's own inputs.
        size: number of channels.
        producers: layers that output them.
        consumers: layers that read them.
        carriers: depthwise layers and batch norms with weights per channel.
        prunable: False for the network's inputs and everything added to them; these channels are
            active from the first task on.
    """

    name: str
    size: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    carriers: tuple[str, ...]
    prunable: bool


@dataclass(frozen=True)
class Groups:
    """The groups of a network, and the groups of each layer.

    Attributes:
        all: every group but the outputs of the head, in execution order.
        reads: layer name -> name of the group it reads.
        makes: layer name -> name of the group it makes (the head makes none).
        carries: depthwise layer or batch norm -> name of its group.
        positions: layer name -> inputs per channel; above 1 after a flatten.
        head: name of the output layer.
    """

    all: tuple[Group, ...]
    reads: dict[str, str]
    makes: dict[str, str]
    carries: dict[str, str]
    positions: dict[str, int]
    head: str

    def __getitem__(self, name: str) -> Group:
        for group in self.all:
            if group.name == name:
                return group
        raise KeyError(name)

    @property
    def prunable(self) -> list[Group]:
        return [group for group in self.all if group.prunable]

    @property
    def last(self) -> Group:
        """The group that the head reads."""
        return self[self.reads[self.head]]

    def of(self, name: str) -> Group:
        """Return the group of the outputs of a layer, depthwise layer or batch norm."""
        return self[self.makes.get(name) or self.carries[name]]

    def only_feeds_head(self) -> bool:
        """Return whether the head is the only reader of the last group.

        A single-head network then skips the last group's channels of earlier tasks (paper, Fig. 2,
        right).
        """
        return self.last.prunable and self.last.consumers == (self.head,)


def find_head(graph: Graph) -> Node:
    """Return the output layer: the last layer, followed by a log-softmax or identity at most.

    Raises:
        ConvertError: the network ends otherwise, or other layers read its outputs.
    """
    node = graph[graph.output]
    while node.op in ("log_softmax", "identity"):
        node = graph[node.inputs[0]]
    if node.op != "linear":
        raise ConvertError(
            f"the network: expected a Linear layer that gives the logits at its end (a LogSoftmax "
            f"may follow), got {node.name!r} ({node.op})"
        )
    inside = [
        reader.name
        for reader in graph.readers(node.name)
        if reader.role in (*WITH_WEIGHTS, "merge")
    ]
    if inside:
        raise ConvertError(
            f"the output layer {node.name!r}: expected no readers, got {inside}; it must be the "
            "last layer"
        )
    return node


@dataclass(frozen=True)
class _Value:
    """Properties of a node's tensor.

    Attributes:
        key: a node that represents its channels, see `_Walk.root`.
        axis: axis of the channels: 1 in images [B, C, H, W], else -1; None for the raw input, which
            may be either.
        dims: number of axes.
        positions: entries per channel on that axis.
    """

    key: str
    axis: int | None
    dims: int
    positions: int = 1


class _Walk:
    """Walk over the nodes of a graph that joins channels into groups (union-find)."""

    def __init__(self, graph: Graph, head: str) -> None:
        self.graph, self.head = graph, head
        self.parent: dict[str, str] = {}
        self.values: dict[str, _Value] = {}
        for node in graph.nodes:
            self.values[node.name] = self._visit(node)

    def root(self, name: str) -> str:
        """Return the first producer of the channels that `name` represents."""
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def read_by(self, node: Node) -> _Value:
        """Return the first input of a node."""
        return self.values[node.inputs[0]]

    def _visit(self, node: Node) -> _Value:
        if node.role == "input":
            self.parent[node.name] = node.name
            return _Value(node.name, None, len(node.attrs["shape"]))
        source = self.read_by(node)
        if node.role == "layer":
            self.parent[node.name] = node.name
            return self._layer(node, source)
        if node.role == "channelwise":
            return self._channelwise(node, source)
        if node.role == "flatten":
            return self._flatten(node, source)
        if node.role == "merge":
            return self._merge(node, source)
        if node.role == "unsqueeze":
            if source.positions > 1:
                raise ConvertError(
                    f"{node.name!r} turns flattened images into images; this is not supported"
                )
            return _Value(source.key, 1, 4)
        if node.op == "log_softmax" and self.root(source.key) != self.head:
            raise ConvertError(
                f"{node.name!r} mixes hidden channels; use LogSoftmax at the end of the network "
                "only"
            )
        if node.role == "spatial" and (source.axis == -1 or source.dims != 4):
            raise ConvertError(
                f"{node.name!r} ({node.op}): expected images [B, C, H, W], got a value with "
                f"{source.dims} axes, whose channels it would mix"
            )
        return source

    def _layer(self, node: Node, source: _Value) -> _Value:
        if node.op == "linear":
            if source.axis == 1 and source.dims == 4:
                raise ConvertError(
                    f"{node.name!r} (Linear): expected flattened images, got [B, C, H, W], whose "
                    "last axis isn't the channels; flatten them first"
                )
            return _Value(node.name, -1, source.dims)
        if source.axis == -1:
            raise ConvertError(
                f"{node.name!r} ({node.op}): expected images [B, C, H, W] made by convolutions, "
                "got channels on the last axis"
            )
        return _Value(node.name, 1, 4)

    def _channelwise(self, node: Node, source: _Value) -> _Value:
        axis = -1 if node.op == "batch_norm1d" else 1
        if source.positions > 1 or source.axis not in (axis, None):
            raise ConvertError(
                f"{node.name!r} ({node.op}): expected channels, got flattened images or another "
                "axis; apply it to the images"
            )
        return _Value(source.key, axis, source.dims)

    def _flatten(self, node: Node, source: _Value) -> _Value:
        """Refuse hidden values [B, T, C]: flattening would interleave their channels."""
        if source.axis == -1 and source.dims > 2:
            raise ConvertError(
                f"{node.name!r} flattens a hidden value with {source.dims} axes, which would "
                "interleave its channels; apply the layers to [B, C] values, or flatten the input "
                "first"
            )
        positions = node.attrs.get("positions", 1)
        # A raw input that is flattened stays raw: its pixels are never pruned.
        return _Value(source.key, source.axis and -1, 2, positions if source.axis else 1)

    def _merge(self, node: Node, source: _Value) -> _Value:
        for name in node.inputs[1:]:
            other = self.values[name]
            axes = {source.axis, other.axis} - {None}
            if len(axes) > 1 or (axes and source.positions != other.positions):
                raise ConvertError(
                    f"{node.name!r} joins {node.inputs[0]!r} and {name!r}, whose channels are on "
                    "different axes; bring them to one layout first"
                )
            # The later group joins the earlier one, so a group's name is its first producer.
            pair = self.root(source.key), self.root(other.key)
            first, second = sorted(pair, key=list(self.parent).index)
            self.parent[second] = first
            if source.axis is None:
                source = other
        return source


def find_groups(graph: Graph) -> Groups:
    """Find the groups of a graph.

    Raises:
        ConvertError: naming a node that mixes channels in a way that pruning can't follow.
    """
    head = find_head(graph).name
    walk = _Walk(graph, head)
    raw = graph.nodes[0].name
    reads = {n.name: walk.root(walk.read_by(n).key) for n in graph.layers}
    makes = {n.name: walk.root(n.name) for n in graph.layers if n.name != head}
    carries = {
        n.name: walk.root(walk.values[n.name].key) for n in graph.nodes if n.role == "channelwise"
    }
    for name, group in carries.items():
        if group == head:
            raise ConvertError(
                f"{name!r} follows the output layer {head!r}; only a LogSoftmax may follow it"
            )
    if walk.root(head) != head or head in reads.values():
        raise ConvertError(f"the output layer {head!r} shares its channels with hidden layers")
    found = []
    for name in dict.fromkeys([walk.root(raw), *makes.values()]):
        members = [
            tuple(n for n, g in table.items() if g == name) for table in (makes, reads, carries)
        ]
        producers, consumers, carriers = members
        size = _inputs(graph, walk, consumers) if name == raw else _outputs(graph[name])
        _check_sizes(graph, producers, size)
        if not consumers:
            raise ConvertError(f"nothing reads the outputs of {producers}; remove the unused layer")
        found.append(Group(name, size, producers, consumers, carriers, prunable=name != raw))
    positions = {n.name: walk.read_by(n).positions for n in graph.layers}
    return Groups(tuple(found), reads, makes, carries, positions, head)


def _outputs(node: Node) -> int:
    size = node.attrs["out_features" if node.op == "linear" else "out_channels"]
    assert isinstance(size, int)
    return size


def inputs_of(node: Node) -> int:
    """Return the number of inputs I of a layer in the dense network."""
    size = node.attrs["in_features" if node.op == "linear" else "in_channels"]
    assert isinstance(size, int)
    return size


def _inputs(graph: Graph, walk: _Walk, consumers: tuple[str, ...]) -> int:
    """Return the number of channels of the raw input's group."""
    if not consumers:
        return 0
    first = graph[consumers[0]]
    return inputs_of(first) // walk.read_by(first).positions


def _check_sizes(graph: Graph, producers: tuple[str, ...], size: int) -> None:
    for name in producers:
        if _outputs(graph[name]) != size:
            raise ConvertError(
                f"{name!r}: expected {size} channels, as in the values it is joined with, got "
                f"{_outputs(graph[name])}; broadcasting over channels can't be pruned"
            )
