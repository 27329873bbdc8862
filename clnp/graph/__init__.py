"""A network as data: tracing a module, lowering it to a graph, grouping its channels."""

from .registry import register

__all__ = ["register"]
