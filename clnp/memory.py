"""What happens when memory runs out in the middle of a task."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import TrainingError
from .graph.trace import first_line


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
