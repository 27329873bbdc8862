"""Trials as Ray tasks, through Ray's public interface."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError
from .trial import Failure, Numerics, Outcome, attempt, listening

POLL = 0.2  # seconds between two polls of the trials' events


def import_ray() -> Any:
    """Import Ray.

    Raises:
        ConfigError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            'executor="ray": expected Ray to be installed; pip install "clnp[ray]", or use '
            'executor="processes"'
        ) from error
    return ray


class OnRay:
    """Tasks on a running Ray cluster, or on a local one started here.

    Arguments:
        count: maximum number of tasks at a time.
    """

    def __init__(self, count: int) -> None:
        self.ray = import_ray()
        from ray.util.queue import Queue

        self.count = count
        self.started_here = not self.ray.is_initialized()
        if self.started_here:
            self.ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
        self.events = Queue(actor_options={"num_cpus": 0})
        self.task = self.ray.remote(_trial)
        self.running: dict[Any, str] = {}
        # Arguments shared by many trials are stored once.
        self.stored: dict[int, tuple[Any, Any]] = {}

    def start(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], how: Numerics
    ) -> None:
        """Submit a trial.

        Raises:
            ConfigError: function or arguments can't be sent; the cluster is too small.
        """
        resources = self.ray.cluster_resources()
        if how.threads > resources.get("CPU", 0):
            raise ConfigError(
                f"threads: expected at most {resources.get('CPU', 0):g}, the CPUs of the Ray "
                f"cluster, got {how.threads}"
            )
        options = {"num_cpus": how.threads, "max_retries": 0, "num_gpus": self._gpus(resources)}
        try:
            sent = [self._store(value) for value in args]
            task = self.task.options(**options).remote(self.events, how, name, function, *sent)
        except (TypeError, AttributeError, ValueError) as error:
            raise ConfigError(f"{name} can't be sent to Ray: {error}") from error
        self.running[task] = name

    def _gpus(self, resources: dict[str, float]) -> float:
        """GPUs (or fraction of one) to reserve per task, so that each task sees one."""
        gpus = int(resources.get("GPU", 0))
        return 1 / math.ceil(self.count / gpus) if gpus else 0

    def _store(self, value: Any) -> Any:
        if id(value) not in self.stored:
            self.stored[id(value)] = (value, self.ray.put(value))
        return self.stored[id(value)][1]

    def wait(self, on_event: Callable[..., None]) -> list[tuple[str, Outcome]]:
        """Poll once: pass events on and return the finished trials."""
        done, _ = self.ray.wait(list(self.running), num_returns=1, timeout=POLL)
        waiting = self.events.qsize()
        for name, event in self.events.get_nowait_batch(waiting) if waiting else ():
            on_event(name, *event)
        return [(self.running.pop(task), self._outcome(task)) for task in done]

    def _outcome(self, task: Any) -> Outcome:
        try:
            outcome: Outcome = self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            return Failure(f"its worker was lost ({' '.join(str(error).split())})")
        return outcome

    def stop(self) -> None:
        """End all tasks at once."""
        for task in self.running:
            self.ray.cancel(task, force=True)
        self.running.clear()
        self.close()

    def close(self) -> None:
        """Release stored arguments; end Ray if it was started here."""
        self.stored.clear()
        if self.ray.is_initialized():
            self.events.shutdown(force=True)
            if self.started_here:
                self.ray.shutdown()


def _trial(
    events: Any, numerics: Numerics, name: str, function: Callable[..., Any], *args: Any
) -> Outcome:
    numerics.apply()
    with listening(lambda *event: events.put((name, event))):
        return attempt(function, args)
