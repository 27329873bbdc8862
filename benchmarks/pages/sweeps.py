"""Tables of docs/settings.md and docs/accuracy-and-capacity.md."""

from __future__ import annotations

import numpy as np

from benchmarks import defaults, settings
from benchmarks.pages.markdown import table
from benchmarks.record import rows_in
from clnp.learner.settings import FineTune, Settings, settings_table
from clnp.metrics import mean_std

HEAD = ("tasks learned", "mean accuracy, %", "worst task, %", "layer 1 used, %", "layer 2 used, %")
NUMBERS = (
    ("tasks", 1, 1),
    ("acc", 100, 1),
    ("lowest", 100, 1),
    ("used_fc1", 100, 0),
    ("used_fc2", 100, 0),
)


def sweep(name: str) -> str:
    """Return the table of a sweep: a line for each value, means over the seeds."""
    rows = [row for row in settings.read() if row["sweep"] == name]
    lines = []
    for value in dict.fromkeys(row["value"] for row in rows):
        own = [row for row in rows if row["value"] == value]
        means = [mean_std([float(row[key]) for row in own])["mean"] for key, _, _ in NUMBERS]
        cells = [
            f"{factor * (mean or 0):.{digits}f}"
            for mean, (_, factor, digits) in zip(means, NUMBERS, strict=True)
        ]
        lines.append([f"`{value}`", *cells])
    return table([name.partition("-")[0], *HEAD], lines)


def conditions() -> str:
    """Return versions, seeds and settings that the tables share."""
    rows = settings.read()
    seeds = len({row["seed"] for row in rows})
    base = ", ".join(
        f"`{key}={value:g}`" if isinstance(value, float) else f"`{key}={value}`"
        for key, value in settings.BASE.items()
    )
    torches = ", ".join(sorted({row["torch"] for row in rows}))
    return (
        f"{settings.TASKS} tasks of permuted digits, MLP with two hidden layers, one head, one "
        f"thread of a shared CPU, torch {torches}, means over {seeds} seeds. Where a table does "
        f"not say otherwise: {base}."
    )


def recipes() -> str:
    """Return the table of `benchmarks.defaults`: a line for each stream and choice of settings."""
    rows = rows_in(defaults.RESULTS)
    lines = []
    for stream, choice in dict.fromkeys((row["stream"], row["choice"]) for row in rows):
        own = [row for row in rows if (row["stream"], row["choice"]) == (stream, choice)]
        gap = mean_std([100 * float(row["gap"]) for row in own])["mean"] or 0
        gaps = np.array([[100 * float(gap) for gap in row["gaps"].split()] for row in own])
        worst = gaps.mean(axis=0).min()
        used = max(100 * float(row["used_most"]) for row in own)
        lines.append([stream, choice, f"{gap:+.1f}", f"{worst:+.1f}", f"{used:.0f}", str(len(own))])
    head = ("tasks, network", "settings", "mean gap", "worst task", "fullest group, %", "seeds")
    return table(
        head, sorted(lines, key=lambda line: [row["stream"] for row in rows].index(line[0]))
    )


def every_setting() -> str:
    """Return the tables of all settings of `clnp.Learner` and of its fine-tuning."""
    return "\n\n".join(settings_table(kind) for kind in (Settings, FineTune))
