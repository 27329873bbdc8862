"""Training and threshold search of one grid point, here or in a worker process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.batches import seed_for
from ..data.task import Task, task_data
from ..network.keep import keep_everything
from ..network.model import Model
from ..objectives.metrics import Value
from ..objectives.objective import Objective
from ..parallel.kernels import Kernels
from ..pruning.activity import check_scores
from ..pruning.search import Pruning, find_pruning
from ..pruning.sparsifiers import Sparsifier, sparsifier
from ..training.fit import FitSettings, FitState, moving
from ..training.validation import Validation
from .budget import granularity_on
from .grid import GridPoint
from .progress import Progress
from .settings import DTYPES, Settings

Report = Callable[..., None]  # (event, *arguments)


@dataclass(frozen=True)
class Plan:
    """Course of one task.

    Attributes:
        margin: validation metric given up for sparsity.
        adopt: take the network as it is instead of training it.
        prune: search thresholds; otherwise all channels stay.
    """

    margin: float
    adopt: bool = False
    prune: bool = True


@dataclass
class Trained:
    """A trained grid point and, if it was a candidate, its pruning.

    Attributes:
        point: its settings.
        tensors: copies of the tensors that training moves.
        history: one record per epoch.
        value: metric of the validation split before pruning, higher is better.
        pruning: outcome of the threshold search.
    """

    point: GridPoint
    tensors: list[Tensor]
    history: list[dict[str, float]]
    value: Value = 0
    pruning: Pruning | None = None


@dataclass
class PointTrainer:
    """Trains and prunes the grid points of one task, one at a time.

    It holds data only, so a worker process can be sent a copy. Every method takes `report`, which
    is called with (event, *arguments).

    Attributes:
        model: in the task (`Model.begin_task`).
        task, index: the task and its number.
        settings, plan: as of the learner and of the call.
        points: grid points of the task.
        progress: saved fits.
        head_only: train the head alone (the final hidden group is full).
        kernels: table of the GPU kernels.
        objective: loss and metric of the task.
    """

    model: Model
    task: Task
    index: int
    settings: Settings
    plan: Plan
    points: list[GridPoint]
    progress: Progress
    head_only: bool
    kernels: Kernels
    objective: Objective

    @property
    def sparsifier(self) -> Sparsifier:
        """Training and ranking that the settings ask for."""
        return sparsifier(self.settings.sparsifier)

    def validation(self) -> Validation:
        """The validation split with the task's metric."""
        return Validation(self.task.validation, self.objective, self.model.device)

    def stamp(self) -> dict[str, Any]:
        """Identity of this task's saved fits."""
        return {
            "settings": self.settings.to_json(),
            "task": self.index,
            "name": self.task.name,
            "data": task_data(self.task).to_json(),
            "kernels": self.kernels["digest"],
            "objective": self.objective.to_json(),
        }

    def record(self, i: int, epoch: dict[str, float]) -> dict[str, Any]:
        """A record of an epoch with the number of its grid point."""
        return {**epoch, "point": i, "points": len(self.points)}

    def fit_settings(
        self, epochs: int, lr: float, l1: dict[str, float], schedule: str
    ) -> FitSettings:
        """Settings of a fit with the learner's batch size and dtype."""
        s = self.settings
        return FitSettings(
            epochs,
            lr,
            s.batch_size,
            l1,
            schedule,
            DTYPES[s.dtype],
            self.head_only,
            s.cache == "auto",
        )

    def fit_arguments(self, settings: FitSettings, what: str, report: Report) -> tuple[Any, ...]:
        """Arguments of a `Fit`; `what` seeds it."""
        seed = seed_for(self.settings.seed, self.index, what)
        train, validation = self.task.train, self.task.validation

        def on_batch(*args: Any) -> None:
            report("on_batch_end", *args)

        return self.model, train, validation, settings, seed, on_batch, self.objective

    def fit(self, i: int, report: Report) -> Trained:
        """Train grid point `i` from the weights that the model has."""
        s, point = self.settings, self.points[i]
        settings = self.fit_settings(s.training_epochs, point.lr, point.l1, s.schedule)
        make = self.sparsifier.fit
        fit = make(*self.fit_arguments(settings, "fit", report))
        stamp = self.stamp()
        saved = self.progress.load(i, stamp)
        if saved is not None:
            fit.resume(saved)

        def after_epoch(state: FitState, snapshot: Any) -> None:
            if state.epoch == s.training_epochs or self.progress.due():
                self.progress.save(i, snapshot(), stamp)
            report("on_epoch_end", self.record(i, state.history[-1]))

        history = fit.run(after_epoch).history
        tensors = moving(self.model, self.head_only)
        return Trained(point, [t.detach().clone() for t in tensors], history)

    def take(self, t: Trained) -> None:
        """Put the numbers of a trained grid point into the model."""
        restore(moving(self.model, self.head_only), t.tensors)

    def search(self, t: Trained, validation: Validation, floor: Value, report: Report) -> None:
        """Search the thresholds of the network in the model, which is trained grid point `t`."""
        model, settings = self.model, self.settings
        if self.head_only:
            # Nothing is claimed, so the best head is the one of the highest value.
            shown = validation.shown(t.value)
            t.pruning = Pruning.nothing_kept(model, shown, cost=-float(t.value))
            return
        # A resumed run gets here without having trained: the generator must not depend on that.
        torch.manual_seed(seed_for(settings.seed, self.index, "prune"))
        if not self.plan.prune:
            keep = keep_everything(model)
            scores = self.sparsifier.scores(model, self.task.train, model.device)
            check_scores(model, scores)
            shown = validation.shown(t.value)
            t.pruning = Pruning(keep, dict.fromkeys(keep, 0.0), shown, 0.0, scores)
            return
        t.pruning = find_pruning(
            model,
            self.task.train,
            validation,
            floor,
            rank=self.sparsifier.scores,
            search=settings.search,
            granularity=granularity_on(model.device, settings.granularity),
            on_evaluation=lambda done: report("on_search", done, 0),
        )


def restore(tensors: Sequence[Tensor], saved: Sequence[Tensor]) -> None:
    """Copies saved numbers back, in place."""
    with torch.no_grad():
        for tensor, value in zip(tensors, saved, strict=True):
            tensor.copy_(value)
