"""Losses that training descends; each says what its targets are."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from .names import name_of
from .shapes import CLASSES, LABELS, NUMBERS, matched

Function = Callable[[Tensor, Tensor], Any]


class Loss:
    """Base of the losses.

    Attributes:
        name: of the loss, in settings and files.
        targets: kind of the targets, "classes", "labels" or "numbers".
        metric: name of the metric that goes with it by default.
    """

    name: ClassVar[str]
    targets: ClassVar[str]
    metric: ClassVar[str]

    @property
    def ignores(self) -> bool:
        """True where `dropped` may find places that do not count."""
        return False

    def total(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the loss over a batch [], and the weight [] to divide it by for the mean.

        Arguments:
            outputs: of the network, [B, ...] in float32 or float64.
            y: targets [B, ...].
        """
        raise NotImplementedError

    def mean(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Mean loss of a batch []."""
        total, weight = self.total(outputs, y)
        return total / weight

    def means(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Mean loss [P] of each of P networks with outputs [P, B, ...] on one batch."""
        return torch.stack([self.mean(own, y) for own in outputs])

    def check(self, outputs: int) -> None:
        """Raises ConfigError where an option does not fit a network of so many outputs."""

    def dropped(self, y: Tensor) -> Tensor | None:
        """Places of class labels y that do not count, of the shape of y; None without any."""
        return None

    def fitted(self, sizes: Callable[[], Tensor]) -> Loss:
        """This loss with what it takes from the training split: `sizes()` are the examples of
        each class [C] int64.
        """
        return self


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Cross-entropy of class labels: one per example, pixel or token.

    Arguments:
        weight: weight of each class, one per output; "balanced" takes N / (C N_c) from the training
            split. None weighs all alike.
        label_smoothing: share of the target that is spread over all classes, in [0, 1).
        ignore_index: label of places that count neither in the loss nor in the metric.

    Raises:
        ConfigError: an argument out of range.
    """

    weight: tuple[float, ...] | str | None = None
    label_smoothing: float = 0.0
    ignore_index: int | None = None
    name: ClassVar[str] = "cross_entropy"
    targets: ClassVar[str] = CLASSES
    metric: ClassVar[str] = "accuracy"

    def __post_init__(self) -> None:
        if self.weight is not None and self.weight != "balanced":
            object.__setattr__(self, "weight", _weights("cross_entropy weight", self.weight))
        smoothing = self.label_smoothing
        if not (_is_number(smoothing) and 0 <= smoothing < 1):
            raise ConfigError(
                f"cross_entropy label_smoothing: expected a number in [0, 1), got {smoothing!r}"
            )
        index = self.ignore_index
        if index is not None and (isinstance(index, bool) or not isinstance(index, int)):
            raise ConfigError(f"cross_entropy ignore_index: expected an int, got {index!r}")

    @property
    def ignores(self) -> bool:
        return self.ignore_index is not None

    @property
    def _plain(self) -> bool:
        return self.weight is None and self.ignore_index is None

    def _of(self, outputs: Tensor, y: Tensor, reduction: str) -> Tensor:
        index = -100 if self.ignore_index is None else self.ignore_index
        return F.cross_entropy(
            outputs,
            y,
            None if self.weight is None else _like(self.weight, outputs),
            ignore_index=index,
            reduction=reduction,
            label_smoothing=self.label_smoothing,
        )

    def total(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        outputs, y = matched(CLASSES, outputs, y)
        total = self._of(outputs, y, "sum")
        if self._plain:
            return total, total.new_tensor(float(len(y)))
        known = torch.ones_like(y, dtype=outputs.dtype)
        if self.ignore_index is not None:
            known = (y != self.ignore_index).to(outputs.dtype)
        if self.weight is not None:
            known = known * _like(self.weight, outputs)[torch.where(known > 0, y, 0)]
        return total, known.sum()

    def mean(self, outputs: Tensor, y: Tensor) -> Tensor:
        if self._plain:
            return self._of(*matched(CLASSES, outputs, y), "mean")
        total, weight = self.total(outputs, y)
        return total / weight.clamp(min=torch.finfo(weight.dtype).tiny)  # none of a batch counts

    def means(self, outputs: Tensor, y: Tensor) -> Tensor:
        if not self._plain or outputs.dim() != 3:
            return super().means(outputs, y)
        return self._of(outputs.mT, y.expand(len(outputs), -1), "none").mean(dim=1)

    def check(self, outputs: int) -> None:
        _check_length("cross_entropy weight", self.weight, outputs)

    def dropped(self, y: Tensor) -> Tensor | None:
        return None if self.ignore_index is None else y.eq(self.ignore_index)

    def fitted(self, sizes: Callable[[], Tensor]) -> Loss:
        if self.weight != "balanced":
            return self
        found = sizes().double()
        weights = found.sum() / (len(found) * found.clamp(min=1))
        return dataclasses.replace(self, weight=tuple(weights.tolist()))


@dataclass(frozen=True)
class BinaryCrossEntropy(Loss):
    """Binary cross-entropy of several labels at once; the outputs are logits.

    Arguments:
        pos_weight: weight of the ones of each label, one per output; None weighs all alike.
    """

    pos_weight: tuple[float, ...] | None = None
    name: ClassVar[str] = "bce"
    targets: ClassVar[str] = LABELS
    metric: ClassVar[str] = "mean average precision"

    def __post_init__(self) -> None:
        if self.pos_weight is not None:
            object.__setattr__(self, "pos_weight", _weights("bce pos_weight", self.pos_weight))

    def check(self, outputs: int) -> None:
        _check_length("bce pos_weight", self.pos_weight, outputs)

    def total(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        outputs, y = matched(LABELS, outputs, y)
        weight = None if self.pos_weight is None else _like(self.pos_weight, outputs)
        total = F.binary_cross_entropy_with_logits(
            outputs, y.to(outputs.dtype), pos_weight=weight, reduction="sum"
        )
        return total, total.new_tensor(float(y.numel()))


class _OfNumbers(Loss):
    """Base of the losses of numbers: a mean over all of them."""

    targets: ClassVar[str] = NUMBERS
    metric: ClassVar[str] = "R2"

    def total(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        outputs, y = matched(NUMBERS, outputs, y)
        total = self._summed(outputs, y.to(outputs.dtype))
        return total, total.new_tensor(float(y.numel()))

    def _summed(self, outputs: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class MSE(_OfNumbers):
    """Mean squared error."""

    name: ClassVar[str] = "mse"

    def _summed(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(outputs, y, reduction="sum")


@dataclass(frozen=True)
class L1(_OfNumbers):
    """Mean absolute error."""

    name: ClassVar[str] = "l1"

    def _summed(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.l1_loss(outputs, y, reduction="sum")


@dataclass(frozen=True)
class Huber(_OfNumbers):
    """Squared for errors up to `delta`, linear beyond.

    Arguments:
        delta: a number above 0, in the units of the targets.
    """

    delta: float = 1.0
    name: ClassVar[str] = "huber"

    def __post_init__(self) -> None:
        if not (_is_number(self.delta) and 0 < self.delta < math.inf):
            raise ConfigError(f"huber delta: expected a number above 0, got {self.delta!r}")

    def _summed(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.huber_loss(outputs, y, reduction="sum", delta=self.delta)


@dataclass(frozen=True)
class LossFunction(Loss):
    """A function of the user's.

    Arguments:
        function: (outputs [B, ...], targets [B, ...]) -> mean loss [] of the batch, or one loss per
            example [B].
        targets: kind of the targets, "classes", "labels" or "numbers".
    """

    function: Function
    targets: str = NUMBERS  # type: ignore[misc]

    @property
    def name(self) -> str:  # type: ignore[override]
        """Module and name of the function."""
        return name_of(self.function)

    @property
    def metric(self) -> str:  # type: ignore[override]
        """As of the built-in loss of such targets."""
        return {CLASSES: "accuracy", LABELS: "mean average precision", NUMBERS: "R2"}[self.targets]

    def total(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if not len(y):  # a rank's empty share of a batch
            return outputs.sum() * 0, outputs.new_zeros(())
        value = self.mean(outputs, y)
        return value * len(y), value.new_tensor(float(len(y)))

    def mean(self, outputs: Tensor, y: Tensor) -> Tensor:
        value = self.function(outputs, y)
        if not isinstance(value, Tensor) or value.shape not in ((), (len(y),)):
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(
                f"loss {self.name!r}: expected a tensor, the mean [] or one loss per example "
                f"[{len(y)}], got {got}"
            )
        return value.mean()


LOSSES: dict[str, type[Loss]] = {
    kind.name: kind for kind in (CrossEntropy, BinaryCrossEntropy, MSE, L1, Huber)
}


@functools.lru_cache(maxsize=64)
def _kept(weights: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(weights, dtype=dtype, device=device)


def _like(weights: Any, outputs: Tensor) -> Tensor:
    """Weights as a tensor, made once: a copy to a GPU can't be captured in a graph."""
    with torch.inference_mode(False):
        return _kept(weights, outputs.dtype, outputs.device)


def _weights(where: str, given: Any) -> tuple[float, ...]:
    values = given.tolist() if hasattr(given, "tolist") else given
    known = isinstance(values, (list, tuple)) and len(values) > 0
    if not known or not all(_is_number(v) and 0 <= v < math.inf for v in values):
        extra = ', "balanced"' if where.startswith("cross") else ""
        raise ConfigError(
            f"{where}: expected numbers >= 0, one per output{extra} or None, got {given!r}"
        )
    if not any(values):
        raise ConfigError(f"{where}: expected a number above 0 among them, got {given!r}")
    return tuple(map(float, values))


def _check_length(where: str, weights: Any, outputs: int) -> None:
    if isinstance(weights, tuple) and len(weights) != outputs:
        raise ConfigError(
            f"{where}: expected one number for each of {outputs} outputs, got {len(weights)}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
