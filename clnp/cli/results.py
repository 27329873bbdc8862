"""The numbers of a run as files: metrics.json, the CSV tables and the plots.

metrics.json holds nothing that differs between two runs with the same settings on one machine: no
times, dates or paths.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import metrics as diagnostics
from .. import plots
from ..errors import ConfigError
from ..learner.learner import Learner
from ..methods import clnp_cost
from . import configurations
from .run_folder import METRICS, Run, RunFolder, write_csv, write_json

PHASES = ("fit", "search", "fine_tune", "evaluate", "total")
SUMMARIES = ("acc", "bwt", "forgetting")
COST = ("flops", "examples", "peak_memory", "seconds")


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
        {"config", "tasks_learned", "accuracy_matrix" [T, T] with null above the diagonal, "acc",
        "bwt", "forgetting", "certificate": {"tasks", "identical", "differing"}, "cost": {"flops",
        "examples"} of all training together, "inferred": {rule: {measure: mean over tasks}} of the
        last task's `TaskReport.inferred`, "reports": one `TaskReport` per task without its times}.
    """
    R = np.asarray(learner.accuracy_matrix, dtype=np.float64)
    reports = [dataclasses.asdict(report) for report in learner.reports]
    return {
        "config": config,
        "tasks_learned": len(reports),
        "accuracy_matrix": R.tolist(),
        **diagnostics.summary(R),
        "mean_accuracies": diagnostics.mean_accuracies(R).tolist(),
        "certificate": {
            "tasks": len(verdicts),
            "identical": sum(bool(v.identical) for v in verdicts),
            "differing": [int(v.task) for v in verdicts if not v.identical],
        },
        "cost": {name: sum(row[name] for row in costs) for name in ("flops", "examples")},
        "inferred": diagnostics.inferred_means(reports[-1]["inferred"]),
        "reports": [{k: v for k, v in report.items() if k != "seconds"} for report in reports],
    }


