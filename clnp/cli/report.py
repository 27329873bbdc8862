"""The tables of a run in the terminal. Tasks count from 1 here, from 0 in files and in Python."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..html.text import INFERRED, MOST_LAYERS, number, spread
from ..metrics import mean_std
from . import results

# Above this many tasks a table of all accuracies doesn't fit a screen; the files and plots have
# them.
MOST_COLUMNS = 12
# Longer names wrap.
WIDEST = 28
UNLIMITED = 10_000


def show(
    console: Console, metrics: Mapping[str, Any], seconds: Sequence[Mapping[str, Any]]
) -> None:
    """Prints one run: accuracies, capacity, times, ACC, BWT, forgetting and the certificate."""
    tables = [accuracy_table(metrics)]
    layers = metrics["reports"][0]["capacity"]
    if layers:
        wide = len(layers) > MOST_LAYERS
        tables.append(layer_table(metrics) if wide else capacity_table(metrics))
    if seconds:
        tables.append(time_table(seconds))
    config = metrics["config"]
    for table in tables:
        table.title = f"{config.get('method', 'clnp')}, seed {config['seeds'][0]}: {table.title}"
        show_table(console, table)
    for line in last_lines(metrics):
        show_line(console, line)


def last_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The numbers of a whole run, in a few lines."""
    lines = [numbers_line(metrics)]
    if metrics["tasks_learned"] > 1:
        lines += [inferred_line(*item) for item in metrics.get("inferred", {}).items()]
    if "cost" in metrics:
        lines.append(cost_line(metrics["cost"]))
    if metrics["certificate"]["tasks"]:
        lines.append(certificate_line(metrics["certificate"]))
    return lines


def show_table(console: Console, table: Table) -> None:
    """Prints a table below its title; one that is too wide for the console in parts, each with the
    first column and as many of the others as fit.
    """
    show_line(console, f"\n{table.title}")  # rich would squeeze it to the table's width
    wide = console.options.update(width=UNLIMITED)
    first, *columns = range(len(table.columns))
    while columns:
        count = len(columns)
        part = _part(table, [first, *columns])
        while count > 1 and console.measure(part, options=wide).maximum > console.width:
            count -= 1
            part = _part(table, [first, *columns[:count]])
        console.print(part)
        columns = columns[count:]
        if columns:
            show_line(console, "")


def _part(table: Table, columns: Sequence[int]) -> Table:
    """Some columns of a table, without its title. Only the first one, of names, may wrap."""
    part = new_table(None)
    chosen = [table.columns[k] for k in columns]
    for column in chosen:
        first = column is chosen[0]
        part.add_column(
            column.header,
            justify=column.justify,
            style=column.style,
            no_wrap=not first,
            overflow="fold",
            max_width=WIDEST if first else None,
        )
    cells = zip(*(column.cells for column in chosen), strict=True)
    for row, texts in zip(table.rows, cells, strict=True):
        part.add_row(*texts, style=row.style, end_section=row.end_section)
    return part


