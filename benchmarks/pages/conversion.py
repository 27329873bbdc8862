"""Tables of docs/models.md: what conversion reads, and which models of libraries it takes."""

from __future__ import annotations

from collections import Counter

from benchmarks.coverage import read_results
from clnp.graph.operations import documented


def operations() -> str:
    """Return the table of operations."""
    rows = [f"| {kind} | {names} |" for kind, names in documented().items()]
    return "\n".join(["| kind | operations |", "|---|---|", *rows])


def models() -> str:
    """Return the tables of converted models and of reasons."""
    rows = read_results()
    lines = ["| library | converted | not converted |", "|---|---|---|"]
    names = {"timm": "timm, a small model of each family"}
    for kind in sorted({row["kind"] for row in rows.values()}):
        verdicts = Counter(row["verdict"] for row in rows.values() if row["kind"] == kind)
        total, done = sum(verdicts.values()), verdicts["converted"]
        label = names.get(kind, f"torchvision, {kind}")
        lines.append(f"| {label} | {done} of {total} | {total - done} |")
    lines += ["", "| model | result |", "|---|---|"]
    for name in sorted(rows, key=lambda n: (rows[n]["kind"], n)):
        row = rows[name]
        reason = row["reason"].split(". Supported are")[0].replace("|", "\\|")
        text = f"{row['verdict']}: {reason}" if reason else row["verdict"]
        lines.append(f"| `{name}` | {text} |")
    return "\n".join(lines)