def numbers_of(
    learner: Any,
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """(metrics, seconds, costs) of a learner that has no run folder, as `metrics_of`, `seconds_of`
    and `costs_of` give them; no costs where the sizes of its tasks are not known.

    Raises:
        ConfigError: no task has been learned.
    """
    if not learner.reports:
        raise ConfigError("learner: expected at least one learned task, got none; learn one first")
    data = [report.data for report in learner.reports]
    sizes = [task.splits["train"].size for task in data if task is not None]
    costs = costs_of(learner, sizes) if len(sizes) == len(data) else []
    settings = settings_of(learner)
    config = {"method": settings.get("method", "clnp"), "seeds": [settings["seed"]]}
    return metrics_of(learner, config, learner.verify(), costs), seconds_of(learner), costs


def settings_of(learner: Any) -> dict[str, Any]:
    """The settings of a learner, JSON-able."""
    settings = learner.settings
    return dict(settings.to_json() if isinstance(learner, Learner) else settings)


def costs_of(learner: Any, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """The costs of training, one row per task: {"task", "name", "flops", "examples", "peak_memory",
    "seconds"}.

    Operations are counted by formula, frozen and skipped work left out; examples are those that
    training steps saw; memory is in bytes, of weights, optimizer and activations as
    `clnp.methods.cost` counts them; seconds are those of training.

    Arguments:
        learner: a `clnp.Learner`, or one of `clnp.methods`.
        sizes: training examples of each learned task.
    """
    if isinstance(learner, Learner):
        rows = [clnp_cost(learner, task, n) for task, n in enumerate(sizes)]
    else:
        rows = learner.cost
    return [
        {"task": i, "name": report.name, **{name: row[name] for name in COST}}
        for i, (report, row) in enumerate(zip(learner.reports, rows, strict=True))
    ]


def seconds_of(learner: Any) -> list[dict[str, Any]]:
    """One row per task: {"task", "name", "fit", "search", "fine_tune", "evaluate", "total"}, in
    seconds.
    """
    return [
        {"task": i, "name": report.name, **{p: float(report.seconds.get(p, 0.0)) for p in PHASES}}
        for i, report in enumerate(learner.reports)
    ]


def record(run: Run, learner: Any, sizes: Sequence[int], *, plots: bool = False) -> dict[str, Any]:
    """Writes all numbers of a learner into the folder of its run, and draws them if `plots`.

    Arguments:
        run: of one seed.
        learner: with at least one learned task.
        sizes: training examples of each learned task.

    Returns:
        the metrics.
    """
    verdicts = learner.verify() if run.config.method == "clnp" else []
    costs = costs_of(learner, sizes)
    metrics = metrics_of(learner, run.config.as_dict(), verdicts, costs)
    write(run.folder, metrics, seconds_of(learner), costs)
    if plots:
        draw(run.folder, metrics)
    return metrics


def write(
    folder: RunFolder,
    metrics: Mapping[str, Any],
    seconds: Sequence[Mapping[str, Any]],
    costs: Sequence[Mapping[str, Any]],
) -> None:
    """Writes metrics.json, the five CSV files and configurations.json, each whole or not at all.
    Raises OSError.
    """
    reports = metrics["reports"]
    write_csv(folder.path / "cost.csv", ("task", "name", *COST), costs)
    write_csv(folder.path / "timing.csv", ("task", "name", *PHASES), seconds)
    names = [f"task_{j}" for j in range(len(reports))]
    rows = [
        {"after_task": i, "name": report["name"], **dict(zip(names, row[: i + 1], strict=False))}
        for i, (report, row) in enumerate(zip(reports, metrics["accuracy_matrix"], strict=True))
    ]
    write_csv(folder.path / "accuracy.csv", ("after_task", "name", *names), rows)
    write_csv(folder.path / "capacity.csv", CAPACITY, capacity_rows(reports))
    history = [
        {"task": i, **record} for i, report in enumerate(reports) for record in report["history"]
    ]
    write_csv(folder.path / "history.csv", HISTORY, history)
    configurations.write(folder, [(folder, metrics)])
    write_json(folder.path / METRICS, _plain(metrics))


HISTORY = ("task", "epoch", "loss", "train_accuracy", "validation_accuracy", "lr")
CAPACITY = ("task", "name", "layer", *diagnostics.CAPACITY_FIELDS, "threshold")


def capacity_rows(reports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per task and layer: what `diagnostics.capacity_table` has, the task's name and the
    layer's threshold.
    """
    table = diagnostics.capacity_table([report["capacity"] for report in reports])
    return [
        {
            "name": reports[int(row["task"])]["name"],
            "layer": row["group"],
            "threshold": reports[int(row["task"])]["thresholds"].get(row["group"]),
            **{k: v for k, v in row.items() if k != "group"},
        }
        for row in table
    ]


def draw(folder: RunFolder, metrics: Mapping[str, Any]) -> list[Path]:
    """Writes the plots of a run into folder/plots, from its metrics; the paths. Raises OSError."""
    reports = metrics["reports"]
    capacities = [report["capacity"] for report in reports]
    groups = list(capacities[0])
    reuses = [report["reuse"] for report in reports]
    figures = {
        "accuracy_matrix": plots.accuracy_heatmap(metrics["accuracy_matrix"]),
        "mean_accuracy": plots.mean_accuracy([metrics["accuracy_matrix"]]),
        "training": plots.training_curves([report["history"] for report in reports]),
    }
    if groups:
        matrices = {g: diagnostics.reuse_matrix(capacities, reuses, g) for g in groups}
        figures["capacity"] = plots.capacity([capacities])
        figures["reuse"] = plots.reuse(matrices)
    return _save(folder, figures)


def summarise(all_metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation (n - 1) over seeds of ACC, BWT, forgetting, and each layer's used
    share at the end.

    Returns:
        {"seeds", "acc": {"mean", "std", "n"}, "bwt", "forgetting", "used": {layer: {...}},
        "certificate": {"tasks", "identical"}}
    """
    last = [metrics["reports"][-1]["capacity"] for metrics in all_metrics]
    used = {
        layer: diagnostics.mean_std([c[layer]["used"] / c[layer]["size"] for c in last])
        for layer in last[0]
    }
    return {
        "seeds": [metrics["config"]["seeds"][0] for metrics in all_metrics],
        **{name: diagnostics.mean_std([m[name] for m in all_metrics]) for name in SUMMARIES},
        "used": used,
        "certificate": {
            name: sum(m["certificate"][name] for m in all_metrics)
            for name in ("tasks", "identical")
        },
    }


def write_summary(folder: RunFolder, all_metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Writes summary.json, summary.csv (one row per seed), configurations.json and the plots over
    seeds; the summary. Raises OSError.
    """
    summary = summarise(all_metrics)
    layers = list(summary["used"])
    rows = [
        {
            "seed": m["config"]["seeds"][0],
            **{name: m[name] for name in SUMMARIES},
            **{
                f"used_{layer}": counts["used"]
                for layer, counts in m["reports"][-1]["capacity"].items()
            },
        }
        for m in all_metrics
    ]
    write_csv(
        folder.path / "summary.csv",
        ("seed", *SUMMARIES, *(f"used_{layer}" for layer in layers)),
        rows,
    )
    write_json(folder.path / "summary.json", summary)
    below = (folder.below(f"seed-{m['config']['seeds'][0]}") for m in all_metrics)
    configurations.write(folder, zip(below, all_metrics, strict=True))
    if len({m["tasks_learned"] for m in all_metrics}) == 1:
        figures = {
            "mean_accuracy": plots.mean_accuracy([m["accuracy_matrix"] for m in all_metrics]),
        }
        if layers:
            capacities = [[r["capacity"] for r in m["reports"]] for m in all_metrics]
            figures["capacity"] = plots.capacity(capacities)
        _save(folder, figures)
    return summary


def _save(folder: RunFolder, figures: Mapping[str, Any]) -> list[Path]:
    paths = []
    for name, figure in figures.items():
        paths.append(folder.plots / f"{name}.png")
        plots.save(figure, paths[-1])
    return paths


def _plain(value: Any) -> Any:
    """NaN and infinities become null, which is all that JSON has for them."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
