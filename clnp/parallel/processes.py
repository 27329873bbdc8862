"""Trials in local processes.

Each worker has its own pipe, so a crash affects no other trial. All workers end with the process
that started them, even if it is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from ..errors import ConfigError
from .trial import Failure, Numerics, Outcome, attempt, listening

CONTEXT = multiprocessing.get_context("spawn")  # fork would break OpenMP's threads and CUDA
PATIENCE = 30.0  # seconds until a worker that doesn't end is killed
GUARD = (
    "; start workers below `if __name__ == '__main__':`, because every worker imports the script"
)


class Shared:
    """Wrapper that sends CPU tensors through shared memory, so that all workers read one copy.

    The receiver gets the value itself and must not write to its tensors. Tensors are copied if
    shared memory is full.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            return pickle.loads, (bytes(ForkingPickler.dumps(self.value)),)
        except (RuntimeError, OSError):  # no space left on /dev/shm, too many open files
            return pickle.loads, (pickle.dumps(self.value),)


class _Worker:
    """A process and its current trial."""

    def __init__(self, numerics: Numerics) -> None:
        self.pipe, child_end = CONTEXT.Pipe()
        args = (child_end, numerics)
        self.process = CONTEXT.Process(target=_serve, args=args, name="clnp-worker")
        with _interrupts_held():
            self.process.start()
        child_end.close()
        self.numerics = numerics
        self.trial: str | None = None
        self.call = b""
        self.ready = False

    def begin(self, trial: str, call: bytes) -> None:
        """Assign a trial; its pickled call is sent once the worker is ready."""
        self.trial, self.call = trial, call
        if self.ready:
            self.send()

    def send(self) -> None:
        # A worker that has died is found by `wait`.
        with contextlib.suppress(OSError):
            self.pipe.send_bytes(self.call)
        self.call = b""

    def death(self) -> Failure:
        """Describe the end of the process after its pipe was closed."""
        self.process.join(PATIENCE)
        code = self.process.exitcode
        if code is not None and code < 0:
            text = f"its process was ended by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                text += ", as the system does when memory runs out"
        else:
            text = f"its process ended with exit code {code}"
        return Failure(text) if self.ready else Failure(text + GUARD, recurs=True)


class Processes:
    """Pool of worker processes, started on demand and reused for later trials.

    Arguments:
        count: maximum number of processes.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.workers: list[_Worker] = []
        _POOLS.add(self)

    def start(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], numerics: Numerics
    ) -> None:
        """Start a trial in an idle worker.

        Raises:
            ConfigError: function or arguments can't be sent.
        """
        try:
            call = pickle.dumps((function, args))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{name} can't be sent to a worker process ({error}); define functions and classes "
                "at the top level of a module, or use workers=1, which sends nothing"
            ) from error
        idle = [w for w in self.workers if w.trial is None]
        # Replace idle workers that died or that run with other numerics.
        for worker in idle:
            if not worker.process.is_alive() or worker.numerics != numerics:
                self._remove(worker)
        idle = [w for w in self.workers if w.trial is None]
        worker = idle[0] if idle else self._add(numerics)
        worker.begin(name, call)

    def wait(self, on_event: Callable[..., None]) -> list[tuple[str, Outcome]]:
        """Wait for messages of workers; return the finished trials."""
        busy: dict[Any, _Worker] = {w.pipe: w for w in self.workers if w.trial is not None}
        ended: list[tuple[str, Outcome]] = []
        for pipe in connection.wait(list(busy)):
            worker = busy[pipe]
            assert worker.trial is not None
            try:
                kind, content = pickle.loads(worker.pipe.recv_bytes())
            except (EOFError, OSError):
                ended.append((worker.trial, worker.death()))
                self._remove(worker)
                continue
            if kind == "ready":
                worker.ready = True
                worker.send()
            elif kind == "event":
                on_event(worker.trial, *content)
            else:
                ended.append((worker.trial, content))
                worker.trial = None
        return ended

    def _add(self, numerics: Numerics) -> _Worker:
        self.workers.append(_Worker(numerics))
        return self.workers[-1]

    def _remove(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        _end([worker])

    def stop(self) -> None:
        """End all workers at once, also busy ones."""
        for worker in self.workers:
            worker.process.terminate()
        self.close()

    def close(self) -> None:
        """End all workers; an idle one exits when its pipe is closed."""
        workers, self.workers = self.workers, []
        _end(workers)

    def __del__(self) -> None:
        self.close()


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.pipe.close()
    for worker in workers:
        worker.process.join(PATIENCE)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


_POOLS: weakref.WeakSet[Processes] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # multiprocessing joins its processes at exit. It registered earlier, hence runs later than
    # this function, which closes the pipes of idle workers.
    for pool in list(_POOLS):
        pool.close()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Block Ctrl-C in processes started inside; their parent handles it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Any, numerics: Numerics) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    numerics.apply()
    _send(pipe, "ready", None)
    while True:
        try:
            call = pipe.recv_bytes()
        except EOFError:
            return
        with listening(lambda *event: _send(pipe, "event", event)):
            outcome = attempt(_run_pickled, (call,))
        try:
            _send(pipe, "outcome", outcome)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            _send(pipe, "outcome", Failure(f"its result can't be sent back ({error})", recurs=True))


def _run_pickled(call: bytes) -> Any:
    function, args = pickle.loads(call)
    return function(*args)


def _send(pipe: Any, kind: str, content: Any) -> None:
    # Plain pickle copies tensors; ForkingPickler would share them and need a file for each.
    pipe.send_bytes(pickle.dumps((kind, content)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
