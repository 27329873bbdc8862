"""The axis of the channels in every value of a graph, and which values share their channels."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import ConvertError
from .graph import OPS, Graph, Node

MIXES = "it mixes channels, so later tasks' channels would change the outputs of earlier tasks"
PARTS = "a part of a layer's channels can't be pruned separately"


@dataclass(frozen=True)
class Value:
    """Channels of a node's tensor.

    Attributes:
        key: a node that represents its channels, see `Walk.root`.
        axis: axis of the channels; None for a raw input, whose channels are never pruned.
        dims: number of axes.
        positions: entries per channel on that axis; above 1 after a flatten.
    """

    key: str
    axis: int | None
    dims: int
    positions: int = 1


class Walk:
    """Walk over nodes in execution order, which joins channels into groups (union-find).

    Attributes:
        values: channels of every visited node.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.parent: dict[str, str] = {}
        self.values: dict[str, Value] = {}

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

    def root(self, name: str) -> str:
        """Return the first producer of the channels that `name` represents."""
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def read_by(self, node: Node) -> Value:
        """Return the first input of a node."""
        return self.values[node.inputs[0]]

    def visit(self, node: Node) -> Value:
        """Find the channels of the next node."""
        rule = getattr(self, f"_{node.role}")
        self.nodes[node.name] = node
        if node.role in ("input", "layer"):
            self.parent[node.name] = node.name
        value: Value = rule(node, self.read_by(node) if node.inputs else None)
        self.values[node.name] = value
        return value

    # A rule per role: (node, its first input) -> its channels

    def _input(self, node: Node, source: Value) -> Value:
        return Value(node.name, None, len(node.attrs["shape"]))

    def _layer(self, node: Node, source: Value) -> Value:
        if node.op == "linear":
            if source.axis not in (None, source.dims - 1):
                raise ConvertError(
                    f"{node.name!r} (Linear): expected channels on the last axis, got them on axis "
                    f"{source.axis} of {source.dims}; flatten images first, or permute the axes"
                )
            return Value(node.name, source.dims - 1, source.dims)
        self._images(node, source)
        return Value(node.name, 1, 4)

    def _images(self, node: Node, source: Value) -> None:
        if source.axis not in (None, 1) or source.dims != 4 or source.positions > 1:
            raise ConvertError(
                f"{node.name!r} ({node.op}): expected images [B, C, H, W], got a value with "
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
        return replace(source, axis=axis)

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
            raise ConvertError(
                f"{node.name!r} ({node.op}) can't be converted: it works along the channels, axis "
                f"{source.axis}; {PARTS if node.op in ('slice', 'select') else MIXES}"
            )
        axis, dims = op.moves(node.attrs, source.axis, source.dims)
        return replace(source, axis=axis, dims=dims)

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
            if node.attrs.get("broadcast"):  # a raw input with one channel for all
                source = other if source.axis is None else source
                continue
            places = {(v.axis - v.dims, v.positions) for v in (source, other) if v.axis is not None}
            if len(places) > 1:
                raise ConvertError(
                    f"{node.name!r} joins {node.inputs[0]!r} and {name!r}, whose channels are on "
                    "different axes; bring them to one layout first"
                )
            # The later group joins the earlier one, so a group's name is its first producer.
            pair = self.root(source.key), self.root(other.key)
            first, second = sorted(pair, key=list(self.parent).index)
            self.parent[second] = first
            if source.axis is None or (other.axis is not None and other.dims > source.dims):
                source = other
        return source

    # The end of the network

    def end(self, output: str) -> None:
        """Find the output layer and the logits.

        Raises:
            ConvertError: the network ends otherwise, or other layers read its outputs.
        """
        value = self.values[output]
        key = self.root(value.key)
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
        self._check_end(key)

    def _check_end(self, key: str) -> None:
        for node in self.nodes.values():
            if not node.inputs:
                continue
            of_head = self.root(self.read_by(node).key) == key
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
            if node.role == "channelwise":
                raise ConvertError(
                    f"{node.name!r} follows the output layer {key!r}; only operations without "
                    "weights may follow it"
                )
        shared = [n for n in self.parent if n != key and self.root(n) == key]
        if shared or self.root(key) != key:
            raise ConvertError(f"the output layer {key!r} shares its channels with hidden layers")
