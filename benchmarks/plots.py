"""Plots from the CSV files of a run: ``python -m benchmarks.plots FOLDER``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.record import OURS, Row, read

COLOURS = {
    "eager-masked": "#999999",
    "dense": "#0072b2",
    "compiled": "#56b4e9",
    "slices": "#e69f00",
    "ours": "#d55e00",
    "ours compiled": "#cc79a7",
    "ours cached": "#009e73",
}


def draw(folder: Path) -> list[Path]:
    """Draws every plot for which there is a CSV file in a folder; the files that were written."""
    made = []
    for name, plot in PLOTS.items():
        source = folder / f"{name.split('_')[0]}.csv"
        rows = read(source) if source.exists() else []
        figure = plot(rows) if rows else None
        if figure is not None:
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=120)
            made.append(path)
    return made


def _grid(count: int, title: str) -> tuple[Figure, list[Any]]:
    columns = min(count, 4)
    lines = -(-count // columns)
    figure = Figure(figsize=(max(4 * columns, 7), 3.2 * lines + 0.4), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for axis in axes[count:]:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=10)
    return figure, axes[:count]


def values(rows: Sequence[Row], key: str) -> list[Any]:
    """The different values of a column, in the order in which they appear."""
    return list(dict.fromkeys(row[key] for row in rows))


def where(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def against_dense(rows: Sequence[Row], contender: str) -> list[Row]:
    """The rows of a variant of ours, with the ratio of dense's time to its own."""
    dense = {row["fraction"]: row["median"] for row in where(rows, contender="dense")}
    mine = [row for row in where(rows, contender=contender) if row["fraction"] in dense]
    return [{**row, "ratio": dense[row["fraction"]] / row["median"]} for row in mine]


def _machine(rows: Sequence[Row]) -> str:
    row = rows[0]
    return f"{row['hardware']}, {row['threads']:.0f} threads, torch {row['torch']}, {row['date']}"


def speed_up(rows: Sequence[Row]) -> Figure | None:
    """By how much ours is faster than each opponent, by the frozen fraction, and the limit that the
    counted work sets against dense.
    """
    panels = [(c, d) for c in values(rows, "case") for d in values(rows, "dtype")]
    panels = [(c, d) for c, d in panels if where(rows, case=c, dtype=d)]
    figure, axes = _grid(len(panels), f"Training step: ours is faster by\n{_machine(rows)}")
    for axis, (case, dtype) in zip(axes, panels, strict=True):
        here = where(rows, case=case, dtype=dtype)
        for name in values(here, "contender"):
            line = where(here, contender=name)
            x = [row["fraction"] for row in line]
            if name == OURS:
                axis.plot(x, [row["bound"] for row in line], "k:", label="work limit (dense)")
                continue
            label = f"than {name}"
            if name.startswith(OURS):
                line, label = against_dense(here, name), f"{name} than dense"
            x, y = ([row[key] for row in line] for key in ("fraction", "ratio"))
            axis.plot(x, y, "o-", color=COLOURS[name], label=label, markersize=3)
        axis.axhline(1, color="k", linewidth=0.5)
        axis.set(title=f"{case}, {dtype}, batch {here[0]['batch']:.0f}", ylim=(0, None))
        axis.set_xlabel("frozen fraction of every hidden layer")
    axes[0].legend(fontsize=7)
    return figure


def roofline(rows: Sequence[Row]) -> Figure | None:
    """Share of the machine's measured limits that ours reaches, by arithmetic intensity."""
    rows = [row for row in where(rows, contender=OURS, quantity="time") if row["gbyte"] != ""]
    dtypes = values(rows, "dtype")
    if not rows:
        return None
    figure, axes = _grid(len(dtypes), f"Operators, forward and backward\n{_machine(rows)}")
    for axis, dtype in zip(axes, dtypes, strict=True):
        here = where(rows, dtype=dtype)
        bandwidth, peak = here[0]["copy_gbs"], here[0]["gemm_gflops"]
        products = [row for row in here if row["gflop"]]
        for op in dict.fromkeys(row["case"].split()[0] for row in products):
            mine = [row for row in products if row["case"].startswith(op)]
            x = [row["gflop"] / row["gbyte"] for row in mine]
            axis.plot(x, [row["gflop"] / row["median"] * 1e3 for row in mine], "o", label=op)
        x = [row["gflop"] / row["gbyte"] for row in products]
        ridge = peak / bandwidth
        x = sorted([*x, ridge / 10, ridge, ridge * 10])
        axis.plot(x, [min(peak, bandwidth * v) for v in x], "k-", label="copy and product limits")
        axis.set(xscale="log", yscale="log", title=dtype)
        axis.set(xlabel="FLOP for each byte of least traffic", ylabel="GFLOP/s")
        axis.legend(fontsize=7)
    return figure


