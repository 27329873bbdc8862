"""The life cycle of every method but CLNP: learn task after task, test, save, go on."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.batches import count, seed_for, seeded
from ..data.inputs import Split
from ..data.task import Task, task_data
from ..errors import CheckpointError, ConfigError, TrainingError
from ..files import checkpoint
from ..learner.base import BaseLearner
from ..learner.checks import check_task, objective_for
from ..learner.learned_data import learned_tasks, objective_again, test_split
from ..learner.report import TaskReport, check_classes, objective_fields
from ..network.inference import Prediction, predicted
from ..objectives.losses import CrossEntropy
from ..objectives.objective import Objective
from ..training.epoch import SCHEDULES, check_labels, record, run_epoch
from ..training.fit import FitState
from ..training.optimizer_state import load_optimizer_tensors, optimizer_tensors
from ..training.step_graph import set_rate
from ..training.validation import Validation, measured
from .meter import Cost, Meter
from .method import Method
from .network import Heads, TaskNet
from .saving import check_network, graph_of
from .settings import MethodSettings
from .state import as_tensor, from_tensor, prefixed, without

KIND = "method"
PLAIN = (None, CrossEntropy.name)  # losses of tasks whose outputs may differ in number


class _Network(nn.Module):
    """The `model(x, task=k)` of a learner: logits of a task, in evaluation mode."""

    def __init__(self, learner: MethodLearner) -> None:
        super().__init__()
        self._learner = [learner]  # not a submodule

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        learner = self._learner[0]
        net = learner.predictor(len(learner.reports) - 1 if task is None else task)
        net.eval()
        with torch.no_grad():
            return net(x)


class MethodLearner(BaseLearner):
    """Trains one network on task after task by a method of `clnp.methods`; used as `clnp.Learner`.

    Made by `clnp.methods.make` and `clnp.methods.load`.

    Arguments:
        method: class of the method.
        net: the network, trained in place: any module x [B, ...] -> logits [B, C] that ends in a
            Linear layer.
        example: a batch that it accepts; only its shape and dtype matter.
        settings: what all methods share.
        options: the method's own.
        device, checkpoint_dir, callbacks, progress_bar: as for `clnp.Learner`.

    Attributes:
        reports: one `TaskReport` per task. Capacity, thresholds, reuse, grid and l1 are empty.
        cost: one {"flops", "sparse_flops", "examples", "peak_memory", "seconds"} per task.
        model: `model(x, task=k)` gives logits.
        settings: JSON-able: {"method", ..., "options"}.

    Raises:
        ConfigError: a setting or option out of range; a network that does not fit;
            `checkpoint_dir` holds another learner.
    """

    load_call = "clnp.methods.load"

    def __init__(
        self,
        method: type[Method],
        net: nn.Module,
        example: Tensor,
        settings: MethodSettings,
        options: Mapping[str, Any],
        *,
        device: str | torch.device = "cpu",
        checkpoint_dir: str | Path | None = None,
        callbacks: Iterable[Any] = (),
        progress_bar: bool | None = None,
    ) -> None:
        self.shared = settings
        super().__init__(device, callbacks, progress_bar)
        check_network(net, example)
        self.graph = graph_of(net, example)
        self.example = example[:1].detach().cpu()
        with seeded(seed_for(settings.seed, "make"), self.device):
            self.net = TaskNet(net, example, settings.head, self.graph).to(self.device)
            self.method = method(self.net, settings, options)
        self.net.to(self.device)
        self.method.optimizer = self.method.make_optimizer()
        self.cost: list[dict[str, Any]] = []
        self.model = _Network(self)
        self._use_folder(checkpoint_dir, None)

    @property
    def settings(self) -> dict[str, Any]:
        """Method, settings and options, JSON-able."""
        return {"method": self.method.name, **self.shared.to_json(), "options": dict(self.method.o)}

    # Learning

    def learn(self, task: Task) -> TaskReport:
        """Learns one more task and tests it and all earlier ones.

        If anything goes wrong the learner is left as it was before the call.

        Raises:
            DataError: the task does not fit the network (shape, dtype, labels); an item that is no
                good, with its split and index; a task of that name was learned before.
            TrainingError: the loss became NaN or infinite; memory ran out.
        """
        return self._run(task, None, self.shared.seed, self.shared.batch_size)

    def _check(self, task: Task, plan: None) -> tuple[Task, int]:
        net, example = self.net, self.example
        shape, single = tuple(example.shape[1:]), net.kind == "single"
        found = check_task(task, shape, example.dtype, net.classes, single=single)
        self.method.check(len(self.reports))
        return found

    def _objective_of(self, task: Task, outputs: int, plan: None) -> Objective:
        found = objective_for(task, outputs, self.shared.loss, self.shared.metric)
        name, method, plain = self.method.name, self.method, found.loss == CrossEntropy()
        if found.targets not in method.takes or (method.own_loss and not plain):
            raise ConfigError(
                f"loss: expected cross_entropy without options for method {name!r}, which has a "
                f"loss of its own, got {found.loss!r}; take another method for this task"
                if method.own_loss
                else f"loss: expected one of {', '.join(method.takes)} for method {name!r}, got "
                f"{found.loss.name!r}; take another method for this task"
            )
        now = task_data(task)
        for report in self.reports if method.mixes else ():
            before = report.data
            alike = before is None or (before.loss, before.classes) == (now.loss, now.classes)
            if not alike and not (plain and before is not None and before.loss in PLAIN):
                raise ConfigError(
                    f"loss: expected that of task {report.name!r} and as many outputs, for method "
                    f"{name!r} trains on batches of several tasks, got {found.loss.name!r} of "
                    f"{outputs} outputs; take another method for this stream"
                )
        return found

    def _snapshot(self) -> tuple[dict[str, Tensor], list[int], list[nn.Module]]:
        head = self.net.head
        tensors = {name: tensor.clone() for name, tensor in self._tensors().items()}
        heads = list(head.layers) if isinstance(head, Heads) else []
        return tensors, list(self.net.tasks), heads

    def _undo(
        self, before: tuple[dict[str, Tensor], list[int], list[nn.Module]], index: int
    ) -> None:
        tensors, self.net.tasks, heads = before
        if isinstance(self.net.head, Heads):
            self.net.head.layers = nn.ModuleList(heads)
        self.method.task = index - 1
        self.method.optimizer = self.method.make_optimizer()
        self._load_tensors(tensors)
        del self.cost[index:]
        self.net.eval()

    def _learn(self, task: Task, index: int, outputs: int, plan: None) -> TaskReport:
        start = time.perf_counter()
        s, method = self.shared, self.method
        self._call("on_task_begin", index, task.name, s.epochs)
        meter = Meter(method, Cost())
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._begin(task, index, outputs, meter)
        Validation(task.validation, self.objective, self.device).check(self.predictor(index))
        history = self._fit(task, index, meter)
        values = [record["validation_metric"] for record in history]
        self.net.eval()
        with seeded(seed_for(s.seed, index, "end"), self.device), meter.passes():
            method.end(task)
        middle = time.perf_counter()
        self.net.eval()
        self._tests.add(task.test, self.objective)
        validation = self._validated(task, index)
        row = [self._test(j) for j in range(index + 1)]
        now = time.perf_counter()
        seconds = {"fit": middle - start, "search": 0.0, "fine_tune": 0.0}
        seconds |= {"evaluate": now - middle, "total": now - start}
        self.cost.append(meter.cost.to_json())
        return TaskReport(
            task=index,
            name=task.name,
            epochs=s.epochs,
            lr=s.lr,
            l1={},
            best_validation=max(values) if self.shown.higher_is_better else min(values),
            validation_before=values[-1],
            validation=validation,
            test=row[-1],
            row=row,
            capacity={},
            thresholds={},
            reuse={},
            history=history,
            grid=[],
            transfer_only=False,
            seconds=seconds,
            class_names=task.class_names,
            data=task_data(task),
            **objective_fields(self.objective),
        )

    def _validated(self, task: Task, index: int) -> float:
        return measured(self.predictor(index), task.validation, self.objective, self.device)

    def _begin(self, task: Task, index: int, outputs: int, meter: Meter) -> None:
        """Outputs and optimizer for the task, then the method's first verb."""
        method, s = self.method, self.shared
        carried: dict[str, Tensor] = {}
        if not s.reset_optimizer:
            carried = optimizer_tensors(method.optimizer, method.named_parameters())
        generator = torch.Generator().manual_seed(seed_for(s.seed, index, "weights"))
        self.net.zero_grad(set_to_none=True)
        self.net.add_task(outputs, generator)
        method.task, method.objective = index, self.objective
        method.optimizer = method.make_optimizer()
        load_optimizer_tensors(method.optimizer, method.named_parameters(), carried)
        self.net.train()
        with seeded(seed_for(s.seed, index, "begin"), self.device), meter.passes():
            method.begin(task)

    def _fit(self, task: Task, index: int, meter: Meter) -> list[dict[str, float]]:
        s = self.shared
        stamp = {
            "settings": self.settings,
            "task": index,
            "name": task.name,
            "data": task_data(task).to_json(),
        }
        history: list[dict[str, float]] = []
        saved = self._progress.load(0, stamp)
        if saved is not None:
            history = list(saved.history)
            self._call("on_resume", [{**record, "point": 0, "points": 1} for record in history])
            meter.cost = Cost(**from_tensor(saved.optimizer.pop("cost")))
            self._load_tensors(saved.optimizer)
        for epoch in range(len(history), s.epochs):
            record = self._epoch(task, index, epoch, meter)
            history.append(record)
            if epoch + 1 == s.epochs or self._progress.due():
                tensors = {k: v.detach().cpu().clone() for k, v in self._tensors().items()}
                tensors["cost"] = as_tensor(meter.cost.to_json())
                self._progress.save(0, FitState(epoch + 1, history, [], tensors), stamp)
            self._call("on_epoch_end", {**record, "point": 0, "points": 1})
        return history

    def _epoch(self, task: Task, index: int, epoch: int, meter: Meter) -> dict[str, float]:
        s, method = self.shared, self.method
        lr = s.lr * SCHEDULES[s.schedule](epoch, s.epochs)
        set_rate(method.optimizer, lr)
        method.epoch = epoch
        seed = seed_for(s.seed, index, "fit", "epoch", epoch)
        self.net.train()
        with seeded(seed, self.device):
            meter.start_epoch()
            with meter.passes():
                method.start_epoch(task, epoch)
            losses, sums, seen = run_epoch(
                self._steps(task, epoch, seed, meter),
                max(count(task.train), 1),
                self.device,
                on_batch=lambda *args: self._call("on_batch_end", *args),
                check_loss=lambda loss: self._check_loss(loss, epoch),
            )
            validation = self._validated(task, index)
        seen = max(seen, 1)
        return record(epoch, float(losses) / seen, float(sums) / seen, validation, lr)

    def _steps(
        self, task: Task, epoch: int, seed: int, meter: Meter
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Take the steps of an epoch -> (examples, loss, sum of the metric)."""
        order = torch.Generator().manual_seed(seed)
        for batch in self.method.batches(task, epoch, order):
            if isinstance(batch.task, int):
                check_labels(batch.y, self.net.tasks[batch.task], self.objective.loss)
            loss, outputs = meter.step(batch)
            yield len(batch), loss, self.objective.running(outputs, batch.y)

    def _check_loss(self, loss: float, epoch: int) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"method {self.method.name!r}: the loss became {loss} in epoch {epoch + 1} (lr "
                f"{self.shared.lr}, options {self.method.o}); what was learned before this task is "
                "untouched. A lower lr or a weaker penalty usually helps"
            )

    # Results

    def predictor(self, task: int) -> nn.Module:
        """The network of a learned task: x [B, ...] -> logits [B, C]. Counts from the end if
        negative. Raises ConfigError for an unknown task.
        """
        learned = len(self.net.tasks)
        if isinstance(task, bool) or not isinstance(task, int) or not -learned <= task < learned:
            known = f"0 to {learned - 1}" if learned else "none yet"
            raise ConfigError(f"task: expected the index of a learned task ({known}), got {task!r}")
        return self.method.predictor(task % learned)

    def predict(self, x: Tensor, task: int = -1) -> Prediction:
        """Task, class and class name of x [B, ...] as examples of a task (by default the last
        one); see `clnp.Learner.predict`.
        """
        check_classes(self.reports, task)
        label = self.model(x.to(self.device), task).argmax(dim=-1)
        found = torch.full_like(label, task % len(self.reports))
        return predicted(found, label, [report.class_names for report in self.reports])

    def evaluate(self, split: Split, task: int = -1) -> float:
        """Metric of a split as of a task (by default the last one)."""
        index = task % max(len(self.net.tasks), 1)
        objective = self._tests.objectives.get(index)
        if objective is None:
            named = self.shared.loss, self.shared.metric
            objective = objective_again(self.reports[index], *named)
        return measured(self.predictor(task), split, objective, self.device)

    def _test(self, task: int) -> float:
        split = self._tests.splits[task]
        return float("nan") if split is None else self.evaluate(split, task)

    def verify(self) -> list[Any]:
        """An empty list: only CLNP certifies that earlier tasks did not move."""
        return []

    def costs(self, sizes: Sequence[int]) -> list[dict[str, Any]]:
        """Measured cost of every learned task; `sizes` are not needed."""
        return self.cost

    # Saving

    def _tensors(self) -> dict[str, Tensor]:
        named = self.method.named_parameters()
        return {
            **prefixed("net.", self.net.state_dict()),
            **prefixed("method.", self.method.state()),
            **prefixed("optimizer.", optimizer_tensors(self.method.optimizer, named)),
        }

    def _load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.net.load_state_dict(without("net.", tensors))
        named = self.method.named_parameters()
        self.method.load_state(without("method.", tensors))
        load_optimizer_tensors(self.method.optimizer, named, without("optimizer.", tensors))

    def save(self, path: str | Path) -> None:
        """Writes everything needed to go on into one file (safetensors and JSON, no pickle),
        atomically. The network's layers are written too where `clnp.convert` can read it; of other
        networks only the numbers, and `load` then needs the network.

        Raises:
            CheckpointError: the file can't be written; an older one is still whole.
        """
        data = {
            "settings": self.settings,
            "graph": None if self.graph is None else self.graph.to_json(),
            "shape": list(self.example.shape),
            "dtype": checkpoint.dtype_name(self.example.dtype),
            "classes": list(self.net.tasks),
            "reports": [report.to_json() for report in self.reports],
            "cost": self.cost,
        }
        checkpoint.write(path, KIND, self._tensors(), data)

    def take_over(self, tensors: Mapping[str, Tensor], data: Mapping[str, Any], path: Path) -> None:
        """Goes to the state that `save` wrote; for `clnp.methods.load`.

        Raises:
            CheckpointError: the file belongs to another network.
        """
        try:
            for classes in data["classes"]:
                self.net.add_task(int(classes), None)
            self.reports = [TaskReport.from_json(report) for report in data["reports"]]
            self.cost = list(data["cost"])
            self.method.task = len(self.reports) - 1
            self.method.optimizer = self.method.make_optimizer()
            self._load_tensors(tensors)
        except Exception as error:  # anybody can have written anything
            raise CheckpointError(f"{path} does not fit this network: {error}") from error
        self.net.eval()

    def attach(self, tasks: Sequence[Task] | None) -> None:
        """Gives the learned tasks' data back after loading: test splits for later rows of the
        accuracy matrix, and what a method trains on again. Raises DataError for other tasks.
        """
        if tasks is None:
            self._tests.splits = [None] * len(self.reports)
            return
        for task in learned_tasks(self.reports, tasks):
            assert task is not None  # only CLNP forgets on request
            found = task.objective(self.shared.loss, self.shared.metric)
            self._tests.add(test_split(task), found)
            self.method.remember(task)
