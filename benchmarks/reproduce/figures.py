"""The plots of an experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from benchmarks.reproduce.tables import Row, groups_of, share
from clnp.plots.drawing import line_styles, line_with_band, new_figure, panels_of, ticks_for


def by_run(tasks: Sequence[Row]) -> dict[str, list[list[Row]]]:
    """Name of a contender -> the rows of each of its runs."""
    runs: dict[str, dict[int, list[Row]]] = {}
    for row in tasks:
        runs.setdefault(row["contender"], {}).setdefault(row["seed"], []).append(row)
    return {name: list(own.values()) for name, own in runs.items()}


def by_contender(tasks: Sequence[Row]) -> dict[str, list[list[Row]]]:
    """`by_run`, of the runs that have learned as many tasks as the longest of their contender."""
    runs = by_run(tasks)
    longest = {name: max(map(len, own)) for name, own in runs.items()}
    return {
        name: [rows for rows in own if len(rows) == longest[name]] for name, own in runs.items()
    }


def accuracy_per_task(
    tasks: Sequence[Row], column: str, title: str, closer: float | None = None
) -> Figure:
    """A column of `Tables.tasks` (a share) in per cent against the task, a line per contender that
    has it, with a band of +- one standard deviation over seeds.

    Arguments:
        tasks: the rows.
        column: which.
        title: of the figure.
        closer: a second panel shows what is above this share, if anything is.
    """
    tasks = [row for row in tasks if column in row]
    highest = max(row[column] for row in tasks)
    if closer is not None and highest <= closer:
        closer = None
    runs = by_contender(tasks)
    figure = new_figure(7.5 if closer is None else 10, 4.4)
    for panel in panels_of(figure, 1 if closer is None else 2):
        most = 1
        for (name, own), (colour, style) in zip(runs.items(), line_styles(), strict=False):
            values = np.array([[row[column] for row in rows] for rows in own], dtype=float)
            most = max(most, values.shape[1])
            label = name if panel is figure.axes[0] else ""
            line_with_band(panel, 100 * values, label, colour, style)
        panel.set_xlabel("task")
        panel.set_xticks(*ticks_for(range(1, most + 1)))
        panel.grid(alpha=0.3)
    figure.axes[0].set_ylabel("accuracy (%)")
    if closer is not None:
        panel.set_ylim(100 * closer, 100 * (highest + 0.1 * (highest - closer)))
        panel.set_title(f"the same from {100 * closer:g} %", fontsize=10)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    figure.suptitle(title)
    return figure


def capacity_per_task(tasks: Sequence[Row], title: str) -> Figure:
    """Used channels of every group in per cent after each task, a panel per group, a line per
    contender of CLNP, which alone claims channels; mean and band over seeds.
    """
    groups = groups_of(tasks)
    runs = by_contender([row for row in tasks if groups_of([row])])
    figure = new_figure(max(7, 3 * len(groups)), 3.8)
    for axes, group in zip(panels_of(figure, len(groups), sharey=True), groups, strict=True):
        most = 1
        for (name, own), (colour, style) in zip(runs.items(), line_styles(), strict=False):
            values = np.array([[share(row, group) for row in rows] for rows in own])
            most = max(most, values.shape[1])
            label = name if group == groups[0] else ""
            line_with_band(axes, 100 * values, label, colour, style)
        axes.set_title(f"layer {group}", fontsize=10)
        axes.set_xlabel("tasks learned")
        axes.set_xticks(*ticks_for(range(1, most + 1)))
        axes.set_ylim(0, 100)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("channels used (%)")
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    figure.suptitle(title)
    return figure


def frontier(
    tasks: Sequence[Row], after: int, title: str, best: Mapping[str, tuple[float, float]]
) -> Figure:
    """Mean test accuracy against the channels used, a panel per group, a point per run.

    Arguments:
        tasks: rows of `Tables.tasks`, of runs by CLNP.
        after: so many tasks, or after the last of a run that has fewer.
        title: of the figure.
        best: group -> (share, accuracy) of the paper, drawn as a cross.
    """
    ends = {name: [rows[:after][-1] for rows in own] for name, own in by_run(tasks).items()}
    groups = groups_of(tasks)
    figure = new_figure(max(8, 4.5 * len(groups)), 5)
    for axes, group in zip(panels_of(figure, len(groups), sharey=True), groups, strict=True):
        for (name, own), (colour, style) in zip(ends.items(), line_styles(), strict=False):
            x = [100 * share(row, group) for row in own]
            y = [100 * row["mean"] for row in own]
            label = name if group == groups[0] else None
            axes.plot(x, y, style[0], color=colour, ms=6, label=label)
        if group in best:
            used, accuracy = best[group]
            label = "paper, ten tasks" if group == groups[0] else None
            axes.plot(100 * used, 100 * accuracy, "x", color="black", ms=9, label=label)
        axes.set_title(f"layer {group}", fontsize=10)
        axes.set_xlabel("channels used (%)")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mean test accuracy (%)")
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    figure.suptitle(title)
    return figure


def accuracy_by_size(
    curves: Mapping[tuple[str, int], Sequence[tuple[float, float]]], title: str
) -> Figure:
    """Accuracy against the weights that are kept, a line per recipe and seed.

    Arguments:
        curves: (recipe, seed) -> (weights, accuracy as a share) of its runs.
    """
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    names = dict.fromkeys(name for name, _ in curves)
    looks = dict(zip(names, line_styles(), strict=False))
    for (name, _), points in curves.items():
        colour, style = looks[name]
        x, y = zip(*sorted(points), strict=True)
        label = name if name in names else None
        names.pop(name, None)
        axes.plot(x, [100 * value for value in y], style, color=colour, ms=5, label=label)
    axes.set_xscale("log")
    axes.set(xlabel="weights kept", ylabel="mean test accuracy (%)", title=title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure
