"""Scheduling of trials: workers, retries and failures."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ConfigError, TrialError
from .processes import Processes, Shared
from .trial import Failure, Numerics, Outcome, Result, attempt, listening

if TYPE_CHECKING:
    from .on_ray import OnRay

EXECUTORS = ("processes", "ray")
ATTEMPTS = 2

Function = Callable[..., Any]
OnEvent = Callable[..., None]


class Workers:
    """Workers for `Learner(workers=...)` and `fan_out`.

    They start at first use, and end with `close`, with the `with` block, or with this process.

    Arguments:
        count: trials at a time; 1 runs them in this process, one after the other.
        executor: "processes" on this machine, or tasks on "ray" (`pip install "clnp[ray]"`): on the
            cluster of `ray.init`, or else on this machine.
        threads: CPU threads of torch per worker; None divides those of this process. Results are
            bit-identical to those of a single process with this number of threads.

    Raises:
        ConfigError: an argument out of range; Ray is not installed.
    """

    def __init__(
        self, count: int, *, executor: str = "processes", threads: int | None = None
    ) -> None:
        for name, value in (("workers", count), ("threads", threads)):
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name}: expected a whole number of at least 1, got {value!r}")
        if executor not in EXECUTORS:
            raise ConfigError(f"executor: expected {' or '.join(EXECUTORS)}, got {executor!r}")
        if executor == "ray":
            from .on_ray import import_ray

            import_ray()
        self.count, self.executor, self.threads = count, executor, threads
        self._executor: Processes | OnRay | _InProcess | None = None

    def run(
        self,
        function: Function,
        trials: Mapping[str, tuple[Any, ...]],
        on_event: OnEvent = lambda *_: None,
    ) -> dict[str, Any]:
        """Run trials as `fan_out` does."""
        waiting, running = deque(trials), 0
        attempts: Counter[str] = Counter()
        results: dict[str, Any] = {}
        failures: dict[str, Failure] = {}
        executor, how = self._started(), Numerics.current(self._threads())
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
        """Wrap a value that many trials receive, so that its CPU tensors are shared."""
        return Shared(value) if self.executor == "processes" and self.count > 1 else value

    def close(self) -> None:
        """End the workers; the next `run` starts new ones."""
        if self._executor is not None:
            self._executor.close()
            self._executor = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _threads(self) -> int:
        if self.threads is not None:
            return self.threads
        return max(1, torch.get_num_threads() // self.count)

    def _started(self) -> Processes | OnRay | _InProcess:
        if self._executor is None:
            if self.count == 1 and self.executor == "processes":
                self._executor = _InProcess()
            elif self.executor == "processes":
                self._executor = Processes(self.count)
            else:
                from .on_ray import OnRay

                self._executor = OnRay(self.count)
        return self._executor


class _InProcess:
    """Trials in this process, one at a time."""

    def __init__(self) -> None:
        self.trial: tuple[str, Function, tuple[Any, ...]] | None = None

    def start(self, name: str, function: Function, args: tuple[Any, ...], how: Numerics) -> None:
        self.trial, self.how = (name, function, args), how

    def wait(self, on_event: OnEvent) -> list[tuple[str, Outcome]]:
        assert self.trial is not None
        name, function, args = self.trial
        before = Numerics.current(torch.get_num_threads())
        self.how.apply()
        try:
            with listening(lambda *event: on_event(name, *event)):
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
    """Call a function once per trial, several at a time, each in its own process.

    A trial that raises, or whose worker dies, is run a second time, unless its arguments were
    refused (ConfigError, DataError, ConvertError). All other trials finish before an error is
    raised.

    Arguments:
        function: importable (defined in a module, not a lambda), with a picklable result.
        trials: name -> arguments.
        workers: number of trials at a time, or `Workers` to keep for later calls.
        on_event: called in this process with (name, *event) for each `clnp.parallel.tell(*event)`
            of a trial while it runs, and with (name, "on_retry", reason).

    Returns:
        name -> result, in the order of `trials`.

    Raises:
        TrialError: some trials failed; its `results` holds those of the others.
        ConfigError: function or arguments can't be sent.
    """
    if isinstance(workers, Workers):
        return workers.run(function, trials, on_event)
    with Workers(workers) as own:
        return own.run(function, trials, on_event)
