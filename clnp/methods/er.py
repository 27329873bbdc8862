"""Experience replay, and dark experience replay (DER++; Buzzega et al. 2020, arXiv:2004.07211)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from .buffer import Reservoir
from .method import Batch, Method
from .options import Options, number, whole
from .state import prefixed, without

REPLAY = {
    "buffer": whole(500, "examples in the reservoir", 1),
    "replay": whole(0, "replayed examples in a step; 0: as many as the batch size"),
}


class Replay(Method):
    """Base of methods with a reservoir of earlier examples.

    The reservoir is offered every batch of every epoch, as the authors of DER++ do; an example may
    be in it more than once, with the logits of different moments.
    """

    options: ClassVar[Options] = dict(REPLAY)
    mixes = True

    def prepare(self) -> None:
        self.buffer = Reservoir(self.o["buffer"])

    def draw(self) -> dict[str, Tensor]:
        """Replayed examples x [n, ...], y [n, ...], task [n] and logits [n, C]; n = 0 at first."""
        return self.buffer.sample(self.o["replay"] or self.settings.batch_size)

    def replayed(self) -> int:
        return min(self.o["replay"] or self.settings.batch_size, len(self.buffer))

    def work_key(self) -> Any:
        return self.replayed()

    def offer(self, batch: Batch, logits: Tensor) -> None:
        """Offers a batch to the reservoir."""
        self.buffer.offer(
            x=batch.x, y=batch.y, task=self.tasks_of(batch), logits=logits.detach().float()
        )

    def tasks_of(self, batch: Batch) -> Tensor:
        """[B] int64, the task of every example."""
        tasks = batch.task
        if isinstance(tasks, Tensor):
            return tasks
        return torch.full((len(batch),), tasks, device=batch.y.device)

    def joined(self, batch: Batch, old: dict[str, Tensor]) -> Batch:
        """The batch followed by replayed examples."""
        x = torch.cat([batch.x, old["x"]])
        y = torch.cat([batch.y, old["y"]])
        return Batch(x, y, torch.cat([self.tasks_of(batch), old["task"]]))

    def state(self) -> dict[str, Tensor]:
        return {**self.memory, **prefixed("buffer.", self.buffer.state())}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_state({n: t for n, t in state.items() if not n.startswith("buffer.")})
        self.buffer.load_state(without("buffer.", state), self.device)

    def make_optimizer(self) -> torch.optim.Optimizer:
        # Replay trains the heads of earlier tasks too.
        return self.optimizer_over(dict(self.net.named_parameters()))


class ER(Replay):
    """Loss of the batch and an equal number of examples from a reservoir, as one batch
    (Rolnick et al. 2019; Riemer et al. 2019).
    """

    name = "er"

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        n = len(batch)
        both = batch if not len(self.buffer) else self.joined(batch, self.draw())
        logits = self.logits(both.x, both.task)
        self.offer(batch, logits[:n])
        return self.objective.loss.mean(logits, both.y), logits[:n]


class DERpp(Replay):
    """Loss + alpha * mean squared difference to the logits that replayed examples had when they
    were stored + beta * loss of others replayed (DER++, Eq. 6).
    """

    name = "derpp"
    options: ClassVar[Options] = {
        **REPLAY,
        "alpha": number(0.2, "weight of the logits' differences"),
        "beta": number(0.5, "weight of the replayed labels"),
    }

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        n = len(batch)
        if not len(self.buffer):
            loss, logits = super().loss(batch)
            self.offer(batch, logits)
            return loss, logits
        first, second = self.draw(), self.draw()
        both = self.joined(self.joined(batch, first), second)
        logits = self.logits(both.x, both.task)
        own, dark, labelled = logits.split([n, len(first["y"]), len(second["y"])])
        self.offer(batch, own)
        stored = first["logits"]
        width = min(stored.shape[1], dark.shape[1])
        gap = dark[:, :width] - stored[:, :width]
        # Classes that an example's task does not have were stored as NaN, or padded.
        known = (stored[:, :width].abs() < 1e20) & (dark[:, :width].abs() < 1e20)
        distance = torch.where(known, gap, 0).square().sum() / known.sum().clamp_min(1)
        loss = self.objective.loss.mean(own, batch.y) + self.o["alpha"] * distance
        return loss + self.o["beta"] * self.objective.loss.mean(labelled, second["y"]), own

    def work_key(self) -> Any:
        return 2 * self.replayed()