def show_line(console: Console, text: str) -> None:
    """Prints text as it is: no wrapping, no markup, no colours, so that scripts can look for it."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def accuracy_table(metrics: Mapping[str, Any]) -> Table:
    """R in per cent; only the last row where there are too many tasks for a screen."""
    R = metrics["accuracy_matrix"]
    table = new_table("Test accuracy (%) on each task, with its task id")
    if len(R) > MOST_COLUMNS:
        table.add_column("task")
        table.add_column("when learned", justify="right")
        table.add_column("at the end", justify="right")
        for j, report in enumerate(metrics["reports"]):
            table.add_row(_task(j, report["name"]), _percent(R[j][j]), _percent(R[-1][j]))
        return table
    table.add_column("after task")
    for j in range(len(R)):
        table.add_column(str(j + 1), justify="right")
    table.add_column("mean", justify="right", style="bold")
    for i, row in enumerate(R):
        cells = [_percent(v) for v in row]
        table.add_row(
            _task(i, metrics["reports"][i]["name"]), *cells, _percent(metrics["mean_accuracies"][i])
        )
    return table


def capacity_table(metrics: Mapping[str, Any]) -> Table:
    """Channels per task and layer: used so far, new, reused."""
    reports = metrics["reports"]
    layers = list(reports[0]["capacity"])
    table = new_table("Channels used so far (new + reused by the task), per layer")
    table.add_column("task")
    for layer in layers:
        table.add_column(f"{layer} of {reports[0]['capacity'][layer]['size']}", justify="right")
    for i, report in enumerate(reports):
        cells = []
        for layer in layers:
            c = report["capacity"][layer]
            cells.append(
                f"{c['used']} = {100 * c['used'] / c['size']:.1f} % ({c['new']} + {c['reused']})"
            )
        note = " (head only)" if report.get("transfer_only") else ""
        table.add_row(_task(i, report["name"]) + note, *cells)
    return table


def layer_table(metrics: Mapping[str, Any]) -> Table:
    """The same for many layers: one row each, after the last task."""
    last = metrics["reports"][-1]["capacity"]
    table = new_table("Channels used after the last task (new + reused by it), per layer")
    for column in ("layer", "channels", "used", "new + reused"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for layer, c in last.items():
        used = f"{c['used']} = {100 * c['used'] / c['size']:.1f} %"
        table.add_row(escape(layer), str(c["size"]), used, f"{c['new']} + {c['reused']}")
    return table


def time_table(seconds: Sequence[Mapping[str, Any]]) -> Table:
    """Seconds per task and phase."""
    table = new_table("Time (s)")
    table.add_column("task")
    for phase in results.PHASES:
        table.add_column(phase, justify="right")
    for row in seconds:
        cells = [f"{row[phase]:.1f}" for phase in results.PHASES]
        table.add_row(_task(int(row["task"]), row["name"]), *cells)
    totals = [f"{sum(row[phase] for row in seconds):.1f}" for phase in results.PHASES]
    table.add_section()
    table.add_row("all", *totals, style="bold")
    return table


def numbers_line(metrics: Mapping[str, Any]) -> str:
    """ "ACC 0.9842, BWT 0, forgetting 0": zero is printed as 0 only where it is exactly zero."""
    return ", ".join(
        f"{name} {number(metrics[key])}"
        for name, key in (("ACC", "acc"), ("BWT", "bwt"), ("forgetting", "forgetting"))
    )


def inferred_line(rule: str, means: Mapping[str, float | None]) -> str:
    """ "task not given, chosen by entropy: task 91.20 %, task and label 90.85 %, label 92.40 %"."""
    parts = ", ".join(
        f"{what} {100 * value:.2f} %"
        for measure, what in INFERRED.items()
        if (value := means[measure]) is not None
    )
    return f"task not given, chosen by {rule}: {parts or 'not measured'}"


def cost_line(cost: Mapping[str, Any]) -> str:
    """ "training: 1.25e+12 FLOP, 5000 examples"."""
    return f"training: {cost['flops']:.3g} FLOP, {cost['examples']} examples"


def certificate_line(certificate: Mapping[str, Any]) -> str:
    """ "certificate: 5/5 tasks bit-identical"."""
    return f"certificate: {certificate['identical']}/{certificate['tasks']} tasks bit-identical"


def show_summary(
    console: Console, summary: Mapping[str, Any], all_metrics: Sequence[Mapping[str, Any]]
) -> None:
    """Prints several seeds: one row each, then mean and standard deviation."""
    layers = list(summary["used"])[:MOST_LAYERS]
    table = new_table(
        f"{len(all_metrics)} seeds of {all_metrics[0]['config'].get('method', 'clnp')}"
    )
    for column in ("seed", "ACC", "BWT", "forgetting", *(f"{layer} used" for layer in layers)):
        table.add_column(column, justify="right")
    for m in all_metrics:
        last = m["reports"][-1]["capacity"]
        used = [f"{100 * last[x]['used'] / last[x]['size']:.1f} %" for x in layers]
        table.add_row(
            str(m["config"]["seeds"][0]), *(number(m[k]) for k in results.SUMMARIES), *used
        )
    table.add_section()
    means = [spread(summary[k]) for k in results.SUMMARIES]
    table.add_row(
        "mean", *means, *(spread(summary["used"][x], percent=True) for x in layers), style="bold"
    )
    show_table(console, table)
    show_line(
        console,
        "mean over seeds: "
        + ", ".join(
            f"{name} {spread(summary[key])}"
            for name, key in (("ACC", "acc"), ("BWT", "bwt"), ("forgetting", "forgetting"))
        ),
    )
    if summary["certificate"]["tasks"]:
        show_line(console, certificate_line(summary["certificate"]))


def time_line(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """ "time per seed: 12.3 +- 0.4 s" of the rows of timing.csv of each seed."""
    time = mean_std([sum(row["total"] for row in seconds) for seconds in seeds])
    deviation = "" if time["std"] is None else f" +- {time['std']:.1f}"
    return f"time per seed: {time['mean']:.1f}{deviation} s"


def verdict_table(verdicts: Sequence[Any]) -> Table:
    """The verdicts of `learner.verify()`, task by task."""
    table = new_table("Logits on the stored probe batches, recomputed")
    for column in ("task", "bit-identical", "note"):
        table.add_column(column)
    for v in verdicts:
        table.add_row(_task(v.task, v.name), "yes" if v.identical else "NO", escape(v.note or ""))
    return table


def new_table(title: str | None) -> Table:
    """An empty table with a title, in the one style of all."""
    return Table(title=title, header_style="", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))


def _task(index: int, name: str) -> str:
    """ "1 digits-0": people count from 1."""
    return escape(f"{index + 1} {name}")


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.2f}"
