"""`clnp run` in the processes of torchrun: all train, the first one checks, prints and writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from ..errors import ConfigError
from ..parallel.ranks import ALONE, Ranks
from .config import Config
from .run_folder import Run


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun started, joined for as long as the block runs; this one alone
    where it did not. Processes that have joined already stay so.
    """
    if are_joined():
        yield Ranks(dist.group.WORLD)
        return
    if not dist.is_available() or _started() < 2:
        yield ALONE
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(_local_rank())
    _connect(backend)
    try:
        yield Ranks(dist.group.WORLD)
    finally:
        dist.destroy_process_group()


def _started() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_alone(command: str) -> None:
    """Raises ConfigError in the processes of torchrun, for a command that is of one process."""
    if _started() > 1:
        raise ConfigError(
            f"clnp {command} expects one process, got {_started()} of torchrun; --workers N trains "
            "several methods and seeds at a time, and torchrun takes clnp run"
        )


def _connect(backend: str) -> None:
    attempt, environment = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ
    if attempt == "0" or environment.get("LOCAL_WORLD_SIZE") != environment["WORLD_SIZE"]:
        dist.init_process_group(backend)
        return
    # torchrun keeps one store for all attempts: it still holds the addresses of the last one.
    store, rank, size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"attempt {attempt}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)


def are_joined() -> bool:
    """Returns whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def device_of(config: Config) -> str:
    """The device of this process: of several GPUs each takes one."""
    several = are_joined() and config.device == "cuda"
    return f"cuda:{_local_rank()}" if several else str(config.device)


def check(ranks: Ranks, run: Run) -> None:
    """Raises ConfigError for what several processes can't do together."""
    if ranks.size == 1:
        return
    if run.config.method != "clnp":
        raise ConfigError(
            f"--method: expected clnp in the processes of torchrun, got {run.config.method}"
        )
    if run.places.workers > 1:
        raise ConfigError(
            f"--workers: expected 1 in the {ranks.size} processes of torchrun, got "
            f"{run.places.workers}; take one or the other"
        )


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))
