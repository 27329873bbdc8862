"""Checks of y: integer class labels from 0 without gaps; errors say how to convert others."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .inputs import as_tensor, name_of

SHOWN = 12  # labels in a message
# Numbers the labels of all splits alike. `y_train`, `y_validation` and `y_test` are arrays [N].
RENUMBER = {
    "torch": "classes = torch.unique(torch.cat([y_train, y_validation, y_test])); "
    "y_train, y_validation, y_test = "
    "(torch.searchsorted(classes, y) for y in (y_train, y_validation, y_test))",
    "numpy": "classes = np.unique(np.concatenate([y_train, y_validation, y_test])); "
    "y_train, y_validation, y_test = "
    "(np.searchsorted(classes, y) for y in (y_train, y_validation, y_test))",
}


def as_labels(y: Any, where: str) -> Tensor:
    """Labels of a whole split as [N] int64.

    Raises:
        DataError: another rank or dtype, or a negative label; the way out is an expression in y, or
            statements in the y of all splits.
    """
    if isinstance(y, np.ndarray) and y.dtype.kind in "USO":
        raise DataError(
            f"{where}: got numpy dtype {y.dtype}, wanted integer labels; number them alike in "
            f"every split: {RENUMBER['numpy']}"
        )
    tensor = as_tensor(y, where)
    way_out = conversion(y)
    if tensor.ndim != 1:
        raise DataError(
            f"{where}: got shape {list(tensor.shape)}, wanted [B] class labels; "
            + (
                f"convert with {way_out}"
                if way_out
                else "several labels for one example, and labels that are no class, are not "
                "supported"
            )
        )
    if not _is_integer(tensor):
        raise DataError(
            f"{where}: got {name_of(tensor.dtype)}, wanted integer labels (int64); "
            + (
                f"convert with {way_out}"
                if way_out
                else "these numbers are no whole ones, and regression is not supported"
            )
        )
    labels = tensor.long()
    if len(labels) and int(labels.min()) < 0:
        first = int((labels < 0).nonzero()[0])
        kind = "torch" if isinstance(y, Tensor) else "numpy"
        raise DataError(
            f"{where}: label {int(labels[first])} at index {first}, wanted labels from 0; leave "
            "examples without a class out, or number the classes alike in every split: "
            f"{RENUMBER[kind]}"
        )
    return labels


def conversion(y: Any) -> str | None:
    """An expression in y that makes class labels [N] of it; None where there is none."""
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
    """The label of one item of a data set.

    Raises:
        DataError: no integer from 0; the way out is an expression in y.
    """
    if isinstance(y, (int, np.integer)) and not isinstance(y, bool):
        label: int | None = int(y)
    elif isinstance(y, (Tensor, np.ndarray)) and y.ndim == 0 and "int" in str(y.dtype):
        label = int(y)
    else:
        label = None
    if label is not None and label >= 0:
        return label
    told = f"shape {list(y.shape)}" if isinstance(y, (Tensor, np.ndarray)) and y.ndim else repr(y)
    raise DataError(f"{where}: {told}, wanted one integer class label from 0{_item_way_out(y)}")


def _item_way_out(y: Any) -> str:
    if isinstance(y, (Tensor, np.ndarray)) and y.ndim == 1 and len(y) > 1:
        one_hot = _one_hot(y[None])
        return "; return int(y.argmax())" if one_hot else "; several labels are not supported"
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        value = y.item() if hasattr(y, "item") else y
        if not isinstance(value, str) and int(value) == float(value) >= 0:
            return "; return int(y.item())" if hasattr(y, "item") else "; return int(y)"
    return ""


def check_numbering(
    labels: Mapping[str, Tensor], where: str, code: str = "", *, keep: bool = True
) -> int:
    """Number of classes of a task whose `classes` were not given.

    Arguments:
        labels: split -> [N] int64, from 0.
        where: the task.
        code: key of `RENUMBER` for splits that are arrays; for data sets, the advice is a
            target_transform.
        keep: the caller takes `classes=`.

    Raises:
        DataError: labels that do not start at 0 or have gaps over all splits.
    """
    found = torch.unique(torch.cat([y.cpu() for y in labels.values()])).tolist()
    if found == list(range(len(found))):
        return len(found)
    shown = ", ".join(map(str, found[:SHOWN])) + (", ..." if len(found) > SHOWN else "")
    new = {old: k for k, old in enumerate(found)}
    advice = RENUMBER.get(code, f"target_transform={new}.get")
    raise DataError(
        f"{where}: labels are {shown}, wanted 0 to {len(found) - 1} without gaps; number them "
        f"alike in every split: {advice}"
        + (f"; or keep the numbers as they are with classes={found[-1] + 1}" if keep else "")
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
