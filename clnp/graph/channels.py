"""The channels of every value of a graph, and which of them can only be pruned together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ConvertError
from .graph import OPS, WITH_WEIGHTS, Graph, Node
from .head_rules import HeadRules

MIXES = "it mixes channels, so later tasks' channels would change the outputs of earlier tasks"
PARTS = "a part of a layer's channels can't be pruned separately"
MOST_CHANNELS = 1 << 22  # of all layers together
RAW = 0  # the channels of the network's input, which are never pruned


@dataclass(frozen=True)
class Value:
    """Channels of a node's tensor.

    Attributes:
        key: the layer or concatenation that made it, or the input.
        axis: axis of the channels; None for a raw input, whose channels are never pruned.
        dims: number of axes.
        positions: entries per channel on that axis; above 1 after a flatten.
        channels: numbers of its channels, in order; see `Walk.root`. Empty for a raw input.
    """

    key: str
    axis: int | None
    dims: int
    positions: int = 1
    channels: tuple[int, ...] = ()

    def spread(self) -> Value:
        """Return the same value with one position per channel; channels may be repeated."""
        repeated = tuple(c for c in self.channels for _ in range(self.positions))
        return self if self.positions == 1 else replace(self, positions=1, channels=repeated)


@dataclass(frozen=True)
class Gathered:
    """Origin of a concatenation, slice or shuffle of channels.

    Attributes:
        inputs: the values that it takes channels of.
        order: for each channel, its index among those of all inputs.
    """

    inputs: tuple[Value, ...]
    order: Sequence[int]


class Walk(HeadRules):
    """Walk over nodes in execution order, which joins channels (union-find).

    A layer makes channels of its own. A concatenation has those of its inputs, a slice has some of
    them, and a sum joins the channels of its inputs one by one. What a grouped convolution or norm
    mixes is joined too: such channels live and die together.

    Attributes:
        values: channels of every visited node.
        gathers: concatenation, slice or shuffle of channels -> where they come from.
        mixes: linear layers over another axis than that of the channels.
    """

    def __init__(self) -> None:
        self.mixes: list[str] = []
        self.nodes: dict[str, Node] = {}
        self.parent = [RAW]
        self.values: dict[str, Value] = {}
        self.gathers: dict[str, Gathered] = {}

    @classmethod
    def of(cls, graph: Graph) -> Walk:
        """Walk over a whole graph.

        Raises:
            ConvertError: naming a node that mixes channels in a way that pruning can't follow, or
                the output layer if it isn't the end of the network.
        """
        walk = cls()
        for node in graph.nodes:
            walk.visit(node)
        walk.end(graph.output)
        return walk

    def root(self, channel: int) -> int:
        """Return the first of the channels that a channel was joined with."""
        parent = self.parent
        while parent[channel] != channel:
            parent[channel] = parent[parent[channel]]
            channel = parent[channel]
        return channel

    def join(self, channels: Iterable[int], others: Iterable[int]) -> None:
        """Join channels pairwise."""
        for a, b in zip(channels, others, strict=True):
            first, second = sorted((self.root(a), self.root(b)))
            self.parent[second] = first

    def new(self, count: int) -> tuple[int, ...]:
        """Return new channels."""
        start = len(self.parent)
        _check_count(start + count)
        self.parent.extend(range(start, start + count))
        return tuple(range(start, start + count))

    def read_by(self, node: Node) -> Value:
        """Return the first input of a node."""
        return self.values[node.inputs[0]]

    def visit(self, node: Node) -> Value:
        """Find the channels of the next node."""
        rule = getattr(self, f"_{node.role}")
        self.nodes[node.name] = node
        value: Value = rule(node, self.read_by(node) if node.inputs else None)
        self.values[node.name] = value
        return value

    # A rule per role: (node, its first input) -> its channels

    def _input(self, node: Node, source: Value) -> Value:
        return Value(node.name, None, len(node.attrs["shape"]))

    def _layer(self, node: Node, source: Value) -> Value:
        channels = self.new(outputs_of(node))
        if node.op == "embedding":
            return self._embedding(node, source, Value(node.name, 0, 1, channels=channels))
        if node.op == "linear":
            if source.axis not in (None, source.dims - 1):
                self.mixes.append(node.name)
                return source
            return Value(node.name, source.dims - 1, source.dims, channels=channels)
        dims = 5 if node.op == "conv3d" else 4
        self._images(node, source, dims)
        return Value(node.name, 1, dims, channels=channels)

    def _images(self, node: Node, source: Value, dims: int = 4) -> None:
        if source.axis not in (None, 1) or source.dims != dims or source.positions > 1:
            wanted = "images [B, C, H, W]" if dims == 4 else "volumes [B, C, D, H, W]"
            raise ConvertError(
                f"{node.name!r} ({node.op}): expected {wanted}, got a value with "
                f"{source.dims} axes and its channels on axis {source.axis}, which it would mix"
            )

    def _spatial(self, node: Node, source: Value) -> Value:
        self._images(node, source)
        return source

    def _channelwise(self, node: Node, source: Value) -> Value:
        axis = node.attrs.get("axis", 1)
        if source.positions > 1 or source.axis not in (axis, None):
            raise ConvertError(
                f"{node.name!r} ({node.op}): expected channels on axis {axis}, got flattened "
                "images or channels on another axis; apply it to the images"
            )
        channels = source.channels or raw(inputs_of(node))
        return replace(source, axis=axis, channels=channels)

    def _grouped(self, node: Node, source: Value) -> Value:
        """A grouped convolution: what a group reads and makes lives and dies together."""
        self._images(node, source)
        groups, outputs = node.attrs["groups"], outputs_of(node)
        channels = source.channels or raw(inputs_of(node))
        firsts = self._tied(node, channels, len(channels) // groups)
        made = self.new(outputs)
        each = outputs // groups
        self.join(made, [c for c in firsts for _ in range(each)])
        return Value(node.name, 1, 4, channels=made)

    def _tied(self, node: Node, channels: Sequence[int], size: int) -> list[int]:
        """Join blocks of `size` channels; return the first of each."""
        if len(channels) % size:
            raise ConvertError(
                f"{node.name!r} ({node.op}): expected a multiple of {size} channels, got "
                f"{len(channels)}"
            )
        firsts = list(channels[::size])
        self.join(channels, [c for c in firsts for _ in range(size)])
        return firsts

    def _units(self, node: Node, source: Value) -> Value:
        """A norm of groups of channels: a group lives and dies together."""
        if source.axis is None:
            return source
        if source.axis != 1 or source.positions > 1:
            raise ConvertError(f"{node.name!r} ({node.op}): expected channels on axis 1")
        self._tied(node, source.channels, node.attrs["each"])
        return source

    def _pixels(self, node: Node, source: Value) -> Value:
        """Blocks of channels become the pixels of one channel."""
        self._images(node, source)
        if source.axis is None:
            return source
        channels = tuple(self._tied(node, source.channels, node.attrs["factor"] ** 2))
        return replace(source, channels=channels)

    def _constant(self, node: Node, source: Value) -> Value:
        if source.axis not in (node.attrs["axis"], None):
            raise ConvertError(f"{node.name!r}: expected a constant that is equal in all channels")
        return source

    def _elementwise(self, node: Node, source: Value) -> Value:
        return source

    def _axes(self, node: Node, source: Value) -> Value:
        op = OPS[node.op]
        touched = {d % source.dims for d in op.touches(node.attrs, source.dims)}
        if source.axis in touched:
            if node.op == "slice":
                return self._slice(node, source)
            raise ConvertError(
                f"{node.name!r} ({node.op}) can't be converted: it works along the channels, axis "
                f"{source.axis}; {PARTS if node.op == 'select' else MIXES}"
            )
        axis, dims = op.moves(node.attrs, source.axis, source.dims)
        return replace(source, axis=axis, dims=dims)

    # Channels that are put together anew

    def _slice(self, node: Node, source: Value) -> Value:
        start, stop, step = (node.attrs[key] for key in ("start", "stop", "step"))
        each = source.positions
        if start % each or stop % each or (each > 1 and step != 1):
            raise ConvertError(f"{node.name!r} (slice) takes a part of the pixels of a channel")
        order = range(len(source.channels))[start // each : stop // each : step]
        return self._gathered(node, [source], order)

    def _gathered(self, node: Node, values: Sequence[Value], order: Sequence[int]) -> Value:
        self.gathers[node.name] = Gathered(tuple(values), order)
        channels = [channel for value in values for channel in value.channels]
        return replace(values[0], channels=tuple(channels[i] for i in order))

    def _shuffle(self, node: Node, source: Value) -> Value:
        if source.axis is None:
            return source
        if source.axis != 1 or source.positions > 1:
            raise ConvertError(f"{node.name!r} ({node.op}): expected channels on axis 1")
        count = len(source.channels)
        rows = count // node.attrs["groups"]
        order = [j for i in range(rows) for j in range(count)[i::rows]]
        return self._gathered(node, [source], order)

    def _concat(self, node: Node, source: Value) -> Value:
        values = [self.values[name] for name in node.inputs]
        dim = node.attrs["dim"]
        hidden = [value for value in values if value.axis is not None]
        if not hidden:
            return source
        if any(value.axis != dim for value in hidden):  # along another axis
            return self._merge(node, source)
        values = [
            replace(value, axis=dim, channels=raw(size)) if value.axis is None else value
            for value, size in zip(values, node.attrs["sizes"], strict=True)
        ]
        if len({value.positions for value in values}) > 1:
            values = [value.spread() for value in values]
        order = range(sum(len(value.channels) for value in values))
        return replace(self._gathered(node, values, order), key=node.name)

    def _unsqueeze(self, node: Node, source: Value) -> Value:
        if source.positions > 1:
            raise ConvertError(
                f"{node.name!r} turns flattened images into images; this is not supported"
            )
        return replace(source, axis=source.axis and 1, dims=4)

    def _flatten(self, node: Node, source: Value) -> Value:
        """Axes `start_dim` to `end_dim` become one; the channels may be the first of them."""
        first = node.attrs.get("start_dim", 1)
        last = node.attrs.get("end_dim", -1) % source.dims
        dims = source.dims - (last - first)
        positions = node.attrs.get("positions", 1)
        if source.axis is None:  # a raw input stays raw: its pixels are never pruned
            return replace(source, dims=dims)
        if first < source.axis <= last:
            raise ConvertError(
                f"{node.name!r} flattens a hidden value with {source.dims} axes, which would "
                "interleave its channels; apply the layers to [B, C] values, or flatten the input "
                "first"
            )
        if source.axis == first:
            return replace(source, dims=dims, positions=positions)
        axis = source.axis - (last - first if source.axis > last else 0)
        return replace(source, axis=axis, dims=dims)

    def _unflatten(self, node: Node, source: Value) -> Value:
        """One axis becomes several; of the channels', the entry -1 is the channels."""
        dim, sizes = node.attrs["dim"], node.attrs["sizes"]
        dims = source.dims + len(sizes) - 1
        if source.axis is None:
            return replace(source, dims=dims)
        if source.axis != dim:
            axis = source.axis + (len(sizes) - 1 if source.axis > dim else 0)
            return replace(source, axis=axis, dims=dims)
        index = sizes.index(-1)
        positions = node.attrs.get("positions", 1)
        return replace(source, axis=dim + index, dims=dims, positions=positions)

    def _merge(self, node: Node, source: Value) -> Value:
        for name in node.inputs[1:]:
            other = self.values[name]
            if node.attrs.get("broadcast"):
                source = self._broadcast(source, other)
                continue
            if source.positions != other.positions:  # heads behind a flatten, and a layer
                source, other = source.spread(), other.spread()
            places = {(v.axis - v.dims, v.positions) for v in (source, other) if v.axis is not None}
            if len(places) > 1:
                raise ConvertError(
                    f"{node.name!r} joins {node.inputs[0]!r} and {name!r}, whose channels are on "
                    "different axes; bring them to one layout first"
                )
            self._join_values(node, source, other)
            if source.axis is None or (other.axis is not None and other.dims > source.dims):
                source = other
        return source

    def _broadcast(self, a: Value, b: Value) -> Value:
        """One channel for all of another value: of the input, or of a gate, which is not pruned."""
        for gate, wide in ((a, b), (b, a)):
            if gate.axis is None:
                return wide
            if len(gate.channels) == 1 < len(wide.channels):
                self.join(gate.channels, (RAW,))
                return wide
        raise ConvertError("one of two values: expected a single channel, got several of both")

    def _join_values(self, node: Node, a: Value, b: Value) -> None:
        if a.channels is b.channels:
            return
        if not a.channels or not b.channels:  # what is joined with the input is never pruned
            known = a.channels or b.channels
            self.join(known, (RAW,) * len(known))
            return
        if len(a.channels) != len(b.channels):
            raise ConvertError(
                f"{node.name!r}: expected {len(a.channels)} channels, as in the values it is "
                f"joined with, got {len(b.channels)}; broadcasting over channels can't be pruned"
            )
        self.join(a.channels, b.channels)

    # The end of the network

    def end(self, output: str) -> None:
        """Find the output layer and the logits.

        Raises:
            ConvertError: the network ends otherwise, or other layers read its outputs.
        """
        value = self.values[output]
        key = value.key
        node = self.nodes[key]
        while self.nodes[output].op in ("log_softmax", "identity"):
            output = self.nodes[output].inputs[0]
        last = self.nodes[output]
        if node.op != "linear":
            raise ConvertError(
                f"the network: expected a Linear layer that gives the logits at its end (a "
                f"LogSoftmax may follow), got {last.name!r} ({last.op})"
            )
        if value.positions > 1:
            raise ConvertError(
                f"{last.name!r}: expected the outputs of the last layer on an axis of their own, "
                "got them flattened with others; leave [B, C, H, W] or [B, T, C] as it is"
            )
        self.head, self.logits = node, last.name
        self.class_axis = value.axis or 1
        self._check_end(key)

    def _check_end(self, key: str) -> None:
        for node in self.nodes.values():
            if not node.inputs:
                continue
            of_head = any(self.values[name].key == key for name in node.inputs)
            if node.op == "log_softmax" and not of_head:
                raise ConvertError(
                    f"{node.name!r} mixes hidden channels; use LogSoftmax at the end of the "
                    "network only"
                )
            if not of_head:
                continue
            if node.role == "layer":
                raise ConvertError(
                    f"the output layer {key!r}: expected no readers, got {[node.name]}; it must be "
                    "the last layer"
                )
            if node.role in WITH_WEIGHTS or node.name in self.gathers:
                raise ConvertError(
                    f"{node.name!r} follows the output layer {key!r}; only operations without "
                    "weights may follow it"
                )
        own = self.values[key].channels
        others = {self.root(c) for c in range(len(self.parent)) if not own[0] <= c <= own[-1]}
        roots = {self.root(c) for c in own}
        if len(roots) < len(own) or roots & others:
            layers = [n.name for n in self.nodes.values() if n.role == "layer" and n.name != key]
            joined = [
                name for name in layers if roots & set(map(self.root, self.values[name].channels))
            ]
            raise ConvertError(
                f"the output layer {key!r}: expected outputs of its own, got some that are joined "
                f"with {joined or 'one another'} by a later operation; give the network one layer "
                "at its end"
            )


def raw(count: int) -> tuple[int, ...]:
    """Return channels of the network's input."""
    _check_count(count)
    return (RAW,) * count


def _check_count(count: int) -> None:
    """Refuse numbers of channels that only a damaged file has, before memory is allocated."""
    if count > MOST_CHANNELS:
        raise ConvertError(f"channels: expected at most {MOST_CHANNELS} in all, got {count}")


def outputs_of(node: Node) -> int:
    """Return the number of outputs O of a layer in the dense network."""
    return _size(node, ("out_features", "out_channels"))


def inputs_of(node: Node) -> int:
    """Return the number of inputs I of a layer, or channels of a carrier, in the dense network."""
    return _size(node, ("in_features", "in_channels", "num_features", "channels"))


def _size(node: Node, names: Sequence[str]) -> int:
    size: Any = next(node.attrs[name] for name in names if name in node.attrs)
    assert isinstance(size, int)
    return size
