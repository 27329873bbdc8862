"""All tasks' data at once: the ceiling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch

from ..data.batches import batches
from ..data.inputs import Split
from ..data.task import Task
from ..errors import DataError
from .method import Batch, Method
from .options import Options, flag, whole


class Joint(Method):
    """Multi-task training. After task k the network has been trained on tasks 0..k together, from
    fresh weights (`restart=False`: from those of the task before).

    It keeps references to the data of all tasks that it has seen, so a learner that is loaded needs
    them again (`load(path, tasks=...)`).

    A batch has examples of every task. By default their numbers are in proportion to the tasks'
    sizes and an epoch is one pass over all data. With `first` and `others` it is composed as in
    Golkar et al. 2019, appendix A (50 of the first task, 10 of each other), and an epoch ends when
    the smaller data sets run out.
    """

    name = "joint"
    mixes = True
    options: ClassVar[Options] = {
        "restart": flag(True, "train from fresh weights after every task"),
        "first": whole(0, "examples of the first task in a batch (paper: 50); 0: by size"),
        "others": whole(0, "examples of each other task in a batch (paper: 10); 0: by size"),
    }

    def prepare(self) -> None:
        self.tasks: list[Task] = []

    def check(self, learned: int) -> None:
        if len(self.tasks) < learned:
            raise DataError(
                f"tasks: expected the data of the {learned} learned tasks for joint training, got "
                f"{len(self.tasks)}; pass it: clnp.methods.load(path, tasks=...)"
            )

    def remember(self, task: Task) -> None:
        self.tasks.append(task)

    def begin(self, task: Task) -> None:
        self.tasks = [*self.tasks[: self.task], task]
        if self.task and self.o["restart"]:
            self.net.restart()
            self.optimizer = self.make_optimizer()

    def make_optimizer(self) -> torch.optim.Optimizer:
        # Every head is trained, not only the newest.
        return self.optimizer_over(dict(self.net.named_parameters()))

    def batches(self, task: Task, epoch: int, generator: torch.Generator) -> Iterator[Batch]:
        sizes = [t.size("train") for t in self.tasks]
        shares, steps = self._composition(sizes)
        streams = [
            _endless(t.train, share, self.device, generator)
            for t, share in zip(self.tasks, shares, strict=True)
        ]
        for _ in range(steps):
            parts = [next(stream) for stream in streams]
            tasks = [torch.full((len(y),), k, device=y.device) for k, (_, y) in enumerate(parts)]
            x, y = (torch.cat([part[i] for part in parts]) for i in (0, 1))
            yield Batch(x, y, 0 if len(parts) == 1 else torch.cat(tasks))

    def _composition(self, sizes: list[int]) -> tuple[list[int], int]:
        """(examples of each task in a batch, batches in an epoch)."""
        first, others = self.o["first"], self.o["others"]
        if first and others:
            shares = [first, *[others] * (len(sizes) - 1)]
            run_out = [-(-n // share) for n, share in zip(sizes, shares, strict=True)]
            return shares, min(run_out)
        total, size = sum(sizes), self.settings.batch_size
        shares = [max(1, round(size * n / total)) for n in sizes]
        return shares, -(-total // sum(shares))


def _endless(
    split: Split, size: int, device: torch.device, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield from batches(split, size, device, generator)
