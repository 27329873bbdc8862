"""CLNP as a strategy of Avalanche (avalanche-lib 0.6, Lomonaco et al. 2021), for its benchmarks,
plugins and metrics; an experience is a task.
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
from ..learner.own_loop import begin_task, consolidate, prune
from ..learner.settings import CHECKS
from ..network.certificate import Certificate
from ..network.inference import check_rule, choose
from ..network.model import Model
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

ABSENT = -1000.0  # logit of a class that the task does not have, as in Avalanche's own heads
TASK_LABELS = ("stream", "experience")


class CLNP(SupervisedTemplate):
    """Continual Learning via Neural Pruning (Golkar et al. 2019) on Avalanche's benchmarks.

    Every training experience becomes a task: its free channels are trained by the template's loop
    with the given optimizer, pruned within the margin, and frozen.

    Evaluation runs the network of an example's task. Its task label tells the task where no other
    experience had the same. Where several had, as in a stream without task labels, the task is
    inferred among these, as `model.predict` does: the accuracies are class-incremental. The metric
    Task_Inferred_Stream is the fraction of examples of which this was so. Examples with a label
    that no experience had are answered by the network learned last.

    A multi-head network gets an output for each class of the experience; the logits of the other
    classes are -1000. A single head (`model.set_head("single")`, before the optimizer is built)
    needs an output for every class of the benchmark. The criterion sees the classes of the task
    only, numbered from 0; class weights are given for all classes of the benchmark.

    Training that was interrupted or has failed goes on with the next call of `train`: the unlearned
    task is dropped, with a warning.

    Arguments:
        model: from `clnp.convert`, without learned tasks.
        optimizer: any, over the model's parameters, `AdamL1(clnp.parameter_groups(model, l1))` for
            the paper's penalty. For every task it is pointed at the free parameters and its state
            is cleared; rates, groups and schedulers stay.
        margin: how much of the validation score pruning may cost, of an accuracy a fraction.
        validation: fraction of every experience's examples that is held out of training, to hold
            the margin on.
        score, search, granularity: of pruning, as of `clnp.Settings`; a function gets the logits of
            the experience's classes, and targets numbered among these.
        task_labels: what tells the task in evaluation. "stream": the task labels of the stream.
            "experience": the number of the experience that is evaluated. On a stream without task
            labels that is an oracle: it makes the accuracies task-incremental, not to be compared
            with those of strategies that are not told the task.
        rule: how tasks are inferred, see `clnp.network.inference.choose`.
        criterion, train_mb_size, train_epochs, eval_mb_size: as in Avalanche's templates.
        device, plugins, evaluator, eval_every, peval_mode: as in Avalanche's templates.

    Attributes:
        certificate: `certificate.verify(model)` recomputes the logits of every learned experience
            and compares them bit by bit.
        inferred: examples of the minibatch evaluated last whose task was inferred.

    Raises:
        ConfigError: `model` or `optimizer` is not that; a setting out of range; (in `train`) the
            criterion or the size of minibatches does not fit.
        DataError: (in `train`) an experience does not fit the network, or an example is no good;
            before it is trained on.
        CapacityError: (in `train`) no channels are left for another task.
    """

    def __init__(
        self,
        *,
        model: Model,
        optimizer: torch.optim.Optimizer,
        margin: float = 0.01,
        validation: float = 0.1,
        score: Any = "accuracy",
        search: str = "auto",
        granularity: int = 1,
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
                f"model: has learned {len(model.tasks)} task(s), whose classes and task labels "
                "this strategy does not know; convert a new network, or go on with a strategy that "
                "avalanche's save_checkpoint saved"
            )
        self._pruning: dict[str, Any] = {
            "margin": margin,
            "score": score,
            "search": search,
            "granularity": granularity,
        }
        _check_settings(validation, task_labels, rule, self._pruning)
        self._groups = _names(model, optimizer)
        self._validation_share = validation
        self._by_experience, self._rule = task_labels == "experience", rule
        self._held_out: Any = None
        self._validation: tuple[Tensor, Tensor] | None = None  # what is held out, in memory
        self._labels: list[set[int]] = []  # task labels of every experience begun
        self._numbers: dict[int, int] = {}  # experience's number -> task
        self._classes: list[list[int]] = []  # what the outputs of every task stand for
        self._answering = torch.empty(0, dtype=torch.int64)  # task of each example evaluated
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

    adapted_dataset: Any  # what is trained on, as the template calls it

    # What the template calls before, while and after it trains on an experience

    def train_dataset_adaptation(self, **kwargs: Any) -> None:
        """Holds a part of the experience out."""
        if isinstance(self.experience, OnlineCLExperience):
            raise DataError(
                "CLNP learns an experience as a whole: train on the benchmark's own stream, not on "
                "one that was split for online learning"
            )
        super().train_dataset_adaptation(**kwargs)
        data = self.adapted_dataset
        norms = self.model.norms.values()
        if self.train_mb_size == 1 and any(isinstance(n, PartialBatchNorm1d) for n in norms):
            raise ConfigError(
                "train_mb_size=1: a batch norm needs more than one example; take a larger minibatch"
            )
        generator = torch.Generator().manual_seed(self.experience.current_experience)
        order = torch.randperm(len(data), generator=generator)
        held_out = max(1, round(self._validation_share * len(data)))
        if norms and (len(data) - held_out) % self.train_mb_size == 1 < self.train_mb_size:
            held_out += 1  # a last minibatch of a single example has no variance to normalise by
        if held_out >= len(data):
            raise DataError(
                f"experience {self.experience.current_experience} has {len(data)} example(s): too "
                "few to hold some out for pruning"
            )
        self._held_out = data.subset(order[:held_out].sort().values.tolist()).eval()
        self.adapted_dataset = data.subset(order[held_out:].sort().values.tolist())

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Begins the task."""
        index, number = len(self.model.tasks), self.experience.current_experience
        if self.model.in_task:
            warnings.warn(
                f"experience {number}: the task that was begun before was not learned, as training "
                "was interrupted or failed; it is dropped, and this one begins",
                stacklevel=2,
            )
            self.model.cancel_task()
        # What was begun and never learned has left its records.
        del self._labels[index:], self._classes[index:]
        classes = classes_of(self.experience)
        outputs = self.model.head.classes
        if self.model.head.kind == "single":
            if classes[-1] >= outputs:
                raise DataError(
                    f"class {classes[-1]} of experience {number} has no output: the single head "
                    f"has {outputs}; convert a network with more"
                )
            classes = list(range(outputs))
        self._check_items(classes)
        self._loss_of.check(classes, self.model.head.free_weight)
        begin_task(self.model, len(classes))
        self._labels.append(task_labels_of(self.experience.dataset) or {0})
        self._numbers[number] = index
        self._classes.append(classes)
        self.make_optimizer()

    def _check_items(self, classes: Sequence[int]) -> None:
        """Reads every example of the experience once, before anything trains on it; those that are
        held out are kept, for pruning reads them many times.
        """
        places = {label: place for place, label in enumerate(classes)}
        where = f"experience {self.experience.current_experience}"
        train = Items(Pairs(self.adapted_dataset, places), where)
        wanted = tuple(self.model.graph.nodes[0].attrs["shape"][1:])
        if train.sample[0] != wanted:
            raise DataError(
                f"{where}: examples have shape {list(train.sample[0])}, but the network was "
                f"converted for {list(wanted)}"
            )
        scan_items(train, 0, fixed=True)
        held_out = Items(Pairs(self._held_out, places), f"{where}, held out", sample=train.sample)
        self._validation = scan_items(held_out, sys.maxsize, fixed=True).kept

    def model_adaptation(self, model: nn.Module | None = None) -> nn.Module:
        """The network as it is; `begin_task` has adapted it."""
        return self.model if model is None else model

    def make_optimizer(self, **kwargs: Any) -> None:
        """Points the optimizer at the parameters of now, in the groups that they were in."""
        now = dict(self.model.named_parameters())
        for group, names in zip(self.optimizer.param_groups, self._groups, strict=True):
            here = [name for name in names if name in now]
            group["params"] = [now[name] for name in here]
            if "param_names" in group:
                group["param_names"] = here
        self.optimizer.state = defaultdict(dict)

    def forward(self) -> Tensor:
        """The logits [B, classes] of the minibatch."""
        if self.is_training:
            return self._placed(self.model(self.mb_x), len(self.model.tasks))
        rows_of: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for row, tasks in enumerate(self._tasks_of_minibatch()):
            rows_of[tasks].append(row)
        answers = [(rows, *self._answer(self.mb_x[rows], tasks)) for tasks, rows in rows_of.items()]
        self.inferred = sum(len(rows) for tasks, rows in rows_of.items() if len(tasks) > 1)
        order = torch.tensor([row for rows, *_ in answers for row in rows]).argsort()
        self._answering = torch.cat([tasks for _, tasks, _ in answers])[order]
        return torch.cat([logits for *_, logits in answers])[order.to(self.mb_x.device)]

    def criterion(self) -> Tensor:
        """The loss of the minibatch, each example's over the classes of the task that answers."""
        if self.is_training:
            classes = self._classes[len(self.model.tasks)]
            return self._loss_of.trained(self.mb_output, self.mb_y, classes)
        loss = self.mb_output.new_zeros(())
        for task in self._answering.unique().tolist():
            rows = (self._answering == task).to(self.mb_y.device)
            part = self._loss_of.evaluated(
                self.mb_output[rows], self.mb_y[rows], self._classes_of(task)
            )
            share = 1.0 if self._loss_of.sums else int(rows.sum()) / len(rows)
            loss = loss + share * part
        return loss

    def _after_training_exp(self, **kwargs: Any) -> None:
        """Prunes and freezes, before plugins evaluate."""
        index = len(self.model.tasks)
        places = {label: place for place, label in enumerate(self._classes[index])}
        validation = self._validation
        assert validation is not None
        train = Pairs(self.adapted_dataset.eval(), places)
        prune(self.model, train, validation, **self._pruning)
        consolidate(self.model, name=f"experience {self.experience.current_experience}")
        self.certificate.record(self.model, validation[0])
        self.make_optimizer()
        super()._after_training_exp(**kwargs)

    # Which network answers, and for which classes

    def _tasks_of_minibatch(self) -> list[tuple[int, ...]]:
        """The tasks among which that of each example is inferred; one where it is given, the latest
        where its label or experience is not known.
        """
        latest, examples = max(len(self._labels) - 1, 0), len(self.mb_x)
        if self._by_experience:
            return [(self._numbers.get(self.experience.current_experience, latest),)] * examples
        labelled = task_labels_of(self.adapted_dataset) is not None
        told = self.mb_task_id.tolist() if labelled else [0] * examples
        known: dict[int, tuple[int, ...]] = defaultdict(tuple)
        for task, labels in enumerate(self._labels):
            for label in labels:
                known[label] += (task,)
        return [known.get(label, (latest,)) for label in told]

    def _answer(self, x: Tensor, tasks: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The task [B] that answers examples x [B, ...], one of `tasks`, and its logits at the
        places of their classes [B, classes].
        """
        if len(tasks) == 1:
            answering = torch.full((len(x),), tasks[0])
            return answering, self._placed(self._network_of(tasks[0])(x), tasks[0])
        every = self.model.all_tasks(x)
        if self.model.in_task:
            every.append(self.model(x))
        logits = [every[task] for task in tasks]
        chosen, _ = choose(logits, self._rule)
        placed = torch.stack([self._placed(*pair) for pair in zip(logits, tasks, strict=True)])
        rows = torch.arange(len(x), device=x.device)
        return torch.tensor(tasks)[chosen.cpu()], placed[chosen, rows]

    def _network_of(self, task: int) -> Callable[[Tensor], Tensor]:
        """A learned task's network; the one in training for the task that is not learned yet."""
        return self.model.subnetwork(task) if task < len(self.model.tasks) else self.model

    def _placed(self, logits: Tensor, task: int) -> Tensor:
        """Logits [B, outputs] of a task at the places of their classes: [B, classes]."""
        classes = self._classes_of(task)
        last = max(c[-1] for c in [classes, *self._classes])
        width = max(last, int(self.mb_y.max())) + 1
        if classes == list(range(width)):
            return logits
        placed = logits.new_full((len(logits), width), ABSENT)
        placed[:, classes] = logits
        return placed

    def _classes_of(self, task: int) -> list[int]:
        """The classes of a task's outputs; before the first task, the first classes."""
        return self._classes[task] if self._classes else list(range(self.model.head.classes))


def _names(model: Model, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """The names of the parameters in every group of an optimizer."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names.get(id(p), "") for p in group["params"]] for group in optimizer.param_groups]
    missing = set(names.values()) - {name for group in groups for name in group}
    if any("" in group for group in groups) or missing:
        raise ConfigError(
            "optimizer: expected one over exactly the model's parameters, as "
            "AdamL1(clnp.parameter_groups(model, l1=1e-4)); build it after model.set_head()"
        )
    return groups


def _check_settings(
    validation: Any, task_labels: Any, rule: Any, pruning: Mapping[str, Any]
) -> None:
    """Raises ConfigError for a setting out of range."""
    number = isinstance(validation, (int, float)) and not isinstance(validation, bool)
    if not number or not 0 < validation < 1:
        raise ConfigError(f"validation={validation!r}: expected a fraction between 0 and 1")
    for name in ("score", "search", "granularity"):
        wanted, holds = CHECKS[name]
        if not holds(pruning[name]):
            raise ConfigError(f"{name}={pruning[name]!r}: expected {wanted}")
    check_margin(pruning["margin"], pruning["score"])
    if task_labels not in TASK_LABELS:
        raise ConfigError(f"task_labels={task_labels!r}: expected one of {list(TASK_LABELS)}")
    check_rule(rule)
