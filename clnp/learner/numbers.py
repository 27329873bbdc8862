"""Numbers of a learner as plain data: metrics, times and costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import metrics as diagnostics
from ..callbacks.callback import settings_of
from ..errors import ConfigError
from ..html.text import COST, PHASES, SUMMARIES
from ..objectives.shown import Shown, by_metric
from .report import present


def metrics_of(
    learner: Any,
    config: Mapping[str, Any],
    verdicts: Sequence[Any],
    costs: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """All deterministic numbers of a learner, JSON-able.

    Arguments:
        learner: a `clnp.Learner`, or one of `clnp.methods`, with at least one learned task.
        config: settings of the run, with its "method" and one of "seeds".
        verdicts: of `learner.verify()`; empty for a method that promises nothing.
        costs: of `costs_of`.

    Returns:
        {"config", "tasks_learned", "accuracy_matrix" [T, T] of the tasks' metrics with null above
        the diagonal, "acc", "bwt", "forgetting" and "mean_accuracies" [T] (null where the tasks
        have different metrics, whose means mean nothing), "by_metric": {metric: {"tasks", "acc",
        "bwt", "forgetting"}}, "certificate": {"tasks", "identical", "differing"}, "cost": {"flops",
        "examples"} of all training together, "inferred": {rule: {measure: mean over tasks}} of the
        last task's `TaskReport.inferred`, "reports": one `TaskReport` per task without its times}.
    """
    kept = present(learner.reports)
    R = np.asarray(learner.accuracy_matrix, dtype=np.float64)[np.ix_(kept, kept)]
    reports = [_of_tasks(learner.reports[k], kept) for k in kept]
    groups = by_metric(reports)
    shown, alike = Shown.of_report(reports[0]), len(groups) == 1
    means = diagnostics.mean_accuracies(R) if alike else np.full(len(R), np.nan)
    overall = diagnostics.summary(R, shown.sign) if alike else dict.fromkeys(SUMMARIES)
    return {
        "config": config,
        "tasks_learned": len(reports),
        "accuracy_matrix": R.tolist(),
        **overall,
        "mean_accuracies": means.tolist(),
        "by_metric": {
            own.name: {"tasks": tasks, **diagnostics.summary(R, own.sign, tasks)}
            for own, tasks in groups.items()
        },
        "certificate": {
            "tasks": len(verdicts),
            "identical": sum(bool(v.identical) for v in verdicts),
            "differing": [int(v.task) for v in verdicts if not v.identical],
        },
        "cost": {name: sum(row[name] for row in costs) for name in ("flops", "examples")},
        "inferred": diagnostics.inferred_means(reports[-1]["inferred"]),
        "reports": [{k: v for k, v in report.items() if k != "seconds"} for report in reports],
    }


def _of_tasks(report: Any, tasks: Sequence[int]) -> dict[str, Any]:
    """A report as plain data, with the numbers of some tasks only."""
    data = dataclasses.asdict(report)

    def chosen(values: Sequence[Any]) -> list[Any]:
        return [value for j, value in enumerate(values) if j in tasks]

    data["row"] = chosen(data["row"])
    data["reuse"] = {name: chosen(counts) for name, counts in data["reuse"].items()}
    data["inferred"] = {
        rule: {name: chosen(values) for name, values in measures.items()}
        for rule, measures in data["inferred"].items()
    }
    return data


def numbers_of(learner: Any) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """(metrics, seconds, costs) of a learner that has no run folder, as `metrics_of`, `seconds_of`
    and `costs_of` give them; no costs where the sizes of its tasks are not known.

    Raises:
        ConfigError: no task has been learned.
    """
    if not learner.reports:
        raise ConfigError("learner: expected at least one learned task, got none; learn one first")
    data = [report.data for report in learner.reports]
    sizes = [0 if task is None else task.splits["train"].size for task in data]
    known = all(data[k] is not None for k in present(learner.reports))
    costs = costs_of(learner, sizes) if known else []
    settings = settings_of(learner)
    config = {"method": settings.get("method", "clnp"), "seeds": [settings["seed"]]}
    return metrics_of(learner, config, learner.verify(), costs), seconds_of(learner), costs


def costs_of(learner: Any, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """The costs of training, one row per task: {"task", "name", "flops", "examples", "peak_memory",
    "seconds"}.

    Operations are counted by formula, frozen and skipped work left out; examples are those that
    training steps saw; memory is in bytes, of weights, optimizer and activations as
    `clnp.training.cost` counts them; seconds are those of training.

    Arguments:
        learner: a `clnp.Learner`, or one of `clnp.methods`.
        sizes: training examples of each learned task.
    """
    rows = learner.costs(sizes)
    return [
        {"task": i, "name": learner.reports[i].name, **{name: row[name] for name in COST}}
        for i, row in zip(present(learner.reports), rows, strict=True)
    ]


def seconds_of(learner: Any) -> list[dict[str, Any]]:
    """One row per task: {"task", "name", "fit", "search", "fine_tune", "evaluate", "total"}, in
    seconds.
    """
    return [
        {"task": i, "name": report.name, **{p: float(report.seconds.get(p, 0.0)) for p in PHASES}}
        for i, report in enumerate(learner.reports)
        if not report.forgotten
    ]
