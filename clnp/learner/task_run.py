"""Training and pruning of one task: every grid point, the search among the candidates, fine-tuning
(Golkar et al. 2019, Sec. 2.2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..network.keep import keep_everything
from ..objectives.metrics import Value
from ..parallel import Workers
from ..parallel.ranks import current
from ..pruning.margin import warn_of_chance, warn_of_classes, warn_of_noise
from ..training.fit import Fit, FitState, moving
from ..training.stacked_fit import StackedFit, stackable
from . import grid_in_workers
from .grid import GridPoint, candidates, per_layer, sparsest
from .grid_point import PointTrainer, Report, Trained, restore
from .settings import FineTune

STACK = 7  # frames from a warning here to the caller of `Learner.learn` or `adopt`


class TaskRun:
    """One task from its first epoch to its last round of fine-tuning.

    Arguments:
        trainer: the task, its grid points and the model, which `begin_task` has made ready.
        notify: called with (event, *arguments) of `clnp.callbacks.Callback`.
        workers: processes for the grid points and for the searches of the candidates.
        warned: names of the warnings that the learner has given once; "noise" is added.
    """

    def __init__(
        self, trainer: PointTrainer, notify: Report, workers: Workers, warned: set[str]
    ) -> None:
        self.trainer, self.model, self.settings = trainer, trainer.model, trainer.settings
        self.points, self.head_only = trainer.points, trainer.head_only
        self.notify, self.workers, self.warned = notify, workers, warned
        self.validation = trainer.validation()
        self.done: Counter[int] = Counter()  # grid point -> epochs behind it

    @property
    def tune(self) -> FineTune | None:
        """Settings of fine-tuning; None without."""
        return None if self.trainer.plan.adopt else self.settings.tuning

    @property
    def epochs(self) -> int:
        """Epochs over all grid points and fine-tuning."""
        if self.trainer.plan.adopt:
            return 0
        tuned = self.tune.epochs * self.tune.rounds if self.tune else 0
        return self.settings.training_epochs * len(self.points) + tuned

    def report(self, event: str, *args: Any) -> None:
        """Pass an event of a grid point on to the callbacks, with the epochs done so far."""
        if event == "on_epoch_end":
            (epoch,) = args
            self.done[epoch["point"]] = epoch["epoch"] + 1
            args = ({**epoch, "done": self.done.total()},)
        self.notify(event, *args)

    # Training

    def train(self) -> list[Trained]:
        """Train every grid point from the same weights, in the same order of examples, and measure
        it.
        """
        self.validation.check(self.model.net)
        if self.trainer.plan.prune and not self.head_only:
            self._warn()
        trained = self._trained_points()
        for t in trained:
            t.value = self._value(t)
        best = max(t.value for t in trained)
        warn_of_chance(self.trainer.task.name, self.validation, best, STACK - 1)
        return trained

    def _warn(self) -> None:
        task, margin = self.trainer.task, self.trainer.plan.margin
        warn_of_classes(task.name, task.train, self.validation, margin, STACK)
        noisy = "noise" not in self.warned
        if noisy and warn_of_noise(task.name, self.validation, margin, STACK):
            self.warned.add("noise")

    def _trained_points(self) -> list[Trained]:
        tensors = moving(self.model, self.head_only)
        start = [t.detach().clone() for t in tensors]
        if self.trainer.plan.adopt:
            return [Trained(self.points[0], start, [])]
        trained = self._saved(tensors)
        if len(trained) < len(self.points) and self._stacks():
            return self._fit_together()
        self.done.update(dict.fromkeys(trained, self.settings.training_epochs))
        missing = [i for i in range(len(self.points)) if i not in trained]
        if self._fans_out(missing):
            trained |= grid_in_workers.fit(self.trainer, self.workers, missing, self.report)
        else:
            for i in missing:
                restore(tensors, start)
                trained[i] = self.trainer.fit(i, self.report)
        return [trained[i] for i in range(len(self.points))]

    def _value(self, t: Trained) -> Value:
        if t.history:  # the last epoch has measured
            value = self.validation.value_of(t.history[-1]["validation_metric"])
            if value is not None:
                return value
        self.trainer.take(t)
        return self.validation(self.model.net)

    def _saved(self, tensors: Sequence[Tensor]) -> dict[int, Trained]:
        """Grid points that were trained before a run was killed."""
        found = {}
        shapes = [tensor.shape for tensor in tensors]
        for i in range(len(self.points)):
            state = self.trainer.progress.load(i, self.trainer.stamp())
            if state is None:
                continue
            self.notify("on_resume", [self.trainer.record(i, epoch) for epoch in state.history])
            whole = state.epoch == self.settings.training_epochs
            if whole and shapes == [tensor.shape for tensor in state.parameters]:
                found[i] = Trained(self.points[i], state.parameters, state.history)
        return found

    def _fans_out(self, trials: Sequence[Any]) -> bool:
        return self.workers.count > 1 and len(trials) > 1

    def _stacks(self) -> bool:
        """True if the grid points are trained as one network of stacked weights."""
        allowed = {"auto": self.model.device.type == "cuda", "on": True, "off": False}
        alone = self.workers.count == 1 and current().size == 1
        plain = self.trainer.sparsifier.fit is Fit and not self.head_only
        wanted = allowed[self.settings.stack] and len(self.points) > 1
        return wanted and alone and plain and stackable(self.model)

    def _fit_together(self) -> list[Trained]:
        """Train all grid points at once."""
        s, trainer, progress = self.settings, self.trainer, self.trainer.progress
        stamp = trainer.stamp()
        epochs = s.training_epochs
        each = [trainer.fit_settings(epochs, p.lr, p.l1, s.schedule) for p in self.points]
        model, train, validation, _, *rest = trainer.fit_arguments(each[0], "fit", self.report)
        fit = StackedFit(model, train, validation, each, *rest)
        loaded = [progress.load(i, stamp) for i in range(len(self.points))]
        saved = [state for state in loaded if state is not None]
        if len(saved) == len(each) and len({state.epoch for state in saved}) == 1:
            fit.resume_all(saved)

        def after_epoch(states: list[FitState], snapshot: Callable[[int], FitState]) -> None:
            save = states[0].epoch == epochs or progress.due()
            for i, state in enumerate(states):
                if save:
                    progress.save(i, snapshot(i), stamp)
                self.report("on_epoch_end", trainer.record(i, state.history[-1]))

        states = fit.run_all(after_epoch)
        return [
            Trained(point, [t.detach().clone() for t in views], state.history)
            for point, views, state in zip(self.points, fit.views, states, strict=True)
        ]

    # Pruning

    def prune(self, trained: list[Trained]) -> Trained:
        """Search the thresholds of every candidate; return the sparsest, its weights in the
        model.
        """
        values = [t.value for t in trained]
        floor = self.floor(max(values))
        chosen = {i: trained[i] for i in candidates(values, floor)}
        if self._fans_out(list(chosen)):
            grid_in_workers.search(self.trainer, self.workers, chosen, floor, self.report)
        else:
            for t in chosen.values():
                self.trainer.take(t)
                self.trainer.search(t, self.validation, floor, self.report)
        pruned = list(chosen.values())
        winner = pruned[sparsest([t.pruning.cost for t in pruned if t.pruning])]
        self.trainer.take(winner)
        return winner

    def floor(self, best: Value) -> Value:
        """The least value within the margin of the best."""
        return self.validation.floor(best, self.trainer.plan.margin)

    # Fine-tuning

    def fine_tune(self, chosen: Trained, best: Value) -> tuple[Value, str]:
        """Train the surviving channels, if the settings ask for it. A round that ends with a lower
        value than it began with is rolled back.

        Arguments:
            chosen: grid point whose pruning was applied.
            best: value that the margin counts from, where there are more rounds of pruning and
                fine-tuning.

        Returns:
            the value of the network afterwards, and the outcome of each round, "kept" or "rolled
            back", joined by commas; "" without rounds.
        """
        tune, value = self.tune, self._value_now()
        outcomes = []
        for number in range(tune.rounds if tune else 0):
            assert tune is not None
            if number and not self.head_only:
                self.trainer.search(chosen, self.validation, self.floor(best), self.report)
                assert chosen.pruning is not None
                chosen.pruning.apply(self.model)
                value = self._value_now()
            before = [t.detach().clone() for t in moving(self.model, self.head_only)]
            self._tune(chosen.point, tune, number)
            tuned = self._value_now()
            worse = tuned < value
            if worse:
                restore(moving(self.model, self.head_only), before)
            outcomes.append("rolled back" if worse else "kept")
            value = max(value, tuned)
        return value, ", ".join(outcomes)

    def _tune(self, point: GridPoint, tune: FineTune, number: int) -> None:
        """Train the surviving channels, in round `number` from 0."""
        rate = point.lr if tune.lr is None else tune.lr
        l1 = point.l1 if tune.l1 is None else per_layer(tune.l1, self.model.layer_names)
        settings = self.trainer.fit_settings(tune.epochs, rate, l1, tune.schedule)
        seed = f"fine-tune {number}" if number else "fine-tune"
        extra = {"fine_tune": True, "round": number}
        Fit(*self.trainer.fit_arguments(settings, seed, self.report)).run(
            lambda state, _: self.notify("on_epoch_end", {**state.history[-1], **extra})
        )

    def _value_now(self) -> Value:
        """Value of the network with its present free channels."""
        return self.validation(self.model.pruned_network(keep_everything(self.model)))

    def grid_rows(self, trained: list[Trained], chosen: Trained) -> list[dict[str, Any]]:
        """Rows of `TaskReport.grid`."""
        floor = self.floor(max(t.value for t in trained))
        return [
            {
                "l1": t.point.l1,
                "lr": t.point.lr,
                "validation": self.validation.shown(t.value),
                "candidate": t.value >= floor,
                "chosen": t is chosen,
                "kept": -1 if t.pruning is None else t.pruning.kept,
            }
            for t in trained
        ]
