"""Everything that `clnp` raises on purpose.

Each error also derives from the built-in that a caller would expect, so `except ValueError` works
for bad arguments without knowing this module.
"""

from __future__ import annotations


class ClnpError(Exception):
    """Base of all errors raised by `clnp`."""


class ConfigError(ClnpError, ValueError):
    """A setting is out of range, or two settings contradict each other."""


class DataError(ClnpError, ValueError):
    """A data set has the wrong type, shape, range or labels, or is not where it was looked for."""


class ConvertError(ClnpError, TypeError):
    """A network holds something that can't be turned into masked layers exactly."""


class CapacityError(ClnpError, RuntimeError):
    """No free channels are left where the next task needs them."""


class CapacityWarning(UserWarning):
    """No free channels are left: a task is learned by its head alone."""


class CheckpointError(ClnpError, RuntimeError):
    """A checkpoint is damaged, incomplete, or was not written by this package."""


class SaveError(CheckpointError):
    """A file can't be written: no space, no permission. What was there before is whole."""


class TrainingError(ClnpError, RuntimeError):
    """Training can't go on: the loss or a weight is no longer finite, or memory ran out."""
