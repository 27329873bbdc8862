"""The plots of an experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from benchmarks.reproduce.experiment import Run
from benchmarks.reproduce.tables import task_rows, used
from clnp.drawing import line_styles, line_with_band, new_figure, panels_of, ticks_for


def by_contender(there: Sequence[Run]) -> dict[str, list[Run]]:
    """Name -> its runs that have learned as many tasks as the longest of them."""
    names = dict.fromkeys(run.contender for run in there)
    own = {name: [run for run in there if run.contender == name] for name in names}
    longest = {name: max(r.metrics["tasks_learned"] for r in runs) for name, runs in own.items()}
    return {
        name: [r for r in runs if r.metrics["tasks_learned"] == longest[name]]
        for name, runs in own.items()
    }


def accuracy_per_task(there: Sequence[Run], column: str, title: str) -> Figure:
    """A number of `tables.task_rows` (a share) in per cent against the task, a line per contender,
    with a band of +- one standard deviation over seeds.
    """
    figure = new_figure(7, 4.4)
    axes = figure.add_subplot()
    most = 1
    for (name, runs), (colour, style) in zip(
        by_contender(there).items(), line_styles(), strict=False
    ):
        values = np.array([[row[column] for row in task_rows(run)] for run in runs], dtype=float)
        most = max(most, values.shape[1])
        line_with_band(axes, 100 * values, name, colour, style)
    axes.set(xlabel="task", ylabel="accuracy (%)", title=title)
    axes.set_xticks(*ticks_for(range(1, most + 1)))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def with_capacity(there: Sequence[Run]) -> list[Run]:
    """The runs by CLNP, which alone claims channels."""
    return [run for run in there if used(run, -1)]


def capacity_per_task(there: Sequence[Run], title: str) -> Figure:
    """Used channels of every group in per cent after each task, a panel per group, a line per
    contender; mean and band over seeds.

    Arguments:
        there: one or more `with_capacity`.
    """
    runs = by_contender(there)
    groups = list(dict.fromkeys(g for own in runs.values() for g in used(own[0], -1)))
    figure = new_figure(max(7, 3 * len(groups)), 3.8)
    for axes, group in zip(panels_of(figure, len(groups), sharey=True), groups, strict=True):
        most = 1
        for (name, own), (colour, style) in zip(runs.items(), line_styles(), strict=False):
            tasks = len(own[0].metrics["reports"])
            most = max(most, tasks)
            values = np.array([[used(run, t)[group] for t in range(tasks)] for run in own])
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
    there: Sequence[Run], tasks: int, title: str, best: Mapping[str, tuple[float, float]]
) -> Figure:
    """Mean test accuracy against the channels used, a panel per group, a point per run.

    Arguments:
        there: one or more `with_capacity`.
        tasks: after so many tasks, or after the last of a run that has fewer.
        title: of the figure.
        best: group -> (share, accuracy) of the paper, drawn as a cross.
    """
    ends = {id(run): min(tasks, run.metrics["tasks_learned"]) - 1 for run in there}
    groups = list(used(there[0], -1))
    figure = new_figure(max(8, 4.5 * len(groups)), 5)
    names = list(dict.fromkeys(run.contender for run in there))
    for axes, group in zip(panels_of(figure, len(groups), sharey=True), groups, strict=True):
        for name, (colour, style) in zip(names, line_styles(), strict=False):
            own = [run for run in there if run.contender == name]
            x = [100 * used(run, ends[id(run)])[group] for run in own]
            y = [100 * task_rows(run)[ends[id(run)]]["mean"] for run in own]
            label = name if group == groups[0] else None
            axes.plot(x, y, style[0], color=colour, ms=6, label=label)
        if group in best:
            share, accuracy = best[group]
            label = "paper, ten tasks" if group == groups[0] else None
            axes.plot(100 * share, 100 * accuracy, "x", color="black", ms=9, label=label)
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
