"""One pass over a split: every item is checked, counted and fingerprinted, and kept if it fits."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError
from .fingerprint import Digest, Fingerprint
from .images import ImageSet
from .items import Items

CHUNK_BYTES = 1 << 22
MOST_ROWS = 256
PROBED = 8  # items that are read again to see whether they are drawn at random
PATIENCE = 3.0  # seconds without a word
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Scan:
    """The outcome of a pass over a split.

    Attributes:
        fingerprint: of the split.
        labels: [N] int64.
        kept: (x [N, ...], y [N]) of a data set whose items are the same in every reading and fit
            into memory; None otherwise.
    """

    fingerprint: Fingerprint
    labels: Tensor
    kept: Pair | None = None


def scan_tensors(x: Tensor, y: Tensor) -> Scan:
    """A split of tensors, which were checked when they were taken."""
    digest = Digest()
    digest.add(x, y)
    return Scan(digest.result(tuple(x.shape[1:]), x.dtype, random=False), digest.labels)


def scan_items(items: Items, keep_bytes: int, *, fixed: bool | None) -> Scan:
    """A split of a data set, read once; training items that would be kept are read twice.

    Arguments:
        items: of the data set.
        keep_bytes: most memory to keep them in.
        fixed: whether items are the same in every reading; None finds out.

    Raises:
        DataError: an item that is no good, with its index.
    """
    if isinstance(items.data, ImageSet):
        return _scan_images(items.data, items)
    shape, dtype = items.sample
    chunks, probe = _chunks(items)
    kept = _store(len(items), shape, dtype, keep_bytes) if fixed is not False else None
    digest, last = Digest(), None
    for rows, (x, y) in zip(chunks, _told(items, items.batches(chunks), chunks), strict=True):
        digest.add(x, y)
        if kept is not None:
            kept[rows[0] : rows[0] + len(rows)] = x
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
    return Scan(found, digest.labels, None if kept is None else (kept, digest.labels))


def _scan_images(images: ImageSet, items: Items) -> Scan:
    """Images are read without augmentation, and stay the bytes that they are."""
    plain = copy.copy(images)
    plain.augment = False
    digest, sample = Digest(), items.sample
    chunks, _ = _chunks(items)
    pairs = (plain.batch(torch.tensor(rows)) for rows in chunks)
    for x, y in _told(items, pairs, chunks):
        digest.add(x, y)
    return Scan(digest.result(*sample, random=images.augment), digest.labels)


def _chunks(items: Items) -> tuple[list[list[int]], list[int]]:
    """Rows that are read together, whatever the machine; the last few, which are read again, by
    themselves.
    """
    shape, dtype = items.sample
    size = max(1, torch.empty(shape, dtype=dtype, device="meta").nbytes)
    step, total = max(1, min(MOST_ROWS, CHUNK_BYTES // size)), len(items)
    border = max(0, total - min(PROBED, step))
    probe = list(range(border, total))
    before = [list(range(a, min(a + step, border))) for a in range(0, border, step)]
    return [*before, probe], probe


def _store(total: int, shape: Sequence[int], dtype: torch.dtype, most: int) -> Tensor | None:
    """Memory for all items, untouched; None where they do not fit."""
    if torch.empty((total, *shape), dtype=dtype, device="meta").nbytes > most:
        return None
    return torch.empty((total, *shape), dtype=dtype)


def _same(items: Items, chunks: Sequence[list[int]], kept: Tensor) -> bool:
    """Whether another reading, with other seeds, gives what was kept."""
    # torch's generator takes the lower 32 bits of a seed.
    pairs = items.batches(chunks, seed=1 << 31)
    return all(
        torch.equal(x, kept[rows[0] : rows[0] + len(rows)])
        for rows, (x, _) in zip(chunks, pairs, strict=True)
    )


def _told(items: Items, pairs: Iterator[Pair], chunks: Sequence[Sequence[int]]) -> Iterator[Pair]:
    """The batches; on stderr a line every few seconds, so that a long pass is no silence."""
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
    """The class names that a data set tells (attribute `classes`), if its items agree with them.

    The labels have to be those of the attribute `targets`, where there is one, or else as many as
    the names: a target_transform that numbers the classes anew leaves the names as they were.
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


def common_names(told: dict[str, tuple[str, ...] | None], where: str) -> tuple[str, ...] | None:
    """The class names of all splits that tell any.

    Raises:
        DataError: splits that tell different ones.
    """
    known = {split: names for split, names in told.items() if names is not None}
    if not known:
        return None
    first, names = next(iter(known.items()))
    for split, other in known.items():
        if other != names:
            odd = sorted(set(other) ^ set(names)) or list(other)
            raise DataError(
                f"{where}, {split}: its classes are not those of {first}: {', '.join(odd[:5])}; "
                "wanted the same classes in the same order in every split"
            )
    return names
