"""Warnings of what a margin can't see: classes that are smaller than it, the noise of the
validation split, and networks that learned nothing.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch import Tensor

from ..data.inputs import Split
from ..data.task import known_labels
from ..errors import ChanceWarning, ConfigError, MarginWarning
from ..training.score import Validation, Value

MOST = 0.5  # of a class
NOISE = 0.02  # two points
RIGHT = 0.9


def check_margin(margin: Any, score: Any) -> None:
    """Raises ConfigError for a margin that is no number >= 0, or 1 and more of an accuracy."""
    number = isinstance(margin, (int, float)) and not isinstance(margin, bool)
    if callable(score):
        if not (number and 0 <= margin < math.inf):
            raise ConfigError(
                f"margin: expected a number >= 0 in units of the score, got {margin!r}"
            )
    elif not (number and 0 <= margin < 1):
        raise ConfigError(f"margin: expected a fraction in [0, 1), got {margin!r}")


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
        margin: in units of the score.
        stacklevel: as for `warnings.warn`, from here.
    """
    sizes = validation.class_sizes
    labels = known_labels(train)
    missing = [] if labels is None else sorted(set(labels.unique().tolist()) - _present(sizes))
    if missing:
        _warn(
            f"task {task!r}: classes {missing} occur in training but not in validation, so no "
            "margin keeps pruning from losing them. Put examples of every class into the "
            "validation split",
            stacklevel,
        )
    present = sizes.nonzero().flatten()
    weights = validation.score.weights(sizes[present])
    if weights is None or len(present) < 2:
        return
    smallest = int(weights.argmin())
    lost = margin / float(weights[smallest])
    if lost > MOST:
        label = int(present[smallest])
        _warn(
            f"task {task!r}: margin={margin:g} lets pruning lose {min(lost, 1):.0%} of class "
            f"{label}, which has {int(sizes[label])} of {validation.total} validation examples. "
            "Take a smaller margin"
            + ("" if validation.score.name != "accuracy" else ", or score='balanced accuracy'"),
            stacklevel,
        )


def warn_of_noise(task: str, validation: Validation, margin: float, stacklevel: int) -> bool:
    """Warns where the validation split is too small to hold the margin on; returns whether it did.

    A search compares many networks and takes the smallest that the split lets through, so it finds
    those that the split flatters: on other examples they lose between half and all of a standard
    error of the score more than the margin. Where the split is large that is little, though the
    margin be smaller still (the paper's 0.05 % of 10,000 examples is a fraction of a standard
    error, and that a fraction of a point). So the warning is for a standard error above two points
    and above the margin: of accuracy, for fewer than 225 examples. It comes before the task is
    trained, so the standard error is that of a network that is right nine times out of ten.

    Arguments:
        task: its name.
        validation: what the margin is held on.
        margin: in units of the score.
        stacklevel: as for `warnings.warn`, from here.
    """
    sizes = validation.class_sizes
    noise = validation.score.noise(sizes[sizes > 0], RIGHT)
    if noise is None or noise <= max(NOISE, margin):
        return False
    _warn(
        f"task {task!r}: margin={margin:g} is finer than {validation.total} validation examples "
        f"can tell. The standard error of their {validation.score.name} is about {noise:.2f}, and "
        "pruning may cost as much on other examples. Put more examples into the validation split, "
        "or compare the test accuracy before and after",
        stacklevel,
    )
    return True


def warn_of_chance(task: str, validation: Validation, best: Value, stacklevel: int) -> None:
    """Warn of a task that is learned no better than by giving every example the same answer.

    Arguments:
        task: its name.
        validation: the split that was scored.
        best: the score of the best trained network, before pruning.
        stacklevel: as for `warnings.warn`, from here.
    """
    sizes = validation.class_sizes
    sizes = sizes[sizes > 0]
    chance = validation.score.chance(sizes)
    noise = validation.score.noise(sizes, 0.0 if chance is None else chance)
    if chance is None or noise is None or len(sizes) < 2 or best > chance + noise:
        return
    warnings.warn(
        f"task {task!r}: {validation.score.name} {float(best):.1%} on the validation split is no "
        f"better than chance ({chance:.1%}). Check its labels, train longer or with another lr, or "
        "give it more channels (growth)",
        ChanceWarning,
        stacklevel=stacklevel + 1,
    )


def _present(sizes: Tensor) -> set[int]:
    return set(sizes.nonzero().flatten().tolist())


def _warn(text: str, stacklevel: int) -> None:
    warnings.warn(text, MarginWarning, stacklevel=stacklevel + 2)
