"""Items of a data set, checked whenever they are read, by this process or by workers."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from .inputs import as_input, first_bad, name_of
from .labels import as_label

Chunk = tuple[int, list[int]]  # seed, rows
Sample = tuple[tuple[int, ...], torch.dtype]  # shape and dtype of one x


class Items(Dataset[Any]):
    """A data set whose every read is checked: a tensor or array of finite floats, all of one shape
    and dtype, and an integer label.

    What items draw from the global generators of torch, numpy and Python depends on a seed and on
    the rows that are read together, not on who reads them.

    Arguments:
        data: has a length; its items are (x, y).
        where: what errors call it.
        num_workers: processes that read ahead; 0 reads here.
        sample: shape and dtype of every x; None takes those of the first item.
        numbered: labels are [2] int64: the label and the item's index.
    """

    def __init__(
        self,
        data: Dataset[Any],
        where: str = "data set",
        num_workers: int = 0,
        sample: Sample | None = None,
        *,
        numbered: bool = False,
    ) -> None:
        self.data, self.where, self.num_workers = data, where, num_workers
        self.numbered = numbered
        self.labels: Tensor | None = None  # [N] int64, once all items have been read
        self._sample = sample

    @classmethod
    def of(cls, data: Dataset[Any]) -> Items:
        """The data set itself if it is checked already."""
        return data if isinstance(data, Items) else cls(data)

    def with_numbers(self) -> Items:
        """The same items with labels [2]: the label and the item's index."""
        return Items(self.data, self.where, self.num_workers, self._sample, numbered=True)

    @property
    def sample(self) -> Sample:
        """Shape and dtype of every x."""
        if self._sample is None:
            with isolated(0):
                x = self._input(self._read([0])[0], 0)
            self._sample = tuple(x.shape), x.dtype
        return self._sample

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        x, y = self.batch([index % len(self)])
        return x[0], y[0]

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(x [B, ...], y [B] int64) of some rows.

        Raises:
            DataError: an item that is no good or can't be read, with its index.
        """
        items = self._read(rows)
        xs = [self._input(item, i) for item, i in zip(items, rows, strict=True)]
        ys = [
            as_label(item[1], f"{self.where}: y of item {i}")
            for item, i in zip(items, rows, strict=True)
        ]
        for x, i in zip(xs, rows, strict=True):
            self._check_sample(x, i)
        x = torch.stack(xs)
        bad = first_bad(x) if x.numel() else None
        if bad is not None:
            raise DataError(
                f"{self.where}: x of item {rows[bad[0]]}: {float(x[tuple(bad)])} at index "
                f"{bad[1:]}, wanted finite numbers"
            )
        y = torch.tensor(ys)
        return x, torch.stack([y, torch.tensor(rows)], dim=1) if self.numbered else y

    def batches(
        self, chunks: Sequence[Sequence[int]], seed: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the rows of every chunk, in order; chunk k draws from `seed` + k."""
        orders = [(seed + k, list(rows)) for k, rows in enumerate(chunks)]
        if self.num_workers == 0 or not orders:
            for number, rows in orders:
                with isolated(number):
                    pair = self.batch(rows)
                yield pair
            return
        loader = DataLoader(
            _Reader(self),
            batch_size=None,
            sampler=orders,
            num_workers=min(self.num_workers, len(orders)),
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # or else it would draw from the global one
        )
        try:
            for outcome in loader:
                if isinstance(outcome, str):
                    raise DataError(outcome)
                yield outcome
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                f"{self.where}: a process that reads items ended ({error}); Task(num_workers=0) "
                "reads without them"
            ) from error

    def _read(self, rows: Sequence[int]) -> list[Any]:
        many = getattr(self.data, "__getitems__", None)
        if callable(many):
            # An error of many at once does not tell which of them it was.
            with contextlib.suppress(Exception):
                items = list(many(list(rows)))
                if len(items) == len(rows):
                    return items
        return [self._read_one(i) for i in rows]

    def _read_one(self, i: int) -> Any:
        try:
            return self.data[i]
        except (DataError, MemoryError):
            raise
        except Exception as error:  # whatever a data set of others raises
            raise DataError(
                f"{self.where}: item {i} can't be read: {type(error).__name__}: {error}"
            ) from error

    def _input(self, item: Any, i: int) -> Tensor:
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            told = f"{len(item)} values" if isinstance(item, (tuple, list)) else type(item).__name__
            raise DataError(f"{self.where}: item {i} is {told}, wanted (x, y)")
        x, where = item[0], f"{self.where}: x of item {i}"
        if not isinstance(x, (Tensor, np.ndarray)):
            raise DataError(
                f"{where} is a {type(x).__name__}, wanted a tensor; give the Dataset a transform "
                "such as torchvision.transforms.ToTensor()"
            )
        return as_input(x, where)

    def _check_sample(self, x: Tensor, i: int) -> None:
        if self._sample is None:
            self._sample = tuple(x.shape), x.dtype
        shape, dtype = self._sample
        if tuple(x.shape) != shape or x.dtype != dtype:
            raise DataError(
                f"{self.where}: x of item {i} is {list(x.shape)} {name_of(x.dtype)}, wanted "
                f"{list(shape)} {name_of(dtype)} as in the first item"
            )


class _Reader(Dataset[Any]):
    """The data set of the worker processes: a chunk -> its batch, or the text of a DataError."""

    def __init__(self, items: Items) -> None:
        self.items = items

    def __getitem__(self, chunk: Any) -> Any:
        seed, rows = chunk
        with isolated(seed):
            try:
                return self.items.batch(rows)
            except DataError as error:
                return str(error)


def _as_it_is(outcome: Any) -> Any:
    return outcome


@contextlib.contextmanager
def isolated(seed: int) -> Iterator[None]:
    """The generators of torch (CPU), numpy and Python seeded inside, as they were before
    outside.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % (1 << 32))
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
