"""One trial: a call of a function in some process, what it tells meanwhile, how it ends."""

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
    """Why a trial has no result.

    Attributes:
        text: one line.
        traceback: of the worker, as text; "" where the worker died.
        recurs: it would happen again, so the trial is not worth a second attempt.
    """

    text: str
    traceback: str = ""
    recurs: bool = False


@dataclass(frozen=True)
class Result:
    """What a trial returned."""

    value: Any


Outcome = Result | Failure


@dataclass(frozen=True)
class Numerics:
    """What decides the last bits of torch's results in a process.

    Attributes:
        threads: of torch on the CPU.
        precision: of `torch.set_float32_matmul_precision`.
        deterministic: as `torch.use_deterministic_algorithms` was told.
    """

    threads: int
    precision: str
    deterministic: bool

    @classmethod
    def here(cls, threads: int) -> Numerics:
        """Those of this process, but for the threads."""
        return cls(
            threads,
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
        )

    def apply(self) -> None:
        """Makes them those of this process."""
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision(self.precision)
        # Setting it imports the compiler, which takes seconds.
        if torch.are_deterministic_algorithms_enabled() != self.deterministic:
            torch.use_deterministic_algorithms(self.deterministic)


def tell(*event: Any) -> None:
    """Tells the process that started this trial how far it is: there `on_event(name of the trial,
    *event)` is called. Outside a trial nothing happens.

    Arguments:
        event: anything that pickle takes; small, for it travels at once.
    """
    if _listener is not None:
        _listener(*event)


@contextlib.contextmanager
def heard_by(listener: Callable[..., None]) -> Iterator[None]:
    """Sends what `tell` is told to a listener."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def attempt(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Outcome:
    """Calls a trial's function; an exception becomes a `Failure`."""
    try:
        return Result(function(*arguments))
    except Exception as error:
        # Settings and data that the package refuses will be refused again; a disk may recover.
        refused = (
            isinstance(error, ClnpError)
            and isinstance(error, ValueError | TypeError)
            and not isinstance(error.__cause__, OSError)
        )
        return Failure(_one_line(error), traceback.format_exc(), refused)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ClnpError) and text else f"{type(error).__name__}: {text}"
