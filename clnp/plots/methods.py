"""Figures that compare methods, drawn from numbers; `clnp.plots.save` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from .. import metrics
from ..errors import DataError
from ..objectives.shown import Shown
from .drawing import line_styles, line_with_band, new_figure, over_tasks, plain
from .figures import ACCURACY


def mean_accuracies(
    methods: Mapping[str, Sequence[npt.ArrayLike]], metric: Shown = ACCURACY
) -> Figure:
    """Draw the mean metric over the tasks so far, with a line per method.

    Several seeds give a band of +- one standard deviation.

    Arguments:
        methods: name -> one R [T, T] per seed.
        metric: of all tasks.

    Raises:
        DataError: no method, or a method without runs.
    """
    if not methods or not all(len(runs) for runs in methods.values()):
        raise DataError(
            "methods: expected one or more methods with runs, got none, or one without runs"
        )
    figure = new_figure(7, 4.4)
    axes = figure.add_subplot()
    tasks = 1
    for (name, runs), (colour, style) in zip(methods.items(), line_styles(), strict=False):
        values = np.stack([metrics.mean_accuracies(R) for R in runs])
        tasks = max(tasks, values.shape[1])
        line_with_band(axes, metric.scale * values, plain(name), colour, style)
    title = f"Mean test {metric.name} over the tasks so far"
    over_tasks(axes, tasks, title, f"test {metric.title}")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def accuracy_against_cost(rows: Sequence[Mapping[str, Any]], metric: Shown = ACCURACY) -> Figure:
    """Draw ACC of every run against training operations and against time, a colour per method.

    Arguments:
        rows: {"method", "acc", "flops", "seconds"} per method and seed.
        metric: of all tasks.

    Raises:
        DataError: no rows.
    """
    if not rows:
        raise DataError("rows: expected one per run, got none")
    figure = new_figure(9, 4.4)
    panels = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(row["method"] for row in rows))
    for name, (colour, style) in zip(names, line_styles(), strict=False):
        own = [row for row in rows if row["method"] == name]
        for axes, key in zip(panels, ("flops", "seconds"), strict=True):
            label = plain(name) if axes is panels[0] else None
            at = [row[key] for row in own]
            values = [metric.scale * row["acc"] for row in own]
            axes.plot(at, values, style[0], color=colour, ms=6, label=label)
    labels = {"flops": "training operations (FLOP)", "seconds": "time (s)"}
    for axes, (key, label) in zip(panels, labels.items(), strict=True):
        axes.set(xlabel=label)
        _scale(axes, [row[key] for row in rows])
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(plain(f"mean test {metric.title}"))
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    name = plain(metric.name)
    figure.suptitle(f"{name[0].upper()}{name[1:]} at the end, and what training took")
    return figure


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Use a logarithmic axis if the values span more than a power of ten."""
    if 0 < 10 * min(values) < max(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter())
