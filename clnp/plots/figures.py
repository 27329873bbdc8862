"""Figures of a run, drawn from numbers, without windows or global state.

Each function returns a `matplotlib.figure.Figure`, and `save` writes it as a PNG. Symbols are those
of `clnp.metrics`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .. import metrics
from ..errors import DataError
from ..files.atomic import write_bytes
from ..metrics import Capacity
from ..objectives.shown import Shown
from .drawing import grid_of, line_with_band, new_figure, over_tasks, panels_of, plain, ticks_for

DPI = 150
ACCURACY = Shown()
VALIDATION_LINE = ("validation", "#0072B2", "validation")
# From the Okabe-Ito palette, which is safe for colour-blind readers.
COLOURS = {"reused": "#0072B2", "idle": "#9AC7E0", "new": "#E69F00", "free": "#ECECEC"}
LABELS = {
    "reused": "claimed earlier, used by this task",
    "idle": "claimed earlier, not used",
    "new": "claimed by this task",
    "free": "free",
}
# With more tasks, the cells of a heat-map are too small for numbers.
MOST_NUMBERED = 30


def accuracy_heatmap(R: npt.ArrayLike, metric: Shown = ACCURACY) -> Figure:
    """Draw R as a heat-map: row i is after task i, column j is on task j.

    Colours span the range of the numbers, of a fraction at least 5 points, so that small losses are
    visible. Bright is good.

    Arguments:
        R: [T, T], NaN above the diagonal.
        metric: of all tasks.

    Raises:
        DataError: R isn't a matrix of the metric.
    """
    matrix = metric.scale * _matrix(R, metric)
    tasks = len(matrix)
    side = _side(tasks)
    figure = new_figure(side + 1.2, side)
    axes = figure.add_subplot()
    top, low = float(np.nanmax(matrix)), float(np.nanmin(matrix))
    low = min(low, top - 5) if metric.percent else low
    cmap = "viridis" if metric.higher_is_better else "viridis_r"
    image = axes.imshow(matrix, cmap=cmap, vmin=low, vmax=top)
    label = plain(f"test {metric.title}")
    figure.colorbar(image, ax=axes, label=label, fraction=0.046, pad=0.03)
    dark = metric.sign * matrix < metric.sign * (low + top) / 2
    _number_cells(axes, matrix, "{:.1f}" if metric.percent else "{:.3g}", dark)
    _task_ticks(axes, tasks)
    axes.set(xlabel=f"{plain(metric.name)} on task", ylabel="after learning task")
    axes.set_title(label[0].upper() + label[1:])
    return figure


def mean_accuracy(runs: Sequence[npt.ArrayLike], metric: Shown = ACCURACY) -> Figure:
    """Draw the mean metric over the tasks so far, and the metric on the newest task.

    Several seeds give the mean and a band of +- one standard deviation.

    Arguments:
        runs: one R [T, T] per seed, all with the same T.
        metric: of all tasks.

    Raises:
        DataError: no run, or runs of different lengths.
    """
    matrices = [_matrix(R, metric) for R in runs]
    if not matrices or len({len(R) for R in matrices}) != 1:
        raise DataError(
            f"runs: expected one or more of equal length, got lengths {[len(R) for R in matrices]}"
        )
    curves = {
        "mean over the tasks so far": np.stack([metrics.mean_accuracies(R) for R in matrices]),
        "the task just learned": np.stack([R.diagonal() for R in matrices]),
    }
    tasks = len(matrices[0])
    figure = new_figure(max(6.0, 0.3 * tasks + 2), 4)
    axes = figure.add_subplot()
    for (label, values), colour, style in zip(
        curves.items(), ("#0072B2", "#E69F00"), ("o-", "s:"), strict=True
    ):
        line_with_band(axes, metric.scale * values, label, colour, style)
    title = _with_seeds(f"Mean test {metric.name} after each task", len(matrices))
    over_tasks(axes, tasks, title, f"test {metric.title}")
    if metric.percent:
        low, high = axes.get_ylim()
        # Show at least two points, so that noise doesn't fill the figure, and nothing above 100.
        pad = max(0.0, 2 - (high - low)) / 2
        axes.set_ylim(low - pad, min(high + pad, 100.2))
    axes.legend(frameon=False)
    return figure


def inferred_accuracy(
    R: npt.ArrayLike, inferred: Sequence[Mapping[str, Mapping[str, Sequence[float | None]]]]
) -> Figure:
    """Draw the mean accuracy over the tasks so far, with the task given and with it inferred.

    Each rule of inference has two lines: task and label correct, and label correct.

    Arguments:
        R: [T, T], with the task given.
        inferred: `TaskReport.inferred` of tasks 0, 1, ...

    Raises:
        DataError: R isn't an accuracy matrix.
    """
    given = metrics.mean_accuracies(R)
    means = [metrics.inferred_means(each) for each in inferred]
    figure = new_figure(max(6.0, 0.3 * len(given) + 2), 4)
    axes = figure.add_subplot()
    x = range(1, len(given) + 1)
    axes.plot(x, 100 * given, "o-", color="#0072B2", ms=4, label="task given")
    rules = [rule for rule in means[-1] if all(rule in mean for mean in means)]
    for rule, colour in zip(rules, ("#E69F00", "#009E73", "#CC79A7"), strict=False):
        for measure, style, what in (
            ("class_incremental", "s-", "task and label"),
            ("domain_incremental", "^:", "label"),
        ):
            values = [mean[rule][measure] for mean in means]
            if None not in values:
                label = f"{what}, task by {rule}"
                axes.plot(
                    x,
                    [100 * v for v in values if v is not None],
                    style,
                    color=colour,
                    ms=4,
                    label=label,
                )
    over_tasks(axes, len(given), "Mean test accuracy, the task given or not")
    axes.legend(frameon=False, fontsize=9)
    return figure


def capacity(runs: Sequence[Sequence[Capacity]]) -> Figure:
    """Draw stacked bars per layer: shares of reused, idle, new and free channels after each task.

    This is Golkar et al. 2019, Fig. 3, with idle channels (claimed earlier, not used) shown
    separately.

    Arguments:
        runs: per seed, the capacities of tasks 0, 1, ... (see `clnp.metrics.capacity_table`);
            several seeds are averaged.

    Raises:
        DataError: no run, no task, or runs of different lengths.
    """
    if not runs or not runs[0] or len({len(run) for run in runs}) != 1:
        raise DataError(
            f"runs: expected one or more of equal length, got lengths {[len(run) for run in runs]}"
        )
    groups = list(runs[0][0])
    tasks = len(runs[0])
    width = max(3.2, 0.28 * tasks + 1)
    rows, columns = grid_of(len(groups))
    figure = new_figure(max(6.5, width * columns + 0.6), 3.4 * rows + 1)
    all_axes = panels_of(figure, len(groups), sharey=True)
    for axes, group in zip(all_axes, groups, strict=True):
        shares = [metrics.capacity_shares(run, group) for run in runs]
        mean = {part: np.mean([s[part] for s in shares], axis=0) for part in LABELS}
        _stack(axes, mean)
        used = 100 * (1 - mean["free"][-1])
        axes.set_title(
            f"layer {plain(group)}: {used:.0f} % used of {runs[0][0][group]['size']}", fontsize=10
        )
        axes.set_xlabel("task")
        axes.set_xticks(*ticks_for(range(tasks)))
    for axes in all_axes[::columns]:
        axes.set_ylabel("channels of the layer")
    all_axes[0].yaxis.set_major_formatter(PercentFormatter(100))
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.suptitle(_with_seeds("Channels used, per layer and task", len(runs)))
    return figure


def reuse(matrices: Mapping[str, npt.NDArray[Any]]) -> Figure:
    """Draw reuse matrices, one heat-map per layer.

    Entry (i, j) is the number of channels that task j claimed and task i uses. Colours are the
    share of task j's channels.

    Arguments:
        matrices: {group: [T, T] counts} from `clnp.metrics.reuse_matrix`.

    Raises:
        DataError: no group.
    """
    if not matrices:
        raise DataError("matrices: expected at least one group, got none")
    tasks = len(next(iter(matrices.values())))
    side = _side(tasks)
    rows, columns = grid_of(len(matrices))
    figure = new_figure(side * columns + 1, side * rows + 0.4)
    all_axes = panels_of(figure, len(matrices))
    for axes, (group, counts) in zip(all_axes, matrices.items(), strict=True):
        shown = np.where(np.tri(tasks, dtype=bool), counts, np.nan)
        share = 100 * shown / np.maximum(np.diag(counts), 1)
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
        _number_cells(axes, shown, "{:.0f}", share > 55)
        _task_ticks(axes, tasks)
        axes.set(xlabel="claimed by task", ylabel="used by task")
        axes.set_title(f"layer {plain(group)}", fontsize=10)
    figure.colorbar(
        image,
        ax=list(all_axes),
        label="share of the claimed channels (%)",
        fraction=0.046,
        pad=0.02,
    )
    figure.suptitle("Channels a task uses, by the task that claimed them")
    return figure


def training_curves(
    histories: Sequence[Sequence[Mapping[str, float]]], metric: Shown | None = ACCURACY
) -> Figure:
    """Draw loss, training and validation metric over the epochs of all tasks.

    Vertical lines separate the tasks.

    Arguments:
        histories: `TaskReport.history` of tasks 0, 1, ...: dicts with "epoch", "loss",
            "train_metric" (None or NaN where there is none), "validation_metric".
        metric: of all tasks; None, of tasks with different ones, draws the loss only.
    """
    figure = new_figure(9, 5.5 if metric else 3.2)
    panels = figure.subplots(2 if metric else 1, 1, sharex=True, squeeze=False)[:, 0]
    above, below = panels[0], panels[-1]
    lines = [(above, "loss", "#333333", "training loss", 1.0)]
    if metric:
        for field, colour, label in (("train", "#E69F00", "training"), VALIDATION_LINE):
            lines.append((below, f"{field}_metric", colour, label, metric.scale))
    start, labelled = 0, set[str]()
    for task, history in enumerate(histories):
        epochs = np.arange(start, start + len(history)) + 1
        for axes, field, colour, label, scale in lines:
            values = scale * np.array([record[field] for record in history], dtype=float)
            if np.isnan(values).all():  # also of a network that was adopted, without an epoch
                continue
            own = label if label not in labelled else None
            axes.plot(epochs, values, "-", color=colour, lw=1.2, ms=3, label=own)
            labelled.add(label)
        if task:
            for axes in panels:
                axes.axvline(start + 0.5, color="#BBBBBB", lw=0.8, zorder=0)
        start += len(history)
    above.set(ylabel="loss", title="Training curves")
    if all(record["loss"] > 0 for history in histories for record in history):
        above.set_yscale("log")
    below.set(xlabel="epoch (lines part the tasks)")
    if metric:
        place = "lower right" if metric.higher_is_better else "upper right"
        below.set(ylabel=plain(metric.title))
        if below.get_legend_handles_labels()[0]:
            below.legend(frameon=False, loc=place)
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels:
        axes.grid(alpha=0.3)
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as a PNG at 150 dots per inch, atomically. Raises OSError."""
    buffer = io.BytesIO()
    # Without the software version, the same numbers give the same bytes.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    write_bytes(Path(path), buffer.getvalue())


