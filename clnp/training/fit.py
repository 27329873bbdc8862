"""Training of the free weights of a model on one task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from clnp_kernels.optim import AdamL1

from ..data.batches import batch_sizes, batches, count, placed, resident, seed_for, seeded
from ..data.inputs import Split
from ..errors import CheckpointError, TrainingError
from ..network.model import Model
from ..objectives.objective import Objective
from ..parallel.ranks import current
from .epoch import SCHEDULES, OnBatch, check_labels, record, run_epoch
from .frozen_cache import CACHE_BYTES, FrozenActivations
from .optimizer_state import load_optimizer_tensors, numbered, optimizer_tensors
from .resident import Resident
from .step_graph import Backend, StepGraph, set_rate, share_rate
from .validation import Validation


@dataclass
class FitState:
    """State of a fit after an epoch, complete enough to go on.

    Attributes:
        epoch: epochs done.
        history: one record per epoch: epoch, loss, train_metric, validation_metric, lr.
        parameters: the tensors that training moves, in the order of `moving`.
        optimizer: the optimizer's tensors, flat.
    """

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    parameters: list[Tensor] = field(default_factory=list)
    optimizer: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class FitSettings:
    """Settings of a fit.

    Attributes:
        epochs, lr, batch_size: of training.
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
    (`clnp.parallel.ranks.sharing`) divide every batch.

    Arguments:
        model: in a task (see `Model.begin_task`).
        train, validation: splits; the validation metric is recorded after each epoch.
        settings: of the fit.
        seed: every epoch draws its order and its dropout from a generator seeded with this and the
            epoch's number, so a fit that goes on from a saved `FitState` takes the very steps it
            would have taken.
        on_batch: called a few times a second with (loss, metric, examples seen, examples in all);
            the metric is NaN where it is no mean over examples.
        objective: loss and metric; None: cross-entropy and accuracy.
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
        on_batch: OnBatch | None = None,
        objective: Objective | None = None,
    ) -> None:
        self.model = model
        self.objective = objective or Objective()
        self.train = resident(train, model.device)
        self.validation = resident(validation, model.device)
        self.measured = Validation(self.validation, self.objective, model.device)
        self.settings, self.seed = settings, seed
        self.on_batch = on_batch or (lambda *_: None)
        self.ranks = current()
        self.device = model.head.free_weight.device
        self.parameters: list[Tensor] = list(trainable(model, settings.head_only))
        self.moving = moving(model, settings.head_only)
        groups = parameter_groups(model, settings.l1, settings.head_only)
        self.optimizer = AdamL1(groups, lr=settings.lr)
        self.state = FitState()
        # Filling the cache costs about what one epoch saves, so it pays only over several.
        pays = settings.cache and settings.epochs > 1
        self.cache = FrozenActivations(model, self.train if pays else None, settings.dtype)
        self.evaluated = FrozenActivations(
            model,
            self.validation if pays else None,
            torch.float32,
            CACHE_BYTES - self.cache.bytes,
            training=False,
        )
        self.backend: Backend | None = None  # what captures steps; None: CUDA graphs, on a GPU
        self._graph: StepGraph | None = None
        self._resident: Resident | None = None

    def resume(self, state: FitState) -> None:
        """Go on from a saved state. Raises CheckpointError for the state of another network."""
        shapes = [(t.shape, t.dtype) for t in self.moving]
        if shapes != [(t.shape, t.dtype) for t in state.parameters]:
            raise CheckpointError(
                "saved progress belongs to a different network; delete the folder 'progress'"
            )
        with torch.no_grad():
            for tensor, saved in zip(self.moving, state.parameters, strict=True):
                tensor.copy_(saved)
        load_optimizer_tensors(self.optimizer, numbered(self.optimizer), state.optimizer, ".")
        self.state = FitState(state.epoch, list(state.history))

    def run(
        self, after_epoch: Callable[[FitState, Callable[[], FitState]], None] | None = None
    ) -> FitState:
        """Train to the last epoch.

        Arguments:
            after_epoch: called with (state, snapshot); `snapshot()` copies parameters and optimizer
                into a full state.

        Raises:
            TrainingError: the loss or a weight is not finite.
        """
        try:
            while self.state.epoch < self.settings.epochs:
                self.state.history.append(self._epoch(self.state.epoch))
                self.state.epoch += 1
                if after_epoch is not None:
                    after_epoch(self.state, self.snapshot)
        finally:
            self.release()
        return self.state

    def release(self) -> None:
        """Free what training keeps on the device besides the model, after the last epoch."""
        if self._graph is not None:
            self._graph.close()
            for parameter in self.parameters:
                parameter.grad = None
        self._graph = self._resident = None  # the graph refers to this fit

    def snapshot(self) -> FitState:
        """A copy of everything that `resume` needs, on the CPU."""
        return FitState(
            self.state.epoch,
            list(self.state.history),
            [p.detach().cpu().clone() for p in self.moving],
            optimizer_tensors(self.optimizer, numbered(self.optimizer), "."),
        )

    def _epoch(self, epoch: int) -> dict[str, float]:
        settings = self.settings
        lr = settings.lr * SCHEDULES[settings.schedule](epoch, settings.epochs)
        set_rate(self.optimizer, lr)
        with self._seeded(epoch):
            losses, metric = self._trained(epoch)
            value = self.evaluated.measured(self.measured)
        return record(epoch, float(losses), float(metric), self.measured.shown(value), lr)

    def _epoch_seed(self, epoch: int) -> int:
        return seed_for(self.seed, "epoch", epoch)

    def _seeded(self, epoch: int) -> AbstractContextManager[None]:
        return seeded(self.ranks.seed(self._epoch_seed(epoch)), self.device)

    def _trained(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Trains an epoch -> mean loss and metric over the examples, of `shape`."""
        self.model.train()
        with self.cache.looked_up(), self.ranks.synchronised(self.model):
            generator = torch.Generator().manual_seed(self._epoch_seed(epoch))
            resident = self._on_device()
            losses, sums, seen = run_epoch(
                self._steps(generator),
                count(self.train),
                self.device,
                on_batch=self.on_batch,
                check_loss=lambda total: self._check(total, epoch),
                shape=self.shape,
                read_early=self.ranks.size == 1,  # ranks have to check at the same step
                sums=None if resident is None else resident.sums,
            )
        self._check_weights(epoch)
        return losses / seen, sums / seen

    def _on_device(self) -> Resident | None:
        """The training split, if a process that trains alone has it on the device."""
        split = self.train
        if self._resident is None and isinstance(split, tuple) and self.ranks.size == 1:
            size, rows = self.settings.batch_size, bool(self.cache)
            if len(split[1]) and {tensor.device for tensor in split} == {self.device}:
                self._resident = Resident(split, size, self.shape, rows=rows)
        return self._resident

    def _steps(self, generator: torch.Generator) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Take the steps of an epoch -> (examples over all ranks, loss, sum of the metric)."""
        resident = self._on_device()
        if resident is not None:
            graph = self._captured(partial(resident.take, self._step), resident.together)
            yield from resident.epoch(generator, self._step, graph)
            return
        step = self._captured(self._step) or self._step
        sizes = batch_sizes(count(self.train), self.settings.batch_size)
        for size, (x, y, *rows) in zip(sizes, self._batches(generator), strict=True):
            if not isinstance(self.train, tuple):
                check_labels(y, self.model.head.classes, self.objective.loss)
            loss, metric = step(x, y, *rows)
            yield size, loss, metric

    def _captured(
        self, step: Callable[..., tuple[Tensor, ...]], together: int = 1
    ) -> StepGraph | None:
        """The step as a CUDA graph, or as it is, with one warning, where capture fails; None where
        there are no graphs.
        """
        # Messages between processes are not captured.
        graphs = self.backend is not None or self.device.type == "cuda"
        if self._graph is None and self.capturable and self.ranks.size == 1 and graphs:
            self._share_rates()
            device, backend = self.device, self.backend
            self._graph = StepGraph(step, self.optimizer, device, backend, together=together)
        return self._graph

    def _share_rates(self) -> None:
        """Give groups of the optimizer that always have the same rate one tensor for it."""
        share_rate(self.optimizer.param_groups, self.device)

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
            rows = rows.to(x.device)
            yield placed(x[rows], device), labels, rows.to(device)

    def _step(self, x: Tensor, y: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step; x [B, ...], y [B, ...], rows [B] for the cache -> loss, sum of the metric."""
        self.cache.rows = rows
        loss, metric = self._gradients(x, y)
        self.optimizer.step()
        return loss, metric

    def _gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the mean loss over the batch, all ranks' shares of it -> loss, sum of the
        metric over the examples.
        """
        alone, bf16 = self.ranks.size == 1, self.settings.dtype == torch.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            outputs = self.model.net(x)
        outputs = outputs.float() if bf16 else outputs
        if alone:
            loss, weight = self.objective.loss.mean(outputs, y), None
        else:
            loss, weight = self.objective.loss.total(outputs, y)
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        loss, metric = loss.detach(), self.objective.running(outputs, y)
        if weight is None:
            return loss, metric
        return self.ranks.average(self.parameters, loss, metric, weight)

    def _check(self, total: float, epoch: int) -> None:
        if not math.isfinite(total):
            self._diverged(f"the loss became {total}", epoch)

    def _check_weights(self, epoch: int) -> None:
        """Check the weights too: the last step may spoil them after a finite loss."""
        if not all(bool(torch.isfinite(tensor).all()) for tensor in self.moving):
            self._diverged("a weight is no longer finite", epoch)

    def _diverged(self, what: str, epoch: int) -> None:
        raise TrainingError(
            f"{what} in epoch {epoch + 1} (lr {self.settings.lr}, l1 {self.settings.l1}); what was "
            "learned before this task is untouched. A lower lr usually helps; look for NaN or "
            "huge numbers in the inputs too"
        )


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
