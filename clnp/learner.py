"""The life cycle of CLNP: learn a task, prune it, freeze it, prove that the earlier ones did not
move (Algorithm 1).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clnp import checkpoint
from clnp.batches import accuracy, count, count_correct, first_inputs, seed_for, seeded
from clnp.certificate import Certificate, Verdict
from clnp.checks import check_device, check_task
from clnp.data.task import Split, Task
from clnp.errors import CapacityWarning, CheckpointError, ConfigError, DataError
from clnp.forgetting import GridPoint, candidates, floor_of, grid_points, per_layer, sparsest
from clnp.model import Model
from clnp.progress import Progress, fingerprint
from clnp.pruning import keep_everything
from clnp.settings import DTYPES, FineTune, Settings
from clnp.sparsify import Pruning, ThresholdSearch, measure_activity
from clnp.task_report import TaskReport, capacity_of, no_activity, reuse_of
from clnp.train import Fit, FitSettings, FitState, moving

KIND = "learner"
CHECKPOINT = "checkpoint.safetensors"
EXTRA = "_extra_state"  # the structure within a state dict; a checkpoint holds it as JSON


@dataclass
class _Trained:
    """A trained grid point and, if it was a candidate, its pruning."""

    point: GridPoint
    parameters: list[Tensor]
    history: list[dict[str, float]]
    correct: int
    activity: dict[str, Tensor] | None = None
    pruning: Pruning | None = None


@dataclass(frozen=True)
class _Plan:
    """How one task is learned: with which margin, and whether by training and with pruning."""

    margin: float
    adopt: bool = False
    prune: bool = True


class Learner:
    """Trains one network on task after task without moving an earlier one by a bit.

    Arguments:
        model: from `clnp.convert`; it is trained in place.
        device: where the network and its batches live.
        checkpoint_dir: folder for `checkpoint.safetensors`, written after every task, and for the
            progress of the task in training; None writes nothing.
        callbacks: objects with any of the methods `on_task_begin(learner, task_index, name,
            total_epochs)`, `on_batch_end(learner, loss, correct, seen, total)` (a few times a
            second), `on_epoch_end(learner, record)`, `on_search(learner, done, total)` after
            every network that the threshold search evaluates (total is 0 where it is not known) and
            `on_task_end(learner, report)`.
        settings: the fields of `Settings`: head, margin, l1, lr, epochs, batch_size, schedule,
            seed, grid, search, fine_tune, dtype, reinit_scale, granularity.

    Raises:
        ConfigError: a setting out of range, naming it; `checkpoint_dir` holds another learner.
    """

    def __init__(
        self,
        model: Model,
        *,
        device: str | torch.device = "cpu",
        checkpoint_dir: str | Path | None = None,
        callbacks: Iterable[Any] = (),
        **settings: Any,
    ) -> None:
        if not isinstance(model, Model):
            raise ConfigError(
                f"model: expected the result of clnp.convert, got {type(model).__name__}"
            )
        unknown = set(settings) - set(Settings.__dataclass_fields__)
        if unknown:
            raise ConfigError(
                f"unknown settings {sorted(unknown)}; there are "
                f"{sorted(Settings.__dataclass_fields__)}"
            )
        self.settings = Settings(**settings)
        self.settings.check_layers(model.layer_names)
        self.points = grid_points(
            self.settings.grid, self.settings.l1, self.settings.lr, model.layer_names
        )
        self.device = check_device(device)
        model.set_head(self.settings.head)
        self.model = model.to(self.device)
        if model.is_convolutional:
            model.to(memory_format=torch.channels_last)
        self.callbacks = list(callbacks)
        self._use_folder(checkpoint_dir, None)
        self.reports: list[TaskReport] = []
        self.certificate = Certificate()
        self._tests: list[Split | None] = []
        self._seconds: dict[str, float] = {}

    def _use_folder(self, folder: str | Path | None, source: Path | None) -> None:
        """Keeps checkpoint and progress in a folder; one that holds another learner is refused."""
        self.checkpoint_dir = None if folder is None else Path(folder)
        self._progress = Progress(
            None if self.checkpoint_dir is None else self.checkpoint_dir / "progress"
        )
        if self.checkpoint_dir is None:
            return
        file = self.checkpoint_dir / CHECKPOINT
        if file.exists() and (source is None or not file.samefile(source)):
            raise ConfigError(
                f"checkpoint_dir: {file} holds another learner; go on with it by Learner.load, or "
                "name another folder"
            )

    # Learning

    def learn(self, task: Task) -> TaskReport:
        """Learns one more task: trains the free weights at every grid point, prunes the candidates
        within the margin, freezes the sparsest, and tests it and all earlier tasks.

        If anything goes wrong the learner is left as it was before the call.

        Raises:
            DataError: the task does not fit the network (shape, dtype, labels).
            CapacityError: single head and no free channel in the final hidden layer. With several
                heads the task is learned by a new head alone: a CapacityWarning, and the report's
                `transfer_only`, say so.
            TrainingError: the loss became NaN or infinite.
        """
        return self._run(task, _Plan(self.settings.margin))

    def adopt(self, task: Task, *, margin: float | None = None, prune: bool = True) -> TaskReport:
        """Makes the network as it is, trained by whatever means, the first task, without training:
        measures activity, prunes within the margin, freezes. Later tasks do not change it.

        Arguments:
            task: what it was trained on; the train split serves to measure activity, the validation
                split to hold the margin.
            margin: how much validation accuracy pruning may cost; default: the setting.
            prune: False freezes all channels as they are, with the very weights of the network;
                channels for later tasks then have to be added with `expand`.

        Raises:
            DataError: the task does not fit the network.
            ConfigError: a task was learned already; the network's outputs are not the task's
                classes; margin out of range.
        """
        if self.reports:
            raise ConfigError(
                f"adopt() makes the first task, but {len(self.reports)} task(s) are learned already"
            )
        margin = self.settings.margin if margin is None else margin
        if isinstance(margin, bool) or not 0 <= margin < 1:
            raise ConfigError(f"margin={margin!r}: expected 0 <= margin < 1")
        classes = check_task(self.model, task)
        if classes != self.model.head.classes:
            raise ConfigError(
                f"task {task.name!r} has {classes} classes, the network {self.model.head.classes} "
                "outputs; only a network that was trained on the task can be adopted"
            )
        return self._run(task, _Plan(margin, adopt=True, prune=prune))

    def _run(self, task: Task, plan: _Plan) -> TaskReport:
        classes = check_task(self.model, task)
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        index = len(self.reports)
        self._seconds = dict.fromkeys(("fit", "search", "fine_tune", "evaluate", "total"), 0.0)
        try:
            # Data sets may draw random numbers whenever they are read.
            with self._timed("total"), seeded(seed_for(self.settings.seed, index), self.device):
                report = self._learn(task, index, classes, plan)
            report.seconds = dict(self._seconds)
        except BaseException:
            self.model.load_state_dict(before)
            del self.certificate.entries[index:], self.certificate.probes[index:]
            del self._tests[index:]
            self.model.eval()
            raise
        self.reports.append(report)
        if self.checkpoint_dir is not None:
            self.save(self.checkpoint_dir / CHECKPOINT)
            self._progress.clear()
        self._call("on_task_end", report)
        return report

    def _learn(self, task: Task, index: int, classes: int, plan: _Plan) -> TaskReport:
        settings, model = self.settings, self.model
        tune = None if plan.adopt else settings.fine_tune
        points = self._points()
        epochs = 0 if plan.adopt else settings.epochs * len(points) + (tune.epochs if tune else 0)
        self._call("on_task_begin", index, task.name, epochs)
        generator = torch.Generator().manual_seed(seed_for(settings.seed, index, "weights"))
        transfer_only = model.is_full
        if transfer_only:
            warnings.warn(
                f"task {task.name!r}: no free channels are left in the final hidden layer, so only "
                "a new head is trained on what earlier tasks learned (final-layer transfer). "
                "learner.expand() adds channels",
                CapacityWarning,
                stacklevel=4,
            )
        model.begin_task(classes, generator=generator, reinit_scale=settings.reinit_scale)
        with self._timed("fit"):
            if plan.adopt:
                trained = [self._as_it_is(task)]
            else:
                trained = self._train_grid(task, index, points, transfer_only)
        best = max(t.correct for t in trained)
        with self._timed("search"):
            chosen = self._prune_candidates(task, trained, best, transfer_only, plan)
        assert chosen.pruning is not None
        assert chosen.activity is not None
        reuse = reuse_of(model, chosen.activity, chosen.pruning.thresholds)
        model.compact(chosen.pruning.keep)
        with self._timed("fine_tune"):
            correct = self._fine_tune(task, index, chosen, transfer_only, tune)
        model.consolidate(name=task.name)
        model.eval()
        with self._timed("evaluate"):
            self._tests.append(task.test)
            self.certificate.record(model, first_inputs(task.test, 64))
            row = [self._test(j) for j in range(index + 1)]
        total = count(task.validation)
        return TaskReport(
            task=index,
            name=task.name,
            epochs=0 if plan.adopt else settings.epochs,
            lr=chosen.point.lr,
            l1=chosen.point.l1,
            best_validation=best / total,
            validation_before=chosen.correct / total,
            validation=correct / total,
            test=row[-1],
            row=row,
            capacity=capacity_of(model, reuse),
            thresholds=chosen.pruning.thresholds,
            reuse=reuse,
            history=chosen.history,
            grid=[self._grid_row(t, best, total, t is chosen) for t in trained],
            transfer_only=transfer_only,
        )

    def _points(self) -> list[GridPoint]:
        """The grid points that the next task is trained with."""
        trained = [report for report in self.reports if report.epochs]
        if self.settings.grid_first_only and trained:
            return [GridPoint(trained[0].l1, trained[0].lr)]
        return self.points

    def _as_it_is(self, task: Task) -> _Trained:
        """The network as it came, as if it had been trained here."""
        correct = count_correct(self.model.net, task.validation, self.device)
        weights = [p.detach().clone() for p in moving(self.model)]
        return _Trained(self.points[0], weights, [], correct)

    def _train_grid(
        self, task: Task, index: int, points: list[GridPoint], head_only: bool
    ) -> list[_Trained]:
        """Trains every grid point from the same weights, in the same order of examples."""
        parameters = moving(self.model, head_only)
        start = [p.detach().clone() for p in parameters]
        trained = []
        for i, point in enumerate(points):
            _restore(parameters, start)
            state = self._fit(task, index, i, point, head_only)
            correct = round(state.history[-1]["validation_accuracy"] * count(task.validation))
            trained.append(
                _Trained(point, [p.detach().clone() for p in parameters], state.history, correct)
            )
        return trained

    def _fit(self, task: Task, index: int, i: int, point: GridPoint, head_only: bool) -> FitState:
        s = self.settings
        settings = FitSettings(
            s.epochs,
            point.lr,
            s.batch_size,
            point.l1,
            s.schedule,
            DTYPES[s.dtype],
            head_only,
            s.cache == "auto",
        )
        fit = self._new_fit(task, settings, seed_for(s.seed, index, "fit"))
        stamp = {
            "settings": s.to_json(),
            "task": index,
            "name": task.name,
            "data": fingerprint(task.train),
        }
        saved = self._progress.load(i, stamp)
        if saved is not None:
            fit.resume(saved)

        def after_epoch(state: FitState, snapshot: Any) -> None:
            if state.epoch == s.epochs or self._progress.due():
                self._progress.save(i, snapshot(), stamp)
            self._call(
                "on_epoch_end", {**state.history[-1], "point": i, "points": len(self._points())}
            )

        return fit.run(after_epoch)

    def _new_fit(self, task: Task, settings: FitSettings, seed: int) -> Fit:
        return Fit(
            self.model,
            task.train,
            task.validation,
            settings,
            seed,
            lambda *args: self._call("on_batch_end", *args),
        )

    def _prune_candidates(
        self, task: Task, trained: list[_Trained], best: int, head_only: bool, plan: _Plan
    ) -> _Trained:
        """Searches the thresholds of every candidate; returns the sparsest, its weights in the
        model (paper, Sec. 2.2).
        """
        total = count(task.validation)
        floor = floor_of(best, plan.margin, total)
        parameters = moving(self.model, head_only)
        chosen = [trained[i] for i in candidates([t.correct for t in trained], plan.margin, total)]
        for t in chosen:
            _restore(parameters, t.parameters)
            if head_only:
                # Nothing is claimed, so the most accurate head is the best one.
                none = {
                    g.name: torch.empty(0, dtype=torch.int64) for g in self.model.groups.prunable
                }
                t.activity = no_activity(self.model)
                t.pruning = Pruning(none, dict.fromkeys(none, 0.0), t.correct, -t.correct)
                continue
            # A resumed run gets here without having trained: the generator must not depend on that.
            torch.manual_seed(seed_for(self.settings.seed, len(self.reports), "prune"))
            t.activity = measure_activity(self.model, task.train, self.device)
            if not plan.prune:
                keep = keep_everything(self.model)
                t.pruning = Pruning(keep, dict.fromkeys(keep, 0.0), t.correct, 0.0)
                continue
            search = ThresholdSearch(
                self.model,
                t.activity,
                task.validation,
                floor,
                self.device,
                self.settings.granularity,
                lambda done: self._call("on_search", done, 0),
            )
            t.pruning = search.run(self.settings.search)
        winner = chosen[sparsest([t.pruning.cost for t in chosen if t.pruning])]
        _restore(parameters, winner.parameters)
        return winner

    def _fine_tune(
        self, task: Task, index: int, chosen: _Trained, head_only: bool, tune: FineTune | None
    ) -> int:
        """Trains what survived, if asked to; returns correct validation examples."""
        if tune is not None:
            l1 = chosen.point.l1 if tune.l1 is None else per_layer(tune.l1, self.model.layer_names)
            s = self.settings
            settings = FitSettings(
                tune.epochs,
                tune.lr,
                s.batch_size,
                l1,
                "constant",
                DTYPES[s.dtype],
                head_only,
                s.cache == "auto",
            )
            fit = self._new_fit(task, settings, seed_for(s.seed, index, "fine-tune"))
            fit.run(
                lambda state, _: self._call(
                    "on_epoch_end", {**state.history[-1], "fine_tune": True}
                )
            )
        network = self.model.pruned_network(keep_everything(self.model))
        return count_correct(network, task.validation, self.device)

    def _test(self, task: int) -> float:
        split = self._tests[task]
        if split is None:
            return float("nan")
        return accuracy(self.model.subnetwork(task), split, self.device)

    def _grid_row(self, t: _Trained, best: int, total: int, chosen: bool) -> dict[str, Any]:
        return {
            "l1": t.point.l1,
            "lr": t.point.lr,
            "validation": t.correct / total,
            "candidate": t.correct >= floor_of(best, self.settings.margin, total),
            "chosen": chosen,
            "kept": -1 if t.pruning is None else t.pruning.kept,
        }

    def expand(self, layer: str, channels: int) -> None:
        """Adds free channels to a hidden layer between tasks; see `Model.expand`."""
        self.model.expand(layer, channels)

    # Results

    @property
    def accuracy_matrix(self) -> np.ndarray:
        """R [T, T] float64: R[i, j] is the test accuracy on task j after learning task i; NaN above
        the diagonal.
        """
        learned = len(self.reports)
        matrix = np.full((learned, learned), np.nan)
        for i, report in enumerate(self.reports):
            matrix[i, : i + 1] = report.row
        return matrix

    def verify(self) -> list[Verdict]:
        """Recomputes every learned task's logits on its probe batch and compares them bit by
        bit.
        """
        return self.certificate.verify(self.model)

    # Saving

    def save(self, path: str | Path) -> None:
        """Writes everything needed to go on into one file (safetensors and JSON, no pickle),
        atomically; a file that is there is replaced.

        Raises:
            CheckpointError: the file can't be written; an older one is still whole.
        """
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items() if k != EXTRA}
        tensors |= {f"probe.{k}": probe for k, probe in enumerate(self.certificate.probes)}
        data = {
            "settings": self.settings.to_json(),
            "structure": self.model.structure(),
            "reports": [report.to_json() for report in self.reports],
            "certificate": self.certificate.to_json(),
            "dtype": str(self.model.head.free_weight.dtype).removeprefix("torch."),
        }
        checkpoint.write(path, KIND, tensors, data)

    @classmethod
    def load(
        cls,
        path: str | Path,
        tasks: Sequence[Task] | None = None,
        *,
        device: str | torch.device = "cpu",
        checkpoint_dir: str | Path | None = None,
        callbacks: Iterable[Any] = (),
    ) -> Learner:
        """A learner as it was saved.

        Arguments:
            path: the file, or the folder that holds `checkpoint.safetensors`.
            tasks: the learned tasks (or the whole stream), whose test splits later rows of the
                accuracy matrix need; without them those entries are NaN.
            device, checkpoint_dir, callbacks: as for a new learner.

        Raises:
            CheckpointError: no such file, damaged, or not a learner's.
            DataError: `tasks` are not the tasks that were learned.
        """
        path, device = Path(path), check_device(device)
        path = path / CHECKPOINT if path.is_dir() else path
        tensors, data = checkpoint.read(path, KIND)
        try:
            model = Model.from_structure(data["structure"]).to(getattr(torch, data["dtype"]))
            prefix = "model."
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            model.load_state_dict({**state, EXTRA: model.get_extra_state()})
            settings = data["settings"]
            learner = cls(model.eval(), device=device, callbacks=callbacks, **settings)
            learner.reports = [TaskReport(**report) for report in data["reports"]]
            probes = [tensors[f"probe.{k}"] for k in range(len(data["certificate"]))]
            learner.certificate = Certificate.from_json(data["certificate"], probes)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{path} does not hold a complete learner: {error}") from error
        learner._use_folder(checkpoint_dir, path)
        learner._attach(tasks)
        return learner

    def _attach(self, tasks: Sequence[Task] | None) -> None:
        self._tests = [None] * len(self.reports)
        if tasks is None:
            return
        if len(tasks) < len(self.reports):
            raise DataError(
                f"tasks: {len(self.reports)} tasks have been learned, but only {len(tasks)} were "
                "given"
            )
        for k, report in enumerate(self.reports):
            task = tasks[k]
            if task.name != report.name:
                raise DataError(
                    f"tasks[{k}] is {task.name!r}; the task learned there was {report.name!r}"
                )
            self._tests[k] = task.test

    # Helpers

    def _call(self, event: str, *args: Any) -> None:
        for callback in self.callbacks:
            method = getattr(callback, event, None)
            if method is not None:
                method(self, *args)

    @contextmanager
    def _timed(self, what: str) -> Any:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[what] += time.perf_counter() - start


def _restore(parameters: Sequence[Tensor], saved: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, saved, strict=True):
            parameter.copy_(value)