def traffic(rows: Sequence[Row]) -> Figure | None:
    """Least traffic over time of the operators that only move numbers, against a copy."""
    rows = where(rows, contender=OURS, quantity="time")
    rows = [row for row in rows if row["gbyte"] != "" and not row["gflop"]]
    if not rows:
        return None
    figure, axes = _grid(1, f"Operators bound by memory\n{_machine(rows)}")
    names = [f"{r['case']}, {r['dtype']}, {r['fraction']:g} frozen" for r in rows]
    figure.set_size_inches(8, 1.5 + 0.18 * len(rows))
    axes[0].barh(names, [row["gbyte"] / row["median"] * 1e3 for row in rows])
    axes[0].axvline(rows[0]["copy_gbs"], color="k", label="large copy")
    axes[0].tick_params(labelsize=6)
    axes[0].set_xlabel("GB/s of least traffic (more than a copy: from the caches)")
    axes[0].legend(fontsize=7)
    return figure


def _lines(rows: Sequence[Row], x: str, quantity: str, title: str, y: str) -> Figure | None:
    rows = where(rows, quantity=quantity)
    panels = [(c, d) for c in values(rows, "case") for d in values(rows, "dtype")]
    panels = [(c, d) for c, d in panels if where(rows, case=c, dtype=d)]
    if not panels:
        return None
    figure, axes = _grid(len(panels), f"{title}\n{_machine(rows)}")
    for axis, (case, dtype) in zip(axes, panels, strict=True):
        here = where(rows, case=case, dtype=dtype)
        for name in values(here, "contender"):
            line = where(here, contender=name)
            xs, ys = ([row[key] for row in line] for key in (x, "median"))
            axis.plot(xs, ys, "o-", color=COLOURS.get(name), label=name, markersize=3)
        axis.set(title=f"{case}, {dtype}", ylim=(0, None), xlabel=x, ylabel=y)
    axes[0].legend(fontsize=7)
    return figure


def sequence(rows: Sequence[Row]) -> Figure | None:
    """Time of each task of a sequence."""
    return _lines(rows, "task", "time", "Training of one task after the other", "ms")


def memory(rows: Sequence[Row]) -> Figure | None:
    """Gradients and optimizer by the frozen fraction."""
    title = "Gradients and optimizer, by the frozen fraction"
    return _lines(rows, "fraction", "gradients + optimizer", title, "MiB")


def inference(rows: Sequence[Row]) -> Figure | None:
    """Time of every task's network as a share of the dense one's, against its share of the work."""
    rows = [row for row in rows if row["contender"].startswith("task ")]
    if not rows:
        return None
    figure, axes = _grid(1, f"Extracted networks\n{_machine(rows)}")
    for case in values(rows, "case"):
        for dtype in values(rows, "dtype"):
            here = where(rows, case=case, dtype=dtype)
            x, y = ([1 / row[key] for row in here] for key in ("bound", "ratio"))
            axes[0].plot(x, y, "o-", label=f"{case}, {dtype}", markersize=3)
    axes[0].axline((0, 0), slope=1, color="k", linewidth=0.5)
    axes[0].set(xlabel="share of the dense network's multiply-adds", ylabel="share of its time")
    axes[0].legend(fontsize=7)
    return figure


def scale(rows: Sequence[Row]) -> Figure | None:
    """By how much ours is faster than dense, by width or batch."""
    rows = where(rows, contender="dense", quantity="time")
    dtypes = values(rows, "dtype")
    if not rows:
        return None
    figure, axes = _grid(
        len(dtypes), f"Training step: ours is faster than dense by\n{_machine(rows)}"
    )
    for axis, dtype in zip(axes, dtypes, strict=True):
        here = where(rows, dtype=dtype)
        names = list(dict.fromkeys(f"{r['case']}, batch {r['batch']:.0f}" for r in here))
        for fraction in values(here, "fraction"):
            line = where(here, fraction=fraction)
            x = [names.index(f"{r['case']}, batch {r['batch']:.0f}") for r in line]
            axis.plot(x, [r["ratio"] for r in line], "o", label=f"{fraction:g} frozen")
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axis.axhline(1, color="k", linewidth=0.5)
        axis.set(title=dtype, ylim=(0, None))
    axes[0].legend(fontsize=7)
    return figure


# file name, up to "_" the suite's -> plot
PLOTS: dict[str, Callable[[Sequence[Row]], Figure | None]] = {
    "step": speed_up,
    "ops_roofline": roofline,
    "ops_traffic": traffic,
    "end-to-end": sequence,
    "memory": memory,
    "inference": inference,
    "scaling": scale,
}


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1])):
        print(drawn)
