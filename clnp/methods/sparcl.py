"""SparCL (Wang et al. 2022, arXiv:2209.09476): sparse weights, data and gradients over replay.

Its three parts can be used alone. They multiply by masks after dense products, as the authors' code
does, so they save counted operations and no time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..data.task import Task
from ..objectives.shapes import CLASSES
from ..training.frank_wolfe import largest
from .co2l import Co2L
from .er import ER, DERpp, Replay
from .ewc import EWC
from .method import Batch, Method
from .options import Options, choice, number, whole
from .state import prefixed, without


class DynamicMask:
    """Task-aware dynamic masking (TDM): the weights that count most stay, by |w| + lambda |grad|.

    A weight that is masked is 0 and comes back where its gradient is large.

    Arguments:
        sparsity: share of each tensor that is masked.
        weight: lambda.

    Attributes:
        masks: name -> bool, shaped as the weight.
    """

    def __init__(self, sparsity: float, weight: float) -> None:
        self.sparsity, self.weight = sparsity, weight
        self.masks: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Chooses anew from the weights and their gradients (none count as 0) and applies."""
        for name, w in weights.items():
            importance = w.abs()
            if w.grad is not None:
                importance = importance + self.weight * w.grad.abs()
            self.masks[name] = largest(importance.flatten(), self.sparsity).reshape(w.shape)
        self.apply(weights)

    @torch.no_grad()
    def apply(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Sets masked weights to 0."""
        for name, w in weights.items():
            if name in self.masks:
                w.masked_fill_(~self.masks[name], 0)


class GradientMask:
    """Dynamic gradient masking (DGM): of each tensor only the largest gradients are used, those of
    masked weights counting as 0; the choice is kept for some batches.

    Arguments:
        keep: share of the gradients used.
        every: batches that a choice is kept for.
    """

    def __init__(self, keep: float, every: int) -> None:
        self.keep, self.every, self.batch = keep, every, 0
        self.masks: dict[str, Tensor] = {}

    @torch.no_grad()
    def apply(
        self, weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor] | None = None
    ) -> None:
        """Sets the gradients that are not used to 0.

        Arguments:
            weights: by name.
            masks: of the weights (`DynamicMask.masks`), for those that are masked.
        """
        moving = {n: w for n, w in weights.items() if w.grad is not None}
        for name, mask in (masks or {}).items():
            if name in moving:
                moving[name].grad.mul_(mask)  # type: ignore[union-attr]
        if self.batch % self.every == 0 or set(moving) - set(self.masks):
            for name, w in moving.items():
                assert w.grad is not None
                size = w.grad.abs().flatten()
                self.masks[name] = largest(size, 1 - self.keep).reshape(w.shape)
        self.batch += 1
        for name, w in moving.items():
            assert w.grad is not None
            w.grad.mul_(self.masks[name])


class ForgettingCount:
    """Dynamic data removal (DDR): how often each example was forgotten, that is classified
    correctly and then no more (Toneva et al. 2019).

    Arguments:
        total: N, examples of the task.
    """

    def __init__(self, total: int) -> None:
        self.known = torch.zeros(total, dtype=torch.bool)
        self.events = torch.zeros(total, dtype=torch.int64)
        self.wrong = torch.zeros(total, dtype=torch.int64)

    def record(self, index: Tensor, correct: Tensor) -> None:
        """Notes which examples [B] of a batch were classified correctly [B]."""
        index, correct = index.cpu(), correct.cpu()
        self.events[index] += self.known[index] & ~correct
        self.wrong[index] += ~correct
        self.known[index] = correct

    def most_forgotten(self, n: int) -> Tensor:
        """The n examples forgotten most often, among equals those misclassified more often:
        ascending indices [n].
        """
        order = self.events * (int(self.wrong.max()) + 1) + self.wrong
        return order.argsort(descending=True, stable=True)[:n].sort().values


OPTIONS = {
    "sparsity": number(0.9, "share of the weights that are masked", 0, 1),
    "gradient_weight": number(1.0, "lambda, weight of |grad| against |w|"),
    "update": whole(5, "epochs between two choices of the masks", 1),
    "keep_gradients": number(0.2, "share of the gradients used; 1: all", 0, 1, above=True),
    "gradient_batches": whole(30, "batches that a choice of gradients is kept for", 1),
    "remove": number(0.3, "share of the task's examples that is removed", 0, 0.99),
    "remove_after": number(0.3, "share of the epochs before the removal", 0, 1),
}


class SparseTraining(Method):
    """The three parts of SparCL over another method, which comes behind it in the bases.

    Settings of the authors (split CIFAR-10, ResNet-18): SGD 0.03, cosine, batch 32, buffer 500, 50
    epochs, sparsity 0.75, 0.9 or 0.95, masks updated every 5 epochs, 20 % of the gradients used and
    kept for 30 batches. As in their code, the gradients of masked weights are 0 before the largest
    are chosen; where more weights are masked than gradients are dropped, all others are used.
    """

    takes = (CLASSES,)  # it counts how often an example's class is forgotten
    fixed: ClassVar[Mapping[str, Any]] = {"optimizer": "sgd", "lr": 0.03, "schedule": "cosine"}

    def prepare(self) -> None:
        super().prepare()
        o = self.o
        self.weights_mask = DynamicMask(o["sparsity"], o["gradient_weight"])
        self.gradients_mask = GradientMask(o["keep_gradients"], o["gradient_batches"])
        self.forgotten = ForgettingCount(0)
        self.due = False

    def begin(self, task: Task) -> None:
        super().begin(task)
        self.forgotten, self.subset = ForgettingCount(task.size("train")), None
        self.gradients_mask.batch = 0

    def start_epoch(self, task: Task, epoch: int) -> None:
        if not self.weights_mask.masks:
            self.weights_mask.update(self.weights())
        # With the first gradient of the epoch at hand.
        self.due = epoch % self.o["update"] == 0
        first = max(1, round(self.o["remove_after"] * self.settings.epochs))
        if self.o["remove"] and epoch == first:
            total = len(self.forgotten.events)
            self.subset = self.forgotten.most_forgotten(round((1 - self.o["remove"]) * total))

    def adjust(self) -> None:
        super().adjust()
        weights = self.weights()
        if self.due:
            self.weights_mask.update(weights)
            self.due = False
        if self.o["keep_gradients"] < 1:
            self.gradients_mask.apply(weights, self.weights_mask.masks)

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, logits = super().step(batch)
        self.weights_mask.apply(self.weights())
        if batch.index is not None:
            self.forgotten.record(batch.index, logits.argmax(dim=-1) == batch.y)
        return loss, logits

    def weights(self) -> dict[str, nn.Parameter]:
        """The weights that are masked: those that tasks share and the user has not frozen."""
        shared = self.net.shared_parameters().items()
        return {n: p for n, p in shared if p.dim() > 1 and p.requires_grad}

    def density(self) -> float:
        sizes = {n: m.numel() for n, m in self.weights_mask.masks.items()}
        total = max(sum(sizes.values()), 1)
        left = sum(int(m.sum()) for m in self.weights_mask.masks.values()) / total
        both = left
        if self.gradients_mask.masks and self.o["keep_gradients"] < 1:
            masks = self.gradients_mask.masks
            both = (
                sum(int((m & masks[n]).sum()) for n, m in self.weights_mask.masks.items()) / total
            )
        return (2 * left + both) / 3

    def state(self) -> dict[str, Tensor]:
        f = self.forgotten
        tensors = {"known": f.known, "events": f.events, "wrong": f.wrong}
        if self.subset is not None:
            tensors["kept"] = self.subset
        return {
            **super().state(),
            **prefixed("weights.", self.weights_mask.masks),
            **prefixed("gradients.", self.gradients_mask.masks),
            **prefixed("forgotten.", tensors),
            "batch": torch.tensor(self.gradients_mask.batch),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        marks = ("weights.", "gradients.", "forgotten.", "batch")
        super().load_state({n: t for n, t in state.items() if not n.startswith(marks)})
        moved = {n: t.to(self.device) for n, t in state.items()}
        self.weights_mask.masks = without("weights.", moved)
        self.gradients_mask.masks = without("gradients.", moved)
        self.gradients_mask.batch = int(state["batch"])
        saved = without("forgotten.", state)
        self.forgotten = ForgettingCount(len(saved["known"]))
        for name in ("known", "events", "wrong"):
            setattr(self.forgotten, name, saved[name].cpu().clone())
        self.subset = saved.get("kept")


class SparCL(SparseTraining, Replay):
    """Sparse training over experience replay (SparCL-ER) or DER++ (SparCL-DER++)."""

    name = "sparcl"
    options: ClassVar[Options] = {
        **DERpp.options,
        "over": choice("er", "what is replayed", ("er", "derpp")),
        **OPTIONS,
    }

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        kind = DERpp if self.o["over"] == "derpp" else ER
        return kind.loss(self, batch)  # type: ignore[arg-type]

    def work_key(self) -> Any:
        return self.replayed() * (2 if self.o["over"] == "derpp" else 1)


class SparCLEWC(SparseTraining, EWC):
    """Sparse training with the penalty of EWC (SparCL-EWC)."""

    name = "sparcl-ewc"
    options: ClassVar[Options] = {**EWC.options, **OPTIONS}


class SparCLCo2L(SparseTraining, Co2L):
    """Sparse training of Co2L's objective (SparCL-Co2L)."""

    name = "sparcl-co2l"
    options: ClassVar[Options] = {**Co2L.options, **OPTIONS}
