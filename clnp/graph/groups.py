"""Groups of channels that are pruned together, and the order of channels in every value.

A pruned channel disappears from the layer that makes it and from every layer that reads it. Joined
channels (of a sum, of a group of a convolution or norm) are one *unit*. Units that occur in the
same values form a *group*. Activity, thresholds and boundaries of CLNP are per group.

A value consists of groups, in their order, whatever the order in the dense network is; all entries
of a unit are adjacent. So a concatenation is a gather of groups, and a shuffle does nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..errors import ConvertError
from .channels import RAW, Value, Walk, inputs_of, outputs_of, raw
from .graph import Graph, Node

Layout = tuple[tuple[str, int], ...]  # (group, entries per unit), in order


@dataclass(frozen=True)
class Group:
    """A group of channels.

    Attributes:
        name: the first layer that makes them, with a number from its second group on; "input" for
            the network's own inputs.
        size: number of units; a unit is a channel, or several that can't be separated.
        producers: layers that output them.
        consumers: layers that read them.
        carriers: grouped convolutions, batch norms and the like with weights per channel.
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
class Gather:
    """Origin of the channels of a concatenation or slice.

    Attributes:
        axis: axis of the channels.
        result: layout of the result.
        inputs: layout of each input.
        parts: group -> (input, place among the unit's channels there) of each of a unit's channels.
        positions: entries per channel.
    """

    axis: int
    result: Layout
    inputs: tuple[Layout, ...]
    parts: dict[str, tuple[tuple[int, int], ...]]
    positions: int


@dataclass(frozen=True)
class Groups:
    """The groups of a network, and the layout of what each layer reads and makes.

    Attributes:
        all: every group but the outputs of the head, in execution order.
        reads: layer -> layout of its inputs.
        makes: layer -> layout of its outputs (the head has none).
        carries: grouped convolution, batch norm and the like -> layout of its outputs.
        gathers: concatenation, slice or shuffle of channels -> its parts.
        rows, columns: layer -> indices of its outputs and inputs in the dense network, in the order
            of the layout; left out where that is the dense order.
        head: name of the output layer.
        logits: name of the node whose value is the logits, before a log-softmax.
        class_axis: axis of the classes in it.
    """

    all: tuple[Group, ...]
    reads: dict[str, Layout]
    makes: dict[str, Layout]
    carries: dict[str, Layout]
    gathers: dict[str, Gather]
    head: str
    logits: str
    class_axis: int
    rows: dict[str, list[int]] = field(default_factory=dict)
    columns: dict[str, list[int]] = field(default_factory=dict)
    across: tuple[str, ...] = ()
    mixes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Group:
        for group in self.all:
            if group.name == name:
                return group
        raise KeyError(name)

    @property
    def prunable(self) -> list[Group]:
        return [group for group in self.all if group.prunable]

    @property
    def read_by_head(self) -> list[Group]:
        """The groups that the head reads."""
        return [self[name] for name, _ in self.reads[self.head]]

    @property
    def last(self) -> Group:
        """The last group that the head reads."""
        return self.read_by_head[-1]

    def of(self, name: str) -> Layout:
        """Return the layout of the outputs of a layer, grouped convolution or batch norm."""
        return self.makes[name] if name in self.makes else self.carries[name]

    def only_feeds_head(self) -> bool:
        """Return whether the head reads one group, is its only reader, and nothing divides it.

        A single-head network then skips the last group's channels of earlier tasks (paper, Fig. 2,
        right).
        """
        last = self.last
        layouts = [self.of(name) for name in (*last.producers, *last.carriers)]
        layouts += [self.reads[self.head]]
        gathered = {name for gather in self.gathers.values() for name, _ in gather.result}
        alone = all(len(layout) == 1 for layout in layouts) and last.name not in gathered
        alone = alone and not set(last.carriers) & set(self.across)  # these need all channels
        return last.prunable and last.consumers == (self.head,) and alone


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
    return _Finder(graph).groups()