def _matrix(R: npt.ArrayLike, metric: Shown) -> npt.NDArray[Any]:
    return metrics.accuracy_matrix(R, fractions=metric.percent and metric.higher_is_better)


def _side(tasks: int) -> float:
    return min(max(3.8, 0.38 * tasks + 1), 12)


def _task_ticks(axes: Axes, tasks: int) -> None:
    ticks, labels = ticks_for(range(tasks))
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    axes.spines[:].set_visible(False)


def _number_cells(
    axes: Axes, matrix: npt.NDArray[Any], form: str, dark: npt.NDArray[np.bool_]
) -> None:
    """Write each number into its cell, in white where the colour is dark."""
    if len(matrix) > MOST_NUMBERED:
        return
    for (i, j), value in np.ndenumerate(matrix):
        if not np.isnan(value):
            colour, size = "white" if dark[i, j] else "black", 8 if len(matrix) <= 15 else 6.5
            place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": size}
            axes.text(j, i, form.format(value), color=colour, **place)


def _stack(axes: Axes, shares: Mapping[str, npt.NDArray[Any]]) -> None:
    tasks = len(shares["free"])
    bottom = np.zeros(tasks)
    for part, label in LABELS.items():
        height = 100 * shares[part]
        axes.bar(np.arange(tasks), height, 0.85, bottom=bottom, color=COLOURS[part], label=label)
        bottom += height
    axes.set_ylim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)


def _with_seeds(title: str, seeds: int) -> str:
    return title if seeds == 1 else f"{title} (mean of {seeds} seeds)"
