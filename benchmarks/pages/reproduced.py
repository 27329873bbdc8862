"""Tables of docs/reproducibility.md and docs/methods.md, from the files of `benchmarks.reproduce`
and `clnp compare`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.documented import differences
from benchmarks.pages.markdown import table
from benchmarks.record import Row, read
from clnp.cli import compare

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "reproduce"
# Further numbers of a run: title, factor, digits.
MORE = {
    "first": ("first task, %", 100, 2),
    "second": ("second task, %", 100, 2),
    "rank": ("effective rank of fc1", 1, 0),
    "ten": ("after ten tasks, %", 100, 2),
    "ten_fc1": ("fc1 then, %", 100, 1),
    "ten_fc2": ("fc2 then, %", 100, 1),
    "weights": ("weights kept, thousands", 1e-3, 0),
}
# Test accuracy that the paper reports, in per cent (Table 1).
PAPER = {
    "table1": {
        "single-task SGD": "98.48 ± 0.05",
        "EWC": "97.0",
        "SI": "97.2",
        "superposition": "97.6",
        "CLNP": "98.42 ± 0.04",
    }
}


def summary(folder: Path) -> str:
    """Return the table of an experiment, and the machine it ran on."""
    if not (folder / "summary.csv").is_file():
        return "Not run yet."
    rows = read(folder / "summary.csv")
    groups = [key[5:-5] for key in rows[0] if key.startswith("used_") and key.endswith("_mean")]
    more = [name for name in MORE if f"{name}_mean" in rows[0]]
    head = [
        "",
        "tasks",
        "epochs",
        "n",
        "test accuracy, %",
        *(f"{g} used, %" for g in groups),
        "minutes",
    ]
    head += [MORE[name][0] for name in more]
    lines = [
        _line(row, groups) + [_spread(row, name, *MORE[name][1:]) for name in more] for row in rows
    ]
    if paper := PAPER.get(folder.name):
        head.insert(1, "paper, %")
        for row, line in zip(rows, lines, strict=True):
            line.insert(1, paper.get(str(row["contender"]), ""))
    return f"{table(head, lines)}\n\n{conditions(folder)}"


def over_seeds(folder: Path, contender: str, column: str = "test") -> list[float]:
    """Return a column of tasks.csv in per cent: for every task the mean over the seeds."""
    own = [row for row in read(folder / "tasks.csv") if row["contender"] == contender]
    tasks = dict.fromkeys(row["task"] for row in own)
    return [100 * float(np.mean([r[column] for r in own if r["task"] == t])) for t in tasks]


def by_task(folder: Path) -> str:
    """Return the table of test accuracies by task."""
    rows = read(folder / "tasks.csv")
    names = dict.fromkeys(str(row["name"]) for row in rows)
    lines = [
        [name, *(f"{value:.2f}" for value in over_seeds(folder, name))]
        for name in dict.fromkeys(str(row["contender"]) for row in rows)
    ]
    return table(["", *names], lines)


def methods(folder: Path) -> str:
    """Return the table of a comparison of methods."""
    rows = [
        {key: None if value == "" else value for key, value in row.items()}
        for row in read(folder / "methods.csv")
    ]
    head = ["", *compare.titles()]
    lines = [[f"`{row['method']}`", *compare.cells(row)] for row in rows]
    spread = compare.spread_of([float(row["seeds"] or 0) for row in rows])
    notes: dict[str, list[str]] = {}
    for line in differences(folder):
        name, _, note = line.partition(": ")
        notes.setdefault(note, []).append(f"`{name}`")
    told = "".join(f" {', '.join(names)}: {note}." for note, names in notes.items())
    told = f"\n\nNot what the command says:{told}" if told else ""
    return f"{table(head, lines)}\n\n{spread[0].upper()}{spread[1:]}.{told}"


def equal(folder: Path) -> str:
    """Return the accuracies of the recipes of `capacity`, less the base's at as many weights."""
    if not (folder / "equal.csv").is_file():
        return "Not run yet."
    more: dict[str, list[float]] = {}
    for row in read(folder / "equal.csv"):
        more.setdefault(str(row["recipe"]), []).append(100 * (row["acc"] - row["base"]))
    ranked = sorted(more.items(), key=lambda pair: -float(np.mean(pair[1])))
    lines = [
        [name, f"{np.mean(own):+.2f}", f"{min(own):+.2f} to {max(own):+.2f}", str(len(own))]
        for name, own in ranked
    ]
    return table(["", "accuracy less the base's, points", "range", "n"], lines)


def _line(row: Row, groups: Sequence[str]) -> list[str]:
    used = [_spread(row, f"used_{group}", 100, 1) for group in groups]
    epochs = row["epochs"] if isinstance(row["epochs"], str) else f"{row['epochs']:.0f}"
    counts = [f"{row['tasks']:.0f}", epochs, f"{row['n']:.0f}"]
    accuracy, minutes = _spread(row, "acc", 100, 2), _spread(row, "seconds", 1 / 60, 1)
    return [str(row["contender"]), *counts, accuracy, *used, minutes]


def _spread(row: Row, key: str, factor: float, digits: int) -> str:
    mean, std = row[f"{key}_mean"], row[f"{key}_std"]
    if mean == "":
        return ""
    text = f"{factor * mean:.{digits}f}"
    return text if std == "" else f"{text} ± {factor * std:.{digits}f}"


def conditions(folder: Path) -> str:
    """Return machine, versions and dates of all runs, and the folder of the files."""
    contenders = json.loads((folder / "settings.json").read_text())["contenders"]
    runs = [
        {"dtype": run.get("config", about["config"])["dtype"], **run}
        for about in contenders.values()
        for run in about["runs"]
    ]
    place = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    return (
        f"{_all(runs, 'hardware')}, {_all(runs, 'cpu')}, {_all(runs, 'dtype')}, threads "
        f"{_all(runs, 'threads')}, torch {_all(runs, 'torch')}, {_all(runs, 'date')}, revision "
        f"{_all(runs, 'revision')}; exact settings, numbers per seed and task: `{place}`."
    )


def _all(runs: Sequence[dict[str, Any]], key: str) -> str:
    return ", ".join(sorted({str(run[key]) for run in runs}))
