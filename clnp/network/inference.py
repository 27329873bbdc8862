"""Inference of an example's task from the logits of all tasks."""

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
    """Inferred tasks and classes of examples.

    Attributes:
        task: [B] int64, index of the task.
        label: [B] int64, class within the task.
        names: names of the classes; None for a task without class names.
    """

    task: Tensor
    label: Tensor
    names: list[str | None]


def predicted(
    task: Tensor, label: Tensor, class_names: Sequence[Sequence[str] | None]
) -> Prediction:
    """Add the names of the classes to a prediction.

    Arguments:
        task: [B] int64, index of the task.
        label: [B] int64, class within the task.
        class_names: names per task, in the order of the classes, or None.
    """
    names = []
    for k, c in zip(task.tolist(), label.tolist(), strict=True):
        own = class_names[k]
        names.append(own[c] if own is not None and c < len(own) else None)
    return Prediction(task, label, names)


def _certainty(logits: Tensor) -> Tensor:
    """Return minus the entropy of the classes, divided by its maximum; 0 for a single class."""
    logs = logits.log_softmax(-1)
    return (logs.exp() * logs).sum(-1) / max(math.log(logits.shape[-1]), 1e-12)


# rule of `choose` -> confidence [B] of a task's logits [B, C]
RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "entropy": _certainty,
    "energy": lambda logits: logits.logsumexp(-1),
}
# Shares of examples whose task is right; whose task and class are right (class-incremental
# accuracy); whose class is right, whatever the task (domain-incremental accuracy). Van de Ven,
# Tuytelaars & Tolias 2022, "Three types of incremental learning".
MEASURES = ("task", "class_incremental", "domain_incremental")


def check_rule(rule: str) -> None:
    """Raise ConfigError for an unknown rule."""
    if rule not in RULES:
        raise ConfigError(f"rule: expected one of {sorted(RULES)}, got {rule!r}")


def choose(logits: Sequence[Tensor], rule: str) -> tuple[Tensor, Tensor]:
    """Choose the most confident task for each example, and its class there.

    Arguments:
        logits: [B, C] of every task.
        rule: "entropy" chooses the task whose class probabilities have the smallest entropy,
            divided by its maximum log C so that tasks with few classes have no advantage. "energy"
            chooses the largest log-sum-exp of the logits (Liu et al. 2020, "Energy-based
            out-of-distribution detection").

    Returns:
        the task [B] and the class within it [B], int64.

    Raises:
        ConfigError: an unknown rule.
    """
    check_rule(rule)
    task = torch.stack([RULES[rule](part.float()) for part in logits]).argmax(dim=0)
    classes = torch.stack([part.argmax(dim=-1) for part in logits])
    return task, classes.gather(0, task[None])[0]
