"""Examples, labels and task labels of Avalanche's experiences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError


class Pairs(Dataset[tuple[Tensor, int]]):
    """The (x, y) of an Avalanche data set, y as the place of the class among the outputs."""

    def __init__(self, data: Any, places: Mapping[int, int]) -> None:
        self.data, self.places = data, places

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y, *_ = self.data[index]
        return x, self.places[int(y)]


def task_labels_of(data: Any) -> set[int] | None:
    """The task labels that occur in an Avalanche data set; None where it has none."""
    told = getattr(data, "targets_task_labels", None)
    return None if told is None else {int(label) for label in told.uniques}


def classes_of(experience: Any) -> list[int]:
    """The classes of an experience, ascending. Raises DataError where its targets are none."""
    number = experience.current_experience
    try:
        found = sorted({int(y) for y in experience.dataset.targets})
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"experience {number}: expected targets of one integer class per example ({error}); "
            "as_classification_dataset makes such a data set"
        ) from error
    if found[0] < 0:
        raise DataError(f"experience {number}: got class {found[0]}, expected classes from 0")
    return found
