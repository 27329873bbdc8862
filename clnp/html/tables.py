"""The tables and heat maps of a report's page, as plain text cells. Tasks count from 1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import metrics as diagnostics
from ..network.inference import MEASURES
from ..objectives.shown import Shown, by_metric, common
from .page import MISSING, heat, percent, setting
from .text import INFERRED, MOST_LAYERS, PHASES, SUMMARIES, number, spread

MIB = 1 << 20
VALIDATION = ("validation_before", "validation")


@dataclass(frozen=True)
class Table:
    """Cells as text; the first of a row is its heading, `texts` are the columns set to the left."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    foot: Sequence[str] = ()
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Cell:
    text: str
    heat: str


@dataclass(frozen=True)
class HeatMap:
    """A square table whose cells have colours; perhaps a column of means and a last line."""

    rows: Sequence[Sequence[Cell]]
    sums: Sequence[str] = ()
    foot: Sequence[str] = ()
    title: str = ""


def accuracies(metrics: Mapping[str, Any]) -> HeatMap:
    """The tasks' metrics, fractions in per cent. Colours span the numbers that occur, of a fraction
    at least five points, as in `plots.accuracy_heatmap`; of different metrics each column has a
    span of its own, and there are no means.
    """
    R, reports = metrics["accuracy_matrix"], metrics["reports"]
    alike, each = common(reports), [Shown.of_report(report) for report in reports]
    spans = [_span([row[j] for row in R], each[j]) for j in range(len(R))]
    if alike:
        spans = [_span([v for row in R for v in row], alike)] * len(R)
    rows = [
        [
            Cell(each[j].number(v) if v == v else "", heat(each[j].sign * v, *spans[j]))
            for j, v in enumerate(row)
        ]
        for row in R
    ]
    lost = [
        number(own.scale * float(diagnostics.forgetting(R, own.sign)[j]))
        for j, own in enumerate(each[:-1])
    ]
    means = [alike.number(float(v)) for v in diagnostics.mean_accuracies(R)] if alike else ()
    return HeatMap(rows, means, [*lost, ""] if lost else ())


def _span(values: Sequence[float], shown: Shown) -> tuple[float, float]:
    """Lowest and highest of the known values, the worst first, for the colours."""
    known = [shown.sign * value for value in values if not math.isnan(value)]
    high = max(known, default=1.0)
    return min([*known, high - 0.05] if shown.percent else known, default=0.0), high


def title(metrics: Mapping[str, Any]) -> str:
    """The metrics of the tasks, with their units: "accuracy (%)"."""
    return ", ".join(dict.fromkeys(s.title for s in by_metric(metrics["reports"])))


def reuse(metrics: Mapping[str, Any]) -> list[HeatMap]:
    """For each layer, the number of channels claimed by task j that task i uses."""
    capacities = [r["capacity"] for r in metrics["reports"]]
    uses = [r["reuse"] for r in metrics["reports"]]
    maps = []
    for group in capacities[0]:
        counts = diagnostics.reuse_matrix(capacities, uses, group)
        rows = [
            [
                Cell(str(n), heat(n / max(counts[j, j], 1), 0, 1)) if j <= i else Cell("", "none")
                for j, n in enumerate(row)
            ]
            for i, row in enumerate(counts)
        ]
        maps.append(HeatMap(rows, title=group))
    return maps


