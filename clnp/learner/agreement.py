"""Several processes that train one network together (data parallelism on `torch.distributed`).

Every process holds the whole network and takes its share of every batch. The gradients of the free
parameters are added up in one message per step, so all ranks take the same optimizer steps;
activity and correct examples are added up too, so all ranks prune alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.batches import count
from ..data.task import Task, task_data
from ..errors import ConfigError, DataError
from ..files.checkpoint import tensor_bytes
from ..network.model import Model
from ..network.restore import EXTRA
from ..parallel.ranks import Ranks
from ..training.fit import FitState
from .progress import Progress
from .settings import Settings


class SharedProgress(Progress):
    """Saved fits that the first rank reads and writes for all.

    Arguments:
        folder, interval: as for `Progress`.
        ranks: who shares the work.
    """

    def __init__(self, folder: str | Path | None, ranks: Ranks, interval: float = 30.0) -> None:
        super().__init__(folder if ranks.main else None, interval)
        self.ranks = ranks

    def load(self, point: int, stamp: dict[str, Any]) -> FitState | None:
        """Load on the first rank; every rank gets the result."""
        return self.ranks.from_first(super().load(point, stamp))


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 over a text and every tensor's name, dtype, shape and bytes."""
    sha = hashlib.sha256(text.encode())
    for name, tensor in tensors.items():
        sha.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        sha.update(tensor_bytes(tensor))
    return sha.hexdigest()


def tensors_of(model: Model) -> dict[str, Tensor]:
    """Tensors of a network, without its structure."""
    return {name: value for name, value in model.state_dict().items() if name != EXTRA}


def begin(ranks: Ranks, model: Model, settings: Settings, workers: int) -> None:
    """Give every rank the weights of the first one.

    Raises:
        ConfigError: settings that ranks can't share.
        TrainingError: ranks with different networks or settings.
    """
    if ranks.size == 1:
        return
    if workers > 1:
        raise ConfigError(
            f"workers: expected 1 with distributed=True, got {workers}; {ranks.size} processes "
            "train every grid point together already"
        )
    if settings.batch_size < ranks.size:
        raise ConfigError(
            f"batch_size: expected at least {ranks.size}, one example for each process, got "
            f"{settings.batch_size}"
        )
    ranks.agree("the network", json.dumps(model.structure()))
    ranks.agree("the settings", json.dumps(settings.to_json()))
    ranks.broadcast(tensors_of(model).values())


def agree_on_task(ranks: Ranks, model: Model, task: Task, index: int) -> None:
    """Refuse a task that ranks can't learn together.

    Raises:
        TrainingError: they are about to learn different things.
        DataError: a split has fewer examples than there are ranks.
    """
    if ranks.size == 1:
        return
    splits = {name: task.split(name) for name in ("train", "validation", "test")}
    ranks.agree(f"task {index}", json.dumps([index, task.name, task_data(task).to_json()]))
    agree_on_network(ranks, model)
    for name in ("train", "validation"):
        if count(splits[name]) < ranks.size:
            raise DataError(
                f"task {task.name!r}, {name}: expected at least {ranks.size} examples, one per "
                f"process, got {count(splits[name])}"
            )


def agree_on_network(ranks: Ranks, model: Model) -> None:
    """Raises TrainingError where ranks hold different bits."""
    if ranks.size > 1:
        ranks.agree("the network's state", digest(tensors_of(model), str(model.structure())))
