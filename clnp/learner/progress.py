"""Saved progress of the task in training, from which a killed run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ..files import checkpoint
from ..training.fit import FitState

KIND = "progress"


class Progress:
    """Saved fits of the task in training, one file per grid point.

    Arguments:
        folder: where; None keeps nothing.
        interval: seconds between two saves of an unfinished fit; a finished one is always saved.
    """

    def __init__(self, folder: str | Path | None, interval: float = 30.0) -> None:
        self.folder = None if folder is None else Path(folder)
        self.interval = interval
        self.last = time.monotonic()

    def _file(self, point: int) -> Path:
        assert self.folder is not None
        return self.folder / f"point-{point}.safetensors"

    def load(self, point: int, stamp: dict[str, Any]) -> FitState | None:
        """Load the state of a grid point; None if there is none, it is damaged, or its stamp
        differs.
        """
        if self.folder is None or not self._file(point).is_file():
            return None
        try:
            tensors, data = checkpoint.read(self._file(point), KIND)
            # JSON turns tuples into lists.
            if data["stamp"] != json.loads(json.dumps(stamp)):
                return None
            return _state(tensors, data)
        except (CheckpointError, LookupError, TypeError, ValueError):
            # Training again from the start of the task is slower but just as right.
            return None

    def due(self) -> bool:
        """True when an unfinished fit should be saved."""
        return self.folder is not None and time.monotonic() - self.last >= self.interval

    def save(self, point: int, state: FitState, stamp: dict[str, Any]) -> None:
        """Write the state of a grid point, atomically."""
        if self.folder is None:
            return
        tensors: dict[str, Tensor] = {f"parameter.{i}": p for i, p in enumerate(state.parameters)}
        tensors |= {f"optimizer.{k}": v for k, v in state.optimizer.items()}
        data = {
            "stamp": stamp,
            "epoch": state.epoch,
            "history": state.history,
            "parameters": len(state.parameters),
        }
        checkpoint.write(self._file(point), KIND, tensors, data)
        self.last = time.monotonic()

    def clear(self) -> None:
        """Remove all saved fits once their task is learned."""
        if self.folder is None or not self.folder.is_dir():
            return
        for file in self.folder.glob("point-*.safetensors"):
            file.unlink(missing_ok=True)
        for file in self.folder.glob(".point-*.tmp"):
            file.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def _state(tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> FitState:
    """The state that `Progress.save` wrote. Raises LookupError, TypeError or ValueError on other
    contents.
    """
    epoch, history = data["epoch"], data["history"]
    if not isinstance(epoch, int) or len(history) != epoch or not all(map(dict, history)):
        raise ValueError("epochs and their records do not agree")
    parameters = [tensors[f"parameter.{i}"] for i in range(data["parameters"])]
    prefix = "optimizer."
    optimizer = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return FitState(epoch, history, parameters, optimizer)
