"""Fingerprints of a task's data: hashes of its content, not names or sizes alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..files.checkpoint import tensor_bytes
from .inputs import name_of

PIECE_BYTES = 1 << 24
MODULUS = 1 << 256


@dataclass(frozen=True)
class Fingerprint:
    """The fingerprint of one split.

    Attributes:
        size: number of examples.
        shape, dtype: of one x.
        inputs: SHA-256 over every value of every x, in order; "" where a data set draws its items
            from a generator of its own, so that no two readings agree.
        labels: SHA-256 over all labels, in order.
        top: the largest label.
        examples: sum of the examples' SHA-256, so whatever their order; "" as for `inputs`.
        random: whether two readings of an item with other seeds differ (augmentation). `inputs` is
            then of the items as they are without augmentation (`ImageSet`) or with fixed seeds.
    """

    size: int
    shape: tuple[int, ...]
    dtype: str
    inputs: str
    labels: str
    top: int
    examples: str
    random: bool = False

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fingerprint:
        """The inverse of `dataclasses.asdict`; raises TypeError for other data."""
        fields = dict(data)
        return cls(**{**fields, "shape": tuple(fields["shape"])})

    def difference(self, now: Fingerprint) -> str:
        """The difference from another fingerprint in words; "" where there is none."""
        if self.size != now.size:
            return f"{now.size} examples instead of {self.size}"
        if (self.shape, self.dtype) != (now.shape, now.dtype):
            return (
                f"inputs are {list(now.shape)} {now.dtype} instead of {list(self.shape)} "
                f"{self.dtype}"
            )
        known = bool(self.inputs and now.inputs)
        inputs, labels = known and self.inputs != now.inputs, self.labels != now.labels
        if inputs and self.examples == now.examples:
            return "the same examples in another order"
        if inputs or labels:
            return " and ".join(["other inputs"] * inputs + ["other labels"] * labels)
        if self.random != now.random:
            return "inputs are drawn at random " + ("now" if now.random else "no more")
        return ""


@dataclass(frozen=True)
class TaskData:
    """The fingerprints of a task.

    Attributes:
        splits: "train", "validation", "test" -> its fingerprint.
        class_names: of its classes, in order, where they are known.
        classes: how many there are.
    """

    splits: dict[str, Fingerprint]
    class_names: tuple[str, ...] | None
    classes: int

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskData:
        """The inverse of `to_json`; raises KeyError, TypeError or AttributeError for other data."""
        names = data["class_names"]
        return cls(
            {str(k): Fingerprint.from_json(v) for k, v in data["splits"].items()},
            None if names is None else tuple(map(str, names)),
            int(data["classes"]),
        )

    def differences(self, now: TaskData) -> list[str]:
        """The differences from another task's data, a line each."""
        told = []
        before, names = self.class_names, now.class_names
        # Names that are told later only add to what is known.
        if before and names and before != names:
            kind = "order" if sorted(before) == sorted(names) else "names"
            told.append(
                f"another {kind} of classes: {', '.join(names)} instead of {', '.join(before)}"
                if kind == "order"
                else f"other class names: {', '.join(names)} instead of {', '.join(before)}"
            )
        for split, fingerprint in self.splits.items():
            difference = fingerprint.difference(now.splits[split])
            if difference:
                told.append(f"{split}: {difference}")
        return told


class Digest:
    """Adds up the fingerprint of a split, batch by batch, in constant memory but for the labels."""

    def __init__(self) -> None:
        self._inputs = hashlib.sha256()
        self._sum = 0
        self._labels: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Examples in order: x [B, ...], y [B] int64."""
        size = max(1, x[0].numel() * x.element_size())
        step = max(1, PIECE_BYTES // size)
        labels = y.tolist()
        for start in range(0, len(x), step):
            data = tensor_bytes(x[start : start + step])
            for place, label in zip(range(0, len(data), size), labels[start:], strict=False):
                row = hashlib.sha256(data[place : place + size]).digest()
                self._inputs.update(row)
                # A sum does not depend on the order.
                self._sum += int.from_bytes(row, "little") * (label + 1)
        self._sum %= MODULUS
        self._labels.append(y.cpu())

    @property
    def labels(self) -> Tensor:
        """All labels [N] int64."""
        return torch.cat(self._labels)

    def result(
        self, shape: tuple[int, ...], dtype: torch.dtype, *, random: bool, repeats: bool = True
    ) -> Fingerprint:
        """The fingerprint; `repeats`: another reading would give the same values."""
        labels = self.labels
        return Fingerprint(
            len(labels),
            shape,
            name_of(dtype),
            self._inputs.hexdigest() if repeats else "",
            hashlib.sha256(tensor_bytes(labels)).hexdigest(),
            int(labels.max()),
            f"{self._sum:064x}" if repeats else "",
            random,
        )
