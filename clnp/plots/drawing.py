"""Helpers shared by `clnp.plots.figures` and `clnp.plots.methods`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Colours of lines: the Okabe-Ito palette, and black.
LINES = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MOST_COLUMNS = 5  # panels in a row


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure of a size in inches, without a window."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(text: str) -> str:
    """Escape dollar signs, which matplotlib would read as formulas."""
    return text.replace("$", r"\$")


def grid_of(panels: int) -> tuple[int, int]:
    """Return (rows, columns) for a number of panels."""
    columns = min(panels, MOST_COLUMNS)
    return -(-panels // columns), columns


def panels_of(figure: Figure, panels: int, sharey: bool = False) -> list[Axes]:
    """Make a grid of axes, and remove unused ones in the last row."""
    axes = figure.subplots(*grid_of(panels), sharey=sharey, squeeze=False).ravel()
    for unused in axes[panels:]:
        unused.remove()
    return list(axes[:panels])


def line_styles() -> Iterator[tuple[str, str]]:
    """Yield distinguishable pairs of colour and line style."""
    return ((colour, style) for style in ("o-", "s--", "^:") for colour in LINES)


def ticks_for(numbers: range) -> tuple[list[int], list[str]]:
    """Return tick positions and labels: every number, or every fifth of more than 15."""
    ticks = [n for n in numbers if len(numbers) <= 15 or n % 5 == 0]
    return ticks, [str(n) for n in ticks]


def over_tasks(axes: Axes, tasks: int, title: str, ylabel: str = "test accuracy (%)") -> None:
    """Label axes of a metric after each task."""
    axes.set(xlabel="tasks learned", ylabel=plain(ylabel), title=plain(title))
    axes.set_xticks(*ticks_for(range(1, tasks + 1)))
    axes.grid(alpha=0.3)


def line_with_band(
    axes: Axes, values: npt.NDArray[Any], label: str, colour: str, style: str
) -> None:
    """Plot the mean of values [S, T] over S seeds, with a band of +- one standard deviation."""
    x = np.arange(1, values.shape[1] + 1)
    mean = values.mean(axis=0)
    axes.plot(x, mean, style, color=colour, ms=4, label=label)
    if len(values) > 1:
        std = values.std(axis=0, ddof=1)
        axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.2, lw=0)
