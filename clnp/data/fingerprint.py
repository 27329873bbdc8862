"""Fingerprints of a task's data: hashes of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..files.checkpoint import dtype_name, tensor_bytes

PIECE_BYTES = 1 << 24
MODULUS = 1 << 256


@dataclass(frozen=True)
class Fingerprint:
    """Fingerprint of one split.

    Attributes:
        size: number of examples.
        shape, dtype: shape and dtype of one x.
        inputs: SHA-256 over every value of every x, in order; "" if a data set draws its items from
            its own generator, so that no two passes agree.
        labels: SHA-256 over all labels, in order.
        top: largest label.
        examples: sum of the SHA-256 of all examples, independent of their order; "" as `inputs`.
        random: whether an item depends on the seed (augmentation). `inputs` is then computed
            without augmentation (`ImageSet`) or with fixed seeds.
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
        """Rebuild from `dataclasses.asdict`; raises TypeError for other data."""
        fields = dict(data)
        return cls(**{**fields, "shape": tuple(fields["shape"])})

    def difference(self, now: Fingerprint) -> str:
        """Describe the difference from a later fingerprint; "" if there is none."""
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
    """Fingerprints and classes of a task.

    Attributes:
        splits: "train", "validation", "test" -> fingerprint.
        class_names: names of the classes, in order, if known.
        classes: number of classes.
    """

    splits: dict[str, Fingerprint]
    class_names: tuple[str, ...] | None
    classes: int

    def to_json(self) -> dict[str, Any]:
        """Return dictionaries and lists for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskData:
        """Rebuild from `to_json`; raises KeyError, TypeError or AttributeError for other data."""
        names = data["class_names"]
        return cls(
            {str(k): Fingerprint.from_json(v) for k, v in data["splits"].items()},
            None if names is None else tuple(map(str, names)),
            int(data["classes"]),
        )

    def differences(self, now: TaskData) -> list[str]:
        """Describe the differences from later data of the task, one line each."""
        lines = []
        before, names = self.class_names, now.class_names
        # Names that become known later are no difference.
        if before and names and before != names:
            kind = "order" if sorted(before) == sorted(names) else "names"
            lines.append(
                f"another {kind} of classes: {', '.join(names)} instead of {', '.join(before)}"
                if kind == "order"
                else f"other class names: {', '.join(names)} instead of {', '.join(before)}"
            )
        for split, fingerprint in self.splits.items():
            difference = fingerprint.difference(now.splits[split])
            if difference:
                lines.append(f"{split}: {difference}")
        return lines


class Digest:
    """Accumulator of a split's fingerprint, batch by batch; keeps only the labels."""

    def __init__(self) -> None:
        self._inputs = hashlib.sha256()
        self._sum = 0
        self._labels: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add the next examples: x [B, ...], y [B] int64."""
        size = max(1, x[0].numel() * x.element_size())
        step = max(1, PIECE_BYTES // size)
        labels = y.tolist()
        for start in range(0, len(x), step):
            data = tensor_bytes(x[start : start + step])
            for offset, label in zip(range(0, len(data), size), labels[start:], strict=False):
                row = hashlib.sha256(data[offset : offset + size]).digest()
                self._inputs.update(row)
                # A sum doesn't depend on the order.
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
        """Return the fingerprint; `repeats` means that another pass would read the same values."""
        labels = self.labels
        return Fingerprint(
            len(labels),
            shape,
            dtype_name(dtype),
            self._inputs.hexdigest() if repeats else "",
            hashlib.sha256(tensor_bytes(labels)).hexdigest(),
            int(labels.max()),
            f"{self._sum:064x}" if repeats else "",
            random,
        )
