"""Base of the methods: three verbs, and tensors to remember.

    begin(task)   before the first epoch of a task
    loss(batch)   what a training step descends
    end(task)     after the last epoch

A method that needs more of a step overrides `step` (by default: loss, gradients, optimizer), and
one that chooses its examples overrides `batches`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from clnp_kernels.optim import SGDL1, AdamL1

from ..data.batches import batches
from ..data.inputs import Split
from ..data.items import Items
from ..data.task import Task
from ..learner.settings import DTYPES
from ..objectives.objective import Objective
from ..objectives.shapes import CLASSES, KINDS
from .network import ForTask, TaskNet
from .options import Options, checked
from .settings import MethodSettings


@dataclass
class Batch:
    """Examples of one training step.

    Attributes:
        x: [B, ...] inputs.
        y: [B, ...] targets.
        task: index of their task, or [B] int64, one for each.
        index: [B] int64, their places in the task's training split; None where they come from
            several.
    """

    x: Tensor
    y: Tensor
    task: int | Tensor
    index: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)


class Method:
    """Base of the methods; by itself plain training on task after task.

    Arguments:
        net: the network, on its device.
        settings: learning rate, batch size and so on.
        given: the method's options; those not given take their defaults.

    Attributes:
        options: the table of the method's options (class attribute).
        fixed: settings that the method decides differently by default (class attribute).
        takes: kinds of targets that the method can learn (class attribute).
        own_loss: the method has a loss of its own in place of the task's (class attribute).
        mixes: a batch may hold examples of several tasks (class attribute).
        objective: loss and metric of the task that is being learned.
        o: the values of the options.
        memory: named tensors that live on after a step or a task. Everything that a resumed run
            needs has to be here, or in `state()`.
        task, epoch: index of the task that is being learned, and of its epoch.
        subset: indices [n] int64 of the task's examples that are trained on; None for all.
        optimizer: of the task, made by `make_optimizer`.

    Raises:
        ConfigError: an option that does not exist or is out of range.
    """

    name: ClassVar[str]
    options: ClassVar[Options] = {}
    fixed: ClassVar[Mapping[str, Any]] = {}
    takes: ClassVar[tuple[str, ...]] = KINDS
    own_loss: ClassVar[bool] = False
    mixes: ClassVar[bool] = False

    def __init__(self, net: TaskNet, settings: MethodSettings, given: Mapping[str, Any]) -> None:
        self.net, self.settings = net, settings
        self.o = checked(self.name, self.options, given)
        self.memory: dict[str, Tensor] = {}
        self.objective = Objective()
        self.task = -1
        self.epoch = 0
        self.subset: Tensor | None = None
        self.optimizer: torch.optim.Optimizer
        self.prepare()

    # The three verbs

    def begin(self, task: Task) -> None:
        """Before the first epoch; the task's outputs and a fresh `optimizer` are there."""

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(loss to descend, outputs [B, C] of the batch)."""
        logits = self.logits(batch.x, batch.task)
        return self.objective.loss.mean(logits, batch.y), logits

    def end(self, task: Task) -> None:
        """After the last epoch."""

    # What a method may change besides

    def check(self, learned: int) -> None:
        """Refuses to go on to the next task, before any work."""

    def remember(self, task: Task) -> None:
        """Called with every learned task after loading, in order."""

    def prepare(self) -> None:
        """Once, after construction."""

    def start_epoch(self, task: Task, epoch: int) -> None:
        """Before each epoch's first batch."""

    def batches(self, task: Task, epoch: int, generator: torch.Generator) -> Iterator[Batch]:
        """The batches of an epoch; by default every example of `subset` once, in random order."""
        numbered = self.objective.targets == CLASSES
        split = indexed(task.train) if numbered else task.train
        if self.subset is not None:
            split = chosen(split, self.subset)
        if not numbered:
            for x, y in batches(split, self.settings.batch_size, self.device, generator):
                yield Batch(x, y, self.task)
            return
        for x, y in batches(split, self.settings.batch_size, self.device, generator):
            yield Batch(x, y[:, 0].contiguous(), self.task, y[:, 1].contiguous())

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One training step: (loss, logits [B, C]), detached."""
        loss, logits = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.adjust()
        self.optimizer.step()
        return loss.detach(), logits.detach()

    def adjust(self) -> None:
        """Changes the gradients before the optimizer sees them: penalties, masks."""

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of a task, over `net.trainable()`."""
        return self.optimizer_over(self.net.trainable())

    def optimizer_over(self, named: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer that the settings ask for."""
        # As a group, for it may be empty.
        s, parameters = self.settings, [{"params": list(named.values())}]
        if s.optimizer == "sgd":
            return SGDL1(parameters, lr=s.lr, momentum=s.momentum)
        return AdamL1(parameters, lr=s.lr)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Everything that an optimizer of the method may train, by name."""
        return dict(self.net.named_parameters())

    def predictor(self, task: int) -> nn.Module:
        """The network of a learned task: x [B, ...] -> logits [B, C]."""
        return ForTask(self.net, task)

    def state(self) -> dict[str, Tensor]:
        """All that the method remembers, by name."""
        return dict(self.memory)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the result of `state`."""
        self.memory = {name: tensor.to(self.device) for name, tensor in state.items()}

    def work_key(self) -> Any:
        """Steps over as many examples and with an equal key do the same work; their FLOPs are
        counted once.
        """
        return None

    def replayed(self) -> int:
        """Replayed examples that a step reads besides its batch."""
        return 0

    def density(self) -> float:
        """Share of the network's products that a step would need if it skipped zero weights and
        masked gradients; 1 where nothing is sparse.
        """
        return 1.0

    # For the verbs

    def keep_statistics(self) -> None:
        """Let normalisation use the statistics of the first task in all later ones."""
        for module in self.net.modules():
            if self.task and hasattr(module, "num_batches_tracked"):
                module.eval()

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def logits(self, x: Tensor, task: int | Tensor | None = None) -> Tensor:
        """Logits [B, C] in float32 or wider, computed under the settings' autocast."""
        with self.autocast():
            y = self.forward(x, task)
        return y.float() if y.dtype in (torch.bfloat16, torch.float16) else y

    def forward(self, x: Tensor, task: int | Tensor | None) -> Tensor:
        """Logits [B, C] of the network that a training step descends."""
        return self.net(x, task)

    def autocast(self) -> torch.autocast:
        """bf16 autocast if the settings ask for it."""
        bf16 = DTYPES[self.settings.dtype] == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)


def indexed(split: Split) -> Split:
    """The split with labels [N, 2] int64: the label and the example's place in it."""
    if isinstance(split, tuple):
        x, y = split
        return x, torch.stack([y, torch.arange(len(y), device=y.device)], dim=1)
    return Items.of(split).with_numbers()


def chosen(split: Split, index: Tensor) -> Split:
    """The examples `index` [n] int64 of a split."""
    if isinstance(split, tuple):
        index = index.to(split[1].device)
        return split[0][index], split[1][index]
    return torch.utils.data.Subset(split, index.tolist())
