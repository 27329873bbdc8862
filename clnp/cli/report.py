"""The tables of a run in the terminal. Tasks count from 1 here, from 0 in files and in Python."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import rich.table
from rich import box
from rich.console import Console
from rich.markup import escape

from ..html import tables
from ..html.tables import Table
from ..html.text import INFERRED, MOST_LAYERS, number, spread
from ..metrics import mean_std
from ..objectives.shown import Shown

# Above this many tasks a table of all accuracies doesn't fit a screen; the files and plots have
# them.
MOST_COLUMNS = 12
# Longer names wrap.
WIDEST = 28
UNLIMITED = 10_000
CHANNELS = "so far (new + reused by the task)"
NUMBERS = {"ACC": "acc", "BWT": "bwt", "forgetting": "forgetting"}


def show(
    console: Console, metrics: Mapping[str, Any], seconds: Sequence[Mapping[str, Any]]
) -> None:
    """Prints one run: accuracies, capacity, times, ACC, BWT, forgetting and the certificate."""
    config = metrics["config"]
    name = f"{config.get('method', 'clnp')}, seed {config['seeds'][0]}: "
    accuracies = accuracy_table(metrics)
    title = f"{name}Test {tables.title(metrics)} on each task, with its task id"
    show_table(console, title, accuracies)
    layers = metrics["reports"][0]["capacity"]
    if layers:
        several = len(layers) > MOST_LAYERS
        what = "after the last task (new + reused by it)" if several else CHANNELS
        show_table(console, f"{name}Channels used {what}, per layer", tables.channels(metrics))
    times = tables.costs([], seconds)
    if times:
        show_table(console, f"{name}Time (s)", times)
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


def show_table(console: Console, title: str, table: Table) -> None:
    """Prints a table below its title; one that is too wide for the console in parts, each with the
    first column and as many of the others as fit.
    """
    show_line(console, f"\n{title}")  # rich would squeeze it to the table's width
    wide = console.options.update(width=UNLIMITED)
    columns = list(range(1, len(table.columns)))
    while columns:
        count = len(columns)
        part = _part(table, columns)
        while count > 1 and console.measure(part, options=wide).maximum > console.width:
            count -= 1
            part = _part(table, columns[:count])
        console.print(part)
        columns = columns[count:]
        if columns:
            show_line(console, "")


def _part(table: Table, columns: Sequence[int]) -> rich.table.Table:
    """The first column of a table, of names, which may wrap, and some of the others."""
    part = rich.table.Table(header_style="", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    for k in (0, *columns):
        part.add_column(
            escape(table.columns[k]),
            justify="right" if k and table.columns[k] not in table.texts else "left",
            no_wrap=k > 0,
            overflow="fold",
            max_width=None if k else WIDEST,
        )
    for row in table.rows:
        part.add_row(*(escape(row[k]) for k in (0, *columns)))
    if table.foot:
        part.add_section()
        part.add_row(*(table.foot[k] for k in (0, *columns)), style="bold")
    return part


def show_line(console: Console, text: str) -> None:
    """Prints text as it is: no wrapping, no markup, no colours, so that scripts can look for it."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def accuracy_table(metrics: Mapping[str, Any]) -> Table:
    """R, fractions in per cent; only the last row where there are too many tasks for a screen. Of
    different metrics there is no mean.
    """
    R, names = metrics["accuracy_matrix"], tables.task_names(metrics["reports"])
    each = [Shown.of_report(report) for report in metrics["reports"]]
    if len(R) > MOST_COLUMNS:
        ends = [
            [name, _number(own, R[j][j]), _number(own, R[-1][j])]
            for j, (name, own) in enumerate(zip(names, each, strict=True))
        ]
        return Table(("task", "when learned", "at the end"), ends)
    rows = [
        [name, *(_number(own, value) for own, value in zip(each, row, strict=True))]
        for name, row in zip(names, R, strict=True)
    ]
    columns = ("after task", *(str(j + 1) for j in range(len(R))))
    if len(set(each)) > 1:
        return Table(columns, rows)
    means = [_number(each[0], value) for value in metrics["mean_accuracies"]]
    with_means = [[*row, mean] for row, mean in zip(rows, means, strict=True)]
    return Table((*columns, "mean"), with_means)


def numbers_line(metrics: Mapping[str, Any]) -> str:
    """ "ACC 0.9842, BWT 0, forgetting 0": zero is printed as 0 only where it is exactly zero. Of
    other metrics than accuracy, those of each: "accuracy: ACC 0.98, ...; R2: ACC ...".
    """
    groups = metrics.get("by_metric") or {Shown().name: metrics}
    if list(groups) == [Shown().name]:
        return _numbers(metrics)
    return "; ".join(f"{name}: {_numbers(group)}" for name, group in groups.items())


def _numbers(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {number(found[key])}" for name, key in NUMBERS.items())


def _number(shown: Shown, value: float) -> str:
    return "" if math.isnan(value) else shown.number(value)


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
    title = f"{len(all_metrics)} seeds of {all_metrics[0]['config'].get('method', 'clnp')}"
    show_table(console, title, tables.seeds(summary, all_metrics))
    means = ", ".join(f"{name} {spread(summary[key])}" for name, key in NUMBERS.items())
    show_line(console, f"mean over seeds: {means}")
    if summary["certificate"]["tasks"]:
        show_line(console, certificate_line(summary["certificate"]))


def time_line(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """ "time per seed: 12.3 +- 0.4 s" of the rows of timing.csv of each seed."""
    time = mean_std([sum(row["total"] for row in seconds) for seconds in seeds])
    deviation = "" if time["std"] is None else f" +- {time['std']:.1f}"
    return f"time per seed: {time['mean']:.1f}{deviation} s"


def show_verdicts(console: Console, verdicts: Sequence[Any]) -> None:
    """Prints the verdicts of `learner.verify()`, task by task."""
    rows = [
        [f"{v.task + 1} {v.name}", "yes" if v.identical else "NO", v.note or ""] for v in verdicts
    ]
    columns = ("task", "bit-identical", "note")
    table = Table(columns, rows, texts=columns)
    show_table(console, "Logits on the stored probe batches, recomputed", table)


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.2f}"
