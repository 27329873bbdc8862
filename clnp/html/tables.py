"""The tables and heat maps of a report's page, as plain text cells. Tasks count from 1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import metrics as diagnostics
from ..network.inference import MEASURES
from .page import MISSING, heat, percent, setting
from .text import INFERRED, MOST_LAYERS, PHASES, SUMMARIES, number, spread

MIB = 1 << 20


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
    """The accuracy matrix in per cent. Colours span the accuracies that occur, at least five
    points, as in `plots.accuracy_heatmap`.
    """
    R = metrics["accuracy_matrix"]
    known = [value for row in R for value in row if not math.isnan(value)]
    high = max(known, default=1.0)
    low = min([*known, high - 0.05])
    rows = [[Cell(percent(v) if v == v else "", heat(v, low, high)) for v in row] for row in R]
    forgotten = [number(100 * float(v)) for v in diagnostics.forgetting(R)]
    means = [percent(float(v)) for v in diagnostics.mean_accuracies(R)]
    return HeatMap(rows, means, [*forgotten, ""] if forgotten else ())


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
    """Accuracies and settings of each task."""
    rows = [
        [
            name,
            percent(r["test"]),
            percent(r["validation_before"]),
            percent(r["validation"]),
            str(r["epochs"]),
            setting(r["lr"]),
            _per_layer(r["l1"]),
        ]
        for name, r in zip(task_names(metrics["reports"]), metrics["reports"], strict=True)
    ]
    validation = ("validation (%)", "validation, pruned (%)")
    return Table(("task", "test (%)", *validation, "epochs", "lr", "l1"), rows, texts=("l1",))


def grid(points: Sequence[Mapping[str, Any]]) -> Table:
    """The grid points of a task."""
    rows = [
        [
            str(i + 1),
            _per_layer(point["l1"]),
            setting(point["lr"]),
            percent(point["validation"]),
            MISSING if point["kept"] < 0 else str(point["kept"]),
            "chosen" if point["chosen"] else "candidate" if point["candidate"] else "",
        ]
        for i, point in enumerate(points)
    ]
    columns = ("point", "l1", "lr", "validation (%)", "channels kept", "")
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
