"""CLNP as a strategy of Avalanche (avalanche-lib 0.6, Lomonaco et al. 2021).

It works with Avalanche's benchmarks, plugins and metrics. An experience is a task.
"""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clnp_kernels.nn import PartialBatchNorm1d

from ..data.items import Items
from ..data.scan import scan_items
from ..errors import ConfigError, DataError
from ..learner.budget import check_expected
from ..learner.own_loop import begin_task, consolidate, prune
from ..learner.settings import check_some
from ..network.certificate import Certificate
from ..network.inference import check_rule, choose
from ..network.model import Model
from ..objectives.objective import metric_of
from ..pruning.margin import check_margin
from .experiences import Pairs, classes_of, task_labels_of
from .own_classes import OwnClasses

try:
    from avalanche.benchmarks import OnlineCLExperience
    from avalanche.core import BasePlugin
    from avalanche.training.plugins.evaluation import EvaluationPlugin, default_evaluator
    from avalanche.training.templates import SupervisedTemplate

    from .inferred_tasks import InferredTasks
except ImportError as error:
    raise ImportError(
        f'clnp.integrations.avalanche needs avalanche-lib: pip install "clnp[avalanche]" ({error})'
    ) from error

ABSENT = -1000.0  # logit of a class that the task lacks, as in Avalanche's heads
TASK_LABELS = ("stream", "experience")


