"""Groups of channels that are pruned together.

A pruned channel disappears from the layer that makes it and from every layer that reads it. Tensors
that are added share their channels. `find_groups` walks the graph once and collects the producers
and consumers of each such group. Activity, thresholds and boundaries of CLNP are per group.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConvertError
from .channels import Walk
from .graph import Graph, Node


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
        logits: name of the node whose value is the logits, before a log-softmax.
    """

    all: tuple[Group, ...]
    reads: dict[str, str]
    makes: dict[str, str]
    carries: dict[str, str]
    positions: dict[str, int]
    head: str
    logits: str

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
    """Return the output layer: the only one whose channels are those of the result.

    Raises:
        ConvertError: there is none, or it isn't a Linear.
    """
    return Walk.of(graph).head


def find_groups(graph: Graph) -> Groups:
    """Find the groups of a graph.

    Raises:
        ConvertError: naming a node that mixes channels in a way that pruning can't follow.
    """
    walk = Walk.of(graph)
    head = walk.head.name
    raw = graph.nodes[0].name
    reads = {n.name: walk.root(walk.read_by(n).key) for n in graph.layers}
    makes = {n.name: walk.root(n.name) for n in graph.layers if n.name != head}
    carries = {
        n.name: walk.root(walk.values[n.name].key) for n in graph.nodes if n.role == "channelwise"
    }
    found = []
    for name in dict.fromkeys([walk.root(raw), *makes.values()]):
        members = [
            tuple(n for n, g in table.items() if g == name) for table in (makes, reads, carries)
        ]
        producers, consumers, carriers = members
        size = outputs_of(graph[producers[0]]) if producers else 0
        if not producers and consumers:
            first = graph[consumers[0]]
            size = inputs_of(first) // walk.read_by(first).positions
        _check_sizes(graph, producers, size)
        if not consumers and producers:
            raise ConvertError(f"nothing reads the outputs of {producers}; remove the unused layer")
        found.append(Group(name, size, producers, consumers, carriers, prunable=name != raw))
    positions = {n.name: walk.read_by(n).positions for n in graph.layers}
    return Groups(tuple(found), reads, makes, carries, positions, head, walk.logits)


def outputs_of(node: Node) -> int:
    """Return the number of outputs O of a layer in the dense network."""
    size = node.attrs["out_features" if node.op == "linear" else "out_channels"]
    assert isinstance(size, int)
    return size


def inputs_of(node: Node) -> int:
    """Return the number of inputs I of a layer in the dense network."""
    size = node.attrs["in_features" if node.op == "linear" else "in_channels"]
    assert isinstance(size, int)
    return size


def _check_sizes(graph: Graph, producers: tuple[str, ...], size: int) -> None:
    for name in producers:
        if outputs_of(graph[name]) != size:
            raise ConvertError(
                f"{name!r}: expected {size} channels, as in the values it is joined with, got "
                f"{outputs_of(graph[name])}; broadcasting over channels can't be pruned"
            )
