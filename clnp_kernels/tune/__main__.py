"""`python -m clnp_kernels.tune`, or `clnp tune`: check the kernels on this GPU and measure them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from .. import chooser, ops  # noqa: F401  (ops registers the operators)
from . import environment
from .environment import Card
from .first_use import Say, forget, qualify, say_on_stderr
from .plan import Job, add_arguments, layers_of_file, measurements
from .store import Store, write_text
from .stored import open_store, read
from .supervise import Worker
from .table import Measured, entry_from

QUICK, FULL = 90.0, 600.0  # seconds
JOB = 60.0
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m clnp_kernels.tune", description=__doc__)
    add_arguments(parser)
    try:
        return command(parser.parse_args(arguments))
    except (ValueError, OSError) as error:
        print(f"clnp: error: {error}", file=sys.stderr)
        return 2


def command(options: argparse.Namespace, say: Say = say_on_stderr) -> int:
    """Check, measure, and write the table; 0 if a GPU was measured.

    Raises:
        ValueError: no GPU that the kernels run on, or a bad file.
        OSError: a file can't be read or written.
    """
    if chooser.tuning() == "off":
        raise ValueError("CLNP_TUNE: expected auto or require, got off, which switches this off")
    device = torch.device(options.device)
    if device.type != "cuda":
        raise ValueError(f"--device: expected a CUDA device, got {options.device}")
    if not torch.cuda.is_available():
        raise ValueError("--device: torch finds no GPU, and a CPU needs no tuning")
    layers = layers_of_file(options.model) if options.model else None
    card = environment.card_of(device)
    try:
        tune(card, measurements(layers, full=options.full), options.full, say)
    except KeyboardInterrupt:
        say(f"stopped; what is measured is kept in {open_store(card).folder}, call again to go on")
        return INTERRUPTED
    if options.out:
        write_table(card, options.out)
        say(f"table: {options.out}")
    return 0


def tune(card: Card, jobs: Sequence[Job], full: bool, say: Say) -> None:
    """Check, then measure what is not measured yet, until the time is up."""
    forget()  # a table in use would hide what is stored
    qualify(card=card, say=say)
    store = open_store(card)
    known = {entry.key for entry in read(card, store) if isinstance(entry, Measured)}
    missing = [job for job in jobs if job.key not in known]
    deadline, done = time.monotonic() + (FULL if full else QUICK), 0
    say(f"measuring {len(missing)} kinds of calls, {len(jobs) - len(missing)} are known")
    worker = Worker(card)
    try:
        for job in missing:
            if time.monotonic() > deadline:
                say(f"time is up, {len(missing) - done} are left; call again to go on")
                break
            done += _measure(worker, job, full, store, say)
    finally:
        worker.end()
        worker.stop()
    if store.problem:
        say(f"nothing could be kept: {store.problem}; set CLNP_CACHE_DIR")
    forget()
    found = qualify(card=card, say=say)
    rows = found.measured if found else []
    ours = sum(row.implementation != chooser.TORCH for row in rows)
    say(f"{len(rows)} kinds of calls are measured; our kernels serve in {ours} of them")


def _measure(worker: Worker, job: Job, full: bool, store: Store, say: Say) -> int:
    """Measure one kind of calls, with fewer rows while memory runs out; 1 if that was done."""
    while True:
        answer = worker.answer(job.message(every_tile=full), JOB)
        if "memory" in answer and job.layer.rows > 1:
            job = job.with_half_the_rows()
            say(f"{job.name}: memory ran out, trying {job.layer.rows} rows")
            continue
        if "entry" not in answer:
            say(f"{job.name}: not measured: {next(iter(answer.values()))}")
            return 0
        entry = entry_from(answer["entry"])
        assert isinstance(entry, Measured)
        store.write(entry)
        say(f"{job.name}: {entry.implementation}, {entry.reason}")
        return 1


def write_table(card: Card, file: Path) -> None:
    """Write all entries of a card's environment as one file."""
    store = open_store(card)
    entries = [asdict(entry) for entry in read(card, store)]
    data = {"facts": store.facts, "entries": entries}
    write_text(file, json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
