"""Guessing the task of an example from the logits of all tasks, and how often that is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..data.batches import batches, count, evaluation_batch
from ..data.task import Split
from ..errors import ConfigError
from ..parallel.ranks import current

# rule -> measure -> its value on each learned task's test split [T]
Inferred: TypeAlias = "dict[str, dict[str, list[float]]]"


class Prediction(NamedTuple):
    """Tasks and classes that a learner infers for examples.

    Attributes:
        task: [B] int64, the task's index.
        label: [B] int64, the class within the task.
        names: of the classes; None where a task was learned without class names.
    """

    task: Tensor
    label: Tensor
    names: list[str | None]


def predicted(
    task: Tensor, label: Tensor, class_names: Sequence[Sequence[str] | None]
) -> Prediction:
    """Tasks [B] and classes [B] with the names that they have.

    Arguments:
        class_names: per task, in the order of the classes, or None.
    """
    names = []
    for k, c in zip(task.tolist(), label.tolist(), strict=True):
        told = class_names[k]
        names.append(told[c] if told is not None and c < len(told) else None)
    return Prediction(task, label, names)


def _certainty(logits: Tensor) -> Tensor:
    """Minus the entropy of the classes, as a share of its maximum; 0 for a single class."""
    logs = logits.log_softmax(-1)
    return (logs.exp() * logs).sum(-1) / max(math.log(logits.shape[-1]), 1e-12)


# rule of `choose` -> score of a task's logits [B, C], larger for surer: [B]
RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "entropy": _certainty,
    "energy": lambda logits: logits.logsumexp(-1),
}
# What is right: the task; the task and the class within it; the class, whichever the task. The
# latter two are the class-incremental and the domain-incremental accuracy of van de Ven, Tuytelaars
# & Tolias 2022, "Three types of incremental learning"; the task-incremental one knows the task.
MEASURES = ("task", "class_incremental", "domain_incremental")


def check_rule(rule: str) -> None:
    """Raises ConfigError for an unknown rule."""
    if rule not in RULES:
        raise ConfigError(f"rule={rule!r}: expected one of {sorted(RULES)}")


def choose(logits: Sequence[Tensor], rule: str) -> tuple[Tensor, Tensor]:
    """The task that is surest of an example, and its class there.

    Arguments:
        logits: of every task, [B, C] each.
        rule: "entropy" takes the task whose class probabilities have the least entropy (per class,
            log C, so that tasks with fewer classes are not preferred), "energy" the one with the
            largest log-sum-exp of its logits (Liu et al. 2020, "Energy-based out-of-distribution
            detection").

    Returns:
        the task [B] and the class within it [B], int64.

    Raises:
        ConfigError: an unknown rule.
    """
    check_rule(rule)
    task = torch.stack([RULES[rule](part.float()) for part in logits]).argmax(dim=0)
    classes = torch.stack([part.argmax(dim=-1) for part in logits])
    return task, classes.gather(0, task[None])[0]


def inferred_accuracies(
    model: Any, tests: Sequence[Split | None], device: torch.device
) -> Inferred:
    """How often the learned tasks' test examples are classified correctly without being told the
    task, by every rule.

    Arguments:
        model: a `clnp.Model` that has learned as many tasks as there are `tests`.
        tests: the test split of every task, None where it is not at hand.
        device: where the model is.

    Returns:
        {rule: {"task": the task is right, "class_incremental": the task and the class within it,
        "domain_incremental": the class, whichever the task}}, fractions of each task's split [T].
        NaN where a split is None; "domain_incremental" is NaN too where tasks differ in their
        number of classes, and means something only where a class means the same in every task.
    """
    shared = len({task.classes for task in model.tasks}) == 1
    columns = [_of_split(model, k, split, device, shared) for k, split in enumerate(tests)]
    return {
        rule: {measure: [column[rule][measure] for column in columns] for measure in MEASURES}
        for rule in RULES
    }


@torch.no_grad()
def _of_split(
    model: Any, task: int, split: Split | None, device: torch.device, shared: bool
) -> dict[str, dict[str, float]]:
    """{rule: {measure: fraction}} of one split; ranks that share their work take a piece each."""
    if split is None:
        return {rule: dict.fromkeys(MEASURES, math.nan) for rule in RULES}
    ranks = current()
    right = torch.zeros(len(RULES), len(MEASURES), dtype=torch.int64, device=device)
    for x, y in batches(split, evaluation_batch(split), device, ranks=ranks):
        logits = model.all_tasks(x)
        for counts, rule in zip(right, RULES, strict=True):
            found, label = choose(logits, rule)
            same_task, same_label = found == task, label == y
            hits = (same_task, same_task & same_label, same_label)
            counts += torch.stack([hit.sum() for hit in hits])
    fractions = ranks.sum(right).double() / count(split)
    if not shared:
        fractions[:, MEASURES.index("domain_incremental")] = math.nan
    return {
        rule: dict(zip(MEASURES, row.tolist(), strict=True))
        for rule, row in zip(RULES, fractions, strict=True)
    }