class _Finder:
    """Division of the units of a graph into groups."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.walk = walk = Walk.of(graph)
        self.head = walk.head.name
        self.raw = graph.nodes[0].name
        self.units = [walk.root(channel) for channel in range(len(walk.parent))]
        self.parts: dict[str, dict[int, list[tuple[int, int]]]] = {}  # gather -> unit -> origins
        signatures = self._signatures()
        groups: dict[tuple[object, ...], list[int]] = {(): [RAW]}
        for unit in sorted(signatures):
            if unit != RAW:
                groups.setdefault(tuple(signatures[unit]), []).append(unit)
        self.members = list(groups.values())
        self.index = {unit: i for i, units in enumerate(self.members) for unit in units}
        self.names = self._names()

    def groups(self) -> Groups:
        walk, graph = self.walk, self.graph
        reads = {n.name: walk.read_by(n) for n in graph.layers}
        makes = {n.name: walk.values[n.name] for n in graph.layers if n.name != self.head}
        for name in walk.mixes:  # weights that all channels share are never pruned
            reads[name] = Value(name, 0, 1, channels=raw(inputs_of(graph[name])))
            makes[name] = Value(name, 0, 1, channels=raw(outputs_of(graph[name])))
        carries = {n.name: walk.values[n.name] for n in graph.weighted if n.name not in reads}
        columns = {name: self._order(value) for name, value in reads.items()}
        rows = {name: self._order(value) for name, value in (makes | carries).items()}
        layouts = [
            {name: self._layout(value, name) for name, value in table.items()}
            for table in (makes, reads, carries)
        ]
        members = [_by_group(table) for table in layouts]
        found = []
        for i, name in enumerate(self.names):
            producers, consumers, carriers = (tuple(table.get(name, ())) for table in members)
            if producers and not consumers:
                raise ConvertError(
                    f"nothing reads the outputs of {producers}, or some of them; remove the unused "
                    "layer or channels"
                )
            size, prunable = len(self.members[i]), i > 0
            if prunable:
                self._check_several(name, producers, layouts[0])
            found.append(Group(name, size, producers, consumers, carriers, prunable))
        return Groups(
            tuple(found),
            layouts[1],
            layouts[0],
            layouts[2],
            {name: self._gather(name) for name in walk.gathers},
            self.head,
            walk.logits,
            walk.class_axis,
            {name: order for name, order in rows.items() if order},
            {name: order for name, order in columns.items() if order},
            tuple(node.name for node in graph.nodes if node.role == "norm_across"),
            tuple(walk.mixes),
        )

    def _signatures(self) -> dict[int, list[object]]:
        """Return unit -> where it occurs and how often, for all values of layers and gathers."""
        walk, graph = self.walk, self.graph
        values = [walk.values[n.name] for n in graph.weighted if n.name != self.head]
        values += [walk.read_by(n) for n in graph.weighted]
        for name, gather in walk.gathers.items():
            values += [*gather.inputs, walk.values[name]]
        signatures: dict[int, list[object]] = {}
        for channels in {id(v.channels): v.channels for v in values}.values():
            for unit, count in Counter(map(self.units.__getitem__, channels)).items():
                signatures.setdefault(unit, []).append((id(channels), count))
        for name, gather in walk.gathers.items():
            origins: list[tuple[int, int]] = []
            for i, value in enumerate(gather.inputs):
                seen: Counter[int] = Counter()
                for channel in value.channels:
                    unit = self.units[channel]
                    origins.append((i, seen[unit]))
                    seen[unit] += 1
            parts: dict[int, list[tuple[int, int]]] = {}
            for channel, at in zip(walk.values[name].channels, gather.order, strict=True):
                parts.setdefault(self.units[channel], []).append(origins[at])
            for unit, places in parts.items():
                signatures[unit].append((name, tuple(places)))
            self.parts[name] = parts
        return signatures

    def _names(self) -> list[str]:
        """Name every group after the first layer that makes it."""
        makers: dict[int, str] = {}
        for node in self.graph.weighted:
            for channel in self.walk.values[node.name].channels:
                makers.setdefault(self.index.get(self.units[channel], -1), node.name)
        names: list[str] = []
        for i in range(len(self.members)):
            base = makers[i] if i else self.raw
            count = 1 + sum(name.split(":")[0] == base for name in names)
            names.append(base if count == 1 else f"{base}:{count}")
        return names

    def _layout(self, value: Value, reader: str = "") -> Layout:
        if not value.channels:
            return ((self.raw, inputs_of(self.graph[reader])),)
        counts = Counter(map(self.units.__getitem__, value.channels))
        firsts: dict[int, int] = {}
        for unit, count in counts.items():
            firsts[self.index[unit]] = count * value.positions
        return tuple((self.names[i], firsts[i]) for i in sorted(firsts))

    def _order(self, value: Value) -> list[int]:
        """Return the dense indices of a value's entries in layout order; empty if all in order."""
        units = [self.units[channel] for channel in value.channels]
        keys = [(self.index[unit], unit) for unit in units]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        if order == list(range(len(order))):
            return []
        each = value.positions
        return [i * each + p for i in order for p in range(each)]

    def _gather(self, name: str) -> Gather:
        walk = self.walk
        value, gather = walk.values[name], walk.gathers[name]
        parts = {
            self.names[self.index[unit]]: tuple(places) for unit, places in self.parts[name].items()
        }
        inputs = tuple(self._layout(v) for v in gather.inputs)
        assert value.axis is not None
        return Gather(value.axis, self._layout(value), inputs, parts, value.positions)

    def _check_several(
        self, name: str, producers: tuple[str, ...], makes: dict[str, Layout]
    ) -> None:
        """Refuse a group of one unit that is several channels of a layer."""
        size = len(self.members[self.names.index(name)])
        for producer in producers:
            if size == 1 and dict(makes[producer])[name] > 1:
                raise ConvertError(
                    f"{producer!r}: its {dict(makes[producer])[name]} channels depend on one "
                    "another in a later layer (one norm for all, groups that are shuffled), so a "
                    "first task would take them all; use norms and convolutions of more groups"
                )


def _by_group(layouts: dict[str, Layout]) -> dict[str, list[str]]:
    """Return group -> layers whose layout contains it."""
    found: dict[str, list[str]] = {}
    for name, layout in layouts.items():
        for group, _ in layout:
            found.setdefault(group, []).append(name)
    return found
