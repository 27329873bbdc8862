"""The numbers of a continual-learning run, from its accuracies and channel counts alone.

Letters: T tasks; R [T, T] with R[i, j] = test accuracy (0 to 1) on task j after learning task i.
Above the diagonal R is NaN where those accuracies were not measured. Every function takes anything
that numpy turns into such a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import DataError

Matrix: TypeAlias = "npt.NDArray[np.float64]"
# One task's report on its groups of channels: {group: {"size", "used", "new", "reused", "free"}}.
Capacity: TypeAlias = Mapping[str, Mapping[str, int]]


def accuracy_matrix(R: npt.ArrayLike) -> Matrix:
    """R as a float64 matrix [T, T], checked.

    Raises:
        DataError: not square, empty, NaN on or below the diagonal, or a number outside [0, 1].
    """
    try:
        matrix = np.asarray(R, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"R: can't be read as a matrix of numbers ({error})") from error
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise DataError(f"R: got shape {list(matrix.shape)}, wanted [T, T] with T >= 1")
    learned = matrix[np.tril_indices(len(matrix))]
    known = matrix[~np.isnan(matrix)]
    if np.isnan(learned).any() or (known < 0).any() or (known > 1).any():
        raise DataError("R: wanted accuracies in [0, 1] on and below the diagonal; NaN only above")
    return matrix


def average_accuracy(R: npt.ArrayLike) -> float:
    """ACC = mean_j R[T, j], over all tasks after the last (Lopez-Paz & Ranzato 2017, Eq. 2)."""
    return float(accuracy_matrix(R)[-1].mean())


def backward_transfer(R: npt.ArrayLike) -> float:
    """BWT = mean_{j<T} (R[T, j] - R[j, j]) (Lopez-Paz & Ranzato 2017, Eq. 3); NaN for one task.

    Zero exactly, not to rounding, when no accuracy on an earlier task moved.
    """
    matrix = accuracy_matrix(R)
    changes = matrix[-1, :-1] - matrix.diagonal()[:-1]
    return float(changes.mean()) if len(changes) else math.nan


def forward_transfer(R: npt.ArrayLike, chance: npt.ArrayLike) -> float:
    """FWT = mean_{j>=2} (R[j-1, j] - chance_j) (Lopez-Paz & Ranzato 2017, Eq. 4); NaN for one task.

    Arguments:
        R: [T, T], measured on the first diagonal above the main one too.
        chance: accuracy of an untrained network on each task, [T] or one number.

    Raises:
        DataError: R is NaN where the formula needs it, or `chance` has another length.
    """
    matrix = accuracy_matrix(R)
    ahead = matrix.diagonal(offset=1)
    if np.isnan(ahead).any():
        raise DataError("R: is NaN above the diagonal; forward transfer needs R[j - 1, j]")
    base = _per_task(chance, len(matrix), "chance")[1:]
    return float((ahead - base).mean()) if len(ahead) else math.nan


def forgetting(R: npt.ArrayLike) -> Matrix:
    """f_j = max_{j<=l<T} R[l, j] - R[T, j] of every task but the last, [T - 1] (Chaudhry et al.
    2018, Eq. 3).

    What was measured on a task before it was learned is left out of the maximum.
    """
    matrix = accuracy_matrix(R)
    last = len(matrix) - 1
    best = np.array([matrix[j:last, j].max() for j in range(last)], dtype=np.float64)
    return best - matrix[-1, :-1]


def mean_forgetting(R: npt.ArrayLike) -> float:
    """F = mean_j f_j (Chaudhry et al. 2018); NaN for one task."""
    values = forgetting(R)
    return float(values.mean()) if len(values) else math.nan


def learning_gain(R: npt.ArrayLike, single_task: npt.ArrayLike) -> Matrix:
    """R[j, j] - single-task accuracy_j, [T]: what earlier tasks gave to (or took from) learning
    task j.

    Arguments:
        single_task: accuracy of the same network trained on task j alone, [T] or one number.
    """
    matrix = accuracy_matrix(R)
    return matrix.diagonal() - _per_task(single_task, len(matrix), "single_task")


def intransigence(R: npt.ArrayLike, joint: npt.ArrayLike) -> Matrix:
    """I_k = joint_k - R[k, k], [T] (Chaudhry et al. 2018, Eq. 4).

    Arguments:
        joint: accuracy on task k of a network trained on tasks 1..k together, [T] or one number.
    """
    matrix = accuracy_matrix(R)
    return _per_task(joint, len(matrix), "joint") - matrix.diagonal()


def mean_accuracies(R: npt.ArrayLike) -> Matrix:
    """Mean of R[i, 0..i] after each task i, [T]."""
    matrix = accuracy_matrix(R)
    return np.array([row[: i + 1].mean() for i, row in enumerate(matrix)])


def known_mean(values: Sequence[float]) -> float:
    """The mean of those that are not NaN; NaN where there is none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def summary(R: npt.ArrayLike) -> dict[str, float | None]:
    """{"acc", "bwt", "forgetting"} of a run, None where one task leaves them undefined."""
    numbers = {
        "acc": average_accuracy(R),
        "bwt": backward_transfer(R),
        "forgetting": mean_forgetting(R),
    }
    return {name: None if math.isnan(value) else value for name, value in numbers.items()}


