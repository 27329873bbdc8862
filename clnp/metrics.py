"""Metrics of a continual-learning run, computed from the tasks' metrics and channel counts.

R [T, T] holds the test metrics of T tasks: R[i, j] is the metric of task j (accuracy, unless it
names another) after task i was learned. Above the diagonal, NaN marks numbers that were not
measured. Every function accepts anything that numpy converts to such a matrix. `sign` is -1 for a
metric that is lower where it is better, so that positive BWT and negative forgetting are gains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import DataError

Matrix: TypeAlias = "npt.NDArray[np.float64]"
# Channel counts of one task: {group: {"size", "used", "new", "reused", "free"}}.
Capacity: TypeAlias = Mapping[str, Mapping[str, int]]


def accuracy_matrix(R: npt.ArrayLike, *, fractions: bool = True) -> Matrix:
    """Check R and return it as a float64 matrix [T, T].

    Arguments:
        R: the matrix.
        fractions: its numbers are accuracies; False for any other metric.

    Raises:
        DataError: not square, empty, NaN on or below the diagonal, or, of fractions, a number
            outside [0, 1].
    """
    try:
        matrix = np.asarray(R, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"R: expected a matrix of numbers ({error})") from error
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise DataError(f"R: expected shape [T, T] with T >= 1, got {list(matrix.shape)}")
    learned = matrix[np.tril_indices(len(matrix))]
    known = matrix[~np.isnan(matrix)]
    if (fractions and ((known < 0).any() or (known > 1).any())) or np.isnan(learned).any():
        raise DataError(
            "R: expected accuracies in [0, 1] on and below the diagonal, and NaN only above it"
        )
    return matrix


def average_accuracy(R: npt.ArrayLike, tasks: Sequence[int] | None = None) -> float:
    """ACC = mean_j R[T, j], over all tasks (or some) after the last one (Lopez-Paz & Ranzato 2017,
    Eq. 2).
    """
    last = accuracy_matrix(R, fractions=False)[-1]
    return float(last[_chosen(len(last), tasks)].mean())


def backward_transfer(R: npt.ArrayLike, sign: int = 1, tasks: Sequence[int] | None = None) -> float:
    """BWT = mean_{j<T} (R[T, j] - R[j, j]) (Lopez-Paz & Ranzato 2017, Eq. 3); NaN for one task.

    Exactly zero when no number of an earlier task changed.
    """
    matrix = accuracy_matrix(R, fractions=False)
    changes = sign * (matrix[-1, :-1] - matrix.diagonal()[:-1])
    changes = changes[_chosen(len(changes), tasks)]
    return float(changes.mean()) if len(changes) else math.nan


def forgetting(R: npt.ArrayLike, sign: int = 1) -> Matrix:
    """f_j = max_{j<=l<T} R[l, j] - R[T, j] for j < T, [T - 1] (Chaudhry et al. 2018, Eq. 3).

    Numbers of a task before it was learned don't enter the maximum.
    """
    matrix = sign * accuracy_matrix(R, fractions=False)
    last = len(matrix) - 1
    best = np.array([matrix[j:last, j].max() for j in range(last)], dtype=np.float64)
    return best - matrix[-1, :-1]


def mean_forgetting(R: npt.ArrayLike, sign: int = 1, tasks: Sequence[int] | None = None) -> float:
    """F = mean_j f_j (Chaudhry et al. 2018), over all tasks or some; NaN for one task."""
    values = forgetting(R, sign)
    values = values[_chosen(len(values), tasks)]
    return float(values.mean()) if len(values) else math.nan


def mean_accuracies(R: npt.ArrayLike) -> Matrix:
    """Mean of R[i, 0..i] after each task i, [T]."""
    matrix = accuracy_matrix(R, fractions=False)
    return np.array([row[: i + 1].mean() for i, row in enumerate(matrix)])


def _chosen(count: int, tasks: Sequence[int] | None) -> list[int]:
    return [k for k in range(count) if tasks is None or k in tasks]


def known_mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def summary(
    R: npt.ArrayLike, sign: int = 1, tasks: Sequence[int] | None = None
) -> dict[str, float | None]:
    """{"acc", "bwt", "forgetting"} of a run, over all tasks or some of one metric; None where a
    single task leaves one undefined.
    """
    numbers = {
        "acc": average_accuracy(R, tasks),
        "bwt": backward_transfer(R, sign, tasks),
        "forgetting": mean_forgetting(R, sign, tasks),
    }
    return {name: None if math.isnan(value) else value for name, value in numbers.items()}


def inferred_means(
    inferred: Mapping[str, Mapping[str, Sequence[float | None]]],
) -> dict[str, dict[str, float | None]]:
    """Means of `TaskReport.inferred` over tasks: {rule: {measure: mean}}, None if unmeasured."""
    means = {
        rule: {
            measure: known_mean([math.nan if v is None else v for v in values])
            for measure, values in measures.items()
        }
        for rule, measures in inferred.items()
    }
    return {
        rule: {k: None if math.isnan(v) else v for k, v in row.items()}
        for rule, row in means.items()
    }


def mean_std(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """{"mean", "std", "n"} over seeds without None; std divides by n - 1, None for n = 1."""
    known = np.array([v for v in values if v is not None], dtype=np.float64)
    return {
        "mean": float(known.mean()) if len(known) else None,
        "std": float(known.std(ddof=1)) if len(known) > 1 else None,
        "n": len(known),
    }


CAPACITY_FIELDS = ("size", "used", "new", "reused", "free")


def capacity_table(capacities: Sequence[Capacity]) -> list[dict[str, int | str]]:
    """One row per task and group: {"task", "group", "size", "used", "new", "reused", "free"}.

    These are the numbers behind Golkar et al. 2019, Fig. 3. size: channels of the group; used:
    claimed by any task so far; new: claimed by this task; reused: claimed by an earlier task and
    active for this one; free: size - used.

    Arguments:
        capacities: `TaskReport.capacity` of tasks 0, 1, ...
    """
    return [
        {"task": task, "group": group, **{field: int(counts[field]) for field in CAPACITY_FIELDS}}
        for task, capacity in enumerate(capacities)
        for group, counts in capacity.items()
    ]


def capacity_text(capacity: Capacity) -> str:
    """Text table of one task's channels: a row per group; size, and percent reused, new and free.

    Arguments:
        capacity: `TaskReport.capacity`.
    """
    columns = ("reused", "new", "free")
    width = max(map(len, ["group", *capacity]))
    lines = [f"{'group':{width}} {'size':>6}" + "".join(f" {name:>13}" for name in columns)]
    for group, counts in capacity.items():
        size = counts["size"]
        cells = [f"{counts[name]} ({counts[name] / max(size, 1):.1%})" for name in columns]
        lines.append(f"{group:{width}} {size:>6}" + "".join(f" {cell:>13}" for cell in cells))
    return "\n".join(lines)


def capacity_shares(capacities: Sequence[Capacity], group: str) -> dict[str, Matrix]:
    """Shares of a group's channels after each task: "reused", "idle", "new", "free", each [T].

    "idle" channels were claimed by earlier tasks and are not active for this one. The four shares
    add up to 1.
    """
    counts = [capacity[group] for capacity in capacities]
    size = np.array([c["size"] for c in counts], dtype=np.float64)
    part = {name: np.array([c[name] for c in counts], dtype=np.float64) for name in CAPACITY_FIELDS}
    idle = part["used"] - part["new"] - part["reused"]
    return {
        "reused": part["reused"] / size,
        "idle": idle / size,
        "new": part["new"] / size,
        "free": part["free"] / size,
    }


def reuse_matrix(
    capacities: Sequence[Capacity], reuse: Sequence[Mapping[str, Sequence[int]]], group: str
) -> npt.NDArray[np.int64]:
    """Reuse between tasks, [T, T]: entry (i, j) counts channels claimed by task j, active for i.

    The diagonal counts the channels that task i claimed itself.

    Arguments:
        capacities, reuse: `TaskReport.capacity` and `.reuse` of tasks 0, 1, ...
        group: name of the group of channels.

    Raises:
        DataError: a report lists a wrong number of earlier tasks.
    """
    tasks = len(capacities)
    matrix = np.zeros((tasks, tasks), dtype=np.int64)
    for i in range(tasks):
        earlier = list(reuse[i].get(group, ()))
        if len(earlier) != i:
            raise DataError(
                f"reuse of task {i}, {group!r}: expected {i} entries, got {len(earlier)}"
            )
        matrix[i, :i] = earlier
        matrix[i, i] = capacities[i][group]["new"]
    return matrix
