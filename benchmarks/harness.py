"""Contenders take turns, each in a process of its own, as it would be in use.

Within one process a contender's time depends on what memory the others have left in the allocator.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.cases import Size

# key of what is timed, name of the contender -> what makes one step; it may have an attribute
# `report`, a function that gives other figures as a dictionary
Make = Callable[[Any, str], Callable[[], Any]]
WARM_UP = {True: 2, False: 1}  # steps, of contenders that are kept and of others
TURN = 4  # steps in a row, of which the first fills the caches and does not count
SLOW = 250.0  # milliseconds; the caches hold nothing of such a step, so it takes turns one by one
PAUSE = 0.03  # seconds
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


class ContenderError(RuntimeError):
    """A contender's process failed; the message has its name and traceback."""


@dataclass
class Samples:
    """Result of one contender.

    Attributes:
        ms: of the steps that count.
        faults: pages of memory that each of them had to be given.
        first: what the first steps returned, as numbers (losses).
        report: other figures of the contender.
    """

    ms: list[float] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    report: dict[str, float] = field(default_factory=dict)

    def quantiles(self) -> tuple[float, ...]:
        """At `QUANTILES`."""
        values = torch.tensor(self.ms, dtype=torch.float64)
        return tuple(values.quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist())

    @property
    def median(self) -> float:
        """Milliseconds."""
        return self.quantiles()[2]


def page_faults() -> int:
    """Pages that this process has had to be given since it started."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def timed(step: Callable[[], Any]) -> tuple[float, int, Any]:
    """Milliseconds of one step with all that it started on a GPU, page faults, what it returned."""
    pages, start = page_faults(), time.perf_counter()
    result = step()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3, page_faults() - pages, result


class Runner:
    """One contender in its process: makes its step and runs it."""

    def __init__(self, make: Make, key: Any, name: str) -> None:
        self.step = make(key, name)

    def warm_up(self, steps: int) -> Samples:
        """First steps, whose times say nothing."""
        samples = Samples()
        for _ in range(steps):
            result = timed(self.step)[2]
            if isinstance(result, torch.Tensor) and result.dim() == 0:
                samples.first.append(float(result))
        report = getattr(self.step, "report", None)
        samples.report = report() if report else {}
        return samples

    def turn(self, steps: int) -> list[tuple[float, int]]:
        """Time and page faults of so many steps."""
        return [timed(self.step)[:2] for _ in range(steps)]


def serve(pipe: Connection) -> None:
    """Life of a process: takes (make, key, name, warm-up steps) or a number of steps; None ends
    it.
    """
    runner: Runner | None = None
    while (message := _next(pipe)) is not None:
        try:
            if isinstance(message, int):
                assert runner is not None
                pipe.send(runner.turn(message))
            else:
                runner = None
                runner = Runner(*message[:3])
                pipe.send(runner.warm_up(message[3]))
        except BaseException:
            pipe.send(traceback.format_exc())


def _next(pipe: Connection) -> Any:
    """The next message; None where the other end is gone."""
    try:
        return pipe.recv()
    except EOFError:
        return None


def ask(pipe: Connection, message: Any, name: str) -> Any:
    """Sends a message and waits for the answer.

    Raises:
        ContenderError: the contender failed, or its process is gone.
    """
    pipe.send(message)
    return receive(pipe, name)


def receive(pipe: Connection, name: str) -> Any:
    """Waits for a contender's answer; raises as :func:`ask`."""
    try:
        answer = pipe.recv()
    except EOFError:
        raise ContenderError(f"{name}: its process ended (out of memory?)") from None
    if isinstance(answer, str):
        raise ContenderError(f"{name}:\n{answer}")
    return answer


