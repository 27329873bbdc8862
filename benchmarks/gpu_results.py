"""Results of a GPU run's archive: the table that the package ships, and figures of pages."""

from __future__ import annotations

import csv
import json
import re
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results"
SHIPPED = Path(__file__).parents[1] / "clnp_kernels" / "tune" / "shipped"
AGAIN = "torch again"  # the noise, which decided and is not shown
OPS = ("operator", "dtype", "sizes", "active", "options", "mode", "way", "ms", "chosen")


def publish(archive: Path, results: Path = RESULTS, shipped: Path = SHIPPED) -> int:
    """Write the table and the results of an archive; 0, or 2 where it holds no measurements.

    Arguments:
        archive: what `gpu_suite` packed.
        results: gets a folder `gpu-NAME` with `ops.csv`, `step.csv`, profiles and `facts.json`.
        shipped: gets the file of the GPU's architecture.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        if not (folder / "table.json").exists():
            print(f"{archive}: expected table.json, which call B writes, got none")
            return 2
        table = json.loads((folder / "table.json").read_text())
        rows = [entry for entry in table["entries"] if "key" in entry]
        out = results / f"gpu-{re.sub(r'[^A-Za-z0-9]+', '-', table['facts']['gpu']).strip('-')}"
        out.mkdir(parents=True, exist_ok=True)
        facts = {**table["facts"], **json.loads((folder / "facts.json").read_text())}
        (out / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
        write_ops(rows, out / "ops.csv")
        for path in (*folder.glob("step.csv"), *folder.glob("profile-*.txt")):
            (out / path.name).write_text(path.read_text())
        file = shipped / f"sm_{table['facts']['capability']}.json"
        ship(rows, table["facts"], file)
    print(f"{file} and {out}; now run python -m benchmarks.pages")
    return 0


def ship(rows: Sequence[dict[str, Any]], facts: dict[str, Any], file: Path) -> None:
    """Write measurements as a file of the package: one line each, with the medians of the times."""
    entries = [
        {
            **row,
            "reason": row["reason"].partition(":")[0],
            "times": {name: [_rounded(each)] for name, each in row["times"].items()},
        }
        for row in rows
    ]
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'{{"facts": {json.dumps(facts)},\n"entries": [\n{lines}\n]}}\n')


def write_ops(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Write the times of all implementations of every kind of calls."""
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(OPS)
        for row in rows:
            operator, dtype, _, sizes, active, options, mode = row["key"]
            chosen = " ".join([row["implementation"], "x".join(map(str, row["tile"]))]).strip()
            common = (operator, dtype, " x ".join(str(2 ** (n / 2)) for n in sizes), active / 4)
            for way, each in row["times"].items():
                if way != AGAIN:
                    line = (*common, options, mode, way, _rounded(each), int(way == chosen))
                    writer.writerow(line)


def _rounded(times: Sequence[float]) -> float:
    return float(f"{median(times):.4g}")
