"""The life cycle of CLNP: learn a task, prune it, freeze it, prove that the earlier ones did not
move (Algorithm 1).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..data.batches import first_inputs, seed_for
from ..data.names import counted
from ..data.task import Task, task_data
from ..errors import CapacityWarning, CheckpointError, ConfigError
from ..files import checkpoint
from ..files.checkpoint import dtype_name, dtype_of
from ..metrics import capacity_text
from ..network.calibration import Calibration
from ..network.certificate import Certificate, Verdict
from ..network.forgetting import Forgotten
from ..network.inference import Inferred, Prediction, Rule, choose, predicted
from ..network.model import Model
from ..network.restore import EXTRA, restored
from ..objectives.objective import Objective, check_sendable, given_again
from ..parallel import Workers, kernels
from ..parallel.ranks import ALONE, Ranks, refuse_sharded, world
from ..pruning.margin import check_margin
from ..ranges import number
from ..training.cost import clnp_cost
from ..training.evaluation import inferred_accuracies
from .agreement import agree_on_network, agree_on_task, begin
from .base import CHECKPOINT, BaseLearner, checkpoint_file
from .budget import AUTO, budgets, granularity_on, warn_of_capacity
from .calibrator import Calibrator
from .checks import check_model_task, objective_for
from .forgetting import forget, task_index
from .grid import GridPoint, grid_points
from .grid_point import Plan, PointTrainer
from .learned_data import learned_tasks, test_split
from .report import TaskReport, capacity_of, check_classes, objective_fields, present, reuse_of
from .settings import Settings, SettingsGiven, without_removed
from .task_run import TaskRun

KIND = "learner"


class Learner(BaseLearner):
    """Trains one network on task after task without moving an earlier one by a bit.

    Arguments:
        model: from `clnp.convert`; it is trained in place.
        device: where the network and its batches live.
        checkpoint_dir: folder for `checkpoint.safetensors`, written after every task, and for the
            progress of the task in training; None writes nothing.
        callbacks: objects with any of the methods of `clnp.callbacks.Callback`.
        workers: how many grid points are trained, and candidates pruned, at a time in processes of
            their own, or `clnp.Workers`; results are those of one process with as many threads.
        distributed: share every batch among the processes of `torch.distributed`, which all make
            the same calls; the first one's weights count, and it alone reads and writes files and
            calls the callbacks.
        progress_bar: show a progress bar on standard error; None: where it is a terminal or a
            notebook.
        settings: any fields of `Settings`.

    Raises:
        ConfigError: a setting out of range, naming it; `checkpoint_dir` holds another learner; a
            callback with a method `on_...` that is no event.
    """

    load_call = "Learner.load"

    def __init__(
        self,
        model: Model,
        *,
        device: str | torch.device = "cpu",
        checkpoint_dir: str | Path | None = None,
        callbacks: Iterable[Any] = (),
        workers: int | Workers = 1,
        distributed: bool = False,
        progress_bar: bool | None = None,
        **settings: Unpack[SettingsGiven],
    ) -> None:
        if not isinstance(model, Model):
            raise ConfigError(
                f"model: expected the result of clnp.convert, got {type(model).__name__}"
            )
        refuse_sharded(model)
        unknown = set(settings) - set(Settings.__dataclass_fields__)
        if unknown:
            raise ConfigError(
                f"settings: expected some of {sorted(Settings.__dataclass_fields__)}, got "
                f"{sorted(unknown)}"
            )
        self.settings = Settings(**settings)
        groups = [group.name for group in model.groups.prunable]
        self.settings.check_layers(model.layer_names, groups)
        self.points = grid_points(
            self.settings.grid, self.settings.l1, self.settings.lr, model.layer_names
        )
        super().__init__(device, callbacks, progress_bar)
        model.set_head(self.settings.head)
        self.model = model.to(self.device)
        if model.is_convolutional:
            model.to(memory_format=torch.channels_last)
        self.workers = workers if isinstance(workers, Workers) else Workers(workers)
        for name in ("loss", "metric"):
            check_sendable(name, getattr(self.settings, name), self.workers.count)
        self._share(world() if distributed else ALONE)
        self._use_folder(checkpoint_dir, None)
        self.certificate = Certificate()
        self._calibrator = Calibrator()
        self._seconds: dict[str, float] = {}
        self._warned: set[str] = set()
        self._kernels: kernels.Kernels = {"digest": ""}

    def _share(self, ranks: Ranks) -> None:
        begin(ranks, self.model, self.settings, self.workers.count)
        self.ranks = ranks

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.changed().items())
        tasks = len(present(self.reports))
        learned = f"{counted(tasks, 'task')} learned"
        return f"Learner({'; '.join([learned, settings] if settings else [learned])})"

    def __str__(self) -> str:
        """The learner in a few lines: settings, metrics and the channels of every group."""
        lines = [repr(self)]
        for k in present(self.reports):
            report = self.reports[k]
            now = self.reports[-1].row[k]
            lines.append(f"task {k + 1}, {report.name!r}: test {report.shown.text(now)} now")
        capacity = self.reports[-1].capacity if self.reports else {}
        return "\n".join([*lines, capacity_text(capacity)] if capacity else lines)

    # Learning

    def learn(self, task: Task, *, margin: float | None = None) -> TaskReport:
        """Learns one more task: trains the free weights at every grid point, prunes the candidates
        within the margin, freezes the sparsest, and tests it and all earlier tasks.

        If anything goes wrong the learner is left as it was before the call.

        Arguments:
            task: what to learn; it may name a loss and a metric of its own.
            margin: how much of the validation metric pruning may cost; default: the setting.

        Raises:
            DataError: the task does not fit the network (shape, dtype, targets); an item that is
                no good, with its split and index; a task of that name was learned before.
            ConfigError: loss, metric or margin do not fit each other or the task; a function fails.
            CapacityError: single head and no free channel in the final hidden layer. With several
                heads the task is learned by a new head alone: a CapacityWarning, and the report's
                `transfer_only`, say so.
            TrainingError: the loss, a weight or an activity became NaN or infinite; memory ran out.
            TrialError: some grid points failed twice in their workers; the others are kept.
        """
        margin = self.settings.margin if margin is None else margin
        return self._run(task, Plan(margin), *self._seeded)

    def adopt(self, task: Task, *, margin: float | None = None, prune: bool = True) -> TaskReport:
        """Makes the network as it is, trained by whatever means, the first task, without training:
        measures activity, prunes within the margin, freezes. Later tasks do not change it.

        Arguments:
            task: what it was trained on; the train split serves to measure activity, the validation
                split to hold the margin.
            margin: how much of the validation metric pruning may cost; default: the setting.
            prune: False freezes all channels as they are, with the very weights of the network;
                channels for later tasks then have to be added with `expand`.

        Raises:
            DataError: the task does not fit the network.
            ConfigError: a task was learned already; the network's outputs are not the task's;
                margin out of range.
        """
        if self.reports:
            raise ConfigError(
                f"adopt(): expected a learner without tasks, got {len(self.reports)} learned"
            )
        if self.settings.first_growth not in (None, AUTO):
            raise ConfigError(
                "first_growth: expected None to adopt a network, which keeps all its channels, got "
                f"{self.settings.first_growth!r}"
            )
        margin = self.settings.margin if margin is None else margin
        return self._run(task, Plan(margin, adopt=True, prune=prune), *self._seeded)

    def _check(self, task: Task, plan: Plan) -> tuple[Task, int]:
        if len(self.model.tasks) != len(self.reports):
            raise ConfigError(
                f"model: expected {len(self.reports)} learned task(s), as in this learner, got "
                f"{len(self.model.tasks)}; the network was trained or loaded elsewhere: continue "
                "from its own file with Learner.load"
            )
        task, outputs = check_model_task(self.model, task)
        if plan.adopt and outputs != self.model.head.classes:
            raise ConfigError(
                f"task {task.name!r}: expected {self.model.head.classes} classes, as many as the "
                f"network has outputs, got {outputs}; adopt a network that was trained on the task"
            )
        return task, outputs

    def _objective_of(self, task: Task, outputs: int, plan: Plan) -> Objective:
        found = objective_for(task, outputs, self.settings.loss, self.settings.metric)
        check_margin(plan.margin, found.metric)
        for name in ("loss", "metric"):
            check_sendable(name, getattr(found, name), self.workers.count)
        return found

    def _snapshot(self) -> dict[str, Any]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def _undo(self, before: dict[str, Any], index: int) -> None:
        self.model.zero_grad(set_to_none=True)
        self.model.load_state_dict(before, unlearn=True)
        self.certificate.cut(index)
        self._calibrator.forget(range(index, index + 1))
        self.model.eval()

    def _learn(self, task: Task, index: int, outputs: int, plan: Plan) -> TaskReport:
        # Ranks and resumed runs take the same kernels.
        self._kernels = kernels.qualify(self.device, self.ranks, self._kernels["digest"])
        self._seconds = dict.fromkeys(("fit", "search", "fine_tune", "evaluate", "total"), 0.0)
        with self._timed("total"):
            agree_on_task(self.ranks, self.model, task, index)
            report = self._train_and_freeze(task, index, outputs, plan)
            agree_on_network(self.ranks, self.model)
        report.seconds = dict(self._seconds)
        return report

    def _train_and_freeze(self, task: Task, index: int, outputs: int, plan: Plan) -> TaskReport:
        """Algorithm 1 for one task (paper, Sec. 2.2)."""
        settings, model = self.settings, self.model
        full = model.is_full
        trainer = PointTrainer(
            *(model, task, index, settings, plan, self._points(), self._progress),
            head_only=full,
            kernels=self._kernels,
            objective=self.objective,
        )
        run = TaskRun(trainer, self._call, self.workers, self._warned)
        self._call("on_task_begin", index, task.name, run.epochs)
        if full:
            warnings.warn(
                f"task {task.name!r}: no free channels are left in the final hidden layer, so only "
                "a new head is trained on what earlier tasks learned (final-layer transfer). "
                "learner.expand() adds channels",
                CapacityWarning,
                stacklevel=5,
            )
        generator = torch.Generator().manual_seed(seed_for(settings.seed, index, "weights"))
        model.begin_task(
            outputs, generator=generator, most_new={} if plan.adopt else self._budgets()
        )
        in_training = {
            group.name: model.active(group) + model.free(group) for group in model.groups.prunable
        }
        with self._timed("fit"):
            trained = run.train()
        with self._timed("search"):
            chosen = run.prune(trained)
        assert chosen.pruning is not None
        best = max(t.value for t in trained)
        chosen.pruning.apply(model)
        with self._timed("fine_tune"):
            validation, fine_tuned = run.fine_tune(chosen, best)
        reuse = reuse_of(model, chosen.pruning.scores, chosen.pruning.thresholds)
        model.consolidate(name=task.name)
        model.eval()
        capacity = capacity_of(model, reuse)
        last = settings.tasks_expected is not None and settings.tasks_expected <= index + 1
        if plan.prune and not last:
            warn_of_capacity(capacity, self._warned, stacklevel=5)
        with self._timed("evaluate"):
            self._tests.add(task.test, self.objective)
            self.certificate.record(model, first_inputs(task.test, 64))
            present = model.present
            row = [
                self._tests.metric(j, model.subnetwork(j, fresh=True), self.device)
                if j in present
                else math.nan
                for j in range(index + 1)
            ]
            inferred: Inferred = {}
            if self._classify(task):
                self._calibrator.add(index, task.validation, settings.calibration)
                inferred = self._inferred()
        shown = run.validation.shown
        return TaskReport(
            task=index,
            name=task.name,
            epochs=0 if plan.adopt else settings.training_epochs,
            lr=chosen.point.lr,
            l1=chosen.point.l1,
            best_validation=shown(best),
            validation_before=shown(chosen.value),
            validation=shown(validation),
            test=row[-1],
            row=row,
            capacity=capacity,
            in_training=in_training,
            thresholds=chosen.pruning.thresholds,
            reuse=reuse,
            history=chosen.history,
            grid=run.grid_rows(trained, chosen),
            transfer_only=full,
            inferred=inferred,
            class_names=task.class_names,
            data=task_data(task),
            **objective_fields(self.objective),
            fine_tuned=fine_tuned,
        )

    def _budgets(self) -> dict[str, int]:
        """Group -> the most channels that the next task may train."""
        settings, name = self.settings, "growth" if self.model.tasks else "first_growth"
        return budgets(
            self.model,
            getattr(settings, name),
            settings.tasks_expected,
            granularity=granularity_on(self.model.device, settings.granularity),
            name=name,
        )

    def _points(self) -> list[GridPoint]:
        """The grid points that the next task is trained with."""
        trained = [report for report in self.reports if report.epochs]
        if self.settings.grid_first_only and trained:
            return [GridPoint(trained[0].l1, trained[0].lr)]
        return self.points

    def _classify(self, task: Task) -> bool:
        """Return whether this task and all earlier ones have one class per example."""
        data = [*(report.data for report in self.reports), task_data(task)]
        return all(d is None or d.classifies for d in data)

    def _inferred(self) -> Inferred:
        if not self.settings.infer_tasks:
            return {}
        rule = self._calibrator.rule(self.model)
        return inferred_accuracies(self.model, self._tests.splits, self.device, rule)

    def expand(self, layer: str, channels: int) -> None:
        """Adds free channels to a hidden layer between tasks; see `Model.expand`."""
        self.model.expand(layer, channels)

    def forget(self, task: int | str, *, cascade: bool = False) -> Forgotten:
        """Forgets a learned task: its head, report, probe batch and test data, and every channel
        that no kept task reads. Kept tasks keep their indices and the bits of their logits, which
        the certificate is asked for before and after. The checkpoint in `checkpoint_dir` is
        replaced.

        A channel that a later task reads stays, because that task's logits come from it.

        Arguments:
            task: index or name of the task.
            cascade: forget the tasks that read its channels too, so that nothing of it is left.

        Returns:
            what has gone, and what has stayed for whom.

        Raises:
            ConfigError: no such task.
            CertificateError: a kept task is not what its certificate says; nothing is forgotten.
            SaveError: the checkpoint can't be written; the old one still holds the task.
        """
        gone = forget(self, task_index(self, task), cascade)
        if self.checkpoint_dir is not None:
            with self.ranks.together("writing the checkpoint"):
                self.save(self.checkpoint_dir / CHECKPOINT)
            self._progress.clear()
        return gone

    # Results

    def predict(
        self,
        x: Tensor,
        task: int | None = None,
        *,
        rule: str | Rule | None = None,
        refuse: float = 0.0,
    ) -> Prediction:
        """Task, class and class name of examples.

        Arguments:
            x: [B, ...].
            task: index of the learned task that they are of, from the end if negative; None finds
                it out.
            rule: how that is decided: by a classifier of the task fitted on the validation examples
                that the learner keeps (`calibration`; see `clnp.calibrated`), or by the surest head
                ("entropy", "energy"). None: the first where every task has such examples.
            refuse: refuse the examples that are less sure of their task than this fraction of the
                task's own kept examples.

        Returns:
            `task` [B], `label` [B] (the class within the task) and `names`, a list of B class
            names, None where the task was learned without names. Task and label of a refused
            example are -1.

        Raises:
            DataError: x does not fit the network.
            ConfigError: the task has not been learned, or has not one class per example; an unknown
                rule; `refuse` outside [0, 1), or without kept examples.
        """
        check_classes(self.reports, task)
        number(below=True, high=1).check("refuse", refuse)
        x = x.to(self.device)
        with torch.no_grad():
            if task is None:
                fitted = self._calibrator.rule(self.model)
                logits = self.model.all_tasks(x)
                found, label = choose(logits, rule or fitted or "entropy")
                if refuse:
                    refused = _needed(fitted).refused(logits, found, refuse)
                    found, label = found.masked_fill(refused, -1), label.masked_fill(refused, -1)
            else:
                label = self.model(x, task=task).argmax(dim=-1)
                found = torch.full_like(label, self.model.check_task(task))
        return predicted(found, label, [report.class_names for report in self.reports])

    def verify(self) -> list[Verdict]:
        """Recomputes every learned task's logits on its probe batch and compares them bit by
        bit.
        """
        return self.certificate.verify(self.model)

    def costs(self, sizes: Sequence[int]) -> list[dict[str, Any]]:
        """Cost of every learned task; see `clnp.methods.clnp_cost`."""
        return [clnp_cost(self, k, sizes[k]) for k in present(self.reports[: len(sizes)])]

    # Saving

    def save(self, path: str | Path) -> None:
        """Writes everything needed to go on into one file (safetensors and JSON, no pickle),
        atomically; a file that is there is replaced.

        Raises:
            SaveError: the file can't be written; an older one is still whole.
        """
        if self.ranks.main:
            checkpoint.write(path, KIND, *self._contents())

    @classmethod
    def load(
        cls,
        path: str | Path,
        tasks: Sequence[Task | None] | None = None,
        *,
        device: str | torch.device = "cpu",
        checkpoint_dir: str | Path | None = None,
        callbacks: Iterable[Any] = (),
        workers: int | Workers = 1,
        distributed: bool = False,
        loss: Any = None,
        metric: Any = None,
        progress_bar: bool | None = None,
    ) -> Learner:
        """A learner as it was saved.

        Arguments:
            path: the file, or the folder that holds `checkpoint.safetensors`.
            tasks: the learned tasks (or the whole stream; in place of a forgotten one None), whose
                test splits later rows of the accuracy matrix need; without them those entries are
                NaN. All their splits are read and compared with the fingerprints of what was
                learned.
            device, checkpoint_dir, callbacks, workers, distributed, progress_bar: as for a new
                learner.
            loss, metric: the learner's, where they are functions: a file holds their names only.

        Raises:
            CheckpointError: no such file, damaged, or not a learner's.
            ConfigError: `loss` or `metric` is not the learner's.
            DataError: `tasks` are not the tasks that were learned: other inputs, labels, sizes,
                order or class names.
        """
        path = checkpoint_file(path)
        ranks = world() if distributed else ALONE
        with ranks.together("reading the checkpoint"):
            read = checkpoint.read(path, KIND) if ranks.main else None
        tensors, data = ranks.from_first(read)
        given = _given_again(data, loss=loss, metric=metric)
        try:
            model = _model_of(tensors, data)
            settings = {**without_removed(data["settings"]), **given}
            learner = cls(
                model,
                device=device,
                callbacks=callbacks,
                workers=workers,
                progress_bar=progress_bar,
                **settings,
            )
            learner.reports = [TaskReport.from_json(report) for report in data["reports"]]
            probes = [tensors[f"probe.{k}"] for k in range(len(data["certificate"]))]
            learner._calibrator = Calibrator.of(tensors, model)
            learner.certificate = Certificate.from_json(data["certificate"], probes)
            learner._kernels = {"digest": str(data.get("kernels", ""))}
        except Exception as error:  # anybody can have written anything
            raise CheckpointError(f"{path} does not hold a complete learner: {error}") from error
        learner._share(ranks)
        learner._use_folder(checkpoint_dir, path)
        learner._tests.splits = [None] * len(learner.reports)
        if tasks is not None:
            with ranks.together("comparing the tasks"):
                again = learned_tasks(learner.reports, tasks)
            learner._attach(again)
        return learner

    # Helpers

    def _attach(self, tasks: Sequence[Task | None]) -> None:
        """Give the learned tasks' test splits back."""
        self._tests.splits = []
        for task in tasks:
            if task is None:
                self._tests.add(None)
                continue
            found = task.objective(self.settings.loss, self.settings.metric)
            self._tests.add(test_split(task), found)

    def _contents(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-able data of the checkpoint."""
        model, certificate = self.model, self.certificate
        tensors = {f"model.{k}": v for k, v in model.state_dict().items() if k != EXTRA}
        tensors |= {f"probe.{k}": probe for k, probe in enumerate(certificate.probes)}
        tensors |= self._calibrator.tensors()
        data = {
            "settings": self.settings.to_json(),
            "structure": model.structure(),
            "reports": [report.to_json() for report in self.reports],
            "certificate": certificate.to_json(),
            "dtype": dtype_name(model.head.free_weight.dtype),
            "kernels": self._kernels["digest"],
        }
        return tensors, data

    @property
    def _seeded(self) -> tuple[int, int]:
        return self.settings.seed, self.settings.batch_size

    @contextmanager
    def _timed(self, what: str) -> Any:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[what] += time.perf_counter() - start


def _needed(rule: Calibration | None) -> Calibration:
    """The rule that refusing needs. Raises ConfigError without one."""
    if rule is None:
        raise ConfigError(
            "refuse: expected kept examples of every task, got a learner without; learn with "
            "calibration > 0"
        )
    return rule


def _given_again(data: Any, **given: Any) -> dict[str, Any]:
    """Loss and metric of a learner from the data of its file, or as they are given again."""
    settings = data.get("settings") if isinstance(data, dict) else None
    saved = without_removed(settings) if isinstance(settings, dict) else {}
    return {name: given_again(name, saved.get(name), value) for name, value in given.items()}


def _model_of(tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> Model:
    """The network in the contents of a checkpoint, in evaluation mode. Anything may be raised on
    foreign data.
    """
    prefix = "model."
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return restored(data["structure"], dtype_of(data["dtype"]), state).eval()
