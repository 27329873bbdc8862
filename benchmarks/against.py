"""Ours of this working tree against ours of another git revision, in turns, in one run.

The other revision is checked out into a temporary folder and built there in place. Both sides run
the benchmarks of this tree, so that only `clnp` and `clnp_kernels` differ. A revision with another
layout of modules can't import these benchmarks; it runs its own, and the output says so.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import clnp_kernels
from benchmarks import machine, op_cases, served, step
from benchmarks.cases import DTYPES, Size
from benchmarks.checks import check_steps
from benchmarks.harness import ContenderError, Make, Samples, ask, serve, take_turns
from benchmarks.record import OURS, Table, rows_of

ROOT = Path(__file__).parent.parent
SERVE = "from benchmarks.against import answer; answer({address!r}, {key!r}, {reference})"
SUITES = ("step", "ops")


@contextlib.contextmanager
def worktree(revision: str, cuda: bool = False) -> Iterator[Path]:
    """A folder with a revision, built in place, with the benchmarks of this one where they fit it.

    Raises:
        SystemExit: there is no such revision, or it can't be built.
    """
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "tree"
        try:
            _git("worktree", "add", "--detach", str(folder), revision)
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"--against {revision}: {error.stderr.strip()}") from None
        try:
            build(folder, cuda)
            take_benchmarks(folder)
            yield folder
        finally:
            _git("worktree", "remove", "--force", str(folder))


def _git(*arguments: str) -> None:
    command = ["git", "-C", str(ROOT), *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True)


def build(folder: Path, cuda: bool) -> None:
    """Compiles the libraries of a tree in place, that for CUDA only if wanted."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    environment = {**os.environ, "CLNP_REQUIRE_BUILD": "1", "CLNP_BUILD_CUDA": str(int(cuda))}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"the revision can't be built:\n{(done.stdout + done.stderr)[-3000:]}")


def take_benchmarks(folder: Path) -> None:
    """Replace the benchmarks of a tree by those of this one, unless that tree can't import them.

    Raises:
        SystemExit: the tree can import neither these benchmarks nor its own.
    """
    own, kept = folder / "benchmarks", folder / "own_benchmarks"
    if own.exists():
        own.rename(kept)
    shutil.copytree(
        ROOT / "benchmarks", own, ignore=shutil.ignore_patterns("results", "__pycache__")
    )
    missing = import_error(folder)
    if not missing:
        return
    shutil.rmtree(own)
    if kept.exists():
        kept.rename(own)
    if not own.exists() or import_error(folder):
        raise SystemExit(f"--against: the revision can't import the benchmarks: {missing}")
    print(f"The revision runs its own benchmarks: it can't import these ({missing})")


def import_error(folder: Path) -> str:
    """Return the last line of the error of importing the benchmarks in a tree, or nothing."""
    command = [sys.executable, "-c", "import benchmarks.against"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


class Side:
    """A process that runs ours of one tree."""

    def __init__(self, folder: Path, reference: bool = False) -> None:
        key = os.urandom(16)
        with Listener(family="AF_UNIX", authkey=key) as listener:
            code = SERVE.format(address=listener.address, key=key, reference=reference)
            # The folder it runs in comes before everything installed.
            environment = {**os.environ, "PYTHONPATH": str(folder)}
            command = [sys.executable, "-c", code]
            self.process = subprocess.Popen(command, cwd=folder, env=environment)
            self.pipe: Connection = listener.accept()
        found, refusal = self.pipe.recv()
        if not Path(found).is_relative_to(folder.resolve()):
            self.close()
            raise SystemExit(f"--against: {folder} was to be imported, got {found}")
        if refusal:
            self.close()
            raise SystemExit(f"--against, {folder}: {refusal}")

    def load(self, make: Make, key: Any, name: str) -> Samples:
        """Makes ours for a case."""
        samples: Samples = ask(self.pipe, (make, key, OURS, 1), name)
        return samples

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            self.pipe.send(None)
        self.process.wait()


def answer(address: str, key: bytes, reference: bool = False) -> None:
    """Life of a side's process."""
    with Client(address, authkey=key) as pipe:
        # The tree of this process, which may have a library where that of its parent has none.
        refusal = "" if reference else served.refusal()
        pipe.send((str(Path(clnp_kernels.__file__).resolve()), refusal))
        serve(pipe)


def compare(sides: Mapping[str, Side], make: Make, key: Any, size: Size) -> dict[str, Samples]:
    """Times both sides in turns."""
    warm = {name: side.load(make, key, name) for name, side in sides.items()}
    results = {name: Samples(first=found.first) for name, found in warm.items()}
    pipes = {name: side.pipe for name, side in sides.items()}
    take_turns(pipes, results, size)
    return results


def cases(options: argparse.Namespace, size: Size) -> Iterator[tuple[Make, Any, dict[str, Any]]]:
    """The maker of a step, its key, and the columns of its rows; each result is checked."""
    for dtype in options.dtype:
        for fraction in options.fractions or size.fractions:
            if "step" in options.suite:
                for network in options.networks or size.networks:
                    case = size.case(network, fraction, dtype, options.device)
                    check_steps(case, [OURS])
                    yield step.make, case, {"suite": "step", **step.columns(case)}
            if "ops" in options.suite:
                for op in op_cases.cases(size, dtype, options.device):
                    here = replace(op, fraction=fraction)
                    op_cases.check(here)
                    columns = {"case": here.name, "batch": here.batch, "dtype": dtype}
                    columns |= {"suite": "ops", "device": here.device, "fraction": fraction}
                    yield op_cases.make, here, columns


def run(options: argparse.Namespace, size: Size) -> int:
    """Compares, prints, and writes against.csv; 1 where this tree is slower than the tolerance.

    Raises:
        SystemExit: a suite that can't be compared, no such revision, or no build.
    """
    if not set(options.suite) <= set(SUITES):
        raise SystemExit(f"--against: --suite {options.suite}: expected of {list(SUITES)}")
    assert set(options.dtype) <= set(DTYPES)
    slower = []
    other = f"at {options.against}"
    with worktree(options.against, options.device != "cpu") as folder:
        table = Table(options.out / "against.csv", machine.facts(options.device))
        sides = {}
        try:
            sides = {OURS: Side(ROOT, options.reference), other: Side(folder)}
            for make, key, columns in cases(options, size):
                results = compare(sides, make, key, size)
                rows = rows_of(results, columns)
                table.add(rows)
                ratio = results[OURS].median / results[other].median
                if ratio > 1 + options.tolerance:
                    slower.append(f"{key}: {ratio:.2f} x the time {other}")
        except ContenderError as error:
            raise SystemExit(
                f"{error}\nIf it is the other revision's process, that one may lack what this "
                "benchmark needs; choose a later one"
            ) from None
        finally:
            for side in sides.values():
                side.close()
    print("\n".join(slower) or f"no case is slower than {other} by more than the tolerance")
    return 1 if slower else 0
