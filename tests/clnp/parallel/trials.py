"""Functions that run in worker processes in the tests of `clnp.parallel`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clnp.errors import DataError
from clnp.parallel import tell


def square(x: int) -> tuple[int, int, int]:
    """Return the square, the process id, and the number of threads."""
    tell("begun", x)
    return x * x, os.getpid(), torch.get_num_threads()


def meet(folder: Path, own: str, other: str) -> bool:
    """Wait for another trial, which must run at the same time."""
    (folder / own).touch()
    end = time.monotonic() + 600
    while time.monotonic() < end:
        if (folder / other).exists():
            return True
        time.sleep(0.01)
    return False


def fail(folder: Path, times: int, how: str) -> str:
    """Fail a given number of times, then succeed."""
    attempts = len(list(folder.iterdir()))
    (folder / str(attempts)).touch()
    if attempts < times:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise DataError("no such data") if how == "refuse" else RuntimeError("bad luck")
    return "done"


def pointer(x: Tensor) -> tuple[bool, float]:
    """Return whether a tensor is in shared memory, and its sum."""
    return x.is_shared(), float(x.sum())


def unsendable() -> Any:
    """Return a value that can't be pickled."""
    return lambda: None


def wait_for_ever(folder: Path, name: str) -> None:
    """Write the process id to a file, and never end."""
    assert multiprocessing.parent_process() is not None
    (folder / f"{name}.tmp").write_text(str(os.getpid()))
    (folder / f"{name}.tmp").rename(folder / name)
    torch.zeros(100).sum()
    time.sleep(600)
