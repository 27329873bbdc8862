"""Channels of transformers: norms over channels, heads, attention.

A head is a unit: reshaping [..., H * D] to [..., H, D] ties the D channels of each head, and an
attention ties a head's queries, keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from ..errors import ConvertError
from .graph import Node

ONE_HEAD = "reshape the channels to heads first"


class HeadRules:
    """Rules of `Walk` for the roles of transformers; each takes a node and its first input."""

    values: dict[str, Any]

    def join(self, channels: Iterable[int], others: Iterable[int]) -> None:
        raise NotImplementedError

    def _tied(self, node: Node, channels: Sequence[int], size: int) -> list[int]:
        raise NotImplementedError

    @staticmethod
    def _embedding(node: Node, source: Any, made: Any) -> Any:
        """Vectors of numbers; the channels are a new axis at the end."""
        if source.axis is not None:
            raise ConvertError(
                f"{node.name!r} (Embedding): expected numbers of the network's input, got a hidden "
                "value"
            )
        return replace(made, axis=source.dims, dims=source.dims + 1)

    def _norm_across(self, node: Node, source: Any) -> Any:
        """A norm over the last axis, which is that of the channels."""
        if source.axis not in (source.dims - 1, None):
            raise ConvertError(
                f"{node.name!r} ({node.op}): expected channels on the last axis, got them on axis "
                f"{source.axis} of {source.dims}"
            )
        source = source.spread()
        channels = source.channels or (0,) * int(node.attrs["num_features"])
        return replace(source, axis=source.dims - 1, channels=channels)

    def _heads(self, node: Node, source: Any) -> Any:
        """An axis of channels becomes one of heads, and axes within a head."""
        sizes = node.attrs["sizes"]
        dims = source.dims + len(sizes) - 1
        if source.axis is None:
            return replace(source, dims=dims)
        source = self._on(node, source).spread()
        firsts = self._tied(node, source.channels, math.prod(sizes[1:]))
        return replace(source, dims=dims, channels=tuple(firsts))

    def _packed(self, node: Node, source: Any) -> Any:
        """As `_heads`, behind an axis of several parts, as queries, keys and values."""
        sizes = node.attrs["sizes"]
        dims, parts, within = source.dims + len(sizes) - 1, sizes[1], math.prod(sizes[2:])
        if source.axis is None:
            return replace(source, dims=dims)
        source = self._on(node, source).spread()
        if len(source.channels) % (parts * within):
            raise ConvertError(f"{node.name!r}: expected a multiple of {parts * within} channels")
        part = len(source.channels) // parts
        ordered = [
            source.channels[i * part + unit * within + k]
            for unit in range(part // within)
            for i in range(parts)
            for k in range(within)
        ]
        firsts = self._tied(node, ordered, parts * within)
        return replace(source, axis=source.axis + 1, dims=dims, channels=tuple(firsts))

    def _tiled(self, node: Node, source: Any) -> Any:
        """Several axes, of which the last is that of the channels, become one."""
        start, end, times = (node.attrs[name] for name in ("start", "end", "times"))
        dims = source.dims - (end - start)
        if source.axis is None:
            return replace(source, dims=dims)
        if source.axis != end or source.positions > 1:
            raise ConvertError(f"{node.name!r} ({node.op}): expected channels on axis {end}")
        return replace(source, axis=start, dims=dims, channels=source.channels * times)

    def _product(self, node: Node, source: Any) -> Any:
        """A matrix product [..., M, K] x [..., K, N], for each channel apart."""
        a, b = (self.values[name].spread() for name in node.inputs)
        if a.axis is None and b.axis is None:
            return source
        rows, columns = a.axis == a.dims - 2, b.axis == b.dims - 1
        if (rows and b.axis is None) or (columns and a.axis is None):
            return a if rows else b
        if None in (a.axis, b.axis):
            raise self._mixing(node)
        if a.axis - a.dims != b.axis - b.dims or a.axis - a.dims > -3:
            raise self._mixing(node)
        self._join_heads(node, a, b)
        return b

    @staticmethod
    def _mixing(node: Node) -> ConvertError:
        return ConvertError(
            f"{node.name!r} ({node.op}) can't be converted: it multiplies along the channels, or "
            "joins channels with other axes, so later tasks' channels would change the outputs "
            f"of earlier tasks; {ONE_HEAD}, and multiply within each head"
        )

    def _einsum(self, node: Node, source: Any) -> Any:
        """A product over named axes; that of the channels is kept in the result."""
        values = [self.values[name].spread() for name in node.inputs]
        terms, result = node.attrs["equation"].split("->")
        letters = [
            None if value.axis is None else term[value.axis]
            for value, term in zip(values, terms.split(","), strict=True)
        ]
        known = {letter for letter in letters if letter is not None}
        if not known:
            return replace(source, dims=len(result))
        (letter, *others) = known
        others += [
            term
            for own, term in zip(letters, terms.split(","), strict=True)
            if own is None and letter in term
        ]
        if others or letter not in result:
            raise self._mixing(node)
        hidden = [value for value in values if value.axis is not None]
        if len(hidden) == 2:
            self._join_heads(node, *hidden)
        return replace(hidden[-1], axis=result.index(letter), dims=len(result))

    def _attention(self, node: Node, source: Any) -> Any:
        """Softmax over places, for each head apart; queries, keys and values are tied."""
        q, k, v = (self.values[name].spread() for name in node.inputs)
        if all(value.axis is None for value in (q, k, v)):
            return source
        if any(value.axis != value.dims - 3 for value in (q, k, v)):
            raise ConvertError(
                f"{node.name!r} (attention): expected queries, keys and values [B, heads, T, D] "
                f"with channels on axis 1, got them on axes {[v.axis for v in (q, k, v)]}; "
                f"{ONE_HEAD}"
            )
        self._join_heads(node, k, v)
        several = len(q.channels) // max(len(k.channels), 1)
        if several > 1 and node.attrs["shared"]:
            firsts = self._tied(node, q.channels, several)
            self.join(firsts, k.channels)
        else:
            self._join_heads(node, q, k)
        return replace(q, key=v.key)

    def _join_heads(self, node: Node, a: Any, b: Any) -> None:
        if len(a.channels) != len(b.channels):
            raise ConvertError(
                f"{node.name!r} ({node.op}): expected as many heads in all values, got "
                f"{len(a.channels)} and {len(b.channels)}"
            )
        self.join(a.channels, b.channels)

    @staticmethod
    def _on(node: Node, source: Any) -> Any:
        if source.axis != node.attrs["dim"]:
            raise ConvertError(f"{node.name!r} ({node.op}): expected channels on that axis")
        return source
