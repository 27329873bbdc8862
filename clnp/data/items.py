"""Items of a data set, checked at every read, in this process or in workers."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from ..files.checkpoint import dtype_name
from ..objectives.losses import Loss
from .inputs import as_input, first_bad
from .targets import as_target

Sample = tuple[tuple[int, ...], torch.dtype]  # shape and dtype of one x


class Items(Dataset[Any]):
    """A data set that checks every item it reads.

    An item is a tensor or array of finite floats, of one shape and dtype, and a target: an integer
    label, or what the task's loss takes.
    Random numbers that items draw from the global generators of torch, numpy and Python depend on
    a seed and on the rows read together, not on the process that reads them.

    Arguments:
        data: a data set with a length and items (x, y).
        where: its name in errors.
        num_workers: processes that read ahead; 0 reads in this process.
        sample: shape and dtype of every x; None uses those of the first item.
        numbered: yield labels [2] int64: the label and the item's index.
        loss: what the targets are for; None: class labels.
    """

    def __init__(
        self,
        data: Dataset[Any],
        where: str = "data set",
        num_workers: int = 0,
        sample: Sample | None = None,
        *,
        numbered: bool = False,
        loss: Loss | None = None,
    ) -> None:
        self.data, self.where, self.num_workers = data, where, num_workers
        self.numbered, self.loss = numbered, loss
        # Once all items have been read: targets with one or two axes, and class -> its places.
        self.labels: Tensor | None = None
        self.counts: Counter[int] | None = None
        self._sample = sample
        self._target: tuple[tuple[int, ...], torch.dtype] | None = None

    @classmethod
    def of(cls, data: Dataset[Any]) -> Items:
        """Wrap a data set unless it is `Items` already."""
        return data if isinstance(data, Items) else cls(data)

    def with_numbers(self) -> Items:
        """Return the same items with labels [2]: the label and the item's index."""
        return Items(
            self.data, self.where, self.num_workers, self._sample, numbered=True, loss=self.loss
        )

    @property
    def sample(self) -> Sample:
        """Shape and dtype of every x."""
        if self._sample is None:
            with isolated(0):
                x = self._input(self._read([0])[0], 0)
            self._sample = tuple(x.shape), x.dtype
        return self._sample

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of every y."""
        if self._target is None:
            with isolated(0):
                self.batch([0])
        assert self._target is not None
        return self._target[0]

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        x, y = self.batch([index % len(self)])
        return x[0], y[0]

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Read rows as (x [B, ...], y [B, ...]).

        Raises:
            DataError: an item is invalid or can't be read; its index is named.
        """
        items = self._read(rows)
        xs = [self._input(item, i) for item, i in zip(items, rows, strict=True)]
        ys = [
            as_target(item[1], self.loss, f"{self.where}: y of item {i}")
            for item, i in zip(items, rows, strict=True)
        ]
        for x, y, i in zip(xs, ys, rows, strict=True):
            self._check_sample(x, i)
            self._check_target(y, i)
        x = torch.stack(xs)
        bad = first_bad(x) if x.numel() else None
        if bad is not None:
            raise DataError(
                f"{self.where}: x of item {rows[bad[0]]}: expected finite numbers, got "
                f"{float(x[tuple(bad)])} at index {bad[1:]}"
            )
        y = torch.stack(ys)
        return x, torch.stack([y, torch.tensor(rows)], dim=1) if self.numbered else y

    def batches(
        self, chunks: Sequence[Sequence[int]], seed: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batch of each chunk of rows, in order; chunk k is seeded by `seed` + k."""
        numbered = [(seed + k, list(rows)) for k, rows in enumerate(chunks)]
        if self.num_workers == 0 or not numbered:
            for chunk_seed, rows in numbered:
                with isolated(chunk_seed):
                    pair = self.batch(rows)
                yield pair
            return
        loader = DataLoader(
            _Reader(self),
            batch_size=None,
            sampler=numbered,
            num_workers=min(self.num_workers, len(numbered)),
            collate_fn=_unchanged,
            generator=torch.Generator(),  # otherwise the loader draws from the global one
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
                f"{self.where}: a process that reads items ended ({error}); use "
                "Task(num_workers=0) to read in this process"
            ) from error

    def _read(self, rows: Sequence[int]) -> list[Any]:
        many = getattr(self.data, "__getitems__", None)
        if callable(many):
            # An error of __getitems__ doesn't name the item; reading one by one does.
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
        except Exception as error:  # a user's data set may raise anything
            raise DataError(
                f"{self.where}: item {i} can't be read: {type(error).__name__}: {error}"
            ) from error

    def _input(self, item: Any, i: int) -> Tensor:
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            kind = f"{len(item)} values" if isinstance(item, (tuple, list)) else type(item).__name__
            raise DataError(f"{self.where}: item {i}: expected (x, y), got {kind}")
        x, where = item[0], f"{self.where}: x of item {i}"
        if not isinstance(x, (Tensor, np.ndarray)):
            raise DataError(
                f"{where}: expected a tensor, got {type(x).__name__}; give the Dataset a transform "
                "such as torchvision.transforms.ToTensor()"
            )
        return as_input(x, where)

    def _check_sample(self, x: Tensor, i: int) -> None:
        if self._sample is None:
            self._sample = tuple(x.shape), x.dtype
        shape, dtype = self._sample
        if tuple(x.shape) != shape or x.dtype != dtype:
            raise DataError(
                f"{self.where}: x of item {i}: expected {list(shape)} {dtype_name(dtype)} as in "
                f"the first item, got {list(x.shape)} {dtype_name(x.dtype)}"
            )

    def _check_target(self, y: Tensor, i: int) -> None:
        if self._target is None:
            self._target = tuple(y.shape), y.dtype
        shape, dtype = self._target
        if tuple(y.shape) != shape or y.dtype != dtype:
            raise DataError(
                f"{self.where}: y of item {i}: expected {list(shape)} {dtype_name(dtype)} as in "
                f"the first item, got {list(y.shape)} {dtype_name(y.dtype)}"
            )


class _Reader(Dataset[Any]):
    """Data set of the worker processes: chunk -> batch, or the text of a DataError."""

    def __init__(self, items: Items) -> None:
        self.items = items

    def __getitem__(self, chunk: Any) -> Any:
        seed, rows = chunk
        with isolated(seed):
            try:
                return self.items.batch(rows)
            except DataError as error:
                return str(error)


def _unchanged(outcome: Any) -> Any:
    return outcome


@contextlib.contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seed the generators of torch (CPU), numpy and Python inside, and restore them after."""
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
