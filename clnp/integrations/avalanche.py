"""CLNP as a strategy of Avalanche (avalanche-lib 0.6, Lomonaco et al. 2021), for its benchmarks,
plugins and metrics; an experience is a task.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from clnp.certificate import Certificate
from clnp.data.items import Items
from clnp.data.scan import scan_items
from clnp.errors import ConfigError, DataError
from clnp.model import Model
from clnp.own_loop import begin_task, consolidate, prune

try:
    from avalanche.benchmarks import OnlineCLExperience
    from avalanche.core import BasePlugin
    from avalanche.training.plugins.evaluation import EvaluationPlugin, default_evaluator
    from avalanche.training.templates import SupervisedTemplate
except ImportError as error:
    raise ImportError(
        f'clnp.integrations.avalanche needs avalanche-lib: pip install "clnp[avalanche]" ({error})'
    ) from error

ABSENT = -1000.0  # logit of a class that the task does not have, as in Avalanche's own heads


class CLNP(SupervisedTemplate):
    """Continual Learning via Neural Pruning (Golkar et al. 2019) on Avalanche's benchmarks.

    Every training experience becomes a task: its free channels are trained by the template's loop
    with the given optimizer, pruned within the margin, and frozen. Evaluation runs the task's own
    network: by task label where every experience had its own, else by the experience's number. What
    has not been learned yet is answered by the network learned last.

    A multi-head network gets an output for each class of the experience; the logits of the other
    classes are -1000. A single head (`model.set_head("single")`, before the optimizer is built)
    needs an output for every class of the benchmark.

    Arguments:
        model: from `clnp.convert`.
        optimizer: any, over the model's parameters, `AdamL1(clnp.parameter_groups(model, l1))` for
            the paper's penalty. For every task it is pointed at the free parameters and its state
            is cleared; rates, groups and schedulers stay.
        margin: validation accuracy that pruning may cost, a fraction.
        validation: fraction of every experience's examples that is held out of training, to hold
            the margin on.
        search, granularity: of pruning, as of `clnp.Settings`.
        criterion, train_mb_size, train_epochs, eval_mb_size, device, plugins, evaluator,
            eval_every, peval_mode: as of Avalanche's templates.

    Attributes:
        certificate: `certificate.verify(model)` recomputes the logits of every learned experience
            and compares them bit by bit.

    Raises:
        ConfigError: `model` or `optimizer` is not that; a fraction out of range.
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
        search: str = "auto",
        granularity: int = 1,
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
        for name, value in (("margin", margin), ("validation", validation)):
            if not 0 <= value < 1 or (name == "validation" and value == 0):
                raise ConfigError(f"{name}={value!r}: expected a fraction between 0 and 1")
        self._groups = _names(model, optimizer)
        self._pruning: dict[str, Any] = {
            "margin": margin,
            "search": search,
            "granularity": granularity,
        }
        self._validation_share = validation
        self._held_out: Any = None
        self._validation: tuple[Tensor, Tensor] | None = None  # what is held out, in memory
        self._labels: list[int] = []  # task label of every experience begun
        self._numbers: dict[int, int] = {}  # experience's number -> task
        self._classes: list[list[int]] = []  # what the outputs of every task stand for
        self.certificate = Certificate()
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=nn.CrossEntropyLoss() if criterion is None else criterion,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=plugins,
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
        )

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
        generator = torch.Generator().manual_seed(self.experience.current_experience)
        order = torch.randperm(len(data), generator=generator)
        held_out = max(1, round(self._validation_share * len(data)))
        if held_out >= len(data):
            raise DataError(
                f"experience {self.experience.current_experience} has {len(data)} example(s): too "
                "few to hold some out for pruning"
            )
        self._held_out = data.subset(order[:held_out].sort().values.tolist()).eval()
        self.adapted_dataset = data.subset(order[held_out:].sort().values.tolist())

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Begins the task."""
        index = len(self.model.tasks)
        # What was begun and never learned has left its records.
        del self._labels[index:], self._classes[index:]
        number = self.experience.current_experience
        classes = sorted({int(y) for y in self.experience.dataset.targets})
        outputs = self.model.head.classes
        if self.model.head.kind == "single":
            if classes[-1] >= outputs:
                raise DataError(
                    f"class {classes[-1]} of experience {number} has no output: the single head "
                    f"has {outputs}; convert a network with more"
                )
            classes = list(range(outputs))
        self._check_items(classes)
        begin_task(self.model, len(classes))
        self._labels.append(int(self.experience.dataset.targets_task_labels[0]))
        self._numbers[number] = index
        self._classes.append(classes)
        self.make_optimizer()

    def _check_items(self, classes: Sequence[int]) -> None:
        """Reads every example of the experience once, before anything trains on it; those that are
        held out are kept, for pruning reads them many times.
        """
        places = {label: place for place, label in enumerate(classes)}
        where = f"experience {self.experience.current_experience}"
        train = Items(_Pairs(self.adapted_dataset, places), where)
        wanted = tuple(self.model.graph.nodes[0].attrs["shape"][1:])
        if train.sample[0] != wanted:
            raise DataError(
                f"{where}: examples have shape {list(train.sample[0])}, but the network was "
                f"converted for {list(wanted)}"
            )
        scan_items(train, 0, fixed=True)
        held_out = Items(_Pairs(self._held_out, places), f"{where}, held out", sample=train.sample)
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
        tasks = self._tasks_of_minibatch()
        logits: Tensor | None = None
        for task in sorted(set(tasks)):
            rows = torch.tensor([k == task for k in tasks], device=self.mb_x.device)
            part = self._placed(self._network_of(task)(self.mb_x[rows]), task)
            if logits is None:
                logits = part.new_empty(len(tasks), part.shape[1])
            logits[rows] = part
        assert logits is not None
        return logits

    def _after_training_exp(self, **kwargs: Any) -> None:
        """Prunes and freezes, before plugins evaluate."""
        index = len(self.model.tasks)
        places = {label: place for place, label in enumerate(self._classes[index])}
        validation = self._validation
        assert validation is not None
        train = _Pairs(self.adapted_dataset.eval(), places)
        prune(self.model, train, validation, **self._pruning)
        consolidate(self.model, name=f"experience {self.experience.current_experience}")
        self.certificate.record(self.model, validation[0])
        self.make_optimizer()
        super()._after_training_exp(**kwargs)

    # Which network answers, and for which classes

    def _tasks_of_minibatch(self) -> list[int]:
        """Index of the task of each example; the latest one where it is not known."""
        latest = max(len(self._labels) - 1, 0)
        if len(set(self._labels)) == len(self._labels):
            known = {label: task for task, label in enumerate(self._labels)}
            return [known.get(label, latest) for label in self.mb_task_id.tolist()]
        number = self.experience.current_experience
        return [self._numbers.get(number, latest)] * len(self.mb_x)

    def _network_of(self, task: int) -> Callable[[Tensor], Tensor]:
        """A learned task's network; the one in training for the task that is not learned yet."""
        return self.model.subnetwork(task) if task < len(self.model.tasks) else self.model

    def _placed(self, logits: Tensor, task: int) -> Tensor:
        """Logits [B, outputs] of a task at the places of their classes: [B, classes]."""
        classes = self._classes[task] if self._classes else list(range(logits.shape[1]))
        last = max(c[-1] for c in [classes, *self._classes])
        width = max(last, int(self.mb_y.max())) + 1
        if classes == list(range(width)):
            return logits
        placed = logits.new_full((len(logits), width), ABSENT)
        placed[:, classes] = logits
        return placed


class _Pairs(Dataset[tuple[Tensor, int]]):
    """The (x, y) of an Avalanche data set, y as the place of the class among the outputs."""

    def __init__(self, data: Any, places: Mapping[int, int]) -> None:
        self.data, self.places = data, places

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y, *_ = self.data[index]
        return x, self.places[int(y)]


def _names(model: Model, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """The names of the parameters in every group of an optimizer."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names.get(id(p), "") for p in group["params"]] for group in optimizer.param_groups]
    missing = set(names.values()) - {name for group in groups for name in group}
    if any("" in group for group in groups) or missing:
        raise ConfigError(
            "optimizer: expected one over exactly the model's parameters, as "
            "AdamL1(clnp.parameter_groups(model, l1=1e-4)); build it after model.set_head()"
        )
    return groups
