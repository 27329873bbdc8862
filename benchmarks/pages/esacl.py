"""Tables of docs/methods.md: the parts of EsaCL, from files of `benchmarks.methods_evidence`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.pages.markdown import table
from benchmarks.plots import values, where
from benchmarks.record import Row, read
from clnp.metrics import mean_std

RESULTS = Path(__file__).parents[1] / "results" / "methods"
SELECTIONS = {
    "all": "all examples",
    "ids": "IDS",
    "ere alone": "elimination alone",
    "sse alone": "high loss alone",
    "random": "random half",
}


def pruning(data: str) -> str:
    """Return the table of pruning once, all weights together by magnitude."""
    rows = where(read(RESULTS / f"pruning-{data}.csv"), scope="global")
    least = min(row["flops"] for row in rows)
    sparsities = values(rows, "sparsity")
    lines = []
    for name in values(rows, "contender"):
        own = where(rows, contender=name)
        cells = [_percent(where(own, sparsity=s), "accuracy") for s in sparsities]
        lines.append([name, *cells, f"{own[0]['flops'] / least:.0f} x"])
    head = ["trained by", *(f"{100 * s:.0f} % zero" for s in sparsities), "training FLOP"]
    return table(head, lines)


def selection(data: str) -> str:
    """Return the table of training on half of the examples."""
    rows = read(RESULTS / f"ids-{data}.csv")
    most = where(rows, contender="all")[0]["flops"]
    lines = []
    for key, name in SELECTIONS.items():
        own = where(rows, contender=key)
        cells = [_percent(own, "accuracy"), _percent(own, "pruned")]
        lines.append([name, *cells, f"{_mean(own, 'flops') / most:.2f}"])
    return table(["examples", "accuracy, %", "at 90 % zero", "training FLOP"], lines)


def structured(data: str) -> str:
    """Return the table of channels kept after training with L1 or structured SDP."""
    rows = read(RESULTS / f"structured-{data}.csv")
    lines = []
    for name in values(rows, "contender"):
        own = where(rows, contender=name)
        cells = []
        for criterion in ("activity", "norm"):
            kept = [_mean(own, f"layer_{layer}_{criterion}") for layer in (1, 2)]
            cells += [_percent(own, f"accuracy_{criterion}"), f"{kept[0]:.0f} + {kept[1]:.0f}"]
        lines.append([name, *cells])
    head = [
        "trained by",
        "by activity: accuracy, %",
        "channels",
        "by norm: accuracy, %",
        "channels",
    ]
    return table(head, lines)


def _mean(rows: Sequence[Row], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def _percent(rows: Sequence[Row], key: str) -> str:
    spread = mean_std([100 * row[key] for row in rows])
    return f"{spread['mean']:.2f} ({spread['std']:.2f})"
