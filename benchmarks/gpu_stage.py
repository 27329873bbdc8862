"""A stage of the GPU suite: its rows, its log and its time."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FAILED = ("1", "time up")  # status of rows that the next call tries again
LAST = 5.0  # seconds for a process to end by itself


class TimeUpError(Exception):
    """The time is over; what is left is for the next call."""


class Stage:
    """Output, finished rows and time limit of a stage.

    Arguments:
        name: of the stage; its rows are in ``NAME.csv``, its output in ``NAME.log``.
        out: folder of the results.
        dry: rehearse on the CPU.
        seconds: that it may take.
        clock: tells the time; tests give their own.
    """

    def __init__(
        self,
        name: str,
        out: Path,
        dry: bool,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.out, self.dry, self.clock = name, out, dry, clock
        self.device = "cpu" if dry else "cuda"
        self.deadline = clock() + seconds
        out.mkdir(parents=True, exist_ok=True)
        self.table, self.log = out / f"{name}.csv", out / f"{name}.log"
        self.known = {key for key, row in self.rows().items() if row.get("status") not in FAILED}
        self.failed: list[str] = []

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.deadline - self.clock()

    def rows(self) -> dict[str, dict[str, str]]:
        """The rows that are there, by their keys; of a row that was tried again the last one."""
        if not self.table.exists():
            return {}
        with self.table.open(newline="") as file:
            return {row["key"]: row for row in csv.DictReader(file)}

    def say(self, text: str) -> None:
        """Print, and write to the log."""
        print(text, flush=True)
        with self.log.open("a") as file:
            file.write(text + "\n")

    def add(self, key: str, **values: Any) -> None:
        """One more row; all rows of a stage have the same columns."""
        row = {"key": key, **values}
        new = not self.table.exists()
        with self.table.open("a", newline="") as file:
            writer = csv.DictWriter(file, row.keys(), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        if values.get("status") not in FAILED:
            self.known.add(key)
        self.say("  ".join(str(value) for value in row.values()))

    def fail(self, key: str, error: Exception) -> None:
        """Note what went wrong; the row is tried again in the next call."""
        self.failed.append(key)
        first = (str(error).strip().splitlines() or [""])[0]
        self.say(f"{key}: {type(error).__name__}: {first}")

    def missing(self, key: str) -> bool:
        """True for a row that is not there yet. Raises TimeUpError when the time is up."""
        if key in self.known:
            return False
        if self.left <= 0:
            raise TimeUpError
        return True

    def run(self, key: str, command: Sequence[str], **environment: str) -> bool:
        """Run a command as one row: its exit status, time and last line. It is interrupted when the
        time is up, and then killed.
        """
        if not self.missing(key):
            return True
        start = self.clock()
        status, text = _run(command, max(self.left, 1.0), self._environment(environment))
        with self.log.open("a") as file:
            file.write(f"$ {' '.join(command)}\n{text}\n")
        lines = [line for line in text.strip().splitlines() if line.strip()] or [""]
        seconds = round(self.clock() - start, 1)
        self.add(key, status=status, seconds=seconds, last=lines[-1][:200])
        return status == "0"

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        """The environment of a command: everything that is kept lies in the folder of results."""
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1" if self.dry else "8",
            "CLNP_CACHE_DIR": str((self.out / "tables").resolve()),
            # PyTorch's deterministic mode, in which new tensors start as NaN, wants this
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            **more,
        }


def _run(command: Sequence[str], seconds: float, environment: dict[str, str]) -> tuple[str, str]:
    """Run a command -> its exit status or "time up", and what it printed."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        text, _ = process.communicate(timeout=seconds)
        return ("0" if process.returncode == 0 else "1"), text
    except subprocess.TimeoutExpired:
        for sign in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                text, _ = process.communicate(timeout=LAST)
                return "time up", text
        raise
