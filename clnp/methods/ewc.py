"""Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from ..data.task import Task
from ..objectives.shapes import CLASSES
from .anchor import Anchor
from .fisher import diagonal_fisher
from .method import Method
from .options import Options, choice, number, whole
from .state import prefixed, without


class EWC(Method):
    """Loss + strength / 2 * sum over earlier tasks k and weights i of F_ki (theta_i - theta*_ki)^2
    (Eq. 3).

    F is the diagonal of the Fisher information at the task's optimum, per example (not of batch
    means), on the task's training data; see `diagonal_fisher`. With a head for each task, the
    heads take no part: no later task moves them.
    """

    name = "ewc"
    takes = (CLASSES,)  # the Fisher is that of p(class | x)
    options: ClassVar[Options] = {
        "strength": number(5000.0, "lambda, weight of the penalty"),
        "fisher": choice("exact", "labels of the Fisher", ("exact", "empirical", "sampled")),
        "fisher_examples": whole(1000, "examples that estimate the Fisher; 0: all"),
    }

    def prepare(self) -> None:
        super().prepare()
        self.anchor = Anchor()

    def adjust(self) -> None:
        self.anchor.add_gradient(self.net.shared_parameters(), self.o["strength"] / 2)

    def end(self, task: Task) -> None:
        shared = self.net.shared_parameters()
        fisher = diagonal_fisher(
            self.predictor(self.task),
            task.train,
            {f"net.{name}": p for name, p in shared.items()},
            labels=self.o["fisher"],
            examples=self.o["fisher_examples"],
        )
        strength = {name.removeprefix("net."): values for name, values in fisher.items()}
        self.anchor.add(strength, {name: p.detach() for name, p in shared.items()})

    def state(self) -> dict[str, Tensor]:
        return super().state() | prefixed("anchor.", self.anchor.state())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_state({n: t for n, t in state.items() if not n.startswith("anchor.")})
        self.anchor.load_state(without("anchor.", state), self.device)
