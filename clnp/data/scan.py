"""A pass over a split that checks, fingerprints and, if they fit, keeps all items."""

from __future__ import annotations

import copy
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError
from ..objectives.losses import Loss
from ..objectives.shapes import KNOWN_AXES
from .fingerprint import Digest, Fingerprint
from .images import ImageSet
from .items import Items

CHUNK_BYTES = 1 << 22
MOST_ROWS = 256
PROBED = 8  # items read twice to find out whether they are random
PATIENCE = 3.0  # seconds between two lines of progress
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Scan:
    """Result of a pass over a split.

    Attributes:
        fingerprint: fingerprint of the split.
        labels: targets [N] or [N, K]; None for those with more axes.
        counts: class -> number of its places; empty for targets without classes.
        kept: (x [N, ...], y [N, ...]) if items are the same in every pass and fit into memory.
    """

    fingerprint: Fingerprint
    labels: Tensor | None
    counts: Counter[int]
    kept: Pair | None = None


def scan_tensors(x: Tensor, y: Tensor, loss: Loss | None = None) -> Scan:
    """Fingerprint a split of tensors, which `Task` has already checked."""
    digest = Digest(loss)
    digest.add(x, y)
    found = digest.result(tuple(x.shape[1:]), x.dtype, random=False)
    return Scan(found, digest.labels, digest.counts)


def scan_items(items: Items, keep_bytes: int, *, fixed: bool | None) -> Scan:
    """Read a split of a data set once; items of unknown `fixed` that would be kept, twice.

    Arguments:
        items: the data set.
        keep_bytes: memory for the items; they are kept if they fit.
        fixed: whether items are the same in every pass; None finds out.

    Raises:
        DataError: an item is invalid; its index is named.
    """
    if isinstance(items.data, ImageSet):
        return _scan_images(items.data, items)
    shape, dtype = items.sample
    chunks, probe = _chunks(items)
    kept = _store(len(items), shape, dtype, keep_bytes) if fixed is not False else None
    targets: list[Tensor] = []
    digest, last = Digest(items.loss), None
    for rows, (x, y) in zip(
        chunks, _with_progress(items, items.batches(chunks), chunks), strict=True
    ):
        digest.add(x, y)
        if kept is not None:
            kept[rows[0] : rows[0] + len(rows)] = x
            if y.dim() > KNOWN_AXES:  # others are kept anyway
                targets.append(y)
                keep_bytes -= y.nbytes
                if kept.nbytes > keep_bytes:
                    kept = None
        last = x
    assert last is not None
    other = next(items.batches([probe], seed=-1))[0]
    random, repeats = not torch.equal(other, last), True
    if random:
        again = next(items.batches([probe], seed=len(chunks) - 1))[0]
        repeats = torch.equal(again, last)
    if kept is not None and fixed is None:
        random = random or not _same(items, chunks[:-1], kept)
        if random:
            kept = None
    found = digest.result(shape, dtype, random=random, repeats=repeats)
    labels = digest.labels
    pair = None if kept is None else (kept, torch.cat(targets) if labels is None else labels)
    return Scan(found, labels, digest.counts, pair)


def _scan_images(images: ImageSet, items: Items) -> Scan:
    """Read images without augmentation; they are never kept as floats."""
    plain = copy.copy(images)
    plain.augment = False
    digest, sample = Digest(), items.sample
    chunks, _ = _chunks(items)
    pairs = (plain.batch(torch.tensor(rows)) for rows in chunks)
    for x, y in _with_progress(items, pairs, chunks):
        digest.add(x, y)
    found = digest.result(*sample, random=images.augment)
    return Scan(found, digest.labels, digest.counts)


def _chunks(items: Items) -> tuple[list[list[int]], list[int]]:
    """Divide the rows into chunks, independent of the machine; the last chunk is the probe."""
    shape, dtype = items.sample
    size = max(1, torch.empty(shape, dtype=dtype, device="meta").nbytes)
    step, total = max(1, min(MOST_ROWS, CHUNK_BYTES // size)), len(items)
    border = max(0, total - min(PROBED, step))
    probe = list(range(border, total))
    before = [list(range(a, min(a + step, border))) for a in range(0, border, step)]
    return [*before, probe], probe


def _store(total: int, shape: Sequence[int], dtype: torch.dtype, most: int) -> Tensor | None:
    """Allocate memory for all items; None if they don't fit."""
    if torch.empty((total, *shape), dtype=dtype, device="meta").nbytes > most:
        return None
    return torch.empty((total, *shape), dtype=dtype)


def _same(items: Items, chunks: Sequence[list[int]], kept: Tensor) -> bool:
    # torch's generator takes the lower 32 bits of a seed.
    pairs = items.batches(chunks, seed=1 << 31)
    return all(
        torch.equal(x, kept[rows[0] : rows[0] + len(rows)])
        for rows, (x, _) in zip(chunks, pairs, strict=True)
    )


def _with_progress(
    items: Items, pairs: Iterator[Pair], chunks: Sequence[Sequence[int]]
) -> Iterator[Pair]:
    """Yield the batches, and print a line of progress to stderr every few seconds."""
    start = last = time.monotonic()
    done, total = 0, sum(map(len, chunks))
    for pair in pairs:
        yield pair
        done += len(pair[1])
        now = time.monotonic()
        if now - last >= PATIENCE:
            rate = done / (now - start)
            print(
                f"clnp: {items.where}: {done} of {total} items checked, {rate:.0f} a second",
                file=sys.stderr,
                flush=True,
            )
            last = now


def names_of(data: Dataset[Any], labels: Tensor) -> tuple[str, ...] | None:
    """Return the attribute `classes` of a data set, if its items agree with it.

    A target_transform may renumber the classes without changing the names. So the labels must equal
    the attribute `targets`, if there is one, or else be as many as the names.
    """
    rows: Any = None
    while (inner := getattr(data, "dataset", None)) is not None and hasattr(data, "indices"):
        own = torch.as_tensor(data.indices)
        rows = own if rows is None else own[rows]
        data = inner
    names = getattr(data, "classes", None)
    if not isinstance(names, (list, tuple)) or not all(isinstance(n, str) for n in names):
        return None
    top = int(labels.max())
    if top >= len(names) or len(set(names)) != len(names):
        return None
    try:
        targets = torch.as_tensor(getattr(data, "targets", None))
        targets = targets if rows is None else targets[rows]
    except (TypeError, ValueError, RuntimeError, IndexError):
        return tuple(names) if top + 1 == len(names) else None
    agree = targets.shape == labels.shape and bool((targets == labels).all())
    return tuple(names) if agree else None


def common_names(reported: dict[str, tuple[str, ...] | None], where: str) -> tuple[str, ...] | None:
    """Return the class names of all splits that have some.

    Raises:
        DataError: the names differ between splits.
    """
    known = {split: names for split, names in reported.items() if names is not None}
    if not known:
        return None
    first, names = next(iter(known.items()))
    for split, other in known.items():
        if other != names:
            differing = sorted(set(other) ^ set(names)) or list(other)
            raise DataError(
                f"{where}, {split}: expected the classes of {first} in the same order, got others: "
                f"{', '.join(differing[:5])}"
            )
    return names
