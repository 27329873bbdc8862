"""Errors and warnings of `clnp`.

Each error also derives from the built-in that a caller expects: `except ValueError` catches bad
arguments without an import of this module.
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
    """A data set has the wrong type, shape, range or labels, or is missing."""


class DataWarning(UserWarning):
    """Data is usable, but probably not what was intended."""


class ConvertError(ClnpError, TypeError):
    """A network can't be converted to masked layers exactly."""


class CapacityError(ClnpError, RuntimeError):
    """No free channels are left where the next task needs them."""


class CapacityWarning(UserWarning):
    """Few or no free channels are left, or only the head can learn the task."""


class ChanceWarning(UserWarning):
    """A trained network scores no better than chance."""


class MarginWarning(UserWarning):
    """The margin is wider than a class, or finer than the validation split resolves."""


class CheckpointError(ClnpError, RuntimeError):
    """A checkpoint is damaged, incomplete, or was not written by this package."""


class SaveError(CheckpointError):
    """A file can't be written (no space, no permission). The previous file is intact."""


class ExportError(ClnpError, RuntimeError):
    """A format can't express a network, or the exported file gives other results."""


class TrainingError(ClnpError, RuntimeError):
    """Training can't continue: a non-finite loss or weight, or no memory."""


class CertificateError(ClnpError, RuntimeError):
    """A learned task is not what its certificate says."""


class TrialError(ClnpError, RuntimeError):
    """Some trials failed after every attempt (see `clnp.fan_out`).

    Attributes:
        failures: name -> `clnp.parallel.trial.Failure` with `text` (one line) and `traceback` (of
            the worker).
        results: name -> result of each successful trial.
    """

    def __init__(
        self, failures: Mapping[str, Any], results: Mapping[str, Any], advice: str = ""
    ) -> None:
        self.failures, self.results = dict(failures), dict(results)
        reasons = "; ".join(f"{name}: {failure.text}" for name, failure in failures.items())
        total = len(failures) + len(results)
        super().__init__(f"{len(failures)} of {total} failed: {reasons}{advice}")


def first_line(error: Exception) -> str:
    """Return the message without the traceback that torch.fx appends."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed; on the CPU, torch raises a plain RuntimeError."""
    refused = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return refused or isinstance(error, (MemoryError, torch.OutOfMemoryError))


@contextmanager
def memory_needed(what: str, batch_size: int) -> Iterator[None]:
    """Convert every out-of-memory error of the block into a TrainingError.

    Arguments:
        what: the work that needs the memory; begins the message.
        batch_size: batch size in use.

    Raises:
        TrainingError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        # The frames of the interrupted step keep its tensors alive.
        traceback.clear_frames(error.__traceback__)
        raise TrainingError(
            f"{what}: memory ran out ({first_line(error)}); earlier tasks are intact. "
            f"Use a batch_size below {batch_size}, a smaller network, or cache='off'"
        ) from error
