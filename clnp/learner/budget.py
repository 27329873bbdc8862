"""Budgets: the most channels that a task may train, so that the tasks to come find room."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

import torch

from ..data.names import counted
from ..errors import CapacityWarning
from ..network.boundaries import Boundaries
from ..ranges import by_name, optional, whole

AUTO: Final = "auto"
GROWTH = "auto, None, an integer >= 1, one per group, or {group: integer}"
TASKS = optional(whole(1))
GRANULARITY = TASKS
SHARE = Fraction(1, 3)  # of the free channels, where the number of tasks is unknown
MOST_OF_FIRST = Fraction(1, 2)  # of all channels, where more tasks follow
NEARLY_FULL = 0.9


def share(learned: int, tasks_expected: int | None) -> Fraction:
    """Fraction of the free channels that the next task may train.

    The first of N tasks gets two parts of N + 1, because it finds nothing to reuse, but at most
    half; each later one gets its part of what is free, and the last one everything.

    Arguments:
        learned: number of tasks behind the network.
        tasks_expected: N; None takes a third of what is free for every task.
    """
    if tasks_expected is None:
        return SHARE
    left = tasks_expected - learned
    if left <= 1:
        return Fraction(1)
    return Fraction(1, left) if learned else min(Fraction(2, left + 1), MOST_OF_FIRST)


def limits(growth: Any, groups: Sequence[str], name: str) -> dict[str, int]:
    """Group -> most new channels, of a setting of numbers; groups without a limit are left out.

    Arguments:
        growth: None, an integer >= 1, one per group, or {group: integer}.
        groups: names of the prunable groups, in execution order.
        name: of the setting, in errors.

    Raises:
        ConfigError: another number of limits than groups, an unknown group, or a limit that is no
            whole number >= 1.
    """
    if growth is None:
        return {}
    found = by_name(growth, groups, name)
    for group, most in found.items():
        whole(1).check(f"{name} of {group!r}", most)
    return found


def granularity_on(device: torch.device, granularity: int | None) -> int:
    """The number whose multiples boundaries are kept at; None is 8 on a GPU and 1 elsewhere."""
    return (8 if device.type == "cuda" else 1) if granularity is None else granularity


def budgets(
    model: Boundaries,
    growth: Any = AUTO,
    tasks_expected: int | None = None,
    *,
    granularity: int = 1,
    name: str = "growth",
) -> dict[str, int]:
    """Group -> the most channels that the next task of a network may train, for
    `Model.begin_task(most_new=...)`; groups without a limit are left out.

    Arguments:
        model: between tasks.
        growth: "auto" divides the free channels by `share`; numbers are as in `limits`.
        tasks_expected: number of tasks that the network is to learn, those behind it included.
        granularity: "auto" rounds down to a multiple of this, but not to 0.
        name: of the setting, in errors.

    Raises:
        ConfigError: `growth` does not fit the network, or a setting is out of range.
    """
    check_expected(tasks_expected)
    prunable = model.groups.prunable
    if growth != AUTO:
        return limits(growth, [group.name for group in prunable], name)
    part = share(len(model.present), tasks_expected)
    if part == 1:
        return {}
    free = {group.name: model.free(group) for group in prunable}
    return {
        group: max(1, min(n, granularity * max(1, int(part * n) // granularity)))
        for group, n in free.items()
    }


def check_expected(tasks_expected: Any) -> None:
    """Raise ConfigError unless this is None or a whole number >= 1."""
    TASKS.check("tasks_expected", tasks_expected)


def warn_of_capacity(
    capacity: Mapping[str, Mapping[str, int]], warned: set[str], stacklevel: int
) -> None:
    """Warn of groups of channels that are nearly full, once each, and once more when full.

    Arguments:
        capacity: group -> {"size", "used", ...}, of `TaskReport.capacity`.
        warned: names of the warnings that were given; those of this call are added.
        stacklevel: as for `warnings.warn`, from here.
    """
    for word, least in (("full", 1.0), ("nearly full", NEARLY_FULL)):
        groups = [g for g, row in capacity.items() if row["used"] >= least * row["size"]]
        new = [g for g in groups if not {f"full {g}", f"{word} {g}"} & warned]
        warned.update(f"{word} {g}" for g in groups)
        if new:
            shown = ", ".join(f"{g!r} {capacity[g]['used']} of {capacity[g]['size']}" for g in new)
            warnings.warn(
                f"{counted(len(new), 'group')} of channels {word}: {shown} used. Later tasks learn "
                "little or nothing new there; set tasks_expected or growth for the next network, "
                "or add channels with learner.expand()",
                CapacityWarning,
                stacklevel=stacklevel + 1,
            )
