"""One run of a trace: the shape of every tensor, the memory that it lives in, and what changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.multiprocessing.reductions import StorageWeakRef

Place = tuple[int, int, tuple[int, ...], tuple[int, ...], torch.dtype]


@dataclass
class Run:
    """The record of one run of a trace; keys are names of fx nodes.

    Attributes:
        shapes: shape of every tensor.
        places: of every tensor (its storage, offset, shape, strides, dtype); two tensors of one
            place are the same numbers.
        storages: the storages of all tensors in a value, which may be a tuple.
        changed: the storages that a node wrote to, other than its own new ones.
        result: what the trace returned.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    storages: dict[str, frozenset[int]] = field(default_factory=dict)
    changed: dict[str, frozenset[int]] = field(default_factory=dict)
    result: Any = None


class Recorder(fx.Interpreter):
    """Runs a trace and notes what happens. Values are freed as usual: storages are told apart by
    weak references, whose addresses are not given out again.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen = Run()
        self.at = "its input"
        self._kept: list[StorageWeakRef] = []

    def run_node(self, n: fx.Node) -> Any:
        self.at = repr(str(n.target) if n.op == "call_module" else n.name)
        before = [(t, t._version) for value in self.env.values() for t in _tensors(value)]
        value = super().run_node(n)
        self.seen.changed[n.name] = frozenset(
            self._storage(t) for t, version in before if t._version != version
        )
        self.seen.storages[n.name] = frozenset(self._storage(t) for t in _tensors(value))
        if isinstance(value, Tensor):
            shape = tuple(value.shape)
            self.seen.shapes[n.name] = shape
            self.seen.places[n.name] = (
                self._storage(value),
                int(value.storage_offset()),
                shape,
                tuple(value.stride()),
                value.dtype,
            )
        if n.op == "output":
            self.seen.result = value
        return value

    def _storage(self, tensor: Tensor) -> int:
        reference = StorageWeakRef(tensor.untyped_storage())
        self._kept.append(reference)
        return int(reference.cdata)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
