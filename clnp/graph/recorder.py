"""Record of one run of a trace: shapes, memory locations and in-place changes of all tensors."""

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
    """Record of one run of a trace; keys are names of fx nodes.

    Attributes:
        shapes: shape of every tensor.
        places: (storage, offset, shape, strides, dtype) of every tensor; tensors of equal place
            are the same numbers.
        storages: storages of all tensors in a value, which may be a tuple.
        changed: earlier storages that a node wrote to.
        result: return value of the trace.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    storages: dict[str, frozenset[int]] = field(default_factory=dict)
    changed: dict[str, frozenset[int]] = field(default_factory=dict)
    result: Any = None


class Recorder(fx.Interpreter):
    """Interpreter that records a run of a trace.

    Values are freed as usual. Storages are identified by weak references, whose addresses are not
    reused while they exist.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.record = Run()
        self.at = "its input"
        self._kept: list[StorageWeakRef] = []

    def run_node(self, n: fx.Node) -> Any:
        self.at = repr(str(n.target) if n.op == "call_module" else n.name)
        before = [(t, t._version) for value in self.env.values() for t in _tensors(value)]
        value = super().run_node(n)
        self.record.changed[n.name] = frozenset(
            self._storage(t) for t, version in before if t._version != version
        )
        self.record.storages[n.name] = frozenset(self._storage(t) for t in _tensors(value))
        if isinstance(value, Tensor):
            shape = tuple(value.shape)
            self.record.shapes[n.name] = shape
            self.record.places[n.name] = (
                self._storage(value),
                int(value.storage_offset()),
                shape,
                tuple(value.stride()),
                value.dtype,
            )
        if n.op == "output":
            self.record.result = value
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