def task_names(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """Number and name of each task, with a note if it had no channels left."""
    notes = [" (head only)" if r.get("transfer_only") else "" for r in reports]
    return [
        f"{i + 1} {r['name']}{note}" for i, (r, note) in enumerate(zip(reports, notes, strict=True))
    ]


def tasks(metrics: Mapping[str, Any]) -> Table:
    """Metric and settings of each task."""
    alike = common(metrics["reports"])
    rows = [
        [
            name,
            *([] if alike else [Shown.of_report(r).title]),
            *(Shown.of_report(r).number(r[key]) for key in ("test", *VALIDATION)),
            str(r["epochs"]),
            setting(r["lr"]),
            _per_layer(r["l1"]),
        ]
        for name, r in zip(task_names(metrics["reports"]), metrics["reports"], strict=True)
    ]
    unit = f" ({alike.unit})" if alike and alike.unit else ""
    names = [f"{part}{unit}" for part in ("test", "validation", "validation, pruned")]
    columns = ("task", *([] if alike else ["metric"]), *names, "epochs", "lr", "l1")
    return Table(columns, rows, texts=("metric", "l1"))


def grid(points: Sequence[Mapping[str, Any]], shown: Shown | None = None) -> Table:
    """The grid points of a task, with its metric."""
    shown = shown or Shown()
    rows = [
        [
            str(i + 1),
            _per_layer(point["l1"]),
            setting(point["lr"]),
            shown.number(point["validation"]),
            MISSING if point["kept"] < 0 else str(point["kept"]),
            "chosen" if point["chosen"] else "candidate" if point["candidate"] else "",
        ]
        for i, point in enumerate(points)
    ]
    unit = f" ({shown.unit})" if shown.unit else ""
    columns = ("point", "l1", "lr", f"validation{unit}", "channels kept", "")
    return Table(columns, rows, texts=("l1", ""))


def inferred(metrics: Mapping[str, Any]) -> Table | None:
    """Accuracies with and without the task given, at the end; None where that was not measured or
    there is one task only.
    """
    last = metrics["reports"][-1].get("inferred")
    if not last or len(metrics["reports"]) < 2:
        return None
    names = [f"{INFERRED[m]}, by {rule} (%)" for rule in last for m in MEASURES]
    columns = [last[rule][m] for rule in last for m in MEASURES]
    given = metrics["accuracy_matrix"][-1]
    rows = [
        [f"{j + 1} {r['name']}", percent(given[j]), *(percent(column[j]) for column in columns)]
        for j, r in enumerate(metrics["reports"])
    ]
    means = [m for row in diagnostics.inferred_means(last).values() for m in row.values()]
    foot = ["mean", percent(metrics["mean_accuracies"][-1]), *map(percent, means)]
    return Table(["task", "task given (%)", *names], rows, foot)


def channels(metrics: Mapping[str, Any]) -> Table:
    """Channels per task and layer; of many layers a row each, after the last task."""
    reports = metrics["reports"]
    last = reports[-1]["capacity"]
    if len(last) > MOST_LAYERS:
        rows = [[group, str(c["size"]), _used(c)] for group, c in last.items()]
        return Table(("layer", "channels", "used after the last task"), rows)
    rows = [
        [name, *(_used(r["capacity"][group]) for group in last)]
        for name, r in zip(task_names(reports), reports, strict=True)
    ]
    return Table(["task", *(f"{g} of {c['size']}" for g, c in last.items())], rows)


def costs(rows: Sequence[Mapping[str, Any]], seconds: Sequence[Mapping[str, Any]]) -> Table | None:
    """Costs of each task: operations, examples, memory, seconds per phase."""
    if not rows and not seconds:
        return None
    names = [f"{int(row['task']) + 1} {row['name']}" for row in seconds or rows]
    columns: dict[str, list[str]] = {}
    foot: list[str] = []
    if rows:
        peak = [row["peak_memory"] / MIB for row in rows]
        for title, values, total, form in (
            ("training FLOP", [row["flops"] for row in rows], sum, ".3g"),
            ("examples", [row["examples"] for row in rows], sum, ",.0f"),
            ("memory (MiB)", peak, max, ".1f"),
        ):
            columns[title] = [format(value, form) for value in values]
            foot.append(format(total(values), form))
    if seconds:
        for phase in PHASES:
            values = [row[phase] for row in seconds]
            columns[f"{phase.replace('_', '-')} (s)"] = [f"{value:.1f}" for value in values]
            foot.append(f"{sum(values):.1f}")
    cells = [list(row) for row in zip(names, *columns.values(), strict=True)]
    return Table(["task", *columns], cells, ["all", *foot])


def seeds(summary: Mapping[str, Any], all_metrics: Sequence[Mapping[str, Any]]) -> Table:
    """A row per seed, and mean +- standard deviation."""
    layers = list(summary["used"])[:MOST_LAYERS]
    rows = []
    for metrics in all_metrics:
        last = metrics["reports"][-1]["capacity"]
        used = [percent(last[g]["used"] / last[g]["size"], 1) for g in layers]
        numbers = [number(metrics[key]) for key in SUMMARIES]
        rows.append([str(metrics["config"]["seeds"][0]), *numbers, *used])
    means = [spread(summary[key]) for key in SUMMARIES]
    used = [spread(summary["used"][g], percent=True) for g in layers]
    columns = ("seed", "ACC", "BWT", "forgetting", *(f"{g} used (%)" for g in layers))
    return Table(columns, rows, ["mean +- std", *means, *used])


def machine(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Versions and hardware, one value a line."""
    flat = {k: v for k, v in environment.items() if k != "packages"}
    packages = environment.get("packages") or {}
    return {**{k: v for k, v in packages.items() if v is not None}, **flat}


def _per_layer(l1: Mapping[str, float]) -> str:
    """One number where all layers have the same."""
    values = list(dict.fromkeys(l1.values()))
    return setting(values[0]) if len(values) == 1 else setting(list(l1.values()))


def _used(c: Mapping[str, int]) -> str:
    return f"{c['used']} = {percent(c['used'] / c['size'], 1)} % ({c['new']} + {c['reused']})"
