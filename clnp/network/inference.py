"""Guessing the task of an example from the logits of all tasks, and how often that is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..errors import ConfigError

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
