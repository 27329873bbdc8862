"""One epoch loop for every method: batches, schedule, optimizer, and what is recorded."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clnp_kernels.optim import AdamL1

from ..data.batches import batch_sizes, batches, count, placed, resident, seed_for, seeded
from ..data.inputs import Split
from ..errors import CheckpointError, DataError, TrainingError
from ..network.model import Model
from ..parallel.ranks import current
from .frozen_cache import CACHE_BYTES, FrozenActivations
from .step_graph import StepGraph, set_rate

REPORT_SECONDS = 0.2


def step_factor(epoch: int, epochs: int) -> float:
    """1, then 0.2 from 60 % and 0.04 from 85 % of the epochs on."""
    return 0.2 ** ((epoch >= 0.6 * epochs) + (epoch >= 0.85 * epochs))


def cosine_factor(epoch: int, epochs: int) -> float:
    """Half a cosine from 1 towards 0."""
    return 0.5 * (1.0 + math.cos(math.pi * epoch / epochs))


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda epoch, epochs: 1.0,
    "step": step_factor,
    "cosine": cosine_factor,
}


@dataclass
class FitState:
    """Where a fit stands after an epoch; all of it that is needed to go on.

    Attributes:
        epoch: epochs done.
        history: one record per epoch: epoch, loss, train_accuracy, validation_accuracy, lr.
        parameters: the tensors that training moves, in the order of `moving`.
        optimizer: the optimizer's tensors, flat.
    """

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    parameters: list[Tensor] = field(default_factory=list)
    optimizer: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class FitSettings:
    """How to fit.

    Attributes:
        epochs, lr, batch_size: as usual.
        l1: layer name -> alpha of the L1 penalty alpha * sum |w| on its trainable weights (paper,
            Sec. 2.2).
        schedule: key of `SCHEDULES`: factor on lr per epoch.
        dtype: torch.bfloat16 computes the layers in that dtype by autocast; torch.float32 as the
            network is.
        head_only: train nothing but the head (final-layer transfer learning).
        cache: compute what is frozen and the same in every epoch once.
    """

    epochs: int
    lr: float
    batch_size: int
    l1: dict[str, float]
    schedule: str = "constant"
    dtype: torch.dtype = torch.float32
    head_only: bool = False
    cache: bool = False


class Fit:
    """Trains the free weights of a model on one task; ranks that share their work
    (`clnp.learner.agreement.sharing`) divide every batch.

    Arguments:
        model: in a task (see `Model.begin_task`).
        train, validation: splits; validation accuracy is recorded after each epoch.
        settings: how.
        seed: every epoch draws its order and its dropout from a generator seeded with this and the
            epoch's number, so a fit that goes on from a saved `FitState` takes the very steps it
            would have taken.
        on_batch: called a few times a second with (loss, fraction correct, examples seen, examples
            in all).
    """

    capturable: ClassVar[bool] = True  # whether a step is nothing but work on the device
    shape: tuple[int, ...] = ()  # of a step's loss

    def __init__(
        self,
        model: Model,
        train: Split,
        validation: Split,
        settings: FitSettings,
        seed: int,
        on_batch: Callable[[float, float, int, int], None] | None = None,
    ) -> None:
        self.model, self.validation = model, validation
        self.train = resident(train, model.device)
        self.settings, self.seed = settings, seed
        self.on_batch = on_batch or (lambda *_: None)
        self.ranks = current()
        self.device = model.head.free_weight.device
        self.parameters: list[Tensor] = list(trainable(model, settings.head_only))
        self.moving = moving(model, settings.head_only)
        groups = parameter_groups(model, settings.l1, settings.head_only)
        self.optimizer = AdamL1(groups, lr=settings.lr)
        self.state = FitState()
        # What an epoch saves is what it takes to fill the cache.
        pays = settings.cache and settings.epochs > 1
        self.cache = FrozenActivations(model, self.train if pays else None, settings.dtype)
        self.evaluated = FrozenActivations(
            model,
            validation if pays else None,
            torch.float32,
            CACHE_BYTES - self.cache.bytes,
            training=False,
        )
        self._graph: StepGraph | None = None

    def resume(self, state: FitState) -> None:
        """Goes on from a saved state. Raises CheckpointError for the state of another network."""
        shapes = [(t.shape, t.dtype) for t in self.moving]
        if shapes != [(t.shape, t.dtype) for t in state.parameters]:
            raise CheckpointError("a saved fit is of another network; remove its folder, progress")
        with torch.no_grad():
            for tensor, saved in zip(self.moving, state.parameters, strict=True):
                tensor.copy_(saved)
        load_optimizer(self.optimizer, state.optimizer)
        self.state = FitState(state.epoch, list(state.history))

    def run(
        self, after_epoch: Callable[[FitState, Callable[[], FitState]], None] | None = None
    ) -> FitState:
        """Trains to the last epoch.

        Arguments:
            after_epoch: called with (state, snapshot); `snapshot()` copies parameters and optimizer
                into a full state.

        Raises:
            TrainingError: the loss or a weight is not finite.
        """
        while self.state.epoch < self.settings.epochs:
            self.state.history.append(self._epoch(self.state.epoch))
            self.state.epoch += 1
            if after_epoch is not None:
                after_epoch(self.state, self.snapshot)
        return self.state

    def snapshot(self) -> FitState:
        """A copy of everything that `resume` needs, on the CPU."""
        return FitState(
            self.state.epoch,
            list(self.state.history),
            [p.detach().cpu().clone() for p in self.moving],
            optimizer_tensors(self.optimizer),
        )

    def _epoch(self, epoch: int) -> dict[str, float]:
        settings = self.settings
        lr = settings.lr * SCHEDULES[settings.schedule](epoch, settings.epochs)
        set_rate(self.optimizer, lr)
        with self._seeded(epoch):
            losses, hits = self._trained(epoch)
            validation = self.evaluated.accuracy(self.validation)
        return record(epoch, float(losses), float(hits), validation, lr)

    def _epoch_seed(self, epoch: int) -> int:
        return seed_for(self.seed, "epoch", epoch)

    def _seeded(self, epoch: int) -> AbstractContextManager[None]:
        return seeded(self.ranks.seed(self._epoch_seed(epoch)), self.device)

    def _trained(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Trains an epoch -> mean loss and share of correct examples, of `shape`."""
        self.model.train()
        with self.cache.looked_up(), self.ranks.synchronised(self.model):
            generator = torch.Generator().manual_seed(self._epoch_seed(epoch))
            losses, hits = self._steps(generator, epoch)
        self._check_weights(epoch)
        return losses, hits

    def _steps(self, generator: torch.Generator, epoch: int) -> tuple[Tensor, Tensor]:
        total = count(self.train)
        losses = torch.zeros(self.shape, dtype=torch.float64, device=self.device)
        hits = torch.zeros(self.shape, dtype=torch.int64, device=self.device)
        seen, last = 0, time.monotonic()
        alone = self.ranks.size == 1
        # Messages between processes are not captured.
        captured = self.capturable and alone and self.device.type == "cuda"
        step = self._captured() if captured else self._step
        sizes = batch_sizes(total, self.settings.batch_size)
        for size, (x, y, *rows) in zip(sizes, self._batches(generator), strict=True):
            if not isinstance(self.train, tuple):
                _check_labels(y, self.model.head.classes)
            loss, correct = step(x, y, *rows)
            losses += loss * size
            hits += correct
            seen += size
            now = time.monotonic()
            # Reading a number waits for the device, so a GPU is asked only a few times a second;
            # ranks have to ask at the same step.
            asked = self.device.type == "cpu" or (alone and now - last > REPORT_SECONDS)
            if asked or seen == total:
                self._check(losses, epoch)
            if now - last > REPORT_SECONDS or seen == total:
                mean = float(losses.mean()) / seen, float(hits.double().mean()) / seen
                self.on_batch(*mean, seen, total)
                last = now
        return losses / seen, hits / seen

    def _captured(self) -> Callable[..., tuple[Tensor, ...]]:
        """The step as a CUDA graph; one that can't be captured runs as it is, with one warning."""
        if self._graph is None:
            self._graph = StepGraph(self._step, self.optimizer, self.device)
        return self._graph

    def _batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        """Batches (x, y) of the training split; with a cache also the rows [B] that they hold."""
        size, device, ranks = self.settings.batch_size, self.device, self.ranks
        if not self.cache:
            yield from batches(self.train, size, device, generator, ranks)
            return
        assert isinstance(self.train, tuple)
        x, y = self.train
        numbers = torch.arange(len(y))
        for rows, labels in batches((numbers, y), size, device, generator, ranks):
            here = rows.to(x.device)
            yield placed(x[here], device), labels, here.to(device)

    def _step(self, x: Tensor, y: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step; x [B, ...], y [B], rows [B] for the cache -> loss, correct examples."""
        self.cache.rows = rows
        loss, correct = self._gradients(x, y)
        self.optimizer.step()
        return loss, correct

    def _gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the mean loss over the batch, all ranks' shares of it -> loss, correct
        examples.
        """
        alone, bf16 = self.ranks.size == 1, self.settings.dtype == torch.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            logits = self.model.net(x)
        reduction = "mean" if alone else "sum"
        loss = F.cross_entropy(logits.float() if bf16 else logits, y, reduction=reduction)
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        loss, correct = loss.detach(), (logits.detach().argmax(dim=-1) == y).sum()
        if alone:
            return loss, correct
        return self.ranks.average(self.parameters, loss, correct, len(y))

    def _check(self, losses: Tensor, epoch: int) -> None:
        total = float(losses.sum())
        if not math.isfinite(total):
            self._diverged(f"the loss became {total}", epoch)

    def _check_weights(self, epoch: int) -> None:
        """The last step's loss was finite; what the step made of it need not be."""
        if not all(bool(torch.isfinite(tensor).all()) for tensor in self.moving):
            self._diverged("a weight is no longer finite", epoch)

    def _diverged(self, what: str, epoch: int) -> None:
        raise TrainingError(
            f"{what} in epoch {epoch + 1} (lr {self.settings.lr}, l1 {self.settings.l1}); what was "
            "learned before this task is untouched. A lower lr usually helps; look for NaN or "
            "huge numbers in the inputs too"
        )


def record(
    epoch: int, loss: float, correct: float, validation: float, lr: float
) -> dict[str, float]:
    """What a history says of an epoch."""
    return {
        "epoch": epoch,
        "loss": loss,
        "train_accuracy": correct,
        "validation_accuracy": validation,
        "lr": lr,
    }


def _check_labels(y: Tensor, classes: int) -> None:
    """Labels of a data set that makes its items when asked are seen here first."""
    worst = y[(y < 0) | (y >= classes)]
    if worst.numel():
        raise DataError(f"train: label {int(worst[0])} is outside the head's {classes} classes")


def trainable(model: Model, head_only: bool = False) -> list[nn.Parameter]:
    """The parameters that a task trains."""
    source: nn.Module = model.head if head_only else model
    return list(source.parameters())


def moving(model: Model, head_only: bool = False) -> list[Tensor]:
    """All tensors that training moves: the parameters and the running statistics of batch norms."""
    return [*trainable(model, head_only), *model.running_statistics()]


def parameter_groups(
    model: Model, l1: Mapping[str, float], head_only: bool = False
) -> list[dict[str, Any]]:
    """Optimizer groups: each layer's weight with its alpha; biases and batch norms without L1."""
    names = [model.groups.head] if head_only else model.layer_names
    weights = [(model.layer_weight(name), l1[name]) for name in names]
    chosen = {id(weight) for weight, _ in weights}
    rest = [p for p in trainable(model, head_only) if id(p) not in chosen]
    groups: list[dict[str, Any]] = [{"params": [weight], "l1": alpha} for weight, alpha in weights]
    return [*groups, {"params": rest, "l1": 0.0}] if rest else groups


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of an optimizer's tensors on the CPU: "number of the parameter.name" -> tensor."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value).detach().cpu().clone()
        for index, values in state.items()
        for name, value in values.items()
        if value is not None
    }


def load_optimizer(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value.clone()
    saved = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
