"""The life of a task for a training loop of one's own: `begin_task`, the loop, `prune`,
`consolidate` (Golkar et al. 2019, Algorithm 1).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from ..data.inputs import Split
from ..data.task import Task
from ..errors import CapacityWarning, ConfigError, TrainingError
from ..network.boundaries import LearnedTask
from ..network.conditions import fixed
from ..network.model import Model
from ..pruning.margin import check_margin
from ..pruning.search import Pruning, find_pruning
from ..pruning.sparsifiers import sparsifier as ranking
from ..training.fit import parameter_groups as unnamed_groups
from ..training.score import Validation, make
from .checks import check_model_task
from .grid import per_layer
from .own_splits import check_split, of_targets, unlabelled
from .settings import CHECKS


def begin_task(
    model: Model,
    classes: int | None = None,
    *,
    generator: torch.Generator | None = None,
    most_new: Mapping[str, int] | None = None,
) -> None:
    """Makes a network ready to be trained on one more task: `model.parameters()` are then what the
    task may change, so build the optimizer after this; gradients that were accumulated before are
    gone. The first task starts from the weights that the network was converted with.

    Arguments:
        model: from `clnp.convert`.
        classes, generator, most_new: as of `Model.begin_task`.

    Raises:
        CapacityError: single head and no free channel left in the final hidden group. With several
            heads only the new head can learn: a CapacityWarning.
        ConfigError: a task has begun already; an argument is out of range; `classes` does not fit
            the head; free weights are computed from other parameters.
    """
    _check_model(model).begin_task(classes, generator=generator, most_new=most_new)
    model.zero_grad(set_to_none=True)
    if model.is_full:
        _warn_full(model, "only the new head can be trained, on what earlier tasks learned")


def parameter_groups(model: Model, l1: Any) -> list[dict[str, Any]]:
    """The parameters of a network as groups for `AdamL1` or `SGDL1`: weights with their L1 penalty,
    biases and batch norms without one.

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
    score: Any = "accuracy",
    search: str = "auto",
    granularity: int = 1,
    sparsifier: str = "activity",
) -> Pruning:
    """Cuts the channels that the task in training can do without: those of the lowest mean activity
    on the training examples, as many as the margin allows (paper, Sec. 2.2).

    It replaces the parameters: for fine-tuning of what is left, build a new optimizer. It computes
    in evaluation mode and the network's own dtype, whatever the mode and the autocast around it.

    Arguments:
        model: trained, in a task.
        train: examples that the activity is measured on: (x [N, ...], y [N, ...]) or a data set of
            (x, y), which is read several times.
        validation: examples that are scored, likewise.
        margin: how much of the validation score may be lost; of an accuracy a fraction.
        score: "accuracy", "balanced accuracy", or a function (outputs [N, C], targets [N, ...]) ->
            number, higher is better, of the whole validation split, on the CPU. The targets y are
            class labels from 0 for the former, whatever the function understands for the latter: of
            a regression, for example, lambda outputs, y: -F.mse_loss(outputs, y).
        search, granularity: as of `clnp.Settings`.
        sparsifier: likewise; it only ranks the channels, how they are trained is the loop's.

    Returns:
        what was kept, the thresholds, and the validation score afterwards.

    Raises:
        ConfigError: no task has begun; a setting out of range; the score fails.
        DataError: the examples do not fit the network.
        TrainingError: a parameter is not finite.
    """
    _check_trained(model, "prune")
    make(score)
    given = {
        "search": search,
        "granularity": granularity,
        "sparsifier": sparsifier,
    }
    for name, value in given.items():
        wanted, holds = CHECKS[name]
        if not holds(value):
            raise ConfigError(f"{name}={value!r}: expected {wanted}")
    check_margin(margin, score)
    for name, split in (("train", train), ("validation", validation)):
        check_split(split, name)
    with torch.inference_mode(False), fixed(model.device):
        if callable(score):
            score = of_targets(score, validation)
            train, validation = unlabelled(train), unlabelled(validation)
        # Training is over: another reading to see whether the items change would not pay.
        classes = model.head.classes
        task = Task("in training", train, validation, validation, classes, fixed_items=False)
        task, _ = check_model_task(model, task)
        scored = Validation(task.validation, score, model.device)
        best = scored(model)
        if model.is_full:
            pruning = Pruning.nothing_kept(model, float(best))
        else:
            pruning = find_pruning(
                model,
                task.train,
                scored,
                scored.floor(best, margin),
                rank=ranking(sparsifier).scores,
                search=search,
                granularity=granularity,
            )
        pruning.apply(model)
    return pruning


def consolidate(model: Model, *, name: str | None = None) -> LearnedTask:
    """Ends a task: freezes the channels that `prune` left, for ever, and gives the others back as
    free capacity. `model(x, task=k)` is the task's network from now on.

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
            f"model: got {type(model).__name__}, expected the network that clnp.convert returned "
            "(not what wraps it: `.module` of DistributedDataParallel, `._orig_mod` of "
            "torch.compile)"
        )
    return model


def _check_trained(model: Model, what: str) -> None:
    """Raises unless the model is in a task and all that it is about to freeze are numbers."""
    if not _check_model(model).in_task:
        raise ConfigError(f"{what}() needs a task in training; call begin_task() first")
    tensors: list[tuple[str, torch.Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if not bool(torch.isfinite(tensor).all()):
            raise TrainingError(
                f"{what}(): {name} is not finite, so training has failed. What was learned before "
                "is untouched: model.cancel_task() drops this task; a lower lr usually helps"
            )


def _warn_full(model: Model, text: str) -> None:
    warnings.warn(
        f"no free channels are left in the final hidden layer {model.groups.last.name!r}: {text}. "
        "model.expand() adds channels",
        CapacityWarning,
        stacklevel=3,
    )
