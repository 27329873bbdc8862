"""Co2L (Cha, Lee, Shin 2021, arXiv:2106.14413): contrast, distillation and replay."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.task import Task
from .er import REPLAY, Replay
from .method import Batch
from .network import TaskNet
from .options import Options, number, whole
from .state import prefixed, without

BASE_TEMPERATURE = 0.07


def asymmetric_contrast(
    z: Tensor, labels: Tensor, anchors: Tensor, temperature: float = 0.5
) -> Tensor:
    """Asymmetric supervised contrastive loss (Eq. 1): only examples of the current task are
    anchors; replayed ones are there to be told apart from.

        mean over anchors i with positives of
        -1 / |P(i)| sum_{j in P(i)} log( exp(z_i z_j / t) / sum_{k != i} exp(z_i z_k / t) )

    Arguments:
        z: [B, D], of length 1.
        labels: [B] int64; P(i) are the others with i's label.
        anchors: [B] bool.
        temperature: t.

    Returns:
        a scalar; 0 where no anchor has a positive.
    """
    self_mask = torch.eye(len(z), dtype=torch.bool, device=z.device)
    similarity = (z @ z.T / temperature).masked_fill(self_mask, -torch.inf)
    log_p = similarity - similarity.logsumexp(dim=1, keepdim=True)
    positive = (labels[:, None] == labels[None, :]) & ~self_mask
    counts = positive.sum(dim=1)
    used = anchors & (counts > 0)
    if not bool(used.any()):
        return z.sum() * 0.0
    sums = torch.where(positive, log_p, 0.0).sum(dim=1)
    return -(sums[used] / counts[used]).mean()


def instance_distillation(
    z: Tensor, past: Tensor, temperature: float = 0.2, past_temperature: float = 0.01
) -> Tensor:
    """Instance-wise relation distillation (Eq. 3): who is near whom shall stay.

        mean over i of -sum_{k != i} p_i(past)_k log p_i(now)_k,
        p_i_k = exp(z_i z_k / t) / sum_{l != i} exp(z_i z_l / t)

    Arguments:
        z, past: [B, D], of length 1; of the network now and as the task before left it. No gradient
            flows into `past`.
        temperature, past_temperature: t of each (kappa and kappa*).
    """
    self_mask = torch.eye(len(z), dtype=torch.bool, device=z.device)
    now = (z @ z.T / temperature).masked_fill(self_mask, -torch.inf).log_softmax(dim=1)
    before = past.detach() @ past.detach().T / past_temperature
    target = before.masked_fill(self_mask, -torch.inf).softmax(dim=1)
    # 0 * -inf on the diagonal would be NaN.
    return -(target * now.masked_fill(self_mask, 0.0)).sum(dim=1).mean()


class Co2L(Replay):
    """Asymmetric supervised contrastive loss on a projection of the last hidden features,
    instance-wise distillation from the network as the task before left it, and a reservoir of
    earlier examples.

    The authors' code multiplies the contrastive loss by temperature / 0.07. Here the distillation
    is divided by that factor instead, so that the balance is theirs and the size of the loss does
    not depend on the temperature.

    Deviations [D]: the paper trains the classifier afterwards; here the output layer learns in the
    same steps, on features that its gradient does not reach. Classes count as different where they
    have outputs of their own (several heads), as the same with a single head. No augmented views
    are made: positives are the batch's other examples of a class.
    """

    name = "co2l"
    own_loss = True
    options: ClassVar[Options] = {
        **REPLAY,
        "projection": whole(128, "size of the contrastive representation", 1),
        "temperature": number(0.5, "of the contrastive loss", above=True),
        "distillation": number(1.0, "weight of the distillation, in the authors' units"),
        "now_temperature": number(0.2, "of the distillation, now", above=True),
        "past_temperature": number(0.01, "of the distillation, before", above=True),
    }

    def prepare(self) -> None:
        super().prepare()
        size = self.net.features
        self.projector = nn.Linear(size, self.o["projection"])
        self.projector.to(next(self.net.parameters()))
        self.past: tuple[TaskNet, nn.Linear] | None = None

    def begin(self, task: Task) -> None:
        super().begin(task)
        if self.task:
            # The network of the task before, with which nothing but distances is compared.
            self.past = copy.deepcopy((self.net, self.projector))
            for module in self.past:
                module.eval().requires_grad_(False)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        n = len(batch)
        both = self.joined(batch, self.draw()) if len(self.buffer) else batch
        loss, logits = self.contrast(both)
        self.offer(batch, logits[:n])
        return loss, logits[:n]

    def contrast(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss of a batch and its logits [B, C]; replayed examples are those of other tasks."""
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
            weight = self.o["distillation"] * BASE_TEMPERATURE / self.o["temperature"]
            loss = loss + weight * self._distil(batch, z, *self.past)
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

    def end(self, task: Task) -> None:
        self.past = None
        super().end(task)

    def make_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer_over(self.named_parameters())

    def named_parameters(self) -> dict[str, nn.Parameter]:
        ours = {f"projector.{n}": p for n, p in self.projector.named_parameters()}
        return {**dict(self.net.named_parameters()), **ours}

    def state(self) -> dict[str, Tensor]:
        # Not `past`: `begin` makes it of the weights that the task before left.
        return super().state() | prefixed("projector.", self.projector.state_dict())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_state({n: t for n, t in state.items() if not n.startswith("projector.")})
        self.projector.load_state_dict(without("projector.", state))
