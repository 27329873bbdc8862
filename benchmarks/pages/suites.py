"""Tables of docs/benchmarks.md, from the CSV files of `benchmarks.run`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.memory import TRAINING
from benchmarks.pages.markdown import table
from benchmarks.plots import PLOTS, against_dense, values, where
from benchmarks.record import OURS, Row, read


def conditions(rows: Sequence[Row]) -> str:
    """Machine, versions, revision and date, and the machine's limits."""
    row = rows[0]
    limits = "; ".join(
        f"{dtype} products {where(rows, dtype=dtype)[0]['gemm_gflops']:.0f} GFLOP/s"
        for dtype in values(rows, "dtype")
    )
    machines = ", ".join(values(rows, "hardware"))
    measured = dict.fromkeys(f"revision {row['revision']}, {row['date']}" for row in rows)
    return (
        f"{machines}, {row['cpu']}, {row['threads']:.0f} threads, torch {row['torch']}, "
        f"{' and '.join(measured)}; a large copy moves {row['copy_gbs']:.0f} GB/s; "
        f"{limits}."
    )


def _cells(rows: Sequence[Row], fractions: Sequence[Any], key: str, form: str) -> list[str]:
    found = {row["fraction"]: row[key] for row in rows}
    return [form.format(found[f]) if found.get(f, "") != "" else "" for f in fractions]


def step(rows: Sequence[Row]) -> str:
    """By how much ours is faster, one table for each network and dtype."""
    parts = []
    for case in values(rows, "case"):
        for dtype in values(rows, "dtype"):
            here = where(rows, case=case, dtype=dtype)
            if not here:
                continue
            fractions = values(here, "fraction")
            lines = []
            names = values(here, "contender")
            for name in [n for n in names if not n.startswith(OURS)]:
                cells = _cells(where(here, contender=name), fractions, "ratio", "{:.2f} x")
                lines.append([f"against {name}", *cells])
            for name in [n for n in names if n.startswith(f"{OURS} ")]:
                variant = against_dense(here, name)
                cells = _cells(variant, fractions, "ratio", "{:.2f} x")
                lines.append([f"{name}, against dense", *cells])
            ours = where(here, contender=OURS)
            lines.append(
                ["work limit against dense", *_cells(ours, fractions, "bound", "{:.2f} x")]
            )
            lines.append(["ours, ms", *_cells(ours, fractions, "median", "{:.1f}")])
            title = f"{case}, {dtype}, batch {here[0]['batch']:.0f}"
            parts.append(table([title, *(f"{f:g}" for f in fractions)], lines))
    return "\n\n".join(parts)


def ops(rows: Sequence[Row]) -> str:
    """Ours against dense and slices, one line for each operator and size."""
    fractions = sorted(values(rows, "fraction"))
    head = ["operator", "dtype", "against", *(f"{f:g}" for f in fractions)]
    lines = []
    for case, dtype, batch in dict.fromkeys((r["case"], r["dtype"], r["batch"]) for r in rows):
        here = where(rows, case=case, dtype=dtype, batch=batch)
        for name in ("dense", "slices"):
            cells = _cells(where(here, contender=name), fractions, "ratio", "{:.2f}")
            if any(cells):
                lines.append([f"{case}, batch {batch:.0f}", dtype, name, *cells])
    return table(head, lines)


def memory(rows: Sequence[Row]) -> str:
    """Gradients and optimizer as a share of dense, and everything."""
    fractions = values(rows, "fraction")
    lines = []
    for case in values(rows, "case"):
        here = where(rows, case=case, contender="dense", dtype=values(rows, "dtype")[0])
        for quantity in (TRAINING, "total"):
            shares = [
                f"{1 / row['ratio']:.3f}"
                for fraction in fractions
                for row in where(here, quantity=quantity, fraction=fraction)
            ]
            lines.append([case, quantity, *shares])
    return table(["share of dense", "of", *(f"{f:g}" for f in fractions)], lines)


