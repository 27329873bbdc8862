"""Cost of learning a task: operations, memory, time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..training.cost import held, layer_products
from .method import Batch, Method


@dataclass
class Cost:
    """Cost of learning a task so far.

    Attributes:
        flops: operations of matrix products and convolutions that were carried out, replayed
            examples and the method's own passes over data included.
        sparse_flops: what would be left if products with zero weights and masked gradients were
            skipped, which dense products do not.
        examples: examples of the task that training steps saw, counted each time.
        peak_memory: bytes. On a GPU measured by torch's allocator; on a CPU counted: weights,
            gradients, optimizer, what the method remembers, and the layers' inputs of one step.
        seconds: wall-clock of training, the method's own passes included.
    """

    flops: int = 0
    sparse_flops: int = 0
    examples: int = 0
    peak_memory: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain data, the inverse of `Cost(**data)`."""
        return asdict(self)


class Meter:
    """Adds up a task's `Cost`.

    Arguments:
        method: what trains.
        cost: where to add.
    """

    def __init__(self, method: Method, cost: Cost) -> None:
        self.method, self.cost = method, cost
        self.steps: dict[Any, int] = {}
        self.inputs = 0

    @contextmanager
    def passes(self) -> Iterator[None]:
        """Counts everything inside: the method's own work outside of training steps."""
        start = time.perf_counter()
        with FlopCounterMode(display=False) as counter:
            yield
        self.cost.flops += counter.get_total_flops()
        self.cost.sparse_flops += counter.get_total_flops()
        self.cost.seconds += time.perf_counter() - start

    def start_epoch(self) -> None:
        """Forgets what steps cost, so that a resumed run counts at the same places."""
        self.steps = {}

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """`method.step`, counted; equal steps of an epoch are counted once."""
        start = time.perf_counter()
        key = (len(batch), self.method.work_key())
        if key not in self.steps:
            with FlopCounterMode(display=False) as counter:
                result = self.method.step(batch)
            self.steps[key] = counter.get_total_flops()
            self._remember(batch)
        else:
            result = self.method.step(batch)
        cost = self.cost
        cost.flops += self.steps[key]
        cost.sparse_flops += int(self.steps[key] * self.method.density())
        cost.examples += len(batch)
        cost.seconds += time.perf_counter() - start
        return result

    def _remember(self, batch: Batch) -> None:
        method = self.method
        if method.device.type == "cuda":
            self.cost.peak_memory = max(
                self.cost.peak_memory, torch.cuda.max_memory_allocated(method.device)
            )
            return
        if not self.inputs:
            work = layer_products(method.net, batch.x[:1]).values()
            self.inputs = sum(p.inputs for p in work) * batch.x.element_size()
        parameters = list(method.net.parameters())
        now = held(method.net.state_dict().values())
        now += held(p.grad for p in parameters if p.grad is not None)
        now += held(
            v
            for values in method.optimizer.state.values()
            for v in values.values()
            if isinstance(v, Tensor)
        )
        now += held(method.state().values())
        now += self.inputs * (len(batch) + method.replayed())
        self.cost.peak_memory = max(self.cost.peak_memory, now)
