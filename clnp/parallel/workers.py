"""How many trials run at a time, and where; what happens to one that fails."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol

import torch

from ..errors import ConfigError, TrialError
from .processes import Processes, Shared
from .trial import Failure, Numerics, Outcome, Result, attempt, heard_by

EXECUTORS = ("processes", "ray")
ATTEMPTS = 2

Function = Callable[..., Any]
OnEvent = Callable[..., None]


class Executor(Protocol):
    """Where trials run."""

    def start(self, name: str, function: Function, args: tuple[Any, ...], how: Numerics) -> None:
        """Begins a trial. Raises ConfigError where it can't be sent."""

    def wait(self, on_event: OnEvent) -> list[tuple[str, Outcome]]:
        """Waits a while for events and ends of trials."""

    def stop(self) -> None:
        """Ends all trials at once."""

    def close(self) -> None:
        """Gives everything back."""


class Workers:
    """Workers for `Learner(workers=...)` and `fan_out`: they start when they are first needed, and
    end with `close`, with the `with` block, or with this process, however that ends.

    Arguments:
        count: trials at a time; 1 runs them in this process, one after the other.
        executor: "processes" of this machine, or tasks on "ray" (`pip install "clnp[ray]"`), on the
            cluster that `ray.init` found, else on this machine.
        threads: CPU threads of torch in each worker; None divides those of this process. Results
            are bit-identical to those of one process that has so many threads.

    Raises:
        ConfigError: an argument out of range; Ray is not installed.
    """

    def __init__(
        self, count: int, *, executor: str = "processes", threads: int | None = None
    ) -> None:
        for name, value in (("workers", count), ("threads", threads)):
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name}={value!r}: expected a whole number, at least 1")
        if executor not in EXECUTORS:
            raise ConfigError(f"executor={executor!r}: expected one of {', '.join(EXECUTORS)}")
        if executor == "ray":
            from .on_ray import import_ray

            import_ray()
        self.count, self.executor, self.threads = count, executor, threads
        self._executor: Executor | None = None

    def run(
        self,
        function: Function,
        trials: Mapping[str, tuple[Any, ...]],
        on_event: OnEvent = lambda *_: None,
    ) -> dict[str, Any]:
        """As `fan_out`."""
        waiting, running = deque(trials), 0
        attempts: Counter[str] = Counter()
        results: dict[str, Any] = {}
        failures: dict[str, Failure] = {}
        executor, how = self._started(), Numerics.here(self._threads())
        try:
            while waiting or running:
                while waiting and running < self.count:
                    name = waiting.popleft()
                    attempts[name] += 1
                    executor.start(name, function, trials[name], how)
                    running += 1
                for name, outcome in executor.wait(on_event):
                    running -= 1
                    if isinstance(outcome, Result):
                        results[name] = outcome.value
                    elif outcome.recurs or attempts[name] == ATTEMPTS:
                        failures[name] = outcome
                    else:
                        waiting.append(name)
                        on_event(name, "on_retry", outcome.text)
        except BaseException:
            self._executor = None
            executor.stop()
            raise
        results = {name: results[name] for name in trials if name in results}
        if failures:
            raise TrialError(failures, results)
        return results

    def shared(self, value: Any) -> Any:
        """A value to send to many trials: its tensors are shared where that is possible."""
        return Shared(value) if self.executor == "processes" and self.count > 1 else value

    def close(self) -> None:
        """Ends the workers; the next `run` starts new ones."""
        if self._executor is not None:
            self._executor.close()
            self._executor = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _threads(self) -> int:
        if self.threads is not None:
            return self.threads
        return max(1, torch.get_num_threads() // self.count)

    def _started(self) -> Executor:
        if self._executor is None:
            if self.count == 1 and self.executor == "processes":
                self._executor = _Here()
            elif self.executor == "processes":
                self._executor = Processes(self.count)
            else:
                from .on_ray import OnRay

                self._executor = OnRay(self.count)
        return self._executor


class _Here:
    """Trials in this process, one at a time."""

    def __init__(self) -> None:
        self.trial: tuple[str, Function, tuple[Any, ...]] | None = None

    def start(self, name: str, function: Function, args: tuple[Any, ...], how: Numerics) -> None:
        self.trial, self.how = (name, function, args), how

    def wait(self, on_event: OnEvent) -> list[tuple[str, Outcome]]:
        assert self.trial is not None
        name, function, args = self.trial
        before = Numerics.here(torch.get_num_threads())
        self.how.apply()
        try:
            with heard_by(lambda *event: on_event(name, *event)):
                return [(name, attempt(function, args))]
        finally:
            before.apply()

    def stop(self) -> None:
        self.trial = None

    close = stop


def fan_out(
    function: Function,
    trials: Mapping[str, tuple[Any, ...]],
    *,
    workers: int | Workers,
    on_event: OnEvent = lambda *_: None,
) -> dict[str, Any]:
    """Calls a function once per trial, several at a time, each in a process of its own.

    A trial that raises, or whose worker dies, is tried a second time, unless its arguments were
    refused (ConfigError, DataError, ConvertError). The other trials run to their ends before
    anything is raised.

    Arguments:
        function: importable (of a module, not a lambda). What it returns is sent back by pickle.
        trials: name -> arguments.
        workers: how many at a time, or `Workers`, which are kept for later calls.
        on_event: called here with (name, *event) for everything that `clnp.parallel.tell(*event)`
            is told in a trial, while it runs, and with (name, "on_retry", why).

    Returns:
        name -> result, in the order of `trials`.

    Raises:
        TrialError: trials that failed, by name and error; its `results` are those of the others.
        ConfigError: function or arguments can't be sent.
    """
    if isinstance(workers, Workers):
        return workers.run(function, trials, on_event)
    with Workers(workers) as own:
        return own.run(function, trials, on_event)