def forks() -> Any:
    """Source of processes: a fresh one that has imported everything forks, which takes
    milliseconds. torch.optim would import torch._dynamo at the first step, for seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.contenders", "torch._dynamo", "torchvision.models"])
    return context


class Processes:
    """The processes of the contenders of one run.

    Arguments:
        keep: names of contenders whose step is the same for all keys, so that they are made once
            for all keys with the same `group` (dense networks know of no frozen fraction, and
            torch.compile takes minutes).
    """

    def __init__(self, keep: Sequence[str] = ()) -> None:
        self.keep = set(keep)
        self.group: Any = None
        self.pipes: dict[str, Connection] = {}
        self.processes: dict[str, Any] = {}
        self.warm: dict[str, Samples] = {}
        self.context = forks()

    def load(self, make: Make, key: Any, names: Sequence[str]) -> dict[str, Samples]:
        """Makes contenders in fresh processes, all at once, or takes those that were kept."""
        fresh = [name for name in names if name not in self.pipes]
        for name in fresh:
            self.pipes[name], theirs = self.context.Pipe()
            process = self.context.Process(target=serve, args=(theirs,))
            process.start()
            theirs.close()
            self.processes[name] = process
            self.pipes[name].send((make, key, name, WARM_UP[name in self.keep]))
        for name in fresh:
            self.warm[name] = receive(self.pipes[name], name)
        return {name: self.warm[name] for name in names}

    def enter(self, group: Any) -> None:
        """Ends the processes that do not belong to a group of keys."""
        kept = self.keep if group == self.group else set()
        self.group = group
        for name in [name for name in self.pipes if name not in kept]:
            self.end(name)

    def end(self, name: str) -> None:
        """Ends a contender's process."""
        with contextlib.suppress(OSError):  # it may be gone already
            self.pipes.pop(name).send(None)
        self.processes.pop(name).join()

    def close(self) -> None:
        """Ends all processes."""
        for name in list(self.pipes):
            self.end(name)


@contextlib.contextmanager
def processes(keep: Sequence[str] = ()) -> Iterator[Processes]:
    """A `Processes` whose processes end with the block."""
    made = Processes(keep)
    try:
        yield made
    finally:
        made.close()


def race(
    pool: Processes,
    make: Make,
    key: Any,
    names: Sequence[str],
    size: Size,
    group: Any = None,
    approve: Callable[[Mapping[str, list[float]]], None] = lambda losses: None,
) -> dict[str, Samples]:
    """Times contenders in turns.

    Arguments:
        pool: their processes.
        make: module-level function (key, name) -> step; called in the contender's process.
        key: what is timed; is pickled.
        names: contenders.
        size: how many steps.
        group: keys of one group share the contenders that are kept.
        approve: given the first losses of all contenders, raises if one is wrong.
    """
    pool.enter(group)
    results = {
        name: Samples(first=warm.first, report=warm.report)
        for name, warm in pool.load(make, key, names).items()
    }
    approve({name: samples.first for name, samples in results.items()})
    take_turns({name: pool.pipes[name] for name in names}, results, size)
    return results


def take_turns(pipes: Mapping[str, Connection], results: dict[str, Samples], size: Size) -> None:
    """Adds samples: one contender after the other, until each has as many as `size` wants."""
    first = {name: ask(pipe, 1, name) for name, pipe in pipes.items()}
    slowest = max(ms for turn in first.values() for ms, _ in turn)
    wanted = round(size.seconds * 1e3 / max(slowest, 1e-3))
    wanted = min(max(wanted, size.least), size.samples)
    if slowest > SLOW:
        for name, turn in first.items():
            _count(results[name], turn)
        steps, counted, rounds = 1, 1, wanted - 1
    else:
        steps, counted = TURN, TURN - 1
        rounds = -(-wanted // counted)
    names = list(pipes)
    for turn in range(rounds):
        # Nobody comes after the same one each time, nor last.
        first_one = turn % len(names)
        for name in names[first_one:] + names[:first_one]:
            # The threads of the last one stop spinning meanwhile.
            time.sleep(PAUSE)
            _count(results[name], ask(pipes[name], steps, name)[-counted:])


def _count(samples: Samples, turn: list[tuple[float, int]]) -> None:
    samples.ms += [ms for ms, _ in turn]
    samples.faults += [faults for _, faults in turn]
