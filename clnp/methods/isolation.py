"""Base of the methods that isolate tasks weight by weight: PackNet, WSN, SupSup."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from .method import Batch, Method
from .network import ForTask


class Isolation(Method):
    """Every task's network is the shared network with some of its weights set to 0, and no later
    task moves what it reads.

    Biases and normalisation belong to the first task and are frozen after it. A head that belongs
    to one task is neither masked nor frozen. What is frozen is put back after every step, so no
    optimizer moves it: neither moments that are carried on from the task before
    (`reset_optimizer=False`) nor weight decay.
    """

    def weights(self) -> dict[str, nn.Parameter]:
        """The weights that are divided among the tasks, by name: shared, of two or more axes."""
        return {n: p for n, p in self.net.shared_parameters().items() if p.dim() > 1}

    @abstractmethod
    def movable(self, name: str) -> Tensor:
        """The entries of a weight that this task may move now: bool, shaped as the weight."""

    @abstractmethod
    def read(self, name: str, task: int) -> Tensor:
        """The entries of a weight that a task's network reads: bool, shaped as the weight."""

    def start_epoch(self, task: object, epoch: int) -> None:
        """Normalisation uses its frozen statistics after the first task."""
        self.keep_statistics()

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with self._frozen():
            return super().step(batch)

    def adjust(self) -> None:
        """No gradient for what is not this task's."""
        for p, mine in self._mine():
            if p.grad is not None:
                p.grad.masked_fill_(~mine, 0)

    def predictor(self, task: int) -> nn.Module:
        net = copy.deepcopy(self.net)
        with torch.no_grad():
            for name in self.weights():
                net.get_parameter(name).masked_fill_(~self.read(name, task), 0)
        return ForTask(net, task)

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Afterwards all that is not this task's is as it was before, bit for bit."""
        held = [(p.detach(), p.detach().clone(), mine) for p, mine in self._mine()]
        if self.task:
            held += [(b, b.clone(), b.new_zeros((), dtype=torch.bool)) for b in self.net.buffers()]
        yield
        for now, before, mine in held:
            now.copy_(torch.where(mine, now, before))

    def _mine(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Shared parameters, and which of their entries this task trains: bool of the same shape,
        or [] for all alike.
        """
        weights = self.weights()
        for name, p in self.net.shared_parameters().items():
            if name in weights:
                yield p, self.movable(name)
            else:
                yield p, torch.tensor(not self.task, device=p.device)


def packed(mask: Tensor) -> Tensor:
    """A bool tensor as bits: [ceil(N / 8)] uint8, on its device."""
    bits = np.packbits(mask.flatten().cpu().numpy())
    return torch.from_numpy(bits).to(mask.device)


def unpacked(bits: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `packed`: bool of a shape."""
    flags = np.unpackbits(bits.cpu().numpy(), count=shape.numel()).astype(bool)
    return torch.from_numpy(flags).to(bits.device).reshape(shape)
