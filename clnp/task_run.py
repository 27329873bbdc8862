"""Training and pruning one task: every grid point, the search among the candidates, fine-tuning
(Golkar et al. 2019, Sec. 2.2).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clnp import grid_trials
from clnp.batches import count, count_correct, seed_for
from clnp.data.check import task_data
from clnp.data.task import Task
from clnp.distributed import current
from clnp.fanout import Workers
from clnp.forgetting import GridPoint, candidates, floor_of, per_layer, sparsest
from clnp.model import Model
from clnp.progress import Progress
from clnp.pruning import keep_everything
from clnp.settings import DTYPES, FineTune, Settings
from clnp.sparsifiers import sparsifier
from clnp.sparsify import Pruning, find_pruning
from clnp.stacked import StackedFit, stackable
from clnp.train import Fit, FitSettings, FitState, moving

ALONE = Workers(1)


@dataclass(frozen=True)
class Plan:
    """How one task is learned.

    Attributes:
        margin: validation accuracy given up for sparsity.
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
        point: what it was trained with.
        tensors: copies of what training moves.
        history: one record per epoch.
        correct: correct validation examples before pruning.
        pruning: outcome of the threshold search.
    """

    point: GridPoint
    tensors: list[Tensor]
    history: list[dict[str, float]]
    correct: int
    pruning: Pruning | None = None


class TaskRun:
    """One task on its way through a model that `begin_task` has made ready.

    Arguments:
        model: in the task.
        task, index: the task and its number.
        settings, plan, points: how; `points` are the grid points to train.
        progress: where unfinished fits are kept.
        call: (event, *arguments) tells the callbacks.
        head_only: train nothing but the head (the final hidden group is full).
        workers: for the grid points and the searches of the candidates, where there are several.

    It can be pickled: what arrives in another process tells its events to this one.
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        index: int,
        settings: Settings,
        plan: Plan,
        points: list[GridPoint],
        progress: Progress,
        call: Callable[..., None],
        *,
        head_only: bool,
        workers: Workers = ALONE,
    ) -> None:
        self.model, self.task, self.index = model, task, index
        self.settings, self.plan, self.points = settings, plan, points
        self.progress, self.call, self.head_only = progress, call, head_only
        self.workers = workers
        self.sparsifier = sparsifier(settings.sparsifier)
        self.total = count(task.validation)
        self.done: Counter[int] = Counter()  # grid point -> epochs behind it

    def __getstate__(self) -> dict[str, Any]:
        task = copy.copy(self.task)
        object.__setattr__(task, "test", task.validation)  # it need not travel
        here = ("call", "workers", "sparsifier")
        state = {name: value for name, value in self.__dict__.items() if name not in here}
        return {**state, "task": self.workers.shared(task)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.call, self.workers = grid_trials.told, ALONE
        self.sparsifier = sparsifier(self.settings.sparsifier)

    @property
    def tune(self) -> FineTune | None:
        """Fine-tuning, if there is any."""
        return None if self.plan.adopt else self.settings.fine_tune

    @property
    def epochs(self) -> int:
        """Epochs over all grid points and fine-tuning."""
        if self.plan.adopt:
            return 0
        tuned = self.tune.epochs * self.tune.rounds if self.tune else 0
        return self.settings.epochs * len(self.points) + tuned

    def train(self) -> list[Trained]:
        """Trains every grid point from the same weights, in the same order of examples."""
        tensors = moving(self.model, self.head_only)
        start = [t.detach().clone() for t in tensors]
        if self.plan.adopt:
            correct = count_correct(self.model.net, self.task.validation, self.model.device)
            return [Trained(self.points[0], start, [], correct)]
        trained = self._saved(tensors)
        if len(trained) < len(self.points) and self._stacks():
            return self._fit_together()
        self.done.update(dict.fromkeys(trained, self.settings.epochs))
        missing = [i for i in range(len(self.points)) if i not in trained]
        if self._fans_out(missing):
            trained |= grid_trials.fit(self, missing)
        else:
            for i in missing:
                restore(tensors, start)
                trained[i] = self.fit(i)
        return [trained[i] for i in range(len(self.points))]

    def _saved(self, tensors: Sequence[Tensor]) -> dict[int, Trained]:
        """The grid points that were trained before a run was killed."""
        found = {}
        for i in range(len(self.points)):
            state = self.progress.load(i, self._stamp())
            if state is not None:
                self.call("on_resume", [self._record(i, record) for record in state.history])
            if state is not None and state.epoch == self.settings.epochs:
                shapes = [tensor.shape for tensor in state.parameters]
                if shapes == [tensor.shape for tensor in tensors]:
                    found[i] = self._trained(i, state.history, state.parameters)
        return found

    def _fans_out(self, trials: Sequence[Any]) -> bool:
        return self.workers.count > 1 and len(trials) > 1

    def _stacks(self) -> bool:
        """Whether the grid points are trained as one network of stacked weights."""
        wanted = {"auto": self.model.device.type == "cuda", "on": True, "off": False}
        alone = self.workers.count == 1 and current().size == 1
        plain = self.sparsifier.fit is Fit and not self.head_only
        several = len(self.points) > 1
        return wanted[self.settings.stack] and several and alone and plain and stackable(self.model)

    def _fit_together(self) -> list[Trained]:
        """Trains all grid points at once."""
        s, numbers, stamp = self.settings, range(len(self.points)), self._stamp()
        each = [self._fit_settings(s.epochs, p.lr, p.l1, s.schedule) for p in self.points]
        model, train, validation, _, seed, on_batch = self._fit_arguments(each[0], "fit")
        fit = StackedFit(model, train, validation, each, seed, on_batch)
        saved = [state for i in numbers if (state := self.progress.load(i, stamp)) is not None]
        if len(saved) == len(each) and len({state.epoch for state in saved}) == 1:
            fit.resume_all(saved)

        def after_epoch(states: list[FitState], snapshot: Callable[[int], FitState]) -> None:
            save = states[0].epoch == s.epochs or self.progress.due()
            for i, state in enumerate(states):
                if save:
                    self.progress.save(i, snapshot(i), stamp)
                self.epoch_end({**state.history[-1], "point": i, "points": len(states)})

        states = fit.run_all(after_epoch)
        return [
            self._trained(i, states[i].history, [t.detach().clone() for t in fit.views[i]])
            for i in numbers
        ]

    def epoch_end(self, record: dict[str, Any]) -> None:
        """Tells the callbacks of an epoch of a grid point, here or in a worker."""
        self.done[record["point"]] = record["epoch"] + 1
        self.call("on_epoch_end", {**record, "done": self.done.total()})

    def fit(self, i: int) -> Trained:
        """Trains a grid point from the weights that the model has."""
        s, point = self.settings, self.points[i]
        settings = self._fit_settings(s.epochs, point.lr, point.l1, s.schedule)
        make = self.sparsifier.fit
        fit = make(*self._fit_arguments(settings, "fit"))
        stamp = self._stamp()
        saved = self.progress.load(i, stamp)
        if saved is not None:
            fit.resume(saved)

        def after_epoch(state: FitState, snapshot: Any) -> None:
            if state.epoch == s.epochs or self.progress.due():
                self.progress.save(i, snapshot(), stamp)
            self.epoch_end(self._record(i, state.history[-1]))

        history = fit.run(after_epoch).history
        tensors = moving(self.model, self.head_only)
        return self._trained(i, history, [t.detach().clone() for t in tensors])

    def _record(self, i: int, record: dict[str, float]) -> dict[str, Any]:
        return {**record, "point": i, "points": len(self.points)}

    def _trained(self, i: int, history: list[dict[str, float]], tensors: list[Tensor]) -> Trained:
        correct = round(history[-1]["validation_accuracy"] * self.total)
        return Trained(self.points[i], tensors, history, correct)

    def _stamp(self) -> dict[str, Any]:
        """What tells saved fits of this task from those of another run."""
        return {
            "settings": self.settings.to_json(),
            "task": self.index,
            "name": self.task.name,
            "data": task_data(self.task).to_json(),
        }

    def _fit_settings(
        self, epochs: int, lr: float, l1: dict[str, float], schedule: str
    ) -> FitSettings:
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

    def _fit_arguments(self, settings: FitSettings, what: str) -> tuple[Any, ...]:
        seed = seed_for(self.settings.seed, self.index, what)
        train, validation = self.task.train, self.task.validation

        def on_batch(*args: Any) -> None:
            self.call("on_batch_end", *args)

        return self.model, train, validation, settings, seed, on_batch

    def prune(self, trained: list[Trained]) -> Trained:
        """Searches the thresholds of every candidate; returns the sparsest, its weights in the
        model.
        """
        best = max(t.correct for t in trained)
        floor = floor_of(best, self.plan.margin, self.total)
        right = [t.correct for t in trained]
        chosen = [trained[i] for i in candidates(right, self.plan.margin, self.total)]
        if self._fans_out(chosen):
            grid_trials.search(self, trained, chosen, floor)
        else:
            for t in chosen:
                self.take(t)
                self.search(t, floor)
        winner = chosen[sparsest([t.pruning.cost for t in chosen if t.pruning])]
        self.take(winner)
        return winner

    def take(self, t: Trained) -> None:
        """Puts the numbers of a trained grid point into the model."""
        restore(moving(self.model, self.head_only), t.tensors)

    def search(self, t: Trained, floor: int) -> None:
        """Searches the thresholds of the network in the model, a trained grid point."""
        model, settings = self.model, self.settings
        if self.head_only:
            # Nothing is claimed, so the most accurate head is the best one.
            t.pruning = Pruning.nothing_kept(model, t.correct, cost=-t.correct)
            return
        # A resumed run gets here without having trained: the generator must not depend on that.
        torch.manual_seed(seed_for(settings.seed, self.index, "prune"))
        if not self.plan.prune:
            keep = keep_everything(model)
            scores = self.sparsifier.scores(model, self.task.train, model.device)
            t.pruning = Pruning(keep, dict.fromkeys(keep, 0.0), t.correct, 0.0, scores)
            return
        t.pruning = find_pruning(
            model,
            self.task.train,
            self.task.validation,
            floor,
            rank=self.sparsifier.scores,
            search=settings.search,
            granularity=settings.granularity,
            compensate=settings.compensate,
            on_evaluation=lambda done: self.call("on_search", done, 0),
        )

    def fine_tune(self, chosen: Trained, best: int) -> int:
        """Trains what survived, if asked to; returns correct validation examples.

        Arguments:
            chosen: its pruning was cut.
            best: correct validation examples that the margin counts from, where there are more
                rounds of pruning and fine-tuning.
        """
        tune = self.tune
        for number in range(tune.rounds if tune else 0):
            assert tune is not None
            if number and not self.head_only:
                self.search(chosen, floor_of(best, self.plan.margin, self.total))
                assert chosen.pruning is not None
                chosen.pruning.apply(self.model)
            l1 = chosen.point.l1 if tune.l1 is None else per_layer(tune.l1, self.model.layer_names)
            settings = self._fit_settings(tune.epochs, tune.lr, l1, tune.schedule)
            what = f"fine-tune {number}" if number else "fine-tune"
            told = {"fine_tune": True, "round": number}
            Fit(*self._fit_arguments(settings, what)).run(
                lambda state, _, told=told: self.call(  # type: ignore[misc]
                    "on_epoch_end", {**state.history[-1], **told}
                )
            )
        network = self.model.pruned_network(keep_everything(self.model))
        return count_correct(network, self.task.validation, self.model.device)

    def grid_rows(self, trained: list[Trained], chosen: Trained) -> list[dict[str, Any]]:
        """What a report says of every grid point."""
        floor = floor_of(max(t.correct for t in trained), self.plan.margin, self.total)
        return [
            {
                "l1": t.point.l1,
                "lr": t.point.lr,
                "validation": t.correct / self.total,
                "candidate": t.correct >= floor,
                "chosen": t is chosen,
                "kept": -1 if t.pruning is None else t.pruning.kept,
            }
            for t in trained
        ]


def restore(tensors: Sequence[Tensor], saved: Sequence[Tensor]) -> None:
    """Copies saved numbers back, in place."""
    with torch.no_grad():
        for tensor, value in zip(tensors, saved, strict=True):
            tensor.copy_(value)
