"""Examples, labels and task labels of Avalanche's experiences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError


class Pairs(Dataset[tuple[Tensor, int]]):
    """The (x, y) of an Avalanche data set, with y the index of the class among the outputs."""

    def __init__(self, data: Any, outputs: Mapping[int, int]) -> None:
        self.data, self.outputs = data, outputs

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y, *_ = self.data[index]
        return x, self.outputs[int(y)]


def task_labels_of(data: Any) -> set[int] | None:
    """Return the task labels in an Avalanche data set; None if it has none."""
    labels = getattr(data, "targets_task_labels", None)
    return None if labels is None else {int(label) for label in labels.uniques}


def classes_of(experience: Any) -> list[int]:
    """Return the classes of an experience, ascending; raises DataError for invalid targets."""
    number = experience.current_experience
    try:
        found = sorted({int(y) for y in experience.dataset.targets})
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"experience {number}: expected targets of one integer class per example, got "
            f"others ({error}); use as_classification_dataset"
        ) from error
    if found[0] < 0:
        raise DataError(f"experience {number}: expected classes from 0, got {found[0]}")
    return found
