"""Suite "scaling": a training step of MLPs of width 512 to 8192, of one from batch 1 to 4096, and
of the residual blocks of resnet18 and resnet50.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks.cases import NETWORKS, Case, Size
from benchmarks.checks import check_losses, check_steps
from benchmarks.harness import processes, race
from benchmarks.record import Table, rows_of
from benchmarks.state import make_state, work_of
from benchmarks.step import SAME_FOR_ALL, columns, make, work_columns

NAMES = ("eager-masked", "dense", "slices", "ours")
FRACTIONS = (0.0, 0.5, 0.9)
SECONDS = 4.0  # for each contender: there are sixty cases
BATCHED = "mlp-2048"
LIMIT = 3e12  # multiply-adds of a dense step; larger cases are left out on a CPU


def cases(size: Size, dtype: str, device: str) -> list[Case]:
    """The cases of a run, nothing frozen."""
    found = [Case(f"mlp-{w}", 1.0, 256, 0.0, dtype, device) for w in size.widths]
    found += [Case(BATCHED, 1.0, b, 0.0, dtype, device) for b in size.batches if b != 256]
    blocks = [name for name in NETWORKS if name.startswith("block")]
    return found + [
        size.case(name, 0.0, dtype, device) for name in blocks[:: 1 if size.scale == 1 else 4]
    ]


def run(
    tables: Mapping[str, Table],
    size: Size,
    device: str,
    networks: Sequence[str] = (),
    fractions: Sequence[float] = (),
) -> None:
    """Measures; arguments as of `benchmarks.step.run`."""
    fractions = fractions or (FRACTIONS if size.scale == 1 else size.fractions)
    short = replace(size, seconds=min(size.seconds, SECONDS))
    with processes(SAME_FOR_ALL) as pool:
        for dtype, table in tables.items():
            for base in cases(size, dtype, device):
                if networks and base.network not in networks:
                    continue
                if device == "cpu" and work_of(make_state(base)).dense > LIMIT:
                    print(f"{base.name}, batch {base.batch}: too large for a CPU, left out")
                    continue
                for fraction in fractions:
                    case = replace(base, fraction=fraction)
                    check_steps(case, NAMES, dtypes=dict.fromkeys(["fp32", dtype]))
                    results = race(
                        pool,
                        make,
                        case,
                        NAMES,
                        short,
                        group=base,
                        approve=lambda losses, case=case: check_losses(case, losses),  # type: ignore[misc]
                    )
                    common = {"suite": "scaling", **columns(case), **work_columns(case)}
                    table.add(rows_of(results, common))
