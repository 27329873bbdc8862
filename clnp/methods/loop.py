"""One epoch of any method, and what it costs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..data.batches import count
from ..data.task import Task
from ..errors import TrainingError
from ..training import epoch as epoch_loop
from ..training.epoch import OnBatch, check_labels
from .cost import held, layer_products
from .method import Batch, Method


@dataclass
class Cost:
    """What learning a task has cost so far.

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


def run_epoch(
    method: Method, meter: Meter, task: Task, epoch: int, seed: int, on_batch: OnBatch
) -> tuple[float, float]:
    """Train for one epoch: (mean loss, fraction of its examples classified correctly in training).

    Arguments:
        method: between `begin` and `end`.
        meter: adds up the cost.
        task, epoch: of the method.
        seed: of the order of examples. Torch's global generator is the caller's affair.
        on_batch: as of `clnp.training.epoch.run_epoch`.

    Raises:
        TrainingError: the loss is not finite.
    """
    meter.start_epoch()
    with meter.passes():
        method.start_epoch(task, epoch)
    losses, hits, seen = epoch_loop.run_epoch(
        _steps(method, meter, task, epoch, seed),
        max(count(task.train), 1),
        method.device,
        on_batch=on_batch,
        check_loss=lambda total: _check_loss(method, total, epoch),
    )
    return float(losses) / max(seen, 1), float(hits) / max(seen, 1)


def _steps(
    method: Method, meter: Meter, task: Task, epoch: int, seed: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Take the steps of an epoch -> (examples, loss, correct examples)."""
    for batch in method.batches(task, epoch, torch.Generator().manual_seed(seed)):
        if isinstance(batch.task, int):
            check_labels(batch.y, method.net.tasks[batch.task])
        loss, logits = meter.step(batch)
        yield len(batch), loss, (logits.argmax(dim=-1) == batch.y).sum()


def _check_loss(method: Method, loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"method {method.name!r}: the loss became {loss} in epoch {epoch + 1} (lr "
            f"{method.settings.lr}, options {method.o}); what was learned before this task is "
            "untouched. A lower lr or a weaker penalty usually helps"
        )
