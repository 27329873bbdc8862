"""The numbers of a run as files: metrics.json, the CSV tables and the plots.

metrics.json holds nothing that differs between two runs with the same settings on one machine: no
times, dates or paths.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import metrics as diagnostics
from .. import plots
from ..files.atomic import write_text
from ..files.csv_text import csv_text
from ..learner.learner import Learner
from ..methods import clnp_cost
from . import configurations, run_folder
from .config import Config

PHASES = ("fit", "search", "fine_tune", "evaluate", "total")
SUMMARIES = ("acc", "bwt", "forgetting")
COST = ("flops", "examples", "peak_memory", "seconds")


def metrics_of(
    learner: Any,
    config: Config,
    verdicts: Sequence[Any],
    costs: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """All deterministic numbers of a learner, JSON-able.

    Arguments:
        learner: a `clnp.Learner`, or one of `clnp.methods`, with at least one learned task.
        config: of the run, with one seed.
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
        "config": config.as_dict(),
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


def costs_of(learner: Any, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """What training cost, one row per task: {"task", "name", "flops", "examples", "peak_memory",
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


def write(
    folder: Path,
    metrics: Mapping[str, Any],
    seconds: Sequence[Mapping[str, Any]],
    costs: Sequence[Mapping[str, Any]],
) -> None:
    """Writes metrics.json, the five CSV files and configurations.json, each whole or not at all.
    Raises OSError.
    """
    reports = metrics["reports"]
    write_csv(folder / "cost.csv", ("task", "name", *COST), costs)
    write_csv(folder / "timing.csv", ("task", "name", *PHASES), seconds)
    names = [f"task_{j}" for j in range(len(reports))]
    rows = [
        {"after_task": i, "name": report["name"], **dict(zip(names, row[: i + 1], strict=False))}
        for i, (report, row) in enumerate(zip(reports, metrics["accuracy_matrix"], strict=True))
    ]
    write_csv(folder / "accuracy.csv", ("after_task", "name", *names), rows)
    write_csv(folder / "capacity.csv", CAPACITY, capacity_rows(reports))
    history = [
        {"task": i, **record} for i, report in enumerate(reports) for record in report["history"]
    ]
    write_csv(folder / "history.csv", HISTORY, history)
    configurations.write(folder, [(folder, metrics)])
    run_folder.write_json(folder / run_folder.METRICS, _plain(metrics))


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


def draw(folder: Path, metrics: Mapping[str, Any]) -> list[Path]:
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


def write_summary(folder: Path, all_metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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
        folder / "summary.csv", ("seed", *SUMMARIES, *(f"used_{layer}" for layer in layers)), rows
    )
    run_folder.write_json(folder / "summary.json", summary)
    below = (folder / f"seed-{m['config']['seeds'][0]}" for m in all_metrics)
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


def read(folder: Path) -> dict[str, Any]:
    """metrics.json of a run, NaN above the diagonal again.

    Raises:
        RunError: no such file, or damaged.
    """
    metrics: dict[str, Any] = run_folder.read_json(folder / run_folder.METRICS)
    try:
        rows = metrics["accuracy_matrix"]
        metrics["accuracy_matrix"] = [[math.nan if v is None else v for v in row] for row in rows]
    except (TypeError, KeyError) as error:
        raise run_folder.RunError(
            f"{folder / run_folder.METRICS}: was not written by clnp ({error!r})"
        ) from error
    return metrics


def read_seconds(folder: Path) -> list[dict[str, Any]]:
    """timing.csv as rows; empty where there is no such file."""
    return _read_csv(folder / "timing.csv")


def read_costs(folder: Path) -> list[dict[str, Any]]:
    """cost.csv as rows; empty where there is no such file."""
    return _read_csv(folder / "cost.csv")


def _read_csv(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return [
            {k: v if k == "name" else float(v) for k, v in row.items()}
            for row in csv.DictReader(file)
        ]


def write_csv(path: Path, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """A CSV file with a header line; floats keep all their digits, missing values are empty."""
    write_text(path, csv_text(fields, rows))


def _save(folder: Path, figures: Mapping[str, Any]) -> list[Path]:
    paths = []
    for name, figure in figures.items():
        paths.append(folder / "plots" / f"{name}.png")
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
