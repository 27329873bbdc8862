"""EsaCL as methods: alone, with the penalty of EWC, and with the losses of Co2L."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.task import Task
from ...training.frank_wolfe import FrankWolfe, perturbed, prune_to, still_statistics
from ...training.optimizer_state import load_optimizer_tensors, optimizer_tensors
from ..er import REPLAY, Replay
from ..ewc import EWC
from ..method import Batch, Method
from ..network import TaskNet
from ..options import Options, choice, number, whole
from ..state import prefixed, without
from .co2l import asymmetric_contrast, instance_distillation
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


class EsaCLCo2L(EsaCL, Replay):
    """EsaCL on Co2L's objective: asymmetric supervised contrastive loss on a projection of the last
    hidden features, instance-wise distillation from the network as the task before left it, and a
    reservoir of earlier examples.

    [D] The paper trains the classifier afterwards; here the output layer learns in the same steps,
    on features that its gradient does not reach. Classes count as different where they have outputs
    of their own (several heads), as the same with a single head. No augmented views are made:
    positives are the batch's other examples of a class.
    """

    name = "esacl-co2l"
    options: ClassVar[Options] = {
        **OPTIONS,
        **REPLAY,
        "projection": whole(128, "size of the contrastive representation", 1),
        "temperature": number(0.5, "of the contrastive loss", above=True),
        "distillation": number(1.0, "weight of the distillation"),
        "now_temperature": number(0.2, "of the distillation, now", above=True),
        "past_temperature": number(0.01, "of the distillation, before", above=True),
    }

    def prepare(self) -> None:
        super().prepare()
        size = self.net.features
        self.projector = nn.Linear(size, self.o["projection"])
        self.projector.to(next(self.net.parameters()))
        self.past: tuple[TaskNet, nn.Linear] | None = None

    def trained(self) -> dict[str, nn.Parameter]:
        ours = {f"projector.{n}": p for n, p in self.projector.named_parameters()}
        return {**dict(self.net.named_parameters()), **ours}

    def begin(self, task: Task) -> None:
        super().begin(task)
        if self.task:
            # The network of the task before, with which nothing but distances is compared.
            self.past = copy.deepcopy((self.net, self.projector))
            for module in self.past:
                module.eval().requires_grad_(False)

    def extended(self, batch: Batch) -> Batch:
        return self.joined(batch, self.draw()) if len(self.buffer) else batch

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with self.autocast():
            features, _ = self.net.with_features(batch.x, batch.task)
        features = features.float().flatten(1)
        z = F.normalize(self.projector(features), dim=1)
        tasks = self.tasks_of(batch)
        labels = batch.y
        if self.net.kind == "multi":
            labels = labels + tasks * max(self.net.tasks)
        loss = asymmetric_contrast(z, labels, tasks == self.task, self.o["temperature"])
        if self.past is not None and self.o["distillation"]:
            loss = loss + self.o["distillation"] * self._distil(batch, z, *self.past)
        logits = self._read_out(features.detach(), batch)
        return loss + F.cross_entropy(logits, batch.y), logits

    def _distil(self, batch: Batch, z: Tensor, net: TaskNet, projector: nn.Linear) -> Tensor:
        with torch.no_grad(), self.autocast():
            earlier = torch.clamp(self.tasks_of(batch), max=len(net.tasks) - 1)
            features, _ = net.with_features(batch.x, earlier)
            past = F.normalize(projector(features.float().flatten(1)), dim=1)
        now, before = self.o["now_temperature"], self.o["past_temperature"]
        return instance_distillation(z, past, now, before)

    def _read_out(self, features: Tensor, batch: Batch) -> Tensor:
        head = self.net.head
        if self.net.kind == "multi":
            head.task = batch.task  # type: ignore[assignment]
        return head(features)

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, logits = super().step(batch)
        return loss, logits[: len(batch)]

    def after_step(self, batch: Batch, logits: Tensor) -> None:
        new = self.tasks_of(batch) == self.task
        own = Batch(batch.x[new], batch.y[new], self.task)
        self.offer(own, logits[new])

    def end(self, task: Task) -> None:
        self.past = None
        super().end(task)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return self.trained()

    def state(self) -> dict[str, Tensor]:
        # Not `past`: `begin` makes it of the weights that the task before left.
        return super().state() | prefixed("projector.", self.projector.state_dict())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_state({n: t for n, t in state.items() if not n.startswith("projector.")})
        self.projector.load_state_dict(without("projector.", state))
