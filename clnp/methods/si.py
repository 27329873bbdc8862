"""Synaptic intelligence (Zenke, Poole, Ganguli 2017, arXiv:1703.04200)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from clnp_kernels import torch_private as private

from ..data.task import Task
from .anchor import Anchor
from .method import Batch, Method
from .options import Options, number
from .state import prefixed, without


class SI(Method):
    """Loss + c sum_i Omega_i (theta_i - theta*_i)^2, as in the authors' code.

    Along the path of a task, omega_i adds up -g_i dtheta_i, the part of the loss's drop that is due
    to weight i (Eq. 3; g is the gradient of the task's own loss, without the penalty, before the
    step, and dtheta what the optimizer made of it). At its end Omega_i += relu(omega_i / (delta_i^2
    + xi)), delta_i the distance that the weight went (Eq. 5), and theta* moves to the weights.

    Settings of the authors on permuted MNIST: 784-2000-2000-10, one head, Adam 1e-3 not reset
    between tasks, batch 256, 20 epochs, xi = 0.1, c = 0.1; on CIFAR xi = 1e-3, c = 0.01.
    """

    name = "si"
    options: ClassVar[Options] = {
        "c": number(0.1, "weight of the penalty"),
        "xi": number(0.1, "damping of Omega", above=True),
    }

    def prepare(self) -> None:
        self.anchor = Anchor()
        self.path: dict[str, Tensor] = {}
        self.start: dict[str, Tensor] = {}

    def begin(self, task: Task) -> None:
        shared = self.net.shared_parameters()
        self.path = {name: torch.zeros_like(p) for name, p in shared.items()}
        self.start = {name: p.detach().clone() for name, p in shared.items()}

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if not self.path:  # nothing but heads
            return super().step(batch)
        loss, logits = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        shared = self.net.shared_parameters()
        moving = [name for name, p in shared.items() if p.grad is not None]
        parameters = [shared[name].detach() for name in moving]
        grads = [g.detach().clone() for name in moving if (g := shared[name].grad) is not None]
        before = private.foreach_mul(parameters, 1.0)
        self.anchor.add_gradient(shared, self.o["c"])
        self.optimizer.step()
        moved = private.foreach_sub(parameters, before)
        private.foreach_addcmul_([self.path[name] for name in moving], grads, moved, -1.0)
        return loss.detach(), logits.detach()

    @torch.no_grad()
    def end(self, task: Task) -> None:
        shared = self.net.shared_parameters()
        for name, p in shared.items():
            went = p.detach() - self.start[name]
            gain = torch.relu(self.path[name] / (went.square() + self.o["xi"]))
            # One strength for the sum of the tasks, all held at the newest weights.
            old = self.anchor.strength.get(name)
            self.anchor.strength[name] = gain if old is None else old + gain
            self.anchor.centre[name] = p.detach().clone()
        self.path, self.start = {}, {}

    def state(self) -> dict[str, Tensor]:
        return {
            **self.anchor.state(),
            **prefixed("path.", self.path),
            **prefixed("start.", self.start),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        state = {name: tensor.to(self.device) for name, tensor in state.items()}
        self.anchor.load_state(state, self.device)
        self.path, self.start = without("path.", state), without("start.", state)
