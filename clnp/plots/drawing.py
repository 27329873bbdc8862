"""What the figures of `clnp.plots.figures` and `clnp.plots.methods` have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Lines of plots with many of them: the rest of that palette, and black.
LINES = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
# Panels side by side.
MOST_COLUMNS = 5


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, drawn without a window."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(text: str) -> str:
    """A name as it is: no formula between dollar signs."""
    return text.replace("$", r"\$")


def grid_of(panels: int) -> tuple[int, int]:
    """(rows, columns) of so many panels."""
    columns = min(panels, MOST_COLUMNS)
    return -(-panels // columns), columns


def panels_of(figure: Figure, panels: int, sharey: bool = False) -> list[Axes]:
    """That many axes in a grid; those of the last row that are left over are taken away."""
    axes = figure.subplots(*grid_of(panels), sharey=sharey, squeeze=False).ravel()
    for unused in axes[panels:]:
        unused.remove()
    return list(axes[:panels])


def line_styles() -> Iterator[tuple[str, str]]:
    """Colours and styles of lines, all different for as long as eyes can tell."""
    return ((colour, style) for style in ("o-", "s--", "^:") for colour in LINES)


def ticks_for(numbers: range) -> tuple[list[int], list[str]]:
    """Tick places and labels: every number, or every fifth where there are more than 15."""
    ticks = [n for n in numbers if len(numbers) <= 15 or n % 5 == 0]
    return ticks, [str(n) for n in ticks]


def line_with_band(
    axes: Axes, values: npt.NDArray[Any], label: str, colour: str, style: str
) -> None:
    """The mean of values [S, T] over seeds against 1 to T, in a band of +- one standard deviation
    where there are several seeds.
    """
    x = np.arange(1, values.shape[1] + 1)
    mean = values.mean(axis=0)
    axes.plot(x, mean, style, color=colour, ms=4, label=label)
    if len(values) > 1:
        std = values.std(axis=0, ddof=1)
        axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.2, lw=0)
