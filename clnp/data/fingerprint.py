"""Fingerprints of a task's data: hashes of its content."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..files.checkpoint import dtype_name, tensor_bytes
from ..objectives.losses import Loss
from ..objectives.shapes import KNOWN_AXES
from .targets import counted

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
        labels: SHA-256 over all targets, in order.
        top: largest class label; of other targets the last column.
        examples: sum of the SHA-256 of all examples, independent of their order; "" as `inputs`.
        random: whether an item depends on the seed (augmentation). `inputs` is then computed
            without augmentation (`ImageSet`) or with fixed seeds.
        targets, target_dtype: shape and dtype of one y.
    """

    size: int
    shape: tuple[int, ...]
    dtype: str
    inputs: str
    labels: str
    top: int
    examples: str
    random: bool = False
    targets: tuple[int, ...] = ()
    target_dtype: str = "int64"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fingerprint:
        """Rebuild from `dataclasses.asdict`; raises TypeError for other data."""
        fields: dict[str, Any] = dict(data)
        for name in ("shape", "targets"):
            if name in fields:
                fields[name] = tuple(fields[name])
        return cls(**fields)

    def difference(self, now: Fingerprint) -> str:
        """Describe the difference from a later fingerprint; "" if there is none."""
        if self.size != now.size:
            return f"{now.size} examples instead of {self.size}"
        if (self.shape, self.dtype) != (now.shape, now.dtype):
            return (
                f"inputs are {list(now.shape)} {now.dtype} instead of {list(self.shape)} "
                f"{self.dtype}"
            )
        if (self.targets, self.target_dtype) != (now.targets, now.target_dtype):
            return (
                f"targets are {list(now.targets)} {now.target_dtype} instead of "
                f"{list(self.targets)} {self.target_dtype}"
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
    """Fingerprints, classes and objective of a task.

    Attributes:
        splits: "train", "validation", "test" -> fingerprint.
        class_names: names of the classes or labels, in order, if known.
        classes: number of classes; of a task without classes, its outputs.
        loss, metric: that the task names, as `clnp.objectives.objective.described` has them; None
            where it leaves them to the learner.
    """

    splits: dict[str, Fingerprint]
    class_names: tuple[str, ...] | None
    classes: int
    loss: Any = None
    metric: Any = None

    @property
    def classifies(self) -> bool:
        """True for a task with one class per example."""
        train = self.splits["train"]
        return not train.targets and train.target_dtype == "int64"

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
            data.get("loss"),
            data.get("metric"),
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
        for name in ("loss", "metric"):
            own, other = getattr(self, name), getattr(now, name)
            if own != other:
                lines.append(f"{name} {other} instead of {own}")
        for split, fingerprint in self.splits.items():
            difference = fingerprint.difference(now.splits[split])
            if difference:
                lines.append(f"{split}: {difference}")
        return lines


class Digest:
    """Accumulator of a split's fingerprint, batch by batch; keeps only targets of one or two axes.

    Arguments:
        loss: what the targets are for; None: class labels.
    """

    def __init__(self, loss: Loss | None = None) -> None:
        self._loss = loss
        self._inputs, self._targets = hashlib.sha256(), hashlib.sha256()
        self._sum = self._size = 0
        self._labels: list[Tensor] = []
        self._last: Tensor | None = None
        self.counts: Counter[int] = Counter()

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add the next examples: x [B, ...], y [B, ...]."""
        size = max(1, x[0].numel() * x.element_size())
        step = max(1, PIECE_BYTES // size)
        factors = _factors(y)
        for start in range(0, len(x), step):
            data = tensor_bytes(x[start : start + step])
            for offset, factor in zip(range(0, len(data), size), factors[start:], strict=False):
                row = hashlib.sha256(data[offset : offset + size]).digest()
                self._inputs.update(row)
                # A sum doesn't depend on the order.
                self._sum += int.from_bytes(row, "little") * factor
        self._sum %= MODULUS
        self._targets.update(tensor_bytes(y))
        self._size += len(y)
        self._last = y[-1]
        if not y.is_floating_point():
            self.counts += counted(y, self._loss)
        if y.dim() <= KNOWN_AXES:
            self._labels.append(y.cpu())

    @property
    def labels(self) -> Tensor | None:
        """All targets [N] or [N, K]; None for those with more axes."""
        return torch.cat(self._labels) if self._labels else None

    def result(
        self, shape: tuple[int, ...], dtype: torch.dtype, *, random: bool, repeats: bool = True
    ) -> Fingerprint:
        """Return the fingerprint; `repeats` means that another pass would read the same values."""
        y = self._last
        assert y is not None
        columns = 1 if y.dim() == 0 else y.shape[0]
        return Fingerprint(
            self._size,
            shape,
            dtype_name(dtype),
            self._inputs.hexdigest() if repeats else "",
            self._targets.hexdigest(),
            columns - 1 if y.is_floating_point() else max(self.counts, default=0),
            f"{self._sum:064x}" if repeats else "",
            random,
            tuple(y.shape),
            dtype_name(y.dtype),
        )


def _factors(y: Tensor) -> list[int]:
    """A number of each target, by which the hashes of the inputs are multiplied."""
    if y.dim() == 1 and y.dtype == torch.int64:
        return [label + 1 for label in y.tolist()]
    data, size = tensor_bytes(y), y[0].numel() * y.element_size()
    rows = (data[start : start + size] for start in range(0, len(data), size))
    return [int.from_bytes(hashlib.sha256(row).digest(), "little") for row in rows]
