"""Trials in local processes. Each has a pipe of its own, so one that dies takes no other trial
with it; all of them end with the process that started them, however that one ends.
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
from .trial import Failure, Numerics, Outcome, attempt, heard_by

CONTEXT = multiprocessing.get_context("spawn")  # fork would break OpenMP's threads and CUDA
PATIENCE = 30.0  # seconds for a worker to end when asked to
GUARD = (
    "; a script that starts workers has to do so below `if __name__ == '__main__':`, because "
    "every worker imports it"
)


class Shared:
    """A value whose CPU tensors go into shared memory when it is sent, so that all workers see the
    same ones; the receiver gets the value itself. Where shared memory has no room for them they
    are copied. Nobody may write to them.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            return pickle.loads, (bytes(ForkingPickler.dumps(self.value)),)
        except (RuntimeError, OSError):  # no space left on /dev/shm, too many open files
            return pickle.loads, (pickle.dumps(self.value),)


class _Worker:
    """A process and the trial that it works on."""

    def __init__(self, numerics: Numerics) -> None:
        self.pipe, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_serve, args=(theirs, numerics), name="clnp-worker")
        with _interrupts_held():
            self.process.start()
        theirs.close()
        self.numerics = numerics
        self.trial: str | None = None
        self.order = b""
        self.ready = False

    def begin(self, trial: str, order: bytes) -> None:
        """Gives the worker a trial; while it is still starting, the order waits here."""
        self.trial, self.order = trial, order
        if self.ready:
            self.send()

    def send(self) -> None:
        """Sends the order."""
        # A worker that is gone by now is noticed when it is waited for.
        with contextlib.suppress(OSError):
            self.pipe.send_bytes(self.order)
        self.order = b""

    def death(self) -> Failure:
        """How the process ended, after its pipe did."""
        self.process.join(PATIENCE)
        code = self.process.exitcode
        if code is not None and code < 0:
            text = f"its process was ended by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                text += ", as the system does where memory runs out"
        else:
            text = f"its process ended with exit code {code}"
        return Failure(text) if self.ready else Failure(text + GUARD, recurs=True)


class Processes:
    """Worker processes, started when they are needed and kept for the next trials.

    Arguments:
        count: how many at most.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.workers: list[_Worker] = []
        _POOLS.add(self)

    def start(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], numerics: Numerics
    ) -> None:
        """Gives a trial to an idle worker.

        Raises:
            ConfigError: function or arguments can't be sent.
        """
        try:
            order = pickle.dumps((function, args))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{name} can't be sent to a worker process ({error}); functions and classes have "
                "to be defined at the top of a module. workers=1 sends nothing"
            ) from error
        idle = [w for w in self.workers if w.trial is None]
        # A worker that died while idle is found out now; other numerics need another worker.
        for worker in idle:
            if not worker.process.is_alive() or worker.numerics != numerics:
                self._remove(worker)
        idle = [w for w in self.workers if w.trial is None]
        worker = idle[0] if idle else self._add(numerics)
        worker.begin(name, order)

    def wait(self, on_event: Callable[..., None]) -> list[tuple[str, Outcome]]:
        """Waits until a worker has something to say; trials that ended."""
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
        """Ends all workers at once, whatever they are doing."""
        for worker in self.workers:
            worker.process.terminate()
        self.close()

    def close(self) -> None:
        """Ends all workers; idle ones end by themselves when their pipe does."""
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
    # multiprocessing joins its processes at exit; it registered before this module did, so idle
    # workers are told to end before they are waited for.
    for pool in list(_POOLS):
        pool.close()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started inside begin with Ctrl-C held back: it is for the one that started them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Any, numerics: Numerics) -> None:
    """What a worker does: trial after trial, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    numerics.apply()
    _send(pipe, "ready", None)
    while True:
        try:
            order = pipe.recv_bytes()
        except EOFError:
            return
        with heard_by(lambda *event: _send(pipe, "event", event)):
            outcome = attempt(_obey, (order,))
        try:
            _send(pipe, "outcome", outcome)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            _send(pipe, "outcome", Failure(f"its result can't be sent back ({error})", recurs=True))


def _obey(order: bytes) -> Any:
    function, args = pickle.loads(order)
    return function(*args)


def _send(pipe: Any, kind: str, content: Any) -> None:
    # Plain pickle copies tensors, ForkingPickler would share them and need a file for each.
    pipe.send_bytes(pickle.dumps((kind, content)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
