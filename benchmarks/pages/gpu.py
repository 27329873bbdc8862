"""Tables of docs/gpu.md: counted launches, and what was measured on GPUs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from benchmarks.pages.markdown import table

NAMES = {"torch": "PyTorch on slices", "ours": "ours", "dense": "plain network"}


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def launches(file: Path) -> str:
    """Launches of a training step."""
    lines = [
        [
            row["network"],
            row["dtype"],
            row["fraction"],
            NAMES[row["kernels"]],
            f"{float(row['eager']):.0f}",
            f"{float(row['captured']):.3g}" if row["captured"] else "",
        ]
        for row in _rows(file)
    ]
    head = [
        "network",
        "dtype",
        "frozen",
        "served by",
        "launches of a step",
        "by the host, captured",
    ]
    return table(head, lines)


def measured(results: Path) -> str:
    """Training steps on every GPU that was measured."""
    parts = []
    for folder in sorted(results.glob("gpu-*")):
        facts = json.loads((folder / "facts.json").read_text())
        parts.append(f"{facts['gpu']}, torch {facts['torch']}, triton {facts['triton']}:")
        if (folder / "step.csv").exists():
            rows = {row["key"]: row for row in _rows(folder / "step.csv")}.values()
            names = ("network", "dtype", "fraction", "way", "kernels", "ms")
            lines = [[row[name] for name in names] for row in rows]
            parts.append(table(["network", "dtype", "frozen", "step", "kernels", "ms"], lines))
    return "\n\n".join(parts) or "No GPU has been measured yet."
