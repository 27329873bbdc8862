"""Splits of custom training loops, whose targets need not be class labels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.batches import count
from ..data.inputs import Split
from ..errors import DataError


def check_split(split: Any, where: str) -> None:
    """Raise DataError unless the split is (x, y) or a Dataset with a length that holds pairs."""
    expected = f"{where}: expected (x, y) or a torch Dataset of such pairs"
    if isinstance(split, DataLoader):
        raise DataError(f"{expected}, got a DataLoader; pass the loader's .dataset")
    if isinstance(split, (tuple, list)):
        if len(split) != 2:
            raise DataError(f"{expected}, got {len(split)} elements")
        return
    if not isinstance(split, Dataset):
        raise DataError(
            f"{expected}, got {type(split).__name__}; join batches to one split with "
            "(torch.cat(xs), torch.cat(ys))"
        )
    if not isinstance(split, Sized) or len(split) == 0:
        raise DataError(f"{expected}, got one without items or without a length")
    item = _item(split, 0, where)
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        size = f" of {len(item)}" if isinstance(item, (tuple, list, dict)) else ""
        raise DataError(
            f"{expected}, got items of type {type(item).__name__}{size}; wrap the Dataset in one "
            "that returns x and y"
        )


def of_targets(metric: Callable[[Tensor, Tensor], Any], split: Split) -> Callable[..., Any]:
    """A metric of outputs against the targets of a split, for evaluations of the whole split.

    Arguments:
        metric: (outputs [N, C], targets [N, ...]) -> number.
        split: checked by `check_split`; read once.

    Raises:
        DataError: the targets do not make one tensor, or are not as many as the examples.
    """
    targets = _targets(split)

    @functools.wraps(metric)
    def measured(outputs: Tensor, _: Tensor) -> Any:
        return metric(outputs, targets)

    return measured


def unlabelled(split: Split) -> Split:
    """The inputs of a split, of which nobody asks the targets; every example has the label 0."""
    if isinstance(split, Dataset):
        return _Inputs(split)
    return split[0], torch.zeros(len(split[0]), dtype=torch.int64)


class _Inputs(Dataset[tuple[Any, int]]):
    """The x of a data set of (x, y)."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.data[index][0], 0


def _targets(split: Split) -> Tensor:
    """All targets [N, ...] on the CPU."""
    try:
        if isinstance(split, Dataset):
            rows = [torch.as_tensor(_item(split, i, "validation")[1]) for i in range(count(split))]
            targets = torch.stack(rows)
        else:
            targets = torch.as_tensor(split[1])
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"validation: expected targets that make one tensor, got {error}"
        ) from error
    inputs = count(split) if isinstance(split, Dataset) else len(split[0])
    if targets.dim() == 0 or len(targets) != inputs:
        raise DataError(
            f"validation: expected targets [N, ...], one for each of {inputs} examples, got "
            f"{list(targets.shape)}"
        )
    return targets.detach().cpu()


def _item(data: Any, index: int, where: str) -> Any:
    try:
        return data[index]
    except Exception as error:
        raise DataError(f"{where}: item {index}: {type(error).__name__}: {error}") from error
