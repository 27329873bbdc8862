"""Channels that live and die together.

A channel that is pruned disappears from the layer that makes it and from every layer that reads it;
tensors that are added up share their channels. `find_groups` walks the graph once and collects, for
each such set, who makes it and who reads it. All bookkeeping of CLNP (activity, thresholds,
boundaries) is per group.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConvertError
from .graph import WITH_WEIGHTS, Graph, Node


@dataclass(frozen=True)
class Group:
    """A set of channels.

    Attributes:
        name: the first layer that makes them; "input" for the network's own inputs.
        size: how many channels.
        producers: layers whose outputs they are.
        consumers: layers that read them.
        carriers: depthwise layers and batch norms that have weights for each of them.
        prunable: False for the inputs and everything added to them: all of it is active from the
            first task on.
    """

    name: str
    size: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    carriers: tuple[str, ...]
    prunable: bool


@dataclass(frozen=True)
class Groups:
    """The groups of a network and where each layer stands.

    Attributes:
        all: every group but the outputs of the head, in execution order.
        reads: layer name -> name of the group it reads.
        makes: layer name -> name of the group it makes (the head makes none).
        carries: depthwise layer or batch norm -> name of the group whose channels it keeps apart.
        positions: layer name -> inputs per channel that it reads: more than 1 behind a flatten.
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
        """The final hidden group: the one that the head reads."""
        return self[self.reads[self.head]]

    def of(self, name: str) -> Group:
        """The group whose channels a layer, depthwise layer or batch norm puts out."""
        return self[self.makes.get(name) or self.carries[name]]

    def only_feeds_head(self) -> bool:
        """Whether nothing but the head reads the final hidden group, so that a single-head network
        need not even compute the channels that belong to earlier tasks (paper, Fig. 2, right)."""
        return self.last.prunable and self.last.consumers == (self.head,)


def find_head(graph: Graph) -> Node:
    """The output layer: the last layer of the graph, followed by nothing but a log-softmax or
    identity.
    """
    node = graph[graph.output]
    while node.op in ("log_softmax", "identity"):
        node = graph[node.inputs[0]]
    if node.op != "linear":
        raise ConvertError(
            f"the network ends in {node.name!r} ({node.op}); it has to end in a Linear layer that "
            "gives the logits "
            "(a LogSoftmax may follow)"
        )
    inside = [
        reader.name
        for reader in graph.readers(node.name)
        if reader.role in (*WITH_WEIGHTS, "merge")
    ]
    if inside:
        raise ConvertError(
            f"the output layer {node.name!r} is also read by {inside}; it has to be the last layer"
        )
    return node


@dataclass(frozen=True)
class _Value:
    """What is known about a node's tensor.

    Attributes:
        key: a node that stands for its channels, see `_Walk.root`.
        axis: where its channels are: 1 in images [B, C, H, W], -1 else; None where it is the raw
            input, which may be read either way.
        rank: number of axes.
        positions: entries per channel on that axis.
    """

    key: str
    axis: int | None
    rank: int
    positions: int = 1


class _Walk:
    """One walk over the nodes of a graph."""

    def __init__(self, graph: Graph, head: str) -> None:
        self.graph, self.head = graph, head
        self.parent: dict[str, str] = {}
        self.values: dict[str, _Value] = {}
        for node in graph.nodes:
            self.values[node.name] = self._visit(node)

    def root(self, name: str) -> str:
        """The first producer of the channels that `name` stands for."""
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def read_by(self, node: Node) -> _Value:
        """The value that a node reads first."""
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
                    f"{node.name!r} makes images of flattened ones; this is not supported"
                )
            return _Value(source.key, 1, 4)
        if node.op == "log_softmax" and self.root(source.key) != self.head:
            raise ConvertError(
                f"{node.name!r} mixes hidden channels; a LogSoftmax may only end the network"
            )
        if node.role == "spatial" and (source.axis == -1 or source.rank != 4):
            raise ConvertError(
                f"{node.name!r} ({node.op}) reads a value of rank {source.rank}, whose channels it "
                "would mix; a batch of images [B, C, H, W] is wanted"
            )
        return source

    def _layer(self, node: Node, source: _Value) -> _Value:
        if node.op == "linear":
            if source.axis == 1 and source.rank == 4:
                raise ConvertError(
                    f"{node.name!r} (Linear) works on the last axis of images [B, C, H, W], not on "
                    "their channels; flatten them first"
                )
            return _Value(node.name, -1, source.rank)
        if source.axis == -1:
            raise ConvertError(
                f"{node.name!r} ({node.op}) reads channels that are on the last axis; images "
                "[B, C, H, W] made by convolutions are wanted"
            )
        return _Value(node.name, 1, 4)

    def _channelwise(self, node: Node, source: _Value) -> _Value:
        axis = -1 if node.op == "batch_norm1d" else 1
        if source.positions > 1 or source.axis not in (axis, None):
            raise ConvertError(
                f"{node.name!r} ({node.op}) works on flattened images or on another axis than "
                "their channels; apply it to the images"
            )
        return _Value(source.key, axis, source.rank)

    def _flatten(self, node: Node, source: _Value) -> _Value:
        """Flattening hidden values [B, T, C] would interleave the channels; images and raw inputs
        pass.
        """
        if source.axis == -1 and source.rank > 2:
            raise ConvertError(
                f"{node.name!r} flattens a hidden value of rank {source.rank}: its channels would "
                "no longer lie side by side. "
                "Apply the layers to [B, C] values, or flatten the input first"
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
                    f"{node.name!r} joins {node.inputs[0]!r} and {name!r}, whose channels lie "
                    "differently"
                )
            # The later group joins the earlier one, so a group's name is its first producer.
            pair = self.root(source.key), self.root(other.key)
            first, second = sorted(pair, key=list(self.parent).index)
            self.parent[second] = first
            if source.axis is None:
                source = other
        return source


def find_groups(graph: Graph) -> Groups:
    """Finds the groups of a graph.

    Raises:
        ConvertError: naming the node, where channels mix in a way that pruning can't follow.
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
                f"{name!r} follows the output layer {head!r}; nothing but a LogSoftmax may"
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
    """Inputs of a layer in the dense network, I."""
    size = node.attrs["in_features" if node.op == "linear" else "in_channels"]
    assert isinstance(size, int)
    return size


def _inputs(graph: Graph, walk: _Walk, consumers: tuple[str, ...]) -> int:
    """Channels of the raw input's group."""
    if not consumers:
        return 0
    first = graph[consumers[0]]
    return inputs_of(first) // walk.read_by(first).positions


def _check_sizes(graph: Graph, producers: tuple[str, ...], size: int) -> None:
    for name in producers:
        if _outputs(graph[name]) != size:
            raise ConvertError(
                f"{name!r} makes {_outputs(graph[name])} channels but is joined with "
                f"values of {size}; "
                "broadcasting over channels can't be pruned"
            )
