"""Processes that check and measure kernels; a crash or a hang is an answer too."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from queue import Queue
from typing import Any

from .environment import PACKAGE, Card, to_line

START = 180.0  # seconds in which a process has to start: it imports torch and wakes the GPU
Job = Mapping[str, Any]


class GoneError(Exception):
    """The process has ended or does not answer."""


class Worker:
    """A process of `worker`, started at its first job and again after each failure.

    Arguments:
        card: what it works on.
    """

    def __init__(self, card: Card) -> None:
        self.card = card
        self.process: subprocess.Popen[str] | None = None
        self.broken = ""  # why it can't be started
        self.ended = False
        self._errors: Any = None  # what the process prints

    def answer(self, job: Job, seconds: float) -> dict[str, Any]:
        """Result of a job: as `worker.answer`, or {"error": reason} of a crash or a hang, or
        {"skipped": reason} where no process can be started.
        """
        if self.process is None and not self.broken and not self.ended:
            try:
                self._start()
            except (GoneError, OSError) as error:
                self.stop()
                self.broken = f"its process does not start: {error}"
        if self.broken or self.process is None:
            return {"skipped": self.broken or "stopped"}
        try:
            found = self._ask(job, seconds)
        except (GoneError, OSError) as error:
            found = {"error": str(error)}
        if "error" in found:  # the state of the GPU in this process can't be trusted any more
            self.stop()
        return {"skipped": "stopped"} if self.ended else found

    def _start(self) -> None:
        paths = [str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        environment.setdefault("OMP_NUM_THREADS", "1")
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by `stop`)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "clnp_kernels.tune.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the parent
        )
        if self.ended:  # while it was started
            raise GoneError("stopped")
        self._write(to_line(self.card))
        self._read(START)

    def _ask(self, job: Job, seconds: float) -> dict[str, Any]:
        self._write(json.dumps(job))
        return self._read(seconds)

    def _write(self, line: str) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _read(self, seconds: float) -> dict[str, Any]:
        """The next answer. Raises GoneError."""
        assert self.process is not None
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            raise GoneError(f"no answer within {seconds:.0f} seconds")
        line = self.process.stdout.readline()
        if not line:
            raise GoneError(self._end_of(self.process.wait()))
        found: dict[str, Any] = json.loads(line)
        return found

    def _end_of(self, code: int) -> str:
        """Exit of the process in words, with the last line that it wrote."""
        how = f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return f"{how}: {lines[-1][:300]}" if lines else how

    def stop(self) -> None:
        """Kill the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                assert pipe is not None
                with suppress(OSError):  # what was written last reached nobody
                    pipe.close()
            self._errors.close()
            self.process = None

    def end(self) -> None:
        """Kill the process and take no more jobs."""
        self.ended = True
        process = self.process  # its own thread may forget it meanwhile
        if process is not None:
            process.kill()


def run(
    card: Card, jobs: Sequence[Job], seconds: float, workers: int = 1
) -> Generator[tuple[Job, dict[str, Any]], None, None]:
    """Do jobs in processes; yield each with its answer, in the order in which they are done.

    Closing the iterator (`contextlib.closing`) kills the processes.

    Arguments:
        card: what they work on.
        jobs: for `worker.answer`.
        seconds: for each of them.
        workers: processes at a time.
    """
    crew = [Worker(card) for _ in range(max(1, min(workers, len(jobs))))]
    idle: Queue[Worker] = Queue()
    for worker in crew:
        idle.put(worker)

    def do(job: Job) -> dict[str, Any]:
        worker = idle.get()
        try:
            return worker.answer(job, seconds)
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(len(crew))
    futures = {pool.submit(do, job): job for job in jobs}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        for worker in crew:
            worker.end()
        pool.shutdown(cancel_futures=True)
        for worker in crew:
            worker.stop()
