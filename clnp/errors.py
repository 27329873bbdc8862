"""Everything that `clnp` raises on purpose.

Each error also derives from the built-in that a caller would expect, so `except ValueError` works
for bad arguments without knowing this module.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


class ClnpError(Exception):
    """Base of all errors raised by `clnp`."""


class ConfigError(ClnpError, ValueError):
    """A setting is out of range, or two settings contradict each other."""


class DataError(ClnpError, ValueError):
    """A data set has the wrong type, shape, range or labels, or is not where it was looked for."""


class DataWarning(UserWarning):
    """Data that can be worked with, but hardly as it was meant."""


class ConvertError(ClnpError, TypeError):
    """A network holds something that can't be turned into masked layers exactly."""


class CapacityError(ClnpError, RuntimeError):
    """No free channels are left where the next task needs them."""


class CapacityWarning(UserWarning):
    """No free channels are left: a task is learned by its head alone."""


class MarginWarning(UserWarning):
    """The margin is wider than a class, or finer than the validation split can tell."""


class CheckpointError(ClnpError, RuntimeError):
    """A checkpoint is damaged, incomplete, or was not written by this package."""


class SaveError(CheckpointError):
    """A file can't be written: no space, no permission. What was there before is whole."""


class ExportError(ClnpError, RuntimeError):
    """A format can't express a network, or its file computes something else."""


class TrainingError(ClnpError, RuntimeError):
    """Training can't go on: the loss or a weight is no longer finite, or memory ran out."""


class TrialError(ClnpError, RuntimeError):
    """Some of several trials failed for good (see `clnp.fan_out`).

    Attributes:
        failures: name -> `clnp.parallel.trial.Failure`, whose `text` is one line and whose
            `traceback` is that of the worker.
        results: name -> result of those that did not fail.
    """

    def __init__(
        self, failures: Mapping[str, Any], results: Mapping[str, Any], advice: str = ""
    ) -> None:
        self.failures, self.results = dict(failures), dict(results)
        told = "; ".join(f"{name}: {failure.text}" for name, failure in failures.items())
        total = len(failures) + len(results)
        super().__init__(f"{len(failures)} of {total} failed: {told}{advice}")


def first_line(error: Exception) -> str:
    """What went wrong, without the traceback that torch.fx appends."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused; on the CPU torch says so by a plain RuntimeError."""
    refused = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return refused or isinstance(error, (MemoryError, torch.OutOfMemoryError))


@contextmanager
def memory_needed(what: str, batch_size: int) -> Iterator[None]:
    """Turns the many ways in which memory is refused into a TrainingError that says what helps.

    Raises:
        TrainingError: memory ran out inside.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        # What the interrupted step holds would be in the way of whoever cleans up.
        traceback.clear_frames(error.__traceback__)
        raise TrainingError(
            f"{what}: memory ran out ({first_line(error)}); what was learned before is untouched. "
            f"Take a batch_size below {batch_size}, a smaller network, or cache='off'"
        ) from error
