"""Writes what the compiler made of the kernels, which differs from version to version."""

import csv
import os
import sys
from pathlib import Path
from typing import Any

COLUMNS = ("architecture", "kernel", "pointers", "tile", "warps", "registers", "local", "shared",
           "widest")  # fmt: skip


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says what spills, and writes all rows to the file that CLNP_COMPILED_REPORT names."""
    aot = sys.modules.get("tests.clnp_kernels.triton.aot")
    if aot is None or not aot.REPORT:
        return
    rows = sorted({_row(binary) for binary in aot.REPORT})
    spills = [row for row in rows if row[6]]
    terminalreporter.write_line(
        f"triton {aot.triton.__version__}: {len(rows)} kernels compiled, "
        f"{len(spills)} use local memory{': ' if spills else ''}"
        + "; ".join(f"sm_{row[0]} {row[1]} {row[3]} {row[6]} bytes" for row in spills)
    )
    file = os.environ.get("CLNP_COMPILED_REPORT")
    if file:
        with Path(file).open("w", newline="") as out:
            writer = csv.writer(out, lineterminator="\n")
            writer.writerow(("triton", *COLUMNS))
            writer.writerows((aot.triton.__version__, *row) for row in rows)


def _row(binary: Any) -> tuple[Any, ...]:
    return (
        binary.architecture,
        binary.name,
        binary.types,
        binary.tile,
        binary.warps,
        binary.registers,
        binary.local,
        binary.shared,
        binary.widest,
    )
