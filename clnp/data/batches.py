"""Batches of a split: order, size, device and random seeds."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..parallel.ranks import ALONE, Ranks
from .images import ImageSet
from .inputs import Split
from .items import Items

EVALUATION_BATCH = 1000
EVALUATION_VALUES = 1 << 22  # inputs of one batch: 27 images of 3 x 224 x 224


def seed_for(*parts: Any) -> int:
    """Derive a seed from all arguments, the same on every machine."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big")


def batches(
    split: Split,
    batch_size: int,
    device: torch.device,
    generator: torch.Generator | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches (x [B, ...], y [B, ...]) of a split on a device.

    With a generator, the order is shuffled, and several ranks divide every batch; a rank's share of
    a small batch may be empty. Without one, each rank gets batches of a contiguous part in order.
    """
    mine = ranks.rows(count(split))
    if isinstance(split, tuple) and generator is None:
        x, y = split
        for start in range(mine.start, mine.stop, batch_size):
            rows = slice(start, min(start + batch_size, mine.stop))
            yield placed(x[rows], device), y[rows].to(device)
        return
    if generator is None:
        chunks = [r for r in torch.arange(mine.start, mine.stop).split(batch_size) if len(r)]
        loaded = chunks
    else:
        whole = _chunks(torch.randperm(count(split), generator=generator), batch_size)
        chunks = [ranks.part(rows) for rows in whole]
        # A Dataset can't return an empty batch; load one example and discard it.
        loaded = [own if len(own) else rows[:1] for own, rows in zip(chunks, whole, strict=True)]
    examples = _examples(split, loaded, anew=generator is not None)
    for rows, (x, y) in zip(chunks, examples, strict=True):
        yield placed(x[: len(rows)], device), torch.as_tensor(y)[: len(rows)].to(device)


def _examples(
    split: Split, chunks: Sequence[Tensor], *, anew: bool = False
) -> Iterable[tuple[Tensor, Any]]:
    """Return the examples of each chunk of rows.

    With `anew`, random data sets draw new examples in every pass, seeded by torch's global
    generator; otherwise every pass draws the same ones.
    """
    if isinstance(split, tuple):
        x, y = split
        return ((x[rows.to(x.device)], y[rows.to(y.device)]) for rows in chunks)
    if isinstance(split, ImageSet):
        return (split.batch(rows) for rows in chunks)
    seed = int(torch.empty((), dtype=torch.int64).random_()) if anew else 0
    return Items.of(split).batches([rows.tolist() for rows in chunks], seed)


def batch_sizes(total: int, batch_size: int) -> list[int]:
    """Return the sizes of the shuffled batches of `total` examples, over all ranks."""
    return [len(rows) for rows in _chunks(torch.arange(total), batch_size)]


def placed(x: Tensor, device: torch.device) -> Tensor:
    """Move a batch to a device; images become channels_last, the fastest for convolutions."""
    x = x.to(device)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def resident(split: Split, device: torch.device) -> Split:
    """Move the tensors of a split to a GPU if they fit into half of its free memory; images, which
    are copied into channels_last there, into a third.
    """
    if device.type != "cuda" or not isinstance(split, tuple):
        return split
    if not fits(device, *split, share=1 / 3 if split[0].dim() == 4 else 0.5):
        return split
    return placed(split[0], device), split[1].to(device)


def _chunks(order: Tensor, size: int) -> list[Tensor]:
    """Batches of an order; one last example joins the batch before: batch norm needs a variance."""
    chunks = list(order.split(size))
    if len(chunks) > 1 and len(chunks[-1]) == 1:
        chunks[-2:] = [torch.cat(chunks[-2:])]
    return chunks


def count(split: Split) -> int:
    """Return the number of examples in a split."""
    return len(split[1]) if isinstance(split, tuple) else len(split)  # type: ignore[arg-type]


def evaluation_batch(split: Split) -> int:
    """Return the batch size for evaluation: 1000, or fewer for large examples."""
    sample = split.sample[0] if isinstance(split, Items) else first_inputs(split, 1).shape[1:]
    values = max(math.prod(sample), 1)
    return max(1, min(EVALUATION_BATCH, EVALUATION_VALUES // values))


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators inside, and restore them after."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def first_inputs(split: Split | Dataset[Any], rows: int) -> Tensor:
    """Return the first inputs of a split, x [rows, ...]."""
    if isinstance(split, tuple):
        return split[0][:rows]
    chosen = torch.arange(min(rows, count(split)))
    return next(iter(_examples(split, [chosen])))[0]


def spread_inputs(split: Split | Dataset[Any], rows: int) -> Tensor:
    """Return inputs at equal distances in a split, x [rows, ...]: a sorted one has all classes."""
    total = count(split)
    chosen = torch.linspace(0, total - 1, min(rows, total)).round().long()
    if isinstance(split, tuple):
        return split[0][chosen]
    return next(iter(_examples(split, [chosen])))[0]


def fits(device: torch.device, *tensors: Tensor, share: float = 0.5) -> bool:
    """Return whether tensors fit into a share of a GPU's free memory; True on other devices."""
    if device.type != "cuda":
        return True
    free: Any = torch.cuda.mem_get_info(device)[0]
    needed = sum(t.numel() * t.element_size() for t in tensors if t.device != device)
    return bool(needed <= share * free)
