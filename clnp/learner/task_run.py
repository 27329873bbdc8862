"""Training and pruning one task: every grid point, the search among the candidates, fine-tuning
(Golkar et al. 2019, Sec. 2.2).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ..data.batches import seed_for
from ..data.contents import task_data
from ..data.task import Task
from ..network.keep import keep_everything
from ..network.model import Model
from ..parallel import Workers
from ..parallel.ranks import current
from ..pruning.activity import check_scores
from ..pruning.margin import warn_of_classes, warn_of_noise
from ..pruning.search import Pruning, find_pruning
from ..pruning.sparsifiers import sparsifier
from ..training.fit import Fit, FitSettings, FitState, moving
from ..training.score import Validation, Value
from ..training.stacked_fit import StackedFit, stackable
from . import grid_in_workers
from .grid import GridPoint, candidates, per_layer, sparsest
from .progress import Progress
from .settings import DTYPES, FineTune, Settings

ALONE = Workers(1)
STACK = 6  # frames from a warning here to the caller of `Learner.learn` or `adopt`


@dataclass(frozen=True)
class Plan:
    """How one task is learned.

    Attributes:
        margin: how much of the validation score is given up for sparsity.
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
        score: of the validation split, before pruning.
        pruning: outcome of the threshold search.
    """

    point: GridPoint
    tensors: list[Tensor]
    history: list[dict[str, float]]
    score: Value = 0
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
        warned: what the learner was warned of once; "noise" is added.

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
        warned: set[str] | None = None,
    ) -> None:
        self.model, self.task, self.index = model, task, index
        self.settings, self.plan, self.points = settings, plan, points
        self.progress, self.call, self.head_only = progress, call, head_only
        self.workers, self.warned = workers, set() if warned is None else warned
        self.sparsifier = sparsifier(settings.sparsifier)
        self.validation = Validation(task.validation, settings.score, model.device)
        self.done: Counter[int] = Counter()  # grid point -> epochs behind it

    def __getstate__(self) -> dict[str, Any]:
        task = copy.copy(self.task)
        object.__setattr__(task, "test", task.validation)  # it need not travel
        here = ("call", "workers", "sparsifier", "validation")
        state = {name: value for name, value in self.__dict__.items() if name not in here}
        return {**state, "task": self.workers.shared(task)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.call, self.workers = grid_in_workers.told, ALONE
        self.sparsifier = sparsifier(self.settings.sparsifier)
        device = self.model.device
        self.validation = Validation(self.task.validation, self.settings.score, device)

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
        """Trains every grid point from the same weights, in the same order of examples, and scores
        them.
        """
        self.validation.check(self.model.net)
        if self.plan.prune and not self.head_only:
            self._warn()
        trained = self._trained_points()
        for t in trained:
            t.score = self._score(t)
        return trained

    def _warn(self) -> None:
        name, margin = self.task.name, self.plan.margin
        warn_of_classes(name, self.task.train, self.validation, margin, STACK)
        if "noise" not in self.warned and warn_of_noise(name, self.validation, margin, STACK):
            self.warned.add("noise")

    def _trained_points(self) -> list[Trained]:
        tensors = moving(self.model, self.head_only)
        start = [t.detach().clone() for t in tensors]
        if self.plan.adopt:
            return [Trained(self.points[0], start, [])]
        trained = self._saved(tensors)
        if len(trained) < len(self.points) and self._stacks():
            return self._fit_together()
        self.done.update(dict.fromkeys(trained, self.settings.epochs))
        missing = [i for i in range(len(self.points)) if i not in trained]
        if self._fans_out(missing):
            trained |= grid_in_workers.fit(self, missing)
        else:
            for i in missing:
                restore(tensors, start)
                trained[i] = self.fit(i)
        return [trained[i] for i in range(len(self.points))]

    def _score(self, t: Trained) -> Value:
        if t.history and self.settings.score == "accuracy":  # the last epoch has counted
            total = self.validation.total
            return Fraction(round(t.history[-1]["validation_accuracy"] * total), total)
        self.take(t)
        return self.validation(self.model.net)

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
                    found[i] = Trained(self.points[i], state.parameters, state.history)
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
            Trained(point, [t.detach().clone() for t in views], state.history)
            for point, views, state in zip(self.points, fit.views, states, strict=True)
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
        return Trained(point, [t.detach().clone() for t in tensors], history)

    def _record(self, i: int, record: dict[str, float]) -> dict[str, Any]:
        return {**record, "point": i, "points": len(self.points)}

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
        scores = [t.score for t in trained]
        floor = self.floor(max(scores))
        chosen = [trained[i] for i in candidates(scores, floor)]
        if self._fans_out(chosen):
            grid_in_workers.search(self, trained, chosen, floor)
        else:
            for t in chosen:
                self.take(t)
                self.search(t, floor)
        winner = chosen[sparsest([t.pruning.cost for t in chosen if t.pruning])]
        self.take(winner)
        return winner

    def floor(self, best: Value) -> Value:
        """The least score within the margin of the best."""
        return self.validation.floor(best, self.plan.margin)

    def take(self, t: Trained) -> None:
        """Puts the numbers of a trained grid point into the model."""
        restore(moving(self.model, self.head_only), t.tensors)

    def search(self, t: Trained, floor: Value) -> None:
        """Searches the thresholds of the network in the model, a trained grid point."""
        model, settings = self.model, self.settings
        if self.head_only:
            # Nothing is claimed, so the head that scores most is the best one.
            t.pruning = Pruning.nothing_kept(model, float(t.score), cost=-float(t.score))
            return
        # A resumed run gets here without having trained: the generator must not depend on that.
        torch.manual_seed(seed_for(settings.seed, self.index, "prune"))
        if not self.plan.prune:
            keep = keep_everything(model)
            scores = self.sparsifier.scores(model, self.task.train, model.device)
            check_scores(model, scores)
            t.pruning = Pruning(keep, dict.fromkeys(keep, 0.0), float(t.score), 0.0, scores)
            return
        t.pruning = find_pruning(
            model,
            self.task.train,
            self.validation,
            floor,
            rank=self.sparsifier.scores,
            search=settings.search,
            granularity=settings.granularity,
            on_evaluation=lambda done: self.call("on_search", done, 0),
        )

    def fine_tune(self, chosen: Trained, best: Value) -> tuple[Value, str]:
        """Trains what survived, if asked to. A round that ends with a lower score than it began
        with is taken back.

        Arguments:
            chosen: its pruning was cut.
            best: score that the margin counts from, where there are more rounds of pruning and
                fine-tuning.

        Returns:
            the score of the network as it is now, and what became of the rounds: "kept" or "rolled
            back" for each, joined by commas; "" where there are none.
        """
        tune, score = self.tune, self._score_now()
        outcomes = []
        for number in range(tune.rounds if tune else 0):
            assert tune is not None
            if number and not self.head_only:
                self.search(chosen, self.floor(best))
                assert chosen.pruning is not None
                chosen.pruning.apply(self.model)
                score = self._score_now()
            before = [t.detach().clone() for t in moving(self.model, self.head_only)]
            self._tune(chosen.point, tune, number)
            tuned = self._score_now()
            worse = tuned < score
            if worse:
                restore(moving(self.model, self.head_only), before)
            outcomes.append("rolled back" if worse else "kept")
            score = max(score, tuned)
        return score, ", ".join(outcomes)

    def _tune(self, point: GridPoint, tune: FineTune, number: int) -> None:
        """Trains what survived, in round `number` from 0."""
        l1 = point.l1 if tune.l1 is None else per_layer(tune.l1, self.model.layer_names)
        settings = self._fit_settings(tune.epochs, tune.lr, l1, tune.schedule)
        what = f"fine-tune {number}" if number else "fine-tune"
        told = {"fine_tune": True, "round": number}
        Fit(*self._fit_arguments(settings, what)).run(
            lambda state, _: self.call("on_epoch_end", {**state.history[-1], **told})
        )

    def _score_now(self) -> Value:
        """Score of the network with the free channels that it has."""
        return self.validation(self.model.pruned_network(keep_everything(self.model)))

    def grid_rows(self, trained: list[Trained], chosen: Trained) -> list[dict[str, Any]]:
        """What a report says of every grid point."""
        floor = self.floor(max(t.score for t in trained))
        return [
            {
                "l1": t.point.l1,
                "lr": t.point.lr,
                "validation": float(t.score),
                "candidate": t.score >= floor,
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
