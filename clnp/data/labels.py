"""Checks of class labels y: integers from 0 without gaps; errors name a conversion."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..files.checkpoint import dtype_name
from .inputs import as_tensor

SHOWN = 12  # labels in a message
OTHER = "; name the loss of other targets: Task(..., loss=...)"
# Code that numbers the labels of all splits alike; `y_train`, ... are arrays [N].
RENUMBER = {
    "torch": "classes = torch.unique(torch.cat([y_train, y_validation, y_test])); "
    "y_train, y_validation, y_test = "
    "(torch.searchsorted(classes, y) for y in (y_train, y_validation, y_test))",
    "numpy": "classes = np.unique(np.concatenate([y_train, y_validation, y_test])); "
    "y_train, y_validation, y_test = "
    "(np.searchsorted(classes, y) for y in (y_train, y_validation, y_test))",
}


def as_labels(y: Any, where: str) -> Tensor:
    """Convert the labels of a whole split to [N] int64.

    Raises:
        DataError: another rank or dtype, or a negative label; the message has an expression in y,
            or statements in the y of all splits, that converts them.
    """
    if isinstance(y, np.ndarray) and y.dtype.kind in "USO":
        raise DataError(
            f"{where}: expected integer labels, got numpy dtype {y.dtype}; number them alike in "
            f"every split: {RENUMBER['numpy']}"
        )
    tensor = as_tensor(y, where)
    way_out = conversion(y)
    if tensor.ndim != 1:
        raise DataError(
            f"{where}: expected class labels [B], got shape {list(tensor.shape)}; "
            + (
                f"convert with {way_out}"
                if way_out
                else 'name the loss of other targets: Task(..., loss="bce") for several labels per '
                'example, "mse" for numbers, "cross_entropy" for a class per pixel'
            )
        )
    if not _is_integer(tensor):
        raise DataError(
            f"{where}: expected integer labels (int64), got {dtype_name(tensor.dtype)}; "
            + (
                f"convert with {way_out}"
                if way_out
                else "these aren't whole numbers; name the loss of a regression: "
                'Task(..., loss="mse")'
            )
        )
    labels = tensor.long()
    if len(labels) and int(labels.min()) < 0:
        first = int((labels < 0).nonzero()[0])
        kind = "torch" if isinstance(y, Tensor) else "numpy"
        raise DataError(
            f"{where}: expected labels from 0, got {int(labels[first])} at index {first}; leave "
            "out examples without a class, or number the classes alike in every split: "
            f"{RENUMBER[kind]}"
        )
    return labels


def conversion(y: Any) -> str | None:
    """Return an expression in y that converts it to class labels [N], or None."""
    text = "y"
    if y.ndim == 2 and y.shape[1] == 1:
        y, text = y.squeeze(1), f"{text}.squeeze(1)"
    elif y.ndim == 2 and _one_hot(y):
        y, text = y.argmax(1), f"{text}.argmax(1)"
    if y.ndim != 1:
        return None
    values = y if isinstance(y, Tensor) else torch.from_numpy(np.ascontiguousarray(y))
    if _is_integer(values):
        return text
    if values.is_complex() or not _whole(values):
        return None
    return f"{text}.long()" if isinstance(y, Tensor) else f'{text}.astype("int64")'


def as_label(y: Any, where: str) -> int:
    """Return the label of one item of a data set.

    Raises:
        DataError: not an integer from 0; the message has an expression in y that converts it.
    """
    if isinstance(y, (int, np.integer)) and not isinstance(y, bool):
        label: int | None = int(y)
    elif isinstance(y, (Tensor, np.ndarray)) and y.ndim == 0 and "int" in str(y.dtype):
        label = int(y)
    else:
        label = None
    if label is not None and label >= 0:
        return label
    got = f"shape {list(y.shape)}" if isinstance(y, (Tensor, np.ndarray)) and y.ndim else repr(y)
    raise DataError(f"{where}: expected an integer class label from 0, got {got}{_item_way_out(y)}")


def _item_way_out(y: Any) -> str:
    if isinstance(y, (Tensor, np.ndarray)) and y.ndim == 1 and len(y) > 1:
        one_hot = _one_hot(y[None])
        return "; return int(y.argmax())" if one_hot else OTHER
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        value = y.item() if hasattr(y, "item") else y
        if isinstance(value, str):
            return ""
        if int(value) != float(value):
            return OTHER
        if value >= 0:
            return "; return int(y.item())" if hasattr(y, "item") else "; return int(y)"
    return ""


def check_numbering(
    labels: Mapping[str, Tensor], where: str, code: str = "", *, keep: bool = True
) -> int:
    """Return the number of classes of a task without `classes`.

    Arguments:
        labels: split -> [N] int64, from 0.
        where: name of the task in errors.
        code: key of `RENUMBER` if the splits are arrays; "" advises a target_transform, for data
            sets.
        keep: advise `classes=` too, for callers that accept it.

    Raises:
        DataError: the labels of all splits together don't start at 0 or have gaps.
    """
    found = torch.unique(torch.cat([y.cpu() for y in labels.values()])).tolist()
    if found == list(range(len(found))):
        return len(found)
    shown = ", ".join(map(str, found[:SHOWN])) + (", ..." if len(found) > SHOWN else "")
    new = {old: k for k, old in enumerate(found)}
    advice = RENUMBER.get(code, f"target_transform={new}.get")
    raise DataError(
        f"{where}: expected labels 0 to {len(found) - 1} without gaps, got {shown}; number them "
        f"alike in every split: {advice}"
        + (f"; or keep these numbers with classes={found[-1] + 1}" if keep else "")
    )


def _one_hot(y: Any) -> bool:
    ones = y == 1
    return bool((ones | (y == 0)).all()) and bool((ones.sum(1) == 1).all())


def _is_integer(y: Tensor) -> bool:
    return not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)


def _whole(y: Tensor) -> bool:
    if y.dtype == torch.bool:
        return True
    return bool(torch.isfinite(y).all()) and bool((y == y.round()).all())
