"""PackNet (Mallya & Lazebnik 2018, arXiv:1711.05769): weights packed task by task."""

from __future__ import annotations

import warnings
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..data.task import Task
from ..errors import CapacityError, CapacityWarning
from .isolation import Isolation
from .network import ForTask
from .options import Options, number, whole


class PackNet(Isolation):
    """Every task trains the weights that are still free, keeps the largest of them and frees the
    rest; it reads its own and all earlier tasks' weights.

    In each weight tensor the task keeps `keep` of the weights that were free (by default an equal
    share for each of the `tasks` expected). The last `retrain` share of the epochs trains the kept
    weights after pruning, so that the budget of epochs is that of the other methods.

    Raises:
        CapacityError: (in `learn`) a task would get no weights and has no head of its own.
    """

    name = "packnet"
    options: ClassVar[Options] = {
        "tasks": whole(10, "tasks expected; each gets an equal share of the weights", 1),
        "keep": number(0.0, "share of the free weights that a task keeps; 0: by `tasks`", 0, 1),
        "retrain": number(0.3, "share of the epochs that come after pruning", 0, 1),
    }

    def check(self, learned: int) -> None:
        """Refuses a task that would get no weights; one with a head of its own is warned about."""
        weights = self.weights()
        if not weights or any(self._share(name, learned) for name in weights):
            return
        free = sum(int((self._owner(name) == 0).sum()) for name in weights)
        given = f"tasks={self.o['tasks']}, keep={self.o['keep']:g}"
        text = (
            f"method 'packnet', {given}: task {learned} would get none of the {free} weights that "
            f"are free, as {learned} tasks have been learned"
        )
        way_out = "make the learner with more tasks, a smaller keep, or a wider network"
        if self.net.kind == "single":
            raise CapacityError(f"{text}; {way_out}")
        text += ": it is learned by its head alone"
        warnings.warn(f"{text}; for more, {way_out}", CapacityWarning, stacklevel=3)

    def begin(self, task: Task) -> None:
        with torch.no_grad():
            for name, p in self.weights().items():
                owner = self.memory.setdefault(f"owner.{name}", self._owner(name))
                if self.task:
                    fresh = torch.randn_like(p) * p.std(correction=min(1, p.numel() - 1)) * 0.5
                    p.copy_(torch.where(owner == 0, fresh, p))

    def start_epoch(self, task: object, epoch: int) -> None:
        super().start_epoch(task, epoch)
        pruned_at = max(1, round((1 - self.o["retrain"]) * self.settings.epochs))
        if epoch == pruned_at and epoch < self.settings.epochs:
            self._prune()

    def end(self, task: Task) -> None:
        if not self._pruned():
            self._prune()

    def movable(self, name: str) -> Tensor:
        owner = self._owner(name)
        mine = owner == self.task + 1
        return mine if self._pruned() else mine | (owner == 0)

    def read(self, name: str, task: int) -> Tensor:
        owner = self._owner(name)
        return (owner > 0) & (owner <= task + 1)

    @torch.no_grad()
    def _prune(self) -> None:
        for name, p in self.weights().items():
            owner = self._owner(name)
            free = (owner == 0).flatten().nonzero().squeeze(1)
            size = p.flatten()[free].abs()
            best = free[size.topk(self._share(name, self.task)).indices]
            owner.view(-1)[best] = self.task + 1
            p.masked_fill_(owner == 0, 0)
            # The next task draws what was dropped anew and must not start on old moments.
            for value in self.optimizer.state.get(p, {}).values():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    value.masked_fill_(owner != self.task + 1, 0)
        self.memory["pruned"] = torch.tensor(self.task)

    def _share(self, name: str, task: int) -> int:
        """The number of weights that a task keeps of those that are free before it."""
        keep = self.o["keep"] or 1.0 / max(self.o["tasks"] - task, 1)
        return round(keep * int((self._owner(name) == 0).sum()))

    def _pruned(self) -> bool:
        """True once the task in training has chosen its weights."""
        return int(self.memory.get("pruned", -1)) == self.task

    def _owner(self, name: str) -> Tensor:
        """Shaped as the weight, int16: 0 free, k + 1 claimed by task k. What the user had frozen
        before the first task belongs to it.
        """
        owner = self.memory.get(f"owner.{name}")
        if owner is not None:
            return owner
        weight = self.net.get_parameter(name)
        return torch.full_like(weight, not weight.requires_grad, dtype=torch.int16)

    def predictor(self, task: int) -> nn.Module:
        if task == self.task and not self._pruned():
            return ForTask(self.net, task)
        return super().predictor(task)
