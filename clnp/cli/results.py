"""The numbers of a run as files: metrics.json, the CSV tables and the plots.

metrics.json holds nothing that differs between two runs with the same settings on one machine: no
times, dates or paths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import metrics as diagnostics
from .. import plots
from ..html.text import COST, PHASES, SUMMARIES
from ..learner.numbers import costs_of, metrics_of, seconds_of
from ..objectives.shown import Shown, common
from . import configurations
from .run_folder import METRICS, Run, RunFolder, write_csv, write_json


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
        {
            **{"after_task": i, "name": report["name"], "metric": Shown.of_report(report).title},
            **dict(zip(names, row[: i + 1], strict=False)),
        }
        for i, (report, row) in enumerate(zip(reports, metrics["accuracy_matrix"], strict=True))
    ]
    write_csv(folder.path / "accuracy.csv", ("after_task", "name", "metric", *names), rows)
    write_csv(folder.path / "capacity.csv", CAPACITY, capacity_rows(reports))
    history = [
        {"task": i, **record} for i, report in enumerate(reports) for record in report["history"]
    ]
    write_csv(folder.path / "history.csv", HISTORY, history)
    configurations.write(folder, [(folder, metrics)])
    write_json(folder.path / METRICS, _plain(metrics))


HISTORY = ("task", "epoch", "loss", "train_metric", "validation_metric", "lr")
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
    metric = common(reports)
    curves = plots.training_curves([report["history"] for report in reports], metric)
    figures = {"training": curves}
    if metric:
        figures["accuracy_matrix"] = plots.accuracy_heatmap(metrics["accuracy_matrix"], metric)
        figures["mean_accuracy"] = plots.mean_accuracy([metrics["accuracy_matrix"]], metric)
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
        metric = common([report for m in all_metrics for report in m["reports"]])
        figures = {}
        if metric:
            matrices = [m["accuracy_matrix"] for m in all_metrics]
            figures["mean_accuracy"] = plots.mean_accuracy(matrices, metric)
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
