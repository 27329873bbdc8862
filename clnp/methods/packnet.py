"""PackNet (Mallya & Lazebnik 2018, arXiv:1711.05769): weights packed task by task."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Tensor, nn

from clnp.data.task import Task
from clnp.methods.method import Method
from clnp.methods.network import ForTask
from clnp.methods.options import Options, number, whole


class PackNet(Method):
    """Every task trains the weights that are still free, keeps the largest of them and frees the
    rest; it reads its own and all earlier tasks' weights.

    In each weight tensor the task keeps `keep` of the weights that were free (by default an equal
    share for each of the `tasks` expected). The last `retrain` share of the epochs trains the kept
    weights after pruning, so that the budget of epochs is that of the other methods. Biases and
    normalisation belong to the first task and are frozen after it, as in the paper. A head that
    belongs to one task is not pruned.
    """

    name = "packnet"
    options: ClassVar[Options] = {
        "tasks": whole(10, "tasks expected; each gets an equal share of the weights", 1),
        "keep": number(0.0, "share of the free weights that a task keeps; 0: by `tasks`", 0, 1),
        "retrain": number(0.3, "share of the epochs that come after pruning", 0, 1),
    }

    def begin(self, task: Task) -> None:
        for name, p in self._weights().items():
            # owner: 0 free, k + 1 claimed by task k
            self.memory.setdefault(f"owner.{name}", torch.zeros_like(p, dtype=torch.int16))
        with torch.no_grad():
            for name, p in self._weights().items():
                if self.task:
                    fresh = torch.randn_like(p) * p.std() * 0.5
                    p.copy_(torch.where(self._owner(name) == 0, fresh, p))

    def start_epoch(self, task: Task, epoch: int) -> None:
        for module in self.net.modules():
            if self.task and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        pruned_at = max(1, round((1 - self.o["retrain"]) * self.settings.epochs))
        if epoch == pruned_at and epoch < self.settings.epochs:
            self._prune()

    def end(self, task: Task) -> None:
        if not self._pruned():
            self._prune()

    def adjust(self) -> None:
        """No gradient for what is not this task's: Adam's moments then stay 0 and nothing moves."""
        owners = self._weights()
        pruned = self._pruned()
        for name, p in self.net.shared_parameters().items():
            if p.grad is None:
                continue
            if name not in owners:
                if self.task:
                    p.grad.zero_()
                continue
            owner = self._owner(name)
            mine = owner == self.task + 1
            p.grad.mul_(mine if pruned else mine | (owner == 0))

    @torch.no_grad()
    def _prune(self) -> None:
        keep = self.o["keep"] or 1.0 / max(self.o["tasks"] - self.task, 1)
        for name, p in self._weights().items():
            owner = self._owner(name)
            free = (owner == 0).flatten().nonzero().squeeze(1)
            kept = round(keep * free.numel())
            size = p.flatten()[free].abs()
            best = free[size.topk(kept).indices]
            owner.view(-1)[best] = self.task + 1
            p.mul_(owner > 0)
            # What was dropped must not move on through old moments.
            for value in self.optimizer.state.get(p, {}).values():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    value.mul_(owner == self.task + 1)

    def _pruned(self) -> bool:
        return any(bool((self._owner(n) == self.task + 1).any()) for n in self._weights())

    def _weights(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.net.shared_parameters().items() if p.dim() > 1}

    def _owner(self, name: str) -> Tensor:
        return self.memory[f"owner.{name}"]

    def predictor(self, task: int) -> nn.Module:
        if task == self.task and not self._pruned():
            return ForTask(self.net, task)
        net = copy.deepcopy(self.net)
        parameters = dict(net.named_parameters())
        with torch.no_grad():
            for name in self._weights():
                owner = self._owner(name)
                parameters[name].mul_((owner > 0) & (owner <= task + 1))
        return ForTask(net, task)
