"""Suite "step": one training step of a partly frozen network, all contenders in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.cases import NETWORKS, Case, Size
from benchmarks.checks import check_losses, check_steps
from benchmarks.contenders import CONTENDERS
from benchmarks.harness import processes, race
from benchmarks.record import Row, Table, rows_of
from benchmarks.state import make_state, work_of

# Contenders to whom the frozen fraction makes no difference.
SAME_FOR_ALL = ("dense", "compiled")


def make(case: Case, name: str) -> Callable[[], Any]:
    """The training step of a contender."""
    return CONTENDERS[name](make_state(case)).step


def opponents(network: str, size: Size) -> list[str]:
    """The contenders for a network. Images are augmented as a rule, so nothing is cached."""
    left_out = set()
    if network not in size.compiled:
        left_out |= {"compiled", "ours compiled"}
    if len(NETWORKS[network].shape) > 1:
        left_out |= {"ours cached"}
    return [name for name in CONTENDERS if name not in left_out]


def work_columns(case: Case) -> Row:
    """The counted work of a step, and what it allows."""
    work = work_of(make_state(replace(case, device="cpu")))
    return {"bound": work.bound, "gflop": 2e-9 * work.masked}


def columns(case: Case) -> Row:
    """Columns that describe a case."""
    row = {"case": case.name, "batch": case.batch, "dtype": case.dtype, "device": case.device}
    return {**row, "fraction": case.fraction}


def run(
    tables: Mapping[str, Table],
    size: Size,
    device: str,
    networks: Sequence[str] = (),
    fractions: Sequence[float] = (),
) -> None:
    """Measures.

    Arguments:
        tables: dtype -> where its rows go.
        size: how much.
        device: where.
        networks, fractions: default: those of `size`.
    """
    with processes(SAME_FOR_ALL) as pool:
        for network in networks or size.networks:
            names = opponents(network, size)
            for fraction in fractions or size.fractions:
                case = size.case(network, fraction, "fp32", device)
                # Rounding in bf16 hides small mistakes, which fp32 shows.
                check_steps(case, names, dtypes=dict.fromkeys(["fp32", *tables]))
            for dtype, table in tables.items():
                for fraction in fractions or size.fractions:
                    case = size.case(network, fraction, dtype, device)
                    table.add(measure(pool, case, names, size))


def measure(pool: Any, case: Case, names: Iterable[str], size: Size) -> list[Row]:
    """The rows of one case, whose result was checked."""
    results = race(
        pool,
        make,
        case,
        list(names),
        size,
        group=replace(case, fraction=0.0),
        approve=lambda losses: check_losses(case, losses),
    )
    return rows_of(results, {"suite": "step", **columns(case), **work_columns(case)})
