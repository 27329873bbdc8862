"""Warnings of what a margin can't see: classes that are smaller than it, the noise of the
validation split, and networks that learned nothing.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch import Tensor

from ..data.inputs import Split
from ..errors import ChanceWarning, ConfigError, MarginWarning
from ..objectives.metrics import PERCENT, Accuracy, Metric, Value
from ..objectives.shapes import CLASSES
from ..objectives.shown import Shown
from ..training.validation import Validation, known_classes

MOST = 0.5  # of a class
NOISE = 0.02  # two points, or that share of the way from chance to perfection
RIGHT = 0.9


def check_margin(margin: Any, metric: Metric | None = None) -> None:
    """Raises ConfigError for a margin that is no number >= 0, or 1 and more of a fraction (that of
    no metric yet, None, may be any).
    """
    number = isinstance(margin, (int, float)) and not isinstance(margin, bool)
    number = number and 0 <= margin < math.inf
    if metric is not None and metric.unit == PERCENT:
        if not (number and margin < 1):
            raise ConfigError(
                f"margin: expected a fraction in [0, 1) of {metric.name}, got {margin!r}"
            )
    elif not number:
        raise ConfigError(f"margin: expected a number >= 0 in units of the metric, got {margin!r}")


def warn_of_classes(
    task: str, train: Split, validation: Validation, margin: float, stacklevel: int
) -> None:
    """Warns of a class that pruning may lose though the margin holds.

    That is a class without examples in the validation split, and one of which the margin is more
    than half: losing most of it, up to all that were right of it, then costs no more than the
    margin. (Three of a hundred examples and a margin of 2 % are such a case: a network that was
    right on two of the three may answer the other class throughout.)

    Arguments:
        task: its name.
        train: whose classes have to occur; not read where it does not tell its labels.
        validation: what the margin is held on.
        margin: in units of the metric.
        stacklevel: as for `warnings.warn`, from here.
    """
    if validation.objective.targets != CLASSES:
        return
    sizes = validation.class_sizes
    missing = sorted(known_classes(train, validation.objective) - _present(sizes))
    if missing:
        _warn(
            f"task {task!r}: classes {missing} occur in training but not in validation, so no "
            "margin keeps pruning from losing them. Put examples of every class into the "
            "validation split",
            stacklevel,
        )
    present = sizes.nonzero().flatten()
    weights = validation.metric.shares(sizes[present])
    if weights is None or len(present) < 2:
        return
    smallest = int(weights.argmin())
    lost = margin / float(weights[smallest])
    if lost > MOST:
        label, way_out = int(present[smallest]), ", or metric='balanced accuracy'"
        _warn(
            f"task {task!r}: margin={margin:g} lets pruning lose {min(lost, 1):.0%} of class "
            f"{label}, which has {int(sizes[label])} of {validation.labels} validation examples. "
            "Take a smaller margin" + (way_out if isinstance(validation.metric, Accuracy) else ""),
            stacklevel,
        )


def warn_of_noise(task: str, validation: Validation, margin: float, stacklevel: int) -> bool:
    """Warns where the validation split is too small to hold the margin on; returns whether it did.

    A search compares many networks and takes the smallest that the split lets through, so it finds
    those that the split flatters: on other examples they lose between half and all of a standard
    error of the metric more than the margin. Where the split is large that is little, though the
    margin be smaller still (the paper's 0.05 % of 10,000 examples is a fraction of a standard
    error, and that a fraction of a point). So the warning is for a standard error above two points
    and above the margin: of accuracy, for fewer than 225 examples. It comes before the task is
    trained, so the standard error is that of a network that is right nine times out of ten. Of
    numbers it is one nine tenths of the way from chance to perfection, and two points are two
    hundredths of that way.

    Arguments:
        task: its name.
        validation: what the margin is held on.
        margin: in units of the metric.
        stacklevel: as for `warnings.warn`, from here.
    """
    noise, spread = validation.noise(RIGHT), validation.spread
    if noise is None or spread is None or noise <= max(NOISE * spread, margin):
        return False
    shown = f"{noise:.2f}" if validation.metric.unit == PERCENT else f"{noise:.2g}"
    _warn(
        f"task {task!r}: margin={margin:g} is finer than {validation.total} validation examples "
        f"can tell. The standard error of their {validation.metric.name} is about {shown}, and "
        "pruning may cost as much on other examples. Put more examples into the validation split, "
        "or compare the test metric before and after",
        stacklevel,
    )
    return True


def warn_of_chance(task: str, validation: Validation, best: Value, stacklevel: int) -> None:
    """Warn of a task that is learned no better than by giving every example the same answer.

    Arguments:
        task: its name.
        validation: the split that was scored.
        best: the metric of the best trained network, before pruning; higher is better.
        stacklevel: as for `warnings.warn`, from here.
    """
    chance, sizes = validation.chance, validation.class_sizes
    if chance is None or (sizes.numel() and int((sizes > 0).sum()) < 2):
        return
    percent = validation.metric.unit == PERCENT
    noise = validation.noise(chance if percent else 0.0)
    if noise is None or best > validation.objective.oriented(chance) + noise:
        return
    shown = Shown.of(validation.metric)
    warnings.warn(
        f"task {task!r}: {shown.name} {shown.text(validation.shown(best), 1)} on the validation "
        f"split is no better than chance ({shown.text(chance, 1)}). Check its targets, train "
        "longer or with another lr, or give it more channels (growth)",
        ChanceWarning,
        stacklevel=stacklevel + 1,
    )


def _present(sizes: Tensor) -> set[int]:
    return set(sizes.nonzero().flatten().tolist())


def _warn(text: str, stacklevel: int) -> None:
    warnings.warn(text, MarginWarning, stacklevel=stacklevel + 2)
