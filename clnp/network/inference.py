"""Inference of an example's task from the logits of all tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from ..errors import ConfigError

# rule -> measure -> its value on each learned task's test split [T]
Inferred: TypeAlias = "dict[str, dict[str, list[float]]]"


class Prediction(NamedTuple):
    """Inferred tasks and classes of examples.

    Attributes:
        task: [B] int64, index of the task; -1 for a refused example.
        label: [B] int64, class within the task; -1 for a refused example.
        names: names of the classes; None for a task without class names and a refused example.
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
        own = class_names[k] if k >= 0 else None
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
CALIBRATED = "calibrated"  # name of a fitted rule in reports
# Shares of examples whose task is right; whose task and class are right (class-incremental
# accuracy); whose class is right, whatever the task (domain-incremental accuracy). Van de Ven,
# Tuytelaars & Tolias 2022, "Three types of incremental learning".
MEASURES = ("task", "class_incremental", "domain_incremental")


def check_rule(rule: Any) -> None:
    """Raise ConfigError for an unknown rule."""
    if rule not in RULES if isinstance(rule, str) else not hasattr(rule, "confidences"):
        raise ConfigError(
            f"rule: expected one of {sorted(RULES)}, or what clnp.calibrated returns, got {rule!r}"
        )


class Rule(Protocol):
    """A rule that was fitted, such as `clnp.network.calibration.Calibration`."""

    @property
    def tasks(self) -> Sequence[int]:
        """Indices of the tasks it knows."""

    def confidences(self, logits: Sequence[Tensor]) -> Tensor:
        """Confidence [B, T] in every known task, from the logits [B, C] of every task."""


def choose(logits: Sequence[Tensor], rule: str | Rule) -> tuple[Tensor, Tensor]:
    """Choose the most confident task for each example, and its class there.

    Arguments:
        logits: [B, C] of every task; [B, 0] of a forgotten one, which is never chosen.
        rule: "entropy" chooses the task whose class probabilities have the smallest entropy,
            divided by its maximum log C so that tasks with few classes have no advantage. "energy"
            chooses the largest log-sum-exp of the logits (Liu et al. 2020, "Energy-based
            out-of-distribution detection"). Or a fitted rule.

    Returns:
        the task [B] and the class within it [B], int64.

    Raises:
        ConfigError: an unknown rule, or one fitted for other tasks.
    """
    check_rule(rule)
    present = [k for k, part in enumerate(logits) if part.shape[-1]]
    parts = [logits[k] for k in present]
    if isinstance(rule, str):
        found = torch.stack([RULES[rule](part.float()) for part in parts]).argmax(dim=0)
    else:
        if list(rule.tasks) != present:
            raise ConfigError(
                f"rule: expected one for tasks {present}, got one for {list(rule.tasks)}; "
                "calibrate again after every task"
            )
        found = rule.confidences(logits).argmax(dim=1)
    classes = torch.stack([part.argmax(dim=-1) for part in parts]).gather(0, found[None])[0]
    return torch.tensor(present, device=found.device)[found], classes
