"""EsaCL as methods: alone, with the penalty of EWC, and with the losses of Co2L."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...data.task import Task
from ...training.frank_wolfe import FrankWolfe, perturbed, prune_to, still_statistics
from ...training.optimizer_state import load_optimizer_tensors, optimizer_tensors
from ..co2l import Co2L
from ..ewc import EWC
from ..method import Batch, Method
from ..options import Options, choice, number, whole
from ..state import prefixed, without
from .ids import select

OPTIONS = {
    "sparsity": number(0.9, "share of the weights that pruning sets to zero", 0, 1),
    "scope": choice("global", "prune each layer alike or all together", ("layer", "global")),
    "rho": number(0.05, "length of the sharpness-aware perturbation; 0: none"),
    "sdp_lr": number(2.0, "length of a Frank-Wolfe step in units of the momentum", above=True),
    "sdp_momentum": number(0.9, "momentum of the Frank-Wolfe steps", 0, 0.999),
    "k": number(0.05, "K, as a share of each tensor", 0, 1, above=True),
    "radius": number(15.0, "vertices are this many initial norms away", above=True),
    "keep": number(0.5, "share of the examples trained on (IDS); 1: all", 0, 1, above=True),
    "support": number(0.9, "share of highest loss that IDS looks at", 0, 1, above=True),
    "selection": choice("ids", "how examples are selected", ("ids", "random")),
    "warm_up": whole(1, "epochs on all examples before the first selection"),
    "refresh": whole(2, "epochs between two selections", 1),
}


class EsaCL(Method):
    """SDP on selected examples: every task is trained by sharpness-aware Frank-Wolfe steps and
    pruned once, without retraining; by itself without protection of earlier tasks.

    Weights (tensors of two or more axes) take Frank-Wolfe steps, the other parameters those of the
    shared optimizer with the same gradients. The schedule of `lr` scales both.
    """

    name = "esacl"
    own_loss = True
    options: ClassVar[Options] = dict(OPTIONS)
    fixed: ClassVar[Mapping[str, Any]] = {"schedule": "step"}

    wolfe: FrankWolfe

    def begin(self, task: Task) -> None:
        self.subset = None

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of biases and norms; the weights' is made beside it."""
        trained, o = self.trained(), self.o
        weights = {n: p for n, p in trained.items() if p.dim() > 1}
        for name, p in weights.items():
            self.memory.setdefault(f"norm.{name}", p.detach().norm())
        self.wolfe = FrankWolfe(
            weights.values(),
            o["sdp_lr"],
            o["sdp_momentum"],
            o["k"],
            o["radius"],
            norms=[float(self.memory[f"norm.{name}"]) for name in weights],
        )
        return self.optimizer_over({n: p for n, p in trained.items() if p.dim() < 2})

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that a task trains, by name."""
        return self.net.trainable()

    def start_epoch(self, task: Task, epoch: int) -> None:
        o = self.o
        since = epoch - o["warm_up"]
        if o["keep"] < 1 and since >= 0 and since % o["refresh"] == 0:
            generator = torch.Generator().manual_seed(torch.initial_seed())
            if o["selection"] == "random":
                total = task.size("train")
                order = torch.randperm(total, generator=generator)
                self.subset = order[: max(1, round(o["keep"] * total))].sort().values
                return
            support = max(o["support"], o["keep"])
            self.subset = select(self.net, self.task, task.train, o["keep"], support, generator)

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        parameters = list(self.trained().values())
        batch = self.extended(batch)
        loss, logits = self._gradients(batch)
        if self.o["rho"]:
            with perturbed(parameters, self.o["rho"]), still_statistics(self.net):
                self._gradients(batch)
        factor = float(self.optimizer.param_groups[0]["lr"]) / self.settings.lr
        for group in self.wolfe.param_groups:
            group["lr"] = self.o["sdp_lr"] * factor
        self.wolfe.step()
        self.optimizer.step()
        self.after_step(batch, logits)
        return loss, logits

    def extended(self, batch: Batch) -> Batch:
        """The batch that both passes of a step use."""
        return batch

    def after_step(self, batch: Batch, logits: Tensor) -> None:
        """After the weights have moved."""

    def _gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, logits = self.loss(batch)
        for p in self.trained().values():
            p.grad = None
        (loss * self._scale()).backward()
        self.adjust()
        return loss.detach(), logits.detach()

    def _scale(self) -> float:
        """The examples that IDS leaves out hardly pull, so the mean gradient over all is about this
        share of the mean over those selected. Without it steps grow too long and training breaks.
        """
        selected = self.subset is not None and self.o["selection"] == "ids"
        return float(self.o["keep"]) if selected else 1.0

    def end(self, task: Task) -> None:
        prune_to(list(self.prunable().values()), self.o["sparsity"], self.o["scope"])
        super().end(task)

    def prunable(self) -> dict[str, Tensor]:
        """Weights that are pruned: those that later tasks use too and the user has not frozen."""
        shared = self.net.shared_parameters()
        return {n: p.detach() for n, p in shared.items() if p.dim() > 1 and p.requires_grad}

    def state(self) -> dict[str, Tensor]:
        named = self.named_parameters()
        tensors = super().state() | prefixed("wolfe.", optimizer_tensors(self.wolfe, named))
        if self.subset is not None:
            tensors["selected"] = self.subset
        return tensors

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        own = {n: t for n, t in state.items() if not n.startswith("wolfe.") and n != "selected"}
        super().load_state(own)
        selected = state.get("selected")
        self.subset = None if selected is None else selected.cpu()
        named = self.named_parameters()
        load_optimizer_tensors(self.wolfe, named, without("wolfe.", state))


class EsaCLEWC(EsaCL, EWC):
    """EsaCL with EWC's penalty in the objective: its gradient is part of both passes of a step, and
    the Fisher information is taken after pruning.

    Frank-Wolfe steps are long, so a strength that suits Adam breaks them: on permuted digits 10 to
    100 was best, and 1000 stopped all learning.
    """

    name = "esacl-ewc"
    options: ClassVar[Options] = {
        **OPTIONS,
        **EWC.options,
        "strength": number(10.0, "lambda, weight of the penalty"),
    }


class EsaCLCo2L(EsaCL, Co2L):
    """EsaCL on Co2L's objective: contrastive loss, distillation and a reservoir of earlier
    examples; see `Co2L`.
    """

    name = "esacl-co2l"
    options: ClassVar[Options] = {**OPTIONS, **Co2L.options}

    def trained(self) -> dict[str, nn.Parameter]:
        return Co2L.named_parameters(self)

    def extended(self, batch: Batch) -> Batch:
        return self.joined(batch, self.draw()) if len(self.buffer) else batch

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.contrast(batch)

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, logits = super().step(batch)
        return loss, logits[: len(batch)]

    def after_step(self, batch: Batch, logits: Tensor) -> None:
        new = self.tasks_of(batch) == self.task
        own = Batch(batch.x[new], batch.y[new], self.task)
        self.offer(own, logits[new])
