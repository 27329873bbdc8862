"""Batches of validation examples by which a learner tells its tasks apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from ..data.batches import spread_inputs
from ..data.inputs import Split
from ..network.calibration import Calibration, calibrated
from ..network.certificate import probe_from
from ..network.model import Model

PREFIX = "calibration."


class Calibrator:
    """A batch per task, and the rule fitted on them.

    Attributes:
        batches: index of a task -> examples [N, ...].
    """

    def __init__(self, batches: Mapping[int, Tensor] | None = None) -> None:
        self.batches = dict(batches or {})
        self._rule: Calibration | None = None

    def add(self, task: int, split: Split, rows: int) -> None:
        """Keep inputs of a split, at most `rows` and 4 MiB."""
        self._rule = None
        if rows:
            self.batches[task] = probe_from(spread_inputs(split, rows), rows)

    def forget(self, tasks: Collection[int]) -> None:
        """Drop the batches of some tasks."""
        self._rule = None
        self.batches = {k: batch for k, batch in self.batches.items() if k not in tasks}

    def rule(self, model: Model) -> Calibration | None:
        """The rule for the learned tasks; None without a batch of each."""
        tasks = model.present
        if not tasks or any(k not in self.batches for k in tasks):
            return None
        if self._rule is None or self._rule.tasks != tuple(tasks):
            self._rule = calibrated(model, self.batches)
        return self._rule

    def tensors(self) -> dict[str, Tensor]:
        """The batches for a checkpoint."""
        return {f"{PREFIX}{k}": batch for k, batch in self.batches.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], model: Model) -> Calibrator:
        """The inverse of `tensors`, out of those of a checkpoint with a network.

        Raises:
            ValueError, DataError: they are not examples of its tasks.
        """
        batches = {}
        for name, batch in tensors.items():
            if name.startswith(PREFIX):
                task = int(name.removeprefix(PREFIX))
                model.check_input(batch.to(model.device))
                if task not in model.present or not len(batch):
                    raise ValueError(f"{name}: expected examples of a learned task")
                batches[task] = batch
        return cls(batches)
