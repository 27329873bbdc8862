"""A trial: one function call in some process, its events, and its outcome."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ClnpError

_listener: Callable[..., None] | None = None


@dataclass(frozen=True)
class Failure:
    """Reason why a trial has no result.

    Attributes:
        text: one line.
        traceback: traceback in the worker; "" if the worker died.
        recurs: a second attempt would fail the same way.
    """

    text: str
    traceback: str = ""
    recurs: bool = False


@dataclass(frozen=True)
class Result:
    """Return value of a trial."""

    value: Any


Outcome = Result | Failure


@dataclass(frozen=True)
class Numerics:
    """Process-wide torch settings that affect the last bits of results.

    Attributes:
        threads: CPU threads of torch.
        precision: value of `torch.get_float32_matmul_precision`.
        deterministic: value of `torch.are_deterministic_algorithms_enabled`.
    """

    threads: int
    precision: str
    deterministic: bool

    @classmethod
    def current(cls, threads: int) -> Numerics:
        """Return the settings of this process with another number of threads."""
        return cls(
            threads,
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
        )

    def apply(self) -> None:
        """Set them in this process."""
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision(self.precision)
        # The setter imports the compiler, which takes seconds.
        if torch.are_deterministic_algorithms_enabled() != self.deterministic:
            torch.use_deterministic_algorithms(self.deterministic)


def tell(*event: Any) -> None:
    """Send an event to the process that started this trial, for progress reports.

    That process calls `on_event(name of the trial, *event)`. Outside a trial nothing happens.

    Arguments:
        event: picklable values; keep them small, they are sent at once.
    """
    if _listener is not None:
        _listener(*event)


@contextlib.contextmanager
def listening(listener: Callable[..., None]) -> Iterator[None]:
    """Pass every event of `tell` to a listener inside."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def attempt(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Outcome:
    """Call a trial's function; convert an exception to a `Failure`."""
    try:
        return Result(function(*arguments))
    except Exception as error:
        # Refused settings and data are refused again; an error of the disk may be temporary.
        refused = (
            isinstance(error, ClnpError)
            and isinstance(error, ValueError | TypeError)
            and not isinstance(error.__cause__, OSError)
        )
        return Failure(_one_line(error), traceback.format_exc(), refused)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ClnpError) and text else f"{type(error).__name__}: {text}"