class CLNP(SupervisedTemplate):
    """Continual Learning via Neural Pruning (Golkar et al. 2019) on Avalanche's benchmarks.

    Every training experience becomes a task: its free channels are trained by the template's loop
    with the given optimizer, pruned within the margin, and frozen.

    Evaluation runs the network of an example's task, given by its task label if only one experience
    had that label. If several had it, as in a stream without task labels, the task is inferred
    among them as in `model.predict`, and accuracies are class-incremental. The metric
    Task_Inferred_Stream is the fraction of such examples. Examples with an unknown label use the
    network learned last.

    A multi-head network gets an output per class of the experience; logits of other classes are
    -1000. A single head (`model.set_head("single")`, before the optimizer is built) needs an output
    for every class of the benchmark. The criterion receives the classes of the task only, numbered
    from 0; class weights are those of all classes of the benchmark.

    After interrupted or failed training, the next call of `train` drops the unlearned task with a
    warning.

    Arguments:
        model: result of `clnp.convert`, without learned tasks.
        optimizer: any optimizer over the model's parameters, such as
            `AdamL1(clnp.parameter_groups(model, l1))` for the paper's penalty. Each task replaces
            its parameters by the free ones and clears its state; rates, groups and schedulers stay.
        margin: validation metric that pruning may cost; for an accuracy, a fraction.
        validation: fraction of each experience's examples held out of training, to measure the
            margin.
        metric, search, granularity: settings of pruning, as in `clnp.Settings`; a function
            receives the logits of the experience's classes, and targets numbered among these.
        tasks_expected: number of experiences that the network is to learn, as in `clnp.Settings`.
        task_labels: source of the task in evaluation. "stream": the task labels of the stream.
            "experience": the index of the evaluated experience. On a stream without task labels
            this is an oracle: accuracies are task-incremental and not comparable with those of
            strategies that don't know the task.
        rule: rule of task inference, see `clnp.network.inference.choose`.
        criterion, train_mb_size, train_epochs, eval_mb_size: as in Avalanche's templates.
        device, plugins, evaluator, eval_every, peval_mode: as in Avalanche's templates.

    Attributes:
        certificate: `certificate.verify(model)` recomputes the logits of every learned experience
            and compares all bits.
        inferred: number of examples with an inferred task in the last evaluated minibatch.

    Raises:
        ConfigError: wrong type of `model` or `optimizer`; a setting out of range; in `train`, an
            unsuitable criterion or size of minibatches.
        DataError: in `train`, before training: an experience doesn't fit the network, or an example
            is invalid.
        CapacityError: in `train`: no channels are free for another task.
    """

    def __init__(
        self,
        *,
        model: Model,
        optimizer: torch.optim.Optimizer,
        margin: float = 0.01,
        validation: float = 0.1,
        metric: Any = None,
        search: str = "auto",
        granularity: int | None = None,
        tasks_expected: int | None = None,
        task_labels: str = "stream",
        rule: str = "entropy",
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = None,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = default_evaluator,
        eval_every: int = -1,
        peval_mode: str = "epoch",
    ) -> None:
        if not isinstance(model, Model):
            raise ConfigError(
                f"model: expected the result of clnp.convert, got {type(model).__name__}"
            )
        if model.tasks:
            raise ConfigError(
                f"model: expected no learned tasks, got {len(model.tasks)}, whose classes and task "
                "labels are unknown; convert a new network, or resume a strategy that was saved by "
                "avalanche's save_checkpoint"
            )
        check_expected(tasks_expected)
        self._tasks_expected = tasks_expected
        self._pruning: dict[str, Any] = {
            "margin": margin,
            "metric": metric,
            "search": search,
            "granularity": granularity,
        }
        _check_settings(validation, task_labels, rule, self._pruning)
        self._groups = _names(model, optimizer)
        self._validation_share = validation
        self._by_experience, self._rule = task_labels == "experience", rule
        self._held_out: Any = None
        self._validation: tuple[Tensor, Tensor] | None = None  # held-out examples, in memory
        self._labels: list[set[int]] = []  # task labels of each experience begun
        self._numbers: dict[int, int] = {}  # index of an experience -> task
        self._classes: list[list[int]] = []  # classes of the outputs of each task
        self._task_of = torch.empty(0, dtype=torch.int64)  # task of each evaluated example
        self.inferred = 0
        self.certificate = Certificate()
        criterion = nn.CrossEntropyLoss() if criterion is None else criterion
        if not callable(criterion):
            raise ConfigError(
                f"criterion: expected a function of logits and targets, got {criterion!r}"
            )
        self._loss_of = OwnClasses(criterion, ABSENT)
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=criterion,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=plugins,
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
        )
        if not any(isinstance(metric, InferredTasks) for metric in self.evaluator.metrics):
            self.evaluator.metrics.append(InferredTasks())

    adapted_dataset: Any  # training examples; the name is the template's

    # Hooks of the template, before, during and after training on an experience

    def train_dataset_adaptation(self, **kwargs: Any) -> None:
        """Hold out a part of the experience."""
        if isinstance(self.experience, OnlineCLExperience):
            raise DataError(
                "experience: expected a whole one, got a part split for online learning; train on "
                "the benchmark's own stream"
            )
        super().train_dataset_adaptation(**kwargs)
        data = self.adapted_dataset
        norms = self.model.norms.values()
        if self.train_mb_size == 1 and any(isinstance(n, PartialBatchNorm1d) for n in norms):
            raise ConfigError(
                "train_mb_size: expected at least 2, since a batch norm needs several examples, "
                "got 1"
            )
        generator = torch.Generator().manual_seed(self.experience.current_experience)
        order = torch.randperm(len(data), generator=generator)
        held_out = max(1, round(self._validation_share * len(data)))
        if norms and (len(data) - held_out) % self.train_mb_size == 1 < self.train_mb_size:
            held_out += 1  # batch norm needs a variance, so avoid a last minibatch of one example
        if held_out >= len(data):
            raise DataError(
                f"experience {self.experience.current_experience}: expected enough examples to "
                f"hold some out for pruning, got {len(data)}"
            )
        self._held_out = data.subset(order[:held_out].sort().values.tolist()).eval()
        self.adapted_dataset = data.subset(order[held_out:].sort().values.tolist())

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Begin the task."""
        index, number = len(self.model.tasks), self.experience.current_experience
        if self.model.in_task:
            warnings.warn(
                f"experience {number}: the previous task was begun but not learned, because "
                "training was interrupted or failed; it is dropped",
                stacklevel=2,
            )
            self.model.cancel_task()
        # Remove records of tasks that were begun but not learned.
        del self._labels[index:], self._classes[index:]
        classes = classes_of(self.experience)
        outputs = self.model.head.classes
        if self.model.head.kind == "single":
            if classes[-1] >= outputs:
                raise DataError(
                    f"experience {number}: expected classes below {outputs}, the outputs of the "
                    f"single head, got {classes[-1]}; convert a network with more outputs"
                )
            classes = list(range(outputs))
        self._check_items(classes)
        self._loss_of.check(classes, self.model.head.free_weight)
        begin_task(self.model, len(classes), tasks_expected=self._tasks_expected)
        self._labels.append(task_labels_of(self.experience.dataset) or {0})
        self._numbers[number] = index
        self._classes.append(classes)
        self.make_optimizer()

    def _check_items(self, classes: Sequence[int]) -> None:
        """Read and check every example of the experience once, before training.

        Held-out examples are kept in memory, because pruning reads them many times.
        """
        outputs = {label: output for output, label in enumerate(classes)}
        where = f"experience {self.experience.current_experience}"
        train = Items(Pairs(self.adapted_dataset, outputs), where)
        expected = tuple(self.model.graph.nodes[0].attrs["shape"][1:])
        if train.sample[0] != expected:
            raise DataError(
                f"{where}: expected examples of shape {list(expected)}, for which the network was "
                f"converted, got {list(train.sample[0])}"
            )
        scan_items(train, 0, fixed=True)
        held_out = Items(Pairs(self._held_out, outputs), f"{where}, held out", sample=train.sample)
        self._validation = scan_items(held_out, sys.maxsize, fixed=True).kept

    def model_adaptation(self, model: nn.Module | None = None) -> nn.Module:
        """Return the network unchanged, since `begin_task` has adapted it."""
        return self.model if model is None else model

    def make_optimizer(self, **kwargs: Any) -> None:
        """Give the optimizer the current parameters, in their groups, and clear its state."""
        parameters = dict(self.model.named_parameters())
        for group, names in zip(self.optimizer.param_groups, self._groups, strict=True):
            present = [name for name in names if name in parameters]
            group["params"] = [parameters[name] for name in present]
            if "param_names" in group:
                group["param_names"] = present
        self.optimizer.state = defaultdict(dict)

    def forward(self) -> Tensor:
        """Compute the logits [B, classes] of the minibatch."""
        if self.is_training:
            return self._placed(self.model(self.mb_x), len(self.model.tasks))
        rows_of: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for row, tasks in enumerate(self._tasks_of_minibatch()):
            rows_of[tasks].append(row)
        answers = [(rows, *self._answer(self.mb_x[rows], tasks)) for tasks, rows in rows_of.items()]
        self.inferred = sum(len(rows) for tasks, rows in rows_of.items() if len(tasks) > 1)
        order = torch.tensor([row for rows, *_ in answers for row in rows]).argsort()
        self._task_of = torch.cat([tasks for _, tasks, _ in answers])[order]
        return torch.cat([logits for *_, logits in answers])[order.to(self.mb_x.device)]

    def criterion(self) -> Tensor:
        """Compute the loss of the minibatch, for each example over the classes of its task."""
        if self.is_training:
            classes = self._classes[len(self.model.tasks)]
            return self._loss_of.trained(self.mb_output, self.mb_y, classes)
        loss = self.mb_output.new_zeros(())
        for task in self._task_of.unique().tolist():
            rows = (self._task_of == task).to(self.mb_y.device)
            part = self._loss_of.evaluated(
                self.mb_output[rows], self.mb_y[rows], self._classes_of(task)
            )
            share = 1.0 if self._loss_of.sums else int(rows.sum()) / len(rows)
            loss = loss + share * part
        return loss

    def _after_training_exp(self, **kwargs: Any) -> None:
        """Prune and freeze, before plugins evaluate."""
        index = len(self.model.tasks)
        outputs = {label: output for output, label in enumerate(self._classes[index])}
        validation = self._validation
        assert validation is not None
        train = Pairs(self.adapted_dataset.eval(), outputs)
        prune(self.model, train, validation, **self._pruning)
        consolidate(self.model, name=f"experience {self.experience.current_experience}")
        self.certificate.record(self.model, validation[0])
        self.make_optimizer()
        super()._after_training_exp(**kwargs)

    # Network and classes of an example

    def _tasks_of_minibatch(self) -> list[tuple[int, ...]]:
        """Return the candidate tasks of each example.

        A given task is the only candidate; the latest task is that of an unknown label or
        experience.
        """
        latest, examples = max(len(self._labels) - 1, 0), len(self.mb_x)
        if self._by_experience:
            return [(self._numbers.get(self.experience.current_experience, latest),)] * examples
        labelled = task_labels_of(self.adapted_dataset) is not None
        labels_given = self.mb_task_id.tolist() if labelled else [0] * examples
        known: dict[int, tuple[int, ...]] = defaultdict(tuple)
        for task, labels in enumerate(self._labels):
            for label in labels:
                known[label] += (task,)
        return [known.get(label, (latest,)) for label in labels_given]

    def _answer(self, x: Tensor, tasks: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """(inferred task [B] of x [B, ...], logits [B, classes] in the columns of its classes)."""
        if len(tasks) == 1:
            chosen_task = torch.full((len(x),), tasks[0])
            return chosen_task, self._placed(self._network_of(tasks[0])(x), tasks[0])
        all_logits = self.model.all_tasks(x)
        if self.model.in_task:
            all_logits.append(self.model(x))
        logits = [all_logits[task] for task in tasks]
        chosen, _ = choose(logits, self._rule)
        placed = torch.stack([self._placed(*pair) for pair in zip(logits, tasks, strict=True)])
        rows = torch.arange(len(x), device=x.device)
        return torch.tensor(tasks)[chosen.cpu()], placed[chosen, rows]

    def _network_of(self, task: int) -> Callable[[Tensor], Tensor]:
        return self.model.subnetwork(task) if task < len(self.model.tasks) else self.model

    def _placed(self, logits: Tensor, task: int) -> Tensor:
        """Put logits [B, outputs] of a task into the columns of their classes: [B, classes]."""
        classes = self._classes_of(task)
        last = max(c[-1] for c in [classes, *self._classes])
        width = max(last, int(self.mb_y.max())) + 1
        if classes == list(range(width)):
            return logits
        placed = logits.new_full((len(logits), width), ABSENT)
        placed[:, classes] = logits
        return placed

    def _classes_of(self, task: int) -> list[int]:
        """Return the classes of a task's outputs; before the first task, the first classes."""
        return self._classes[task] if self._classes else list(range(self.model.head.classes))


def _names(model: Model, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names.get(id(p), "") for p in group["params"]] for group in optimizer.param_groups]
    missing = set(names.values()) - {name for group in groups for name in group}
    if any("" in group for group in groups) or missing:
        raise ConfigError(
            "optimizer: expected one over exactly the model's parameters, such as "
            "AdamL1(clnp.parameter_groups(model, l1=1e-4)), got others; build it after "
            "model.set_head()"
        )
    return groups


def _check_settings(
    validation: Any, task_labels: Any, rule: Any, pruning: Mapping[str, Any]
) -> None:
    number = isinstance(validation, (int, float)) and not isinstance(validation, bool)
    if not number or not 0 < validation < 1:
        raise ConfigError(f"validation: expected a fraction between 0 and 1, got {validation!r}")
    check_some(**{name: pruning[name] for name in ("search", "granularity")})
    check_margin(pruning["margin"], metric_of(pruning["metric"] or "accuracy"))
    if task_labels not in TASK_LABELS:
        raise ConfigError(f"task_labels: expected one of {list(TASK_LABELS)}, got {task_labels!r}")
    check_rule(rule)
