"""One split: its checks at construction, and what is known of its targets."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from ..errors import DataError
from ..objectives.losses import Loss
from .images import ImageSet
from .inputs import Split, as_input, check_finite
from .items import Items, Sample
from .targets import as_targets, class_counts, sizes_of


def known_targets(split: Split | Dataset[Any]) -> Tensor | None:
    """Return all targets [N, ...] of a split of a `ready` task; None if they were not read yet, or
    have too many axes to be kept.
    """
    if isinstance(split, tuple):
        return split[1]
    if isinstance(split, ImageSet):
        return torch.as_tensor(split.targets)
    return split.labels if isinstance(split, Items) else None


def known_sizes(split: Split | Dataset[Any], loss: Loss) -> Tensor | None:
    """Return the places of each class [classes] int64 in a split; None if it was not read yet."""
    targets = known_targets(split)
    if targets is not None:
        return class_counts([targets], loss)
    counts = split.counts if isinstance(split, Items) else None
    return None if counts is None else sizes_of(counts)


def target_shape(split: Split | Dataset[Any]) -> tuple[int, ...]:
    """Return the shape of one target of a split."""
    targets = known_targets(split)
    if targets is not None:
        return tuple(targets.shape[1:])
    return Items.of(split).target_shape if isinstance(split, Dataset) else ()


def given_targets(data: Any) -> Any:
    return data[1] if isinstance(data, (tuple, list)) and len(data) == 2 else None


def first_target(data: Dataset[Any]) -> Any:
    """The target of the first item, or None; a bad item is refused later, by name."""
    try:
        return data[0][1]
    except Exception:
        return None


def checked_split(data: Any, loss: Loss | None, where: str) -> tuple[Split, Sample]:
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, (tuple, list)):
        if len(data) != 2:
            raise DataError(f"{where}: expected two arrays, (x, y), got {len(data)}")
        x, y = _checked_tensors(data[0], data[1], loss, where)
        return (x, y), (tuple(x.shape[1:]), x.dtype)
    if isinstance(data, Dataset):
        return data, _first_item(data, loss, where)
    raise DataError(f"{where}: expected (x, y) or a torch Dataset, got {type(data).__name__}")


def _checked_tensors(x: Any, y: Any, loss: Loss | None, where: str) -> tuple[Tensor, Tensor]:
    x = as_input(x, f"{where} x")
    if x.ndim < 2:
        raise DataError(
            f"{where} x: expected [B, ...] with at least 2 dimensions, got shape {list(x.shape)}"
        )
    if x.numel() == 0:
        raise DataError(f"{where} x: expected at least one sample, got shape {list(x.shape)}")
    device = getattr(y, "device", x.device)
    if x.device != device and isinstance(y, Tensor):
        raise DataError(
            f"{where}: expected x and y on one device, got {x.device} and {device}; move with "
            "y.to(x.device)"
        )
    y = as_targets(y, loss, f"{where} y")
    if len(x) != len(y):
        raise DataError(
            f"{where}: expected as many labels as samples, got {len(x)} in x and {len(y)} in y"
        )
    check_finite(x, f"{where} x")
    return x, y


def _first_item(data: Dataset[Any], loss: Loss | None, where: str) -> Sample:
    """Check the first item and return the shape and dtype of its x; others are read later."""
    if not isinstance(data, Sized):
        raise DataError(
            f"{where}: expected a Dataset with __len__ and __getitem__, got "
            f"{type(data).__name__}, which has no length"
        )
    if len(data) == 0:
        raise DataError(
            f"{where}: expected at least one sample, got an empty {type(data).__name__}"
        )
    x, _ = next(Items(data, where, loss=loss).batches([[0]]))
    if not x.numel():
        raise DataError(f"{where}: x of item 0: expected values, got shape {list(x.shape)}")
    return tuple(x.shape[1:]), x.dtype
