"""A network per task: nothing is shared, nothing is forgotten."""

from __future__ import annotations

import copy

from torch import nn

from ..data.task import Task
from .method import Method
from .network import ForTask
from .state import without


class Scratch(Method):
    """Trains a fresh network on every task and keeps them all.

    The first task starts from the weights that were passed, the others from
    `reset_parameters()` of every module. What is remembered grows by a network a task.
    """

    name = "scratch"

    def begin(self, task: Task) -> None:
        if self.task:
            self.net.restart()
            self.optimizer = self.make_optimizer()  # a fresh network has no moments

    def end(self, task: Task) -> None:
        for name, tensor in self.net.state_dict().items():
            self.memory[f"{self.task}.{name}"] = tensor.clone()

    def predictor(self, task: int) -> nn.Module:
        saved = without(f"{task}.", self.memory)
        if not saved:  # still in training
            return super().predictor(task)
        net = copy.deepcopy(self.net)
        # Heads of tasks that came later are not part of what was saved.
        net.load_state_dict(saved, strict=False)
        return ForTask(net, task)
