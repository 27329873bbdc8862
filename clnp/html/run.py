"""Page of one learner: facts, tables and figures of its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import metrics as diagnostics
from .. import plots
from ..data.names import counted
from ..objectives.shown import Shown, by_metric, common
from ..plots.svg import Picture, picture
from . import tables
from .page import percent, render
from .text import number


def learner_page(
    metrics: Mapping[str, Any],
    seconds: Sequence[Mapping[str, Any]],
    costs: Sequence[Mapping[str, Any]],
    **parts: Any,
) -> str:
    """The page of one learner; `parts` are title, subtitle, settings and machine."""
    reports = metrics["reports"]
    names = [r["name"] for r in reports]
    return render(
        "run.html",
        facts=_facts(metrics, seconds),
        names=names,
        differing=[names[k] for k in metrics["certificate"]["differing"]],
        metrics=metrics,
        certificate=metrics["certificate"],
        accuracy=tables.accuracies(metrics),
        heading="Accuracy" if common(reports) == Shown() else "Metrics",
        metric=tables.title(metrics),
        forgotten=_forgotten(metrics),
        tasks=tables.tasks(metrics),
        grids=[
            (r["name"], tables.grid(r["grid"], Shown.of_report(r)))
            for r in reports
            if len(r["grid"]) > 1
        ],
        inferred=tables.inferred(metrics),
        channels=tables.channels(metrics),
        reuses=tables.reuse(metrics),
        costs=tables.costs(costs, seconds),
        **pictures_of([metrics]),
        **parts,
    )


def pictures_of(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Picture | None]:
    """The figures of one seed or several; None where there is nothing to draw."""
    first = seeds[0]["reports"]
    capacities = [[r["capacity"] for r in m["reports"]] for m in seeds]
    curves = [r["history"] for r in first]
    inferred = [r.get("inferred") for r in first]
    shown = common(first)
    drawn: dict[str, Picture | None] = {
        "mean_accuracy": None,
        "capacity": None,
        "training": None,
        "inferred_accuracy": None,
    }
    if shown is not None:
        drawn["mean_accuracy"] = picture(
            lambda: plots.mean_accuracy([m["accuracy_matrix"] for m in seeds], shown),
            f"Mean test {shown.name} after each task, and {shown.name} of the task just learned",
        )
    if capacities[0][0]:
        drawn["capacity"] = picture(
            lambda: plots.capacity(capacities),
            "Share of each layer's channels that is reused, idle, new and free after each task",
        )
    if any(curves):
        drawn["training"] = picture(
            lambda: plots.training_curves(curves, shown),
            "Loss and metric over the epochs of all tasks",
        )
    if len(first) > 1 and all(inferred):
        drawn["inferred_accuracy"] = picture(
            lambda: plots.inferred_accuracy(seeds[0]["accuracy_matrix"], inferred),
            "Mean accuracy after each task with the task given and without",
        )
    return drawn


def _facts(
    metrics: Mapping[str, Any], seconds: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    groups = by_metric(metrics["reports"])
    facts = [
        *(_means(shown, tasks, metrics, len(groups) > 1) for shown, tasks in groups.items()),
        *([fact("mean forgetting", number(metrics["forgetting"]))] if len(groups) == 1 else []),
        fact("tasks learned", str(metrics["tasks_learned"])),
        *certificate_facts(metrics["certificate"]),
    ]
    last = metrics["reports"][-1]["capacity"]
    if last:
        used, size = (sum(c[k] for c in last.values()) for k in ("used", "size"))
        facts.append(fact("channels used", f"{percent(used / size, 1)} %"))
    # The best rule comes first.
    rules = list(metrics.get("inferred", {}).values())
    both = rules[0].get("class_incremental") if rules else None
    if both is not None and metrics["tasks_learned"] > 1:
        facts.append(fact("task and label, task not given", f"{percent(both)} %"))
    if seconds:
        facts.append(fact("time", f"{sum(row['total'] for row in seconds) / 60:.1f} min"))
    return facts


def _means(
    shown: Shown, tasks: Sequence[int], metrics: Mapping[str, Any], several: bool
) -> dict[str, Any]:
    """The mean of one metric over the tasks that have it."""
    value = float(np.mean([metrics["accuracy_matrix"][-1][k] for k in tasks]))
    of = f" of {counted(len(tasks), 'task')}" if several else ", task given"
    return fact(f"mean {shown.name}{of}", shown.text(value))


def _forgotten(metrics: Mapping[str, Any]) -> list[str]:
    """Forgetting and backward transfer of each metric."""
    R, groups = metrics["accuracy_matrix"], by_metric(metrics["reports"])
    lines = []
    for shown, tasks in groups.items():
        found = diagnostics.summary(R, shown.sign, tasks)
        of = f" of {shown.name}" if len(groups) > 1 else ""
        lost, gained = number(found["forgetting"]), number(found["bwt"])
        lines.append(f"Mean forgetting{of} {lost}, backward transfer {gained}")
    return lines


def certificate_facts(certificate: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not certificate["tasks"]:
        return []
    bad = certificate["identical"] != certificate["tasks"]
    value = f"{certificate['identical']} of {certificate['tasks']}"
    return [fact("tasks bit-identical", value, bad)]


def fact(label: str, value: str, bad: bool = False) -> dict[str, Any]:
    return {"label": label, "value": value.replace(" %", "\N{NO-BREAK SPACE}%"), "bad": bad}


def percent_spread(value: Mapping[str, Any]) -> str:
    """ "98.43 ± 0.04 %" of {"mean", "std"}."""
    deviation = "" if value["std"] is None else f" ± {percent(value['std'])}"
    return f"{percent(value['mean'])}{deviation} %"
