"""Custom training loops: `begin_task`, the loop, `prune`, `consolidate` (Golkar et al. 2019,
Algorithm 1).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch

from ..data.inputs import Split
from ..data.task import Task
from ..errors import CapacityWarning, ConfigError, TrainingError
from ..network.boundaries import LearnedTask
from ..network.conditions import fixed
from ..network.model import Model
from ..objectives.metrics import MetricFunction
from ..objectives.objective import default_loss, metric_of, objective_of
from ..objectives.shapes import CLASSES
from ..pruning.margin import check_margin
from ..pruning.search import Pruning, find_pruning
from ..pruning.sparsifiers import sparsifier as ranking
from ..ranges import choice
from ..training.fit import parameter_groups as unnamed_groups
from ..training.validation import Validation
from .budget import AUTO, budgets, check_expected, granularity_on
from .checks import check_model_task
from .grid import per_layer
from .own_splits import check_split, of_targets, unlabelled
from .settings import check_some


def begin_task(
    model: Model,
    classes: int | None = None,
    *,
    generator: torch.Generator | None = None,
    most_new: Literal["auto"] | Mapping[str, int] | None = AUTO,
    tasks_expected: int | None = None,
) -> None:
    """Prepare a network for one more task. Afterwards `model.parameters()` are the parameters that
    the task may change: build the optimizer now. Accumulated gradients are dropped. The first task
    starts from the weights that the network was converted with.

    Arguments:
        model: from `clnp.convert`.
        classes, generator: as in `Model.begin_task`.
        most_new: group -> number of its free channels that the task trains; "auto" leaves room for
            later tasks, as `growth` of `clnp.Settings` does; None trains all.
        tasks_expected: as in `clnp.Settings`.

    Raises:
        CapacityError: single head and no free channel left in the final hidden group. With several
            heads only the new head can learn: a CapacityWarning.
        ConfigError: a task has begun already; an argument is out of range; `classes` does not fit
            the head; free weights are computed from other parameters.
    """
    _check_model(model)
    check_expected(tasks_expected)
    if isinstance(most_new, str):
        choice((AUTO,)).check("most_new", most_new)
        most_new = budgets(model, AUTO, tasks_expected)
    model.begin_task(classes, generator=generator, most_new=most_new)
    model.zero_grad(set_to_none=True)
    if model.is_full:
        _warn_full(model, "only the new head can be trained, on what earlier tasks learned")


def parameter_groups(model: Model, l1: Any) -> list[dict[str, Any]]:
    """Group the parameters of a network for `AdamL1` or `SGDL1`: weights with their L1 penalty,
    biases and batch norms without.

    Arguments:
        model: in a task.
        l1: alpha of the penalty alpha * sum |w| (paper, Sec. 2.2): one number, one per layer (the
            head last), or {layer: alpha}.

    Returns:
        a group {"params": [(name, parameter)], "l1": alpha} for every layer, one for the rest.

    Raises:
        ConfigError: `l1` does not fit the layers.
    """
    alphas = per_layer(l1, _check_model(model).layer_names)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        {**group, "params": [(names[id(p)], p) for p in group["params"]]}
        for group in unnamed_groups(model, alphas)
    ]


def prune(
    model: Model,
    train: Split,
    validation: Split,
    *,
    margin: float = 0.0005,
    metric: Any = None,
    loss: Any = None,
    search: str = "auto",
    granularity: int | None = None,
    sparsifier: str = "contribution",
) -> Pruning:
    """Remove the channels that contribute least on the training examples, as many as the margin
    allows (paper, Sec. 2.2, which ranks by mean activity).

    The parameters are replaced: build a new optimizer before fine-tuning. The computation is in
    evaluation mode and in the network's own dtype, whatever mode and autocast surround it.

    Arguments:
        model: trained, in a task.
        train: split that channels are ranked on: (x [N, ...], y [N, ...]) or a Dataset of (x, y),
            which is read several times.
        validation: split that is measured, in the same form.
        margin: validation metric that may be lost, in its units; of an accuracy a fraction.
        metric: name or object of `clnp.objectives`, for example "R2" for a regression, or a
            function (outputs [N, ...], targets [N, ...]) -> number, higher is better, called with
            the whole validation split on the CPU; its targets may be anything that makes a tensor.
            None is that of the loss.
        loss: says what the targets of a metric of `clnp.objectives` are, as in `clnp.data.Task`,
            for example "cross_entropy" for a class per pixel; it is not computed. None: class
            labels [N], or what the metric takes.
        search, granularity: as in `clnp.Settings`.
        sparsifier: as in `clnp.Settings`; it ranks the channels only.

    Returns:
        the kept channels, the thresholds, and the validation metric afterwards.

    Raises:
        ConfigError: no task has begun; a setting out of range; the metric fails.
        DataError: the examples do not fit the network.
        TrainingError: a parameter is not finite.
    """
    _check_trained(model, "prune")
    check_some(search=search, granularity=granularity, sparsifier=sparsifier)
    found = objective_of(loss, metric).metric if metric is None else metric_of(metric)
    check_margin(margin, found)
    for name, split in (("train", train), ("validation", validation)):
        check_split(split, name)
    with torch.inference_mode(False), fixed(model.device):
        if isinstance(found, MetricFunction):
            found = dataclasses.replace(found, function=of_targets(found.function, validation))
            train, validation, loss = unlabelled(train), unlabelled(validation), None
        elif loss is None and CLASSES not in found.targets:
            loss = default_loss(found)
        objective = objective_of(loss, found)
        # Training is over, so there is no need to find out whether the items change.
        outputs: dict[str, Any] = {"outputs": model.head.classes}
        if objective.targets == CLASSES:
            outputs = {"classes": model.head.classes}
        more = {"fixed_items": False, "loss": loss, **outputs}
        task = Task("in training", train, validation, validation, **more)
        task, _ = check_model_task(model, task)
        measured = Validation(task.validation, objective, model.device)
        best = measured(model)
        if model.is_full:
            pruning = Pruning.nothing_kept(model, measured.shown(best))
        else:
            pruning = find_pruning(
                model,
                task.train,
                measured,
                measured.floor(best, margin),
                rank=ranking(sparsifier).scores,
                search=search,
                granularity=granularity_on(model.device, granularity),
            )
        pruning.apply(model)
    return pruning


def consolidate(model: Model, *, name: str | None = None) -> LearnedTask:
    """End a task: freeze the channels that `prune` left, and return the others as free capacity.
    From now on `model(x, task=k)` is the task's network.

    Arguments:
        model: in a task.
        name: the task's name; default "task k".

    Raises:
        ConfigError: no task has begun.
        TrainingError: a parameter is not finite; `model.cancel_task()` drops the task.
    """
    _check_trained(model, "consolidate")
    was_full = model.is_full
    record = model.consolidate(name=name)
    if model.is_full and not was_full:
        _warn_full(model, "prune() before consolidate() gives channels back to later tasks")
    return record


def _check_model(model: Model) -> Model:
    if not isinstance(model, Model):
        raise ConfigError(
            f"model: expected the network that clnp.convert returned, got {type(model).__name__}; "
            "unwrap it: `.module` of DistributedDataParallel, `._orig_mod` of torch.compile"
        )
    return model


def _check_trained(model: Model, what: str) -> None:
    """Raise unless the model is in a task and all its tensors are finite."""
    if not _check_model(model).in_task:
        raise ConfigError(
            f"{what}(): expected a task in training, got none; call begin_task() first"
        )
    tensors: list[tuple[str, torch.Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if not bool(torch.isfinite(tensor).all()):
            raise TrainingError(
                f"{what}(): expected finite parameters, got NaN or Inf in {name}; "
                "model.cancel_task() drops this task and keeps the earlier ones; a lower lr often "
                "helps"
            )


def _warn_full(model: Model, text: str) -> None:
    warnings.warn(
        f"no free channels are left in the final hidden layer {model.groups.last.name!r}: {text}. "
        "model.expand() adds channels",
        CapacityWarning,
        stacklevel=3,
    )
