"""The benchmark suite: ``python -m benchmarks.run``.

Measures on an idle machine; every figure is checked first. Writes into a folder one CSV file for
each suite, plots, and prints the rows as they come.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import (
    against,
    end_to_end,
    grid,
    inference,
    machine,
    memory,
    op_cases,
    ops,
    plots,
    scaling,
    served,
    step,
)
from benchmarks.cases import DTYPES, NETWORKS, SIZES, Size
from benchmarks.checks import WrongResultError
from benchmarks.harness import ContenderError
from benchmarks.record import Table
from clnp.cli.once import OnceParser

SUITES: dict[str, Callable[..., None]] = {
    "ops": ops.run,
    "step": step.run,
    "memory": memory.run,
    "inference": inference.run,
    "end-to-end": end_to_end.run,
    "scaling": scaling.run,
    "grid": grid.run,
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = OnceParser(prog="python -m benchmarks.run", description=__doc__)
    made.add_argument("--suite", choices=SUITES, action="extend", nargs="+", default=["step"])
    made.add_argument("--device", default="cpu")
    made.add_argument(
        "--dtype",
        choices=DTYPES,
        action="extend",
        nargs="+",
        default=[],
        help="default: all in whose products the machine is at least half as fast as in fp32",
    )
    made.add_argument(
        "--networks", choices=NETWORKS, action="extend", nargs="+", default=[], metavar="NAME"
    )
    made.add_argument(
        "--operators",
        choices=op_cases.OPERATORS,
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME",
        help="of the suite ops: these only",
    )
    made.add_argument(
        "--fractions", type=float, action="extend", nargs="+", default=[], metavar="A"
    )
    made.add_argument("--quick", action="store_true", help="smaller networks and fewer cases")
    made.add_argument("--size", choices=SIZES, default="full", help="quick is --quick")
    made.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder")
    made.add_argument("--data-root", default="", help="folder with MNIST, for end-to-end")
    made.add_argument("--run", default="", help="run folder or checkpoint, for inference")
    made.add_argument("--reference", action="store_true", help="time it, where no library is")
    made.add_argument("--against", metavar="REV", help="compare ours with that of a git revision")
    made.add_argument(
        "--tolerance", type=float, default=0.1, help="how much slower than REV is too slow"
    )
    return made


def check_arguments(options: argparse.Namespace) -> None:
    """Raises SystemExit, with a message, for values that make no sense, and where the reference
    would be timed unasked.
    """
    served.require(options.reference)
    if not all(0 <= fraction < 1 for fraction in options.fractions):
        raise SystemExit(f"--fractions {options.fractions}: expected numbers from 0 to below 1")
    if options.tolerance < 0:
        raise SystemExit(f"--tolerance {options.tolerance}: expected a number of at least 0")
    try:
        torch.empty(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise SystemExit(f"--device {options.device}: {error}") from None


def run_suite(name: str, options: argparse.Namespace, size: Size) -> Path:
    """Runs one suite; returns its CSV file."""
    suite: Callable[..., Any] = SUITES[name]
    if name == "end-to-end" and options.data_root:
        suite = partial(suite, root=options.data_root)
    if name == "ops":
        suite = partial(suite, operators=options.operators)
    if name == "inference" and options.run:
        suite = partial(suite, run=options.run)
    path = options.out / f"{name}.csv"
    table = Table(path, {})
    tables = {}
    facts = machine.facts(options.device)
    for dtype in options.dtype:
        limits = machine.ceilings(dtype, options.device, size)
        print(f"{name}, {dtype}: " + ", ".join(f"{k} {v}" for k, v in {**facts, **limits}.items()))
        tables[dtype] = table.with_facts({**facts, **limits})
    start = time.monotonic()
    suite(tables, size, options.device, options.networks, options.fractions)
    print(f"{name}: {time.monotonic() - start:.0f} s, {path}")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures; the exit status is 1 for a wrong result or a regression."""
    options = parser().parse_args(arguments)
    check_arguments(options)
    size = SIZES["quick" if options.quick else options.size]
    options.dtype = options.dtype or machine.dtypes(options.device)
    try:
        if options.against is not None:
            return against.run(options, size)
        for name in options.suite:
            run_suite(name, options, size)
    except (WrongResultError, ContenderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in plots.draw(options.out):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
