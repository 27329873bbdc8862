"""Suite "ops": single operators, forward and backward, against the ways to do without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import gt

from benchmarks.cases import ALL_FRACTIONS, Size
from benchmarks.harness import processes, race
from benchmarks.op_cases import OpCase, cases, check, contenders, make, work
from benchmarks.record import Table, rows_of

SECONDS = 0.5  # for each contender: calls are short
LIMITS = (60.0, 1.0)  # GFLOP and GB of a dense call; larger cases are left out on a CPU


def run(
    tables: Mapping[str, Table],
    size: Size,
    device: str,
    networks: Sequence[str] = (),
    fractions: Sequence[float] = (),
    operators: Sequence[str] = (),
) -> None:
    """Measures; arguments as of `benchmarks.step.run`, where `networks` has no meaning here, and
    names of operators; default: all.
    """
    short = replace(size, seconds=min(size.seconds, SECONDS))
    fractions = fractions or (ALL_FRACTIONS if size.scale == 1 else size.fractions)
    with processes(("dense", "compiled")) as pool:
        for dtype, table in tables.items():
            for case in cases(size, dtype, device):
                if operators and case.op not in operators:
                    continue
                if device == "cpu" and any(map(gt, work(case), LIMITS)):
                    print(f"{case.name}, batch {case.batch}: too large for a CPU, left out")
                    continue
                names = contenders(case, bool(size.compiled))
                # Activity knows of no frozen channels.
                for fraction in fractions if "slices" in names else (0.0,):
                    here = replace(case, fraction=fraction)
                    check(here)
                    results = race(pool, make, here, names, short, group=case)
                    table.add(rows_of(results, {"suite": "ops", **columns(here)}))


def columns(case: OpCase) -> dict[str, object]:
    """Columns that describe a case."""
    gflop, gbyte = work(case)
    row = {"case": case.name, "batch": case.batch, "dtype": case.dtype, "device": case.device}
    return {**row, "fraction": case.fraction, "gflop": gflop, "gbyte": gbyte}
