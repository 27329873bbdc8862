"""Methods with a binary mask per task: WSN (Kang et al. 2022) and SupSup (Wortsman et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..data.task import Task
from ..training.frank_wolfe import largest
from .isolation import Isolation, packed, unpacked
from .options import Options, choice, number
from .state import prefixed, without


class _Top(torch.autograd.Function):
    """The largest entries as 1, the others as 0; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, sparsity: float) -> Tensor:
        return largest(scores.flatten(), sparsity).reshape(scores.shape).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class Supermask(Isolation):
    """Base of methods whose tasks choose weights by learned scores.

    In every weight tensor a task reads the share `keep` with the largest |score|; the choice passes
    gradients straight through to the scores (edge-popup; Ramanujan et al. 2020). Scores are drawn
    anew for each task, as `torch.nn.Linear` draws a weight. A learned task is remembered as one bit
    per weight, which `learner.cost` counts as memory.

    Attributes:
        scores: name of a weight -> its scores, of the task in training.
    """

    options: ClassVar[Options] = {
        "keep": number(0.5, "share of each layer's weights that a task reads", 0, 1, above=True)
    }
    trains_weights: ClassVar[bool]

    def prepare(self) -> None:
        self.scores = {
            name: nn.Parameter(torch.zeros_like(p)) for name, p in self.weights().items()
        }

    def begin(self, task: Task) -> None:
        with torch.no_grad():
            for score in self.scores.values():
                nn.init.kaiming_uniform_(score, a=math.sqrt(5))

    def make_optimizer(self) -> torch.optim.Optimizer:
        trained = self.net.trainable()
        if not self.trains_weights:
            trained = {n: p for n, p in trained.items() if n not in self.scores}
        return self.optimizer_over({**trained, **self._named_scores()})

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return {**super().named_parameters(), **self._named_scores()}

    def _named_scores(self) -> dict[str, nn.Parameter]:
        return {f"score.{name}": score for name, score in self.scores.items()}

    def forward(self, x: Tensor, task: int | Tensor | None) -> Tensor:
        masked = {}
        for name, p in self.weights().items():
            weight = p if self.trains_weights else p.detach()
            masked[name] = weight * _Top.apply(self.scores[name].abs(), 1 - self.o["keep"])
        logits: Tensor = functional_call(self.net, masked, (x, task))
        return logits

    def end(self, task: Task) -> None:
        for name in self.weights():
            self.memory[f"mask.{self.task}.{name}"] = packed(self._chosen(name))

    def read(self, name: str, task: int) -> Tensor:
        bits = self.memory.get(f"mask.{task}.{name}")
        return self._chosen(name) if bits is None else unpacked(bits, self.scores[name].shape)

    def _chosen(self, name: str) -> Tensor:
        score = self.scores[name].detach()
        return largest(score.abs().flatten(), 1 - self.o["keep"]).reshape(score.shape)

    def density(self) -> float:
        return float(self.o["keep"])

    def state(self) -> dict[str, Tensor]:
        scores = {name: score.detach() for name, score in self.scores.items()}
        return super().state() | prefixed("score.", scores)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_state({n: t for n, t in state.items() if not n.startswith("score.")})
        with torch.no_grad():
            for name, value in without("score.", state).items():
                self.scores[name].copy_(value)


class WSN(Supermask):
    """Winning subnetworks (Kang et al., ICML 2022; extended in arXiv:2303.14962).

    Weights and scores are trained together. A weight that some task reads is frozen after that
    task; later tasks may read it too.
    """

    name = "wsn"
    trains_weights = True

    def begin(self, task: Task) -> None:
        super().begin(task)
        if self.task:
            for name in self.weights():
                used = self.memory.get(f"used.{name}")
                last = self.read(name, self.task - 1)
                self.memory[f"used.{name}"] = last if used is None else used | last

    def movable(self, name: str) -> Tensor:
        used = self.memory.get(f"used.{name}")
        return torch.ones_like(self.scores[name], dtype=torch.bool) if used is None else ~used


class SupSup(Supermask):
    """Supermasks in superposition (arXiv:2006.14769): weights stay as they were drawn, and a task
    learns scores only.

    The task has to be known; the paper's ways of inferring it are not built.
    """

    name = "supsup"
    trains_weights = False
    options: ClassVar[Options] = {
        **Supermask.options,
        "init": choice(
            "signed",
            "weights: of one size and random sign (the paper), or as given",
            ("signed", "given"),
        ),
    }

    def prepare(self) -> None:
        super().prepare()
        if self.o["init"] == "given":
            return
        with torch.no_grad():
            for p in self.weights().values():
                size = math.sqrt(2 / (p[0].numel() * self.o["keep"]))
                p.copy_(torch.where(torch.rand_like(p) < 0.5, -size, size))

    def movable(self, name: str) -> Tensor:
        return torch.zeros_like(self.scores[name], dtype=torch.bool)
