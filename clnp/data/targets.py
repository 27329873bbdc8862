"""Targets y of a split: class labels, several labels at once, or numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DataError
from ..files.checkpoint import dtype_name
from ..objectives.losses import Loss
from ..objectives.shapes import CLASSES, LABELS, NUMBERS
from .inputs import FLOATS, as_tensor, check_finite
from .labels import as_label, as_labels

WAYS = {CLASSES: "y.long()", LABELS: "y.float()", NUMBERS: "y.float()"}


def kind_of(y: Any) -> str:
    """Kind of targets that a function as loss gets: by their dtype."""
    kind = str(getattr(y, "dtype", type(y).__name__))
    if "bool" in kind:
        return LABELS
    return NUMBERS if "float" in kind else CLASSES


def as_targets(y: Any, loss: Loss | None, where: str) -> Tensor:
    """Convert the targets of a whole split.

    Arguments:
        y: tensor or array.
        loss: what they are for; None: class labels [N].
        where: their name in errors.

    Returns:
        [N, ...]: int64 for classes, float32 for labels, as they are for numbers.

    Raises:
        DataError: another rank or dtype, or a value out of range.
    """
    if loss is None:
        return as_labels(y, where)
    tensor = as_tensor(y, where)
    if tensor.dim() == 0:
        raise DataError(f"{where}: expected targets [B, ...], got shape []")
    found = _converted(tensor, loss, where)
    if len(found) and found.is_floating_point():
        check_finite(found, where)
    _check_values(found, loss, where)
    return found


def as_target(y: Any, loss: Loss | None, where: str) -> Tensor:
    """Convert the target of one item of a data set, as `as_targets` does."""
    if loss is None:
        return torch.tensor(as_label(y, where))
    if isinstance(y, (float, int, np.generic, list, tuple)):
        try:
            y = torch.as_tensor(y)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{where}: expected numbers, got {y!r} ({error})") from error
        y = y.float() if y.is_floating_point() else y
    found = _converted(as_tensor(y, where), loss, where)
    if found.is_floating_point():
        check_finite(found[None], where)
    _check_values(found[None], loss, where)
    return found


def labels_of(y: Tensor, loss: Loss | None) -> Tensor:
    """Class labels [n] of targets, of all places that count."""
    dropped = None if loss is None else loss.dropped(y)
    return y.flatten() if dropped is None else y[~dropped]


def class_counts(parts: Iterable[Tensor], loss: Loss | None) -> Tensor:
    """Number of places of each class [classes] int64 in batches of targets."""
    found = [labels_of(y, loss).cpu().bincount() for y in parts]
    width = max(map(len, found), default=0)
    padded = [F.pad(part, (0, width - len(part))) for part in found]
    return torch.stack(padded).sum(dim=0) if padded else torch.zeros(0, dtype=torch.int64)


def counted(y: Tensor, loss: Loss | None) -> Counter[int]:
    """Class -> its number of places, for labels of any size."""
    labels, counts = labels_of(y, loss).unique(return_counts=True)
    return Counter(dict(zip(labels.tolist(), counts.tolist(), strict=True)))


def sizes_of(counts: Counter[int]) -> Tensor:
    """The result of `counted` as a tensor [classes] int64."""
    sizes = torch.zeros(max(counts, default=-1) + 1, dtype=torch.int64)
    for label, count in counts.items():
        sizes[label] = count
    return sizes


def _converted(y: Tensor, loss: Loss, where: str) -> Tensor:
    floats = y.dtype in FLOATS
    if loss.targets == CLASSES and not (y.is_floating_point() or y.is_complex()):
        if y.dtype != torch.bool:
            return y.long()
    elif loss.targets == LABELS and (floats or not y.is_floating_point()) and not y.is_complex():
        return y.float()
    elif loss.targets == NUMBERS and floats:
        return y
    wanted = {
        CLASSES: "class labels (int64)",
        LABELS: "0 and 1 (bool or float)",
        NUMBERS: "numbers (float32 or float64)",
    }
    raise DataError(
        f"{where}: expected {wanted[loss.targets]} for loss {loss.name!r}, got "
        f"{dtype_name(y.dtype)}; convert with {WAYS[loss.targets]}"
    )


def _check_values(y: Tensor, loss: Loss, where: str) -> None:
    if loss.targets == NUMBERS:
        return
    if loss.targets == LABELS:
        wrong, wanted = (y != 0) & (y != 1), "labels 0 or 1"
    else:
        dropped, wanted = loss.dropped(y), "labels from 0"
        wrong = y < 0 if dropped is None else (y < 0) & ~dropped
    if bool(wrong.any()):
        index = wrong.nonzero()[0].tolist()
        hint = "; a label that does not count is CrossEntropy(ignore_index=...)"
        raise DataError(
            f"{where}: expected {wanted}, got {y[tuple(index)].item():g} at index {index}"
            + (hint if loss.targets == CLASSES else "")
        )