def inference(rows: Sequence[Row]) -> str:
    """Work and time of the tasks' networks as shares of the dense network's."""
    lines = []
    for case in values(rows, "case"):
        for dtype in values(rows, "dtype"):
            here = where(rows, case=case, dtype=dtype)
            for row in here:
                work = f"{1 / row['bound']:.3f}" if row["bound"] != "" else ""
                share = f"{1 / row['ratio']:.3f}"
                ms = f"{row['median']:.3f}"
                lines.append([case, dtype, str(row["contender"]), work, share, ms])
    return table(["network", "dtype", "pass", "work", "time", "ms"], lines)


def end_to_end(rows: Sequence[Row]) -> str:
    """Seconds of every task, and of all, for each contender; a table for each sequence."""
    rows = where(rows, quantity="time")
    tables = []
    for case in values(rows, "case"):
        lines = []
        for dtype in values(where(rows, case=case), "dtype"):
            here = where(rows, case=case, dtype=dtype)
            ours = sum(row["median"] for row in where(here, contender=OURS))
            for name in values(here, "contender"):
                times = [row["median"] for row in where(here, contender=name)]
                cells = [f"{ms / 1e3:.2f}" for ms in times]
                lines.append(
                    [dtype, name, *cells, f"{sum(times) / 1e3:.1f}", f"{sum(times) / ours:.2f} x"]
                )
        tasks = values(where(rows, case=case), "task")
        head = [f"seconds ({case})", "task", *(f"{t:.0f}" for t in tasks), "all", "ours"]
        tables.append(table(head, lines))
    return "\n\n".join(tables)


def grid(rows: Sequence[Row]) -> str:
    """Seconds of a task's grid search, carried out in each way."""
    ways = values(rows, "contender")
    lines = []
    for case in values(rows, "case"):
        for dtype in values(rows, "dtype"):
            here = where(rows, case=case, dtype=dtype)
            if here:
                lines.append([case, dtype, *(f"{row['median'] / 1e3:.2f}" for row in here)])
    names = ["one stacked network" if way == OURS else way for way in ways]
    return table(["seconds", "dtype", *names], lines)


def scaling(rows: Sequence[Row]) -> str:
    """Ours against dense and slices by width, batch and block."""
    return ops(rows).replace("| operator |", "| network |", 1)


SECTIONS: dict[str, tuple[str, Callable[[Sequence[Row]], str]]] = {
    "step": ("Training step: ours is faster by, at frozen fraction", step),
    "end-to-end": ("A sequence of tasks", end_to_end),
    "memory": ("Memory of training, at frozen fraction", memory),
    "inference": ("Extracted networks", inference),
    "ops": ("Operators: ours is faster by, at frozen fraction", ops),
    "grid": ("Grid search of a task", grid),
    "scaling": ("Widths, batches, blocks: ours is faster by, at frozen fraction", scaling),
}


def text(folders: Sequence[Path], place: Path) -> str:
    """Return the tables of all CSV files, with their plots.

    Arguments:
        folders: what `benchmarks.run --out` wrote, one folder for each machine.
        place: folder of the page, which links to the plots.

    Raises:
        SystemExit: the folders have no results.
    """
    parts = []
    for name, (title, section) in SECTIONS.items():
        found = [f for f in folders if (f / f"{name}.csv").exists() and read(f / f"{name}.csv")]
        if found:
            parts.append(f"## {title}")
        for folder in found:
            rows = read(folder / f"{name}.csv")
            parts += [conditions(rows), section(rows)]
            for plot in PLOTS:
                if plot.split("_")[0] == name and (folder / f"{plot}.png").exists():
                    parts.append(f"![{title}]({os.path.relpath(folder / f'{plot}.png', place)})")
    if not parts:
        names = ", ".join(map(str, folders))
        raise SystemExit(f"{names}: expected CSV files of benchmarks.run, such as step.csv")
    return "\n\n".join(parts)