def inferred_means(
    inferred: Mapping[str, Mapping[str, Sequence[float | None]]],
) -> dict[str, dict[str, float | None]]:
    """Means over the tasks of `TaskReport.inferred`: {rule: {measure: mean}}, None where nothing
    was measured.
    """
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
    """{"mean", "std", "n"} over seeds; std with n - 1, None for one value; None values are left
    out.
    """
    known = np.array([v for v in values if v is not None], dtype=np.float64)
    return {
        "mean": float(known.mean()) if len(known) else None,
        "std": float(known.std(ddof=1)) if len(known) > 1 else None,
        "n": len(known),
    }


CAPACITY_FIELDS = ("size", "used", "new", "reused", "free")


def capacity_table(capacities: Sequence[Capacity]) -> list[dict[str, int | str]]:
    """One row per task and group: {"task", "group", "size", "used", "new", "reused", "free"}.

    Arguments:
        capacities: `TaskReport.capacity` of tasks 0, 1, ... size: channels of the group; used:
            claimed by any task so far; new: claimed by this task; reused: claimed earlier and
            active for this task; free: size - used (the numbers behind Golkar et al. 2019, Fig. 3).
    """
    return [
        {"task": task, "group": group, **{field: int(counts[field]) for field in CAPACITY_FIELDS}}
        for task, capacity in enumerate(capacities)
        for group, counts in capacity.items()
    ]


def capacity_shares(capacities: Sequence[Capacity], group: str) -> dict[str, Matrix]:
    """Shares of a group's channels after each task, each [T]: "reused", "idle", "new", "free"; they
    add up to 1.

    "idle" channels were claimed by earlier tasks and are not used by this one.
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
    """Channels that task i uses and task j claimed, [T, T]: row i; the diagonal is what task i
    claimed itself.

    Arguments:
        capacities, reuse: `TaskReport.capacity` and `.reuse` of tasks 0, 1, ...
        group: the group of channels.

    Raises:
        DataError: a report lists another number of earlier tasks than there were.
    """
    tasks = len(capacities)
    matrix = np.zeros((tasks, tasks), dtype=np.int64)
    for i in range(tasks):
        earlier = list(reuse[i].get(group, ()))
        if len(earlier) != i:
            raise DataError(f"reuse of task {i}, {group!r}: got {len(earlier)} entries, wanted {i}")
        matrix[i, :i] = earlier
        matrix[i, i] = capacities[i][group]["new"]
    return matrix


def _per_task(values: npt.ArrayLike, tasks: int, name: str) -> Matrix:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0:
        return np.full(tasks, float(array))
    if array.shape != (tasks,):
        raise DataError(f"{name}: got shape {list(array.shape)}, wanted [{tasks}] or one number")
    return array
