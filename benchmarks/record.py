"""The rows of all suites, one for each contender in each case: CSV files with the same columns."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import Samples

COLUMNS = {
    "suite": "which suite",
    "case": "network, or operator and its sizes",
    "batch": "examples",
    "dtype": "fp32, or bf16 (autocast)",
    "device": "cpu or cuda",
    "fraction": "frozen channels of every hidden group",
    "task": "which task of a sequence, from 0",
    "contender": "who",
    "quantity": "time, or bytes of what",
    "unit": "ms or MiB",
    "median": "of the samples",
    "p10": "quantile",
    "p25": "quantile",
    "p75": "quantile",
    "p90": "quantile",
    "samples": "how many",
    "ratio": "median / that of ours: by how much ours is faster, or smaller",
    "bound": "the ratio to dense that the counted work allows",
    "gflop": "2 x multiply-adds of ours in one step",
    "gbyte": "least traffic of ours with memory",
    "faults": "median of the pages of memory that a step was given",
    "copy_gbs": "GB/s of a large copy, measured in this run",
    "gemm_gflops": "GFLOP/s of a large product in this dtype, measured in this run",
    "date": "UTC",
    "revision": "git, + where files were changed",
    "hardware": "processor or GPU",
    "cpu": "vector instructions in use",
    "threads": "of torch",
    "load": "of the machine when the suite began",
    "python": "version",
    "torch": "version",
    "clnp_kernels": "version",
    "implementation": "of our operators: C++ or reference, on a GPU whether its library is loaded",
}
Row = dict[str, Any]
OURS = "ours"


def rows_of(
    results: Mapping[str, Samples], common: Mapping[str, Any], ours: str = OURS
) -> list[Row]:
    """One row with the times of each contender.

    Arguments:
        results: name -> samples.
        common: columns that all of them share.
        ours: the contender that ratios refer to; without it there are none.
    """
    own = results[ours].median if ours in results else None
    rows = []
    for name, samples in results.items():
        p10, p25, median, p75, p90 = samples.quantiles()
        row = {"contender": name, "quantity": "time", "unit": "ms", "median": median}
        row |= {"p10": p10, "p25": p25, "p75": p75, "p90": p90, "samples": len(samples.ms)}
        row |= {"ratio": median / own if own else "", **common}
        row["faults"] = sorted(samples.faults)[len(samples.faults) // 2]
        rows.append(row)
    return rows


class Table:
    """A CSV file that is there, row by row, while a suite runs.

    Arguments:
        path: the file; what was there before is overwritten.
        facts: columns that are the same in all rows.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self.path, self.facts = path, dict(facts)
        self.rows: list[Row] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerow(COLUMNS)

    def with_facts(self, facts: Mapping[str, Any]) -> Table:
        """The same file, whose rows from here have other facts."""
        other = Table.__new__(Table)
        other.path, other.rows, other.facts = self.path, self.rows, dict(facts)
        return other

    def add(self, rows: Iterable[Row]) -> None:
        """Appends rows and prints them.

        Raises:
            ValueError: a row has a column that is not in `COLUMNS`.
        """
        rows = [{**self.facts, **row} for row in rows]
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(COLUMNS), restval="")
            writer.writerows({key: _short(value) for key, value in row.items()} for row in rows)
        for row in rows:
            print(line(row), flush=True)
        self.rows += rows


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def line(row: Mapping[str, Any]) -> str:
    """A row for the eyes."""
    where = [f"{row['case']}, batch {row.get('batch', '')}, {row.get('dtype', '')}"]
    where += [f"{key} {row[key]}" for key in ("fraction", "task") if row.get(key, "") != ""]
    spread = f"[{row['p25']:.3f}, {row['p75']:.3f}]" if row.get("p25", "") != "" else ""
    ratio = f"{row['ratio']:.2f} x" if row.get("ratio", "") != "" else ""
    what = f"{row['quantity']} {row['median']:10.3f} {row['unit']}"
    return f"{', '.join(where):48} {row['contender']:16} {what} {spread:22} {ratio:>8}"


def read(path: Path) -> list[Row]:
    """The rows of a CSV file; numbers where there are numbers."""
    with path.open(newline="") as file:
        return [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(file)]


def rows_in(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file as they stand there; none without the file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@contextmanager
def appending(
    path: Path, columns: Sequence[str], facts: Mapping[str, Any]
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A CSV file that goes on where it ended: a function that appends a row at once and prints it.

    Arguments:
        path: the file; it is made where it is missing.
        columns: of the rows.
        facts: columns behind them that are the same in all rows of this run.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, (*columns, *facts))
        if file.tell() == 0:
            writer.writeheader()

        def append(row: Mapping[str, Any]) -> None:
            writer.writerow({**row, **facts})
            file.flush()
            print(dict(row), flush=True)

        yield append


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
