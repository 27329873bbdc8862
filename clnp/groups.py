"""Channels that live and die together.

A channel that is pruned disappears from the layer that makes it and from every layer that reads it;
tensors that are added up share their channels. `find_groups` walks the graph once and collects, for
each such set, who makes it and who reads it. All bookkeeping of CLNP (activity, thresholds,
boundaries) is per group.
"""

from __future__ import annotations

from dataclasses import dataclass

from clnp.errors import ConvertError
from clnp.graph import Graph, Node


@dataclass(frozen=True)
class Group:
    """A set of channels.

    Attributes:
        name: the first layer that makes them; "input" for the network's own inputs.
        size: how many channels.
        producers: layers whose outputs they are.
        consumers: layers that read them.
        prunable: False for the inputs and everything added to them: all of it is active from the
            first task on.
    """

    name: str
    size: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    prunable: bool


@dataclass(frozen=True)
class Groups:
    """The groups of a network and where each layer stands.

    Attributes:
        all: every group but the outputs of the head, in execution order.
        reads: layer name -> name of the group it reads.
        makes: layer name -> name of the group it makes (the head makes none).
        head: name of the output layer.
    """

    all: tuple[Group, ...]
    reads: dict[str, str]
    makes: dict[str, str]
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
    if node.role != "layer":
        raise ConvertError(
            f"the network ends in {node.name!r} ({node.op}); it has to end in a Linear layer that "
            "gives the logits "
            "(a LogSoftmax may follow)"
        )
    inside = [
        reader.name for reader in graph.readers(node.name) if reader.role in ("layer", "merge")
    ]
    if inside:
        raise ConvertError(
            f"the output layer {node.name!r} is also read by {inside}; it has to be the last layer"
        )
    return node


def find_groups(graph: Graph) -> Groups:
    """Finds the groups of a graph.

    Raises:
        ConvertError: naming the node, where channels mix in a way that pruning can't follow.
    """
    head = find_head(graph)
    parent: dict[str, str] = {}
    # The group key of each node's value, and whether its channels are on the last axis of a value
    # of that rank.
    key: dict[str, str] = {}
    rank: dict[str, int] = {}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for node in graph.nodes:
        if node.role == "input":
            parent[node.name] = key[node.name] = node.name
            rank[node.name] = len(node.attrs["shape"])
        elif node.role == "layer":
            parent[node.name] = key[node.name] = node.name
            rank[node.name] = rank[node.inputs[0]]
        else:
            if node.op == "log_softmax" and root(key[node.inputs[0]]) != head.name:
                raise ConvertError(
                    f"{node.name!r} mixes hidden channels; a LogSoftmax may only end the network"
                )
            source = node.inputs[0]
            key[node.name] = key[source]
            rank[node.name] = rank[source]
            if node.role == "flatten":
                rank[node.name] = 2
                _check_flatten(node, root(key[source]), rank[source], graph)
            for other in node.inputs[1:]:
                # The later group joins the earlier one, so a group's name is its first producer.
                first, second = sorted(
                    (root(key[source]), root(key[other])), key=list(parent).index
                )
                parent[second] = first

    source = graph.nodes[0].name
    reads = {n.name: root(key[n.inputs[0]]) for n in graph.layers}
    makes = {n.name: root(n.name) for n in graph.layers if n.name != head.name}
    if root(head.name) != head.name or head.name in reads.values():
        raise ConvertError(f"the output layer {head.name!r} shares its channels with hidden layers")
    found = []
    for name in dict.fromkeys([root(source), *makes.values()]):
        producers = tuple(layer for layer, group in makes.items() if group == name)
        consumers = tuple(layer for layer, group in reads.items() if group == name)
        if name == source:
            size = graph[consumers[0]].attrs["in_features"] if consumers else 0
        else:
            size = graph[name].attrs["out_features"]
            _check_sizes(graph, producers, size)
        if not consumers:
            raise ConvertError(f"nothing reads the outputs of {producers}; remove the unused layer")
        found.append(Group(name, size, producers, consumers, prunable=name != source))
    return Groups(tuple(found), reads, makes, head.name)


def _check_flatten(node: Node, group: str, rank: int, graph: Graph) -> None:
    """Flattening hidden values [B, T, C] would interleave the channels; only [B, C] and raw inputs
    pass.
    """
    if graph[group].role != "input" and rank > 2:
        raise ConvertError(
            f"{node.name!r} flattens a hidden value of rank {rank}: its channels would no longer "
            "lie side by side. "
            "Apply the layers to [B, C] values, or flatten the input first"
        )


def _check_sizes(graph: Graph, producers: tuple[str, ...], size: int) -> None:
    for name in producers:
        if graph[name].attrs["out_features"] != size:
            raise ConvertError(
                f"{name!r} makes {graph[name].attrs['out_features']} channels but is joined with "
                f"values of {size}; "
                "broadcasting over channels can't be pruned"
            )
