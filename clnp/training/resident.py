"""Training examples on the device: a step takes its batch there and adds up its own loss.

So a step has no inputs and leaves nothing to be read, and several can be launched at once. The
order of an epoch goes to the device in one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..data.batches import batch_sizes, placed
from .epoch import zero_sums
from .step_graph import StepGraph

# (x [B, ...], y [B, ...], and rows [B] if they are wanted) -> loss, sum of the metric
Step = Callable[..., tuple[Tensor, Tensor]]
TOGETHER = 8  # steps of a graph, where an epoch has twice as many


class Resident:
    """The examples of a training split, the order of an epoch, and the sums of its steps.

    Arguments:
        split: (x [N, ...], y [N, ...]), on one device.
        batch_size: of a step; batches are those of `clnp.data.batches.batches`.
        shape: of a step's loss.
        rows: give the step the rows [B] of its batch too.

    Attributes:
        sums: of the losses and of the metric of the epoch so far.
        together: steps that are worth being one graph.
    """

    def __init__(
        self,
        split: tuple[Tensor, Tensor],
        batch_size: int,
        shape: tuple[int, ...] = (),
        *,
        rows: bool = False,
    ) -> None:
        self.x, self.y = split
        self.rows = rows
        device = self.y.device
        sizes = batch_sizes(len(self.y), batch_size)
        self.size, self.full = sizes[0], sizes.count(sizes[0])
        self.order = torch.zeros(len(self.y), dtype=torch.int64, device=device)
        self.number = torch.zeros(1, dtype=torch.int64, device=device)  # of the next full batch
        self.sums = zero_sums(shape, device)
        self.together = TOGETHER if self.full >= 2 * TOGETHER else 1

    def epoch(
        self, generator: torch.Generator, step: Step, graph: StepGraph | None
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Take the steps of an epoch -> (examples of a launch, sums so far).

        Arguments:
            generator: draws the order, on the CPU.
            step: of training.
            graph: of `take`, or None to run every step at once.
        """
        self.order.copy_(torch.randperm(len(self.y), generator=generator))
        for tensor in (self.number, *self.sums):
            tensor.zero_()
        if graph is not None:
            yield from ((taken * self.size, *self.sums) for taken in graph.steps(self.full))
        else:
            for _ in range(self.full):
                self.take(step)
                yield self.size, *self.sums
        rest = self.order[self.full * self.size :]
        if len(rest):
            last = graph.once if graph is not None else _at_once
            last(lambda: self._add(step, rest))
            yield len(rest), *self.sums

    def take(self, step: Step) -> tuple[Tensor, ...]:
        """Take the step of the next full batch -> sums so far."""
        batches = self.order[: self.full * self.size].view(self.full, self.size)
        self._add(step, batches.index_select(0, self.number)[0])
        self.number.add_(1)
        return self.sums

    def _add(self, step: Step, rows: Tensor) -> tuple[Tensor, ...]:
        """Take the step of the examples `rows` [B]."""
        x = placed(self.x[rows], self.y.device)
        loss, metric = step(x, self.y[rows], *([rows] if self.rows else []))
        losses, metrics = self.sums
        losses += loss * len(rows)
        metrics += metric
        return self.sums


def _at_once(step: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return step()
