"""Half an hour of a rented GPU, in three calls: ``python -m benchmarks.gpu_suite CALL --out DIR``.

- ``A``, 8 minutes: what is built and would serve, the check of all kernels, the tests that need a
  GPU, the kernels under compute-sanitizer
- ``B``, 9 minutes: compiles what is measured in a pool of processes, then ``clnp tune --full``
- ``C``, 9 minutes: training steps of whole networks, a profile of them, and the rest of ``B``

Every call may start on a bare machine: it builds the libraries where they are not carried in, and
goes on with the folder of the last call where that is. It stops by itself before its time is over,
which is looked at between rows. A row that failed or ran out of time is tried again by the next
call. Everything is in one file, ``DIR/gpu-results.tar.gz``.

    python -m benchmarks.gpu_suite results gpu-results.tar.gz

turns it into the tables that the package ships, and into the pages' results. ``--dry-run`` does all
of it on the CPU with tiny shapes: emulated, interpreted, no figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_stage import FAILED, Stage, TimeUpError

ARCHIVE = "gpu-results.tar.gz"
# name of a call -> seconds, and its stages with their shares of what is left
CALLS: dict[str, tuple[float, dict[str, float]]] = {
    "A": (480.0, {"build": 0.5, "check": 0.3, "test": 0.6, "sanitize": 1.0}),
    "B": (540.0, {"build": 0.3, "compile": 0.4, "tune": 1.0}),
    "C": (540.0, {"build": 0.3, "step": 0.75, "profile": 0.5, "tune": 1.0}),
}
SECONDS = 420.0  # of a stage that is called by itself
RESERVE = 20.0  # seconds for the archive


def run_call(name: str, out: Path, *, dry: bool, seconds: float | None = None) -> int:
    """Run the stages of a call, or one stage -> 0, or 1 if a row failed, or 3 if rows are left."""
    from benchmarks.gpu_stages import STAGES

    limit, shares = CALLS.get(name, (seconds or SECONDS, {name: 1.0}))
    deadline = time.monotonic() + (seconds or limit) - (0 if dry else RESERVE)
    late, failed = [], []
    for stage_name, share in shares.items():
        stage = Stage(stage_name, out, dry, share * (deadline - time.monotonic()))
        try:
            STAGES[stage_name](stage)
        except TimeUpError:
            stage.say(f"time is up; call it again to go on ({len(stage.known)} rows so far)")
            late.append(stage_name)
        bad = [key for key, row in stage.rows().items() if row.get("status") in FAILED]
        failed += [f"{stage_name}: {key}" for key in (*bad, *stage.failed)]
    archive(out)
    print("\n".join(["failed, and tried again by the next call:", *failed]) if failed else "")
    return 1 if failed else 3 if late else 0


def archive(out: Path) -> Path:
    """Pack a folder of results into one file of it."""
    file = out / ARCHIVE
    with tarfile.open(file, "w:gz") as packed:
        for path in sorted(out.rglob("*")):
            if path.is_file() and path != file:
                packed.add(path, str(path.relative_to(out)))
    return file


@contextlib.contextmanager
def serving(dry: bool) -> Iterator[None]:
    """On the CPU, what would serve on a GPU."""
    if dry:
        import tests.gpu_on_cpu  # noqa: F401
    yield


def facts() -> dict[str, Any]:
    """Description of the machine."""
    from clnp_kernels import info

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {**info.versions(), "gpu": name, "time": time.strftime("%Y-%m-%d %H:%M:%S")}


def parser() -> argparse.ArgumentParser:
    """The command line. Imports clnp."""
    from benchmarks.gpu_stages import STAGES
    from clnp.cli.once import OnceParser

    made = OnceParser(prog="python -m benchmarks.gpu_suite")
    made.add_argument("call", choices=[*CALLS, *STAGES, "results"])
    made.add_argument("archive", type=Path, nargs="?", help=f"{ARCHIVE}, for results")
    made.add_argument("--out", type=Path, help="folder of the results")
    made.add_argument("--dry-run", action="store_true", help="rehearse on the CPU")
    made.add_argument("--seconds", type=float, help="instead of the call's own limit")
    made.add_argument("--reference", action="store_true", help="time it, where no library is")
    return made


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 if the call is through without an error."""
    if "--dry-run" in (sys.argv[1:] if arguments is None else arguments):
        # Read when Triton is imported, which the import of the parser can do.
        os.environ["TRITON_INTERPRET"] = "1"
    made = parser()
    args = made.parse_args(arguments)
    if args.call == "results":
        from benchmarks.gpu_results import publish

        if args.archive is None:
            made.error(f"results: expected {ARCHIVE} of a run, got nothing")
        return publish(args.archive)
    if args.out is None:
        made.error(f"{args.call}: expected --out, the folder of the results, got nothing")
    if not args.dry_run and not torch.cuda.is_available():
        print("no GPU here; --dry-run rehearses the calls on the CPU", file=sys.stderr)
        return 2
    if args.call not in ("A", "build") and not args.dry_run:
        from benchmarks import served

        served.require(args.reference)
    with serving(args.dry_run):
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "facts.json").write_text(json.dumps(facts(), indent=1) + "\n")
        return run_call(args.call, args.out, dry=args.dry_run, seconds=args.seconds)


if __name__ == "__main__":
    sys.exit(main())
