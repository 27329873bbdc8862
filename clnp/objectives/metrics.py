"""Metrics that reports hold, and in whose units a margin is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .names import name_of
from .shapes import CLASSES, KINDS, LABELS, NUMBERS, wide

Value: TypeAlias = Fraction | float
# What a floor leaves for the rounding of a margin, in units of the metric.
SLACK = 1e-9
PERCENT = "%"


class Metric:
    """Base of the metrics: sums over examples, and the value of the sums.

    Attributes:
        name: of the metric, in settings, files and reports.
        targets: kinds of targets that it takes.
        higher_is_better: False for an error.
        unit: "%" for a fraction, which is shown in per cent; otherwise the unit, or "".
    """

    name: ClassVar[str]
    targets: ClassVar[tuple[str, ...]]
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = PERCENT

    def sums(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Sums over a batch, which `joined` adds up.

        Arguments:
            outputs: [n, C].
            y: class labels [n] int64, or [n, C].
        """
        raise NotImplementedError

    def joined(self, sums: Sequence[Tensor]) -> Tensor:
        """The sums of several batches together."""
        return torch.stack(list(sums)).sum(dim=0)

    def value(self, sums: Tensor) -> Value:
        """The metric from its sums."""
        raise NotImplementedError

    def of(self, outputs: Tensor, y: Tensor) -> Value:
        """The metric of outputs [n, C] and targets; see `sums`."""
        return self.value(self.sums(outputs, y))

    def each(self, outputs: Tensor, y: Tensor) -> Tensor | None:
        """The metric of each row [n], where it is a mean over rows; None elsewhere."""
        return None

    def floor(self, best: Value, margin: float, total: int) -> Value:
        """The least value within `margin` of `best`; exactly at the margin is within it.

        Arguments:
            best: a value, higher is better (`Objective.oriented`).
            margin: in units of the metric.
            total: labels that the metric counts.
        """
        return best - margin - SLACK

    def shares(self, sizes: Tensor) -> Tensor | None:
        """Share of the metric that each class can cost, [classes] float64; None if unknown.

        Arguments:
            sizes: examples of each class [classes] int64, none of them 0.
        """
        return None

    def chance(self, sizes: Tensor) -> float | None:
        """The metric of a network that gives every example the class of most; `sizes` as for
        `shares`.
        """
        return None

    def noise(self, value: float, sizes: Tensor | None, total: int, spread: float) -> float | None:
        """Standard error of the metric on `total` examples; None where it is unknown.

        Arguments:
            value: how good the network is, between 0 (as good as chance) and 1 (perfect).
            sizes: examples of each class that occurs, where the targets are classes.
            total: number of examples.
            spread: difference between a perfect network and chance, in units of the metric.
        """
        return None


def _binomial(right: float, total: int) -> float:
    return math.sqrt(right * (1 - right) / total)


@dataclass(frozen=True)
class Accuracy(Metric):
    """Share of the labels that are right."""

    name: ClassVar[str] = "accuracy"
    targets: ClassVar[tuple[str, ...]] = (CLASSES,)

    def sums(self, outputs: Tensor, y: Tensor) -> Tensor:
        hits = (outputs.argmax(dim=-1) == y).sum()
        return torch.stack([hits, hits.new_tensor(len(y))]).cpu()

    def value(self, sums: Tensor) -> Fraction:
        hits, seen = sums.tolist()
        return Fraction(hits, seen) if seen else Fraction(0)

    def each(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs.argmax(dim=-1) == y).double()

    def floor(self, best: Value, margin: float, total: int) -> Fraction:
        return Fraction(floor_of(round(best * total), margin, total), total)

    def shares(self, sizes: Tensor) -> Tensor:
        return sizes.double() / sizes.sum()

    def chance(self, sizes: Tensor) -> float:
        return float(self.shares(sizes).max())

    def noise(self, value: float, sizes: Tensor | None, total: int, spread: float) -> float:
        return _binomial(value, total)


def floor_of(best: int, margin: float, total: int) -> int:
    """The least number of correct labels (of `total`) within `margin` (a fraction, 0.0005 = 0.05 %)
    of `best` correct ones.
    """
    # The small term keeps 0.0005 * 10000 from becoming 4.999...: exactly at the margin is within
    # it.
    return max(0, math.ceil(best - margin * total - 1e-9))


class _OfClasses(Metric):
    """Base of metrics of the classes' counts [3, C]: right, answered, labelled. Every class that
    occurs counts alike.
    """

    targets: ClassVar[tuple[str, ...]] = (CLASSES,)

    def shares(self, sizes: Tensor) -> Tensor:
        return torch.full(sizes.shape, 1 / len(sizes), dtype=torch.float64)

    def chance(self, sizes: Tensor) -> float:
        most = torch.nn.functional.one_hot(sizes.argmax(), len(sizes))
        return float(self.value(torch.stack([most * sizes, most * sizes.sum(), sizes])))

    def noise(self, value: float, sizes: Tensor | None, total: int, spread: float) -> float | None:
        if sizes is None:
            return _binomial(value, total)
        each = sizes.double() * total / sizes.sum()  # examples, where an example has many labels
        return math.sqrt(value * (1 - value) * float((self.shares(sizes).square() / each).sum()))

    def sums(self, outputs: Tensor, y: Tensor) -> Tensor:
        classes, answers = outputs.shape[-1], outputs.argmax(dim=-1)
        if len(y) and int(y.max()) >= classes:
            raise DataError(
                f"validation: expected labels from 0 to {classes - 1}, as the head has, got "
                f"{int(y.max())}"
            )
        parts = (y[answers == y], answers, y)
        return torch.stack([part.bincount(minlength=classes) for part in parts]).cpu()


@dataclass(frozen=True)
class BalancedAccuracy(_OfClasses):
    """Mean of the classes' recalls, over the classes that occur."""

    name: ClassVar[str] = "balanced accuracy"

    def value(self, sums: Tensor) -> Fraction:
        pairs = zip(*(part.tolist() for part in (sums[0], sums[2])), strict=True)
        return _mean([Fraction(hits, seen) for hits, seen in pairs if seen])


@dataclass(frozen=True)
class MeanIoU(_OfClasses):
    """Mean over the classes that occur of intersection over union."""

    name: ClassVar[str] = "mean IoU"

    def value(self, sums: Tensor) -> Fraction:
        rows = zip(*sums.tolist(), strict=True)
        return _mean([Fraction(hits, told + own - hits) for hits, told, own in rows if own])


@dataclass(frozen=True)
class F1(_OfClasses):
    """Mean over the classes or labels that occur of the harmonic mean of precision and recall. A
    label is answered with yes where its output is above 0.
    """

    name: ClassVar[str] = "F1"
    targets: ClassVar[tuple[str, ...]] = (CLASSES, LABELS)

    def sums(self, outputs: Tensor, y: Tensor) -> Tensor:
        if y.dim() == 1:
            return super().sums(outputs, y)
        answers, labels = outputs > 0, y > 0.5
        return torch.stack([part.sum(dim=0) for part in (answers & labels, answers, labels)]).cpu()

    def value(self, sums: Tensor) -> Fraction:
        rows = zip(*sums.tolist(), strict=True)
        return _mean([Fraction(2 * hits, told + own) for hits, told, own in rows if own])


@dataclass(frozen=True)
class LabelAccuracy(Metric):
    """Share of the labels that are right, over all labels of all examples."""

    name: ClassVar[str] = "label accuracy"
    targets: ClassVar[tuple[str, ...]] = (LABELS,)

    def sums(self, outputs: Tensor, y: Tensor) -> Tensor:
        hits = self._right(outputs, y).sum()
        return torch.stack([hits, hits.new_tensor(self._count(y))]).cpu()

    def value(self, sums: Tensor) -> Fraction:
        hits, seen = sums.tolist()
        return Fraction(hits, seen) if seen else Fraction(0)

    def each(self, outputs: Tensor, y: Tensor) -> Tensor:
        return self._right(outputs, y).double().mean(dim=-1)

    def noise(self, value: float, sizes: Tensor | None, total: int, spread: float) -> float:
        return _binomial(value, total)

    def _right(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs > 0) == (y > 0.5)

    def _count(self, y: Tensor) -> int:
        return y.numel()


@dataclass(frozen=True)
class ExactMatch(LabelAccuracy):
    """Share of the examples of which every label is right."""

    name: ClassVar[str] = "exact match"

    def each(self, outputs: Tensor, y: Tensor) -> Tensor:
        return self._right(outputs, y).double()

    def _right(self, outputs: Tensor, y: Tensor) -> Tensor:
        return ((outputs > 0) == (y > 0.5)).all(dim=-1)

    def _count(self, y: Tensor) -> int:
        return len(y)


class Whole(Metric):
    """Base of metrics that need the outputs and targets of the whole split at once."""


@dataclass(frozen=True)
class MeanAveragePrecision(Whole):
    """Mean over the labels that occur of the average precision, the sum over thresholds of
    precision times the gain in recall. Examples with equal outputs share a threshold.
    """

    name: ClassVar[str] = "mean average precision"
    targets: ClassVar[tuple[str, ...]] = (LABELS,)

    def of(self, outputs: Tensor, y: Tensor) -> Value:
        found = [_average_precision(o, own) for o, own in zip(outputs.mT, y.mT, strict=True)]
        return _mean([value for value in found if value is not None])

    def noise(self, value: float, sizes: Tensor | None, total: int, spread: float) -> float:
        return _binomial(value, total)


def _average_precision(outputs: Tensor, y: Tensor) -> float | None:
    ranked, order = outputs.sort(descending=True)
    hits = (y[order] > 0.5).double().cumsum(0)
    if not float(hits[-1]):
        return None
    ends = torch.ones_like(hits, dtype=torch.bool)
    ends[:-1] = ranked[1:] != ranked[:-1]
    hits, seen = hits[ends], torch.arange(1, len(y) + 1, device=y.device)[ends]
    gains = hits.diff(prepend=hits.new_zeros(1)) / hits[-1]
    return float((gains * hits / seen).sum())


@dataclass(frozen=True)
class _OfErrors(Metric):
    """Base of metrics of the errors: sums [2], of a function of the errors and their number.

    Arguments:
        unit: of the targets, for reports.
    """

    unit: str = ""  # type: ignore[misc]
    targets: ClassVar[tuple[str, ...]] = (NUMBERS,)
    higher_is_better: ClassVar[bool] = False

    def errors(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (wide(outputs) - wide(y)).square()

    def sums(self, outputs: Tensor, y: Tensor) -> Tensor:
        errors = self.errors(outputs, y)
        return torch.stack([errors.sum(), errors.new_tensor(float(errors.numel()))]).cpu()

    def value(self, sums: Tensor) -> float:
        return float(sums[0] / sums[1].clamp(min=1))


@dataclass(frozen=True)
class MeanSquaredError(_OfErrors):
    """Mean squared error, in squared units of the targets."""

    name: ClassVar[str] = "MSE"

    def each(self, outputs: Tensor, y: Tensor) -> Tensor:
        return self.errors(outputs, y).mean(dim=-1)

    def noise(self, value: float, sizes: Tensor | None, total: int, spread: float) -> float:
        # Of errors that are normally distributed.
        return (1 - value) * spread * math.sqrt(2 / total)


@dataclass(frozen=True)
class RootMeanSquaredError(_OfErrors):
    """Root of the mean squared error, in units of the targets."""

    name: ClassVar[str] = "RMSE"

    def value(self, sums: Tensor) -> float:
        return math.sqrt(super().value(sums))

    def noise(self, value: float, sizes: Tensor | None, total: int, spread: float) -> float:
        return (1 - value) * spread * math.sqrt(0.5 / total)


@dataclass(frozen=True)
class MeanAbsoluteError(_OfErrors):
    """Mean absolute error, in units of the targets."""

    name: ClassVar[str] = "MAE"

    def errors(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Absolute differences, of the shape of `outputs`."""
        return (wide(outputs) - wide(y)).abs()

    def each(self, outputs: Tensor, y: Tensor) -> Tensor:
        return self.errors(outputs, y).mean(dim=-1)

    def noise(self, value: float, sizes: Tensor | None, total: int, spread: float) -> float:
        return (1 - value) * spread * math.sqrt((math.pi / 2 - 1) / total)


@dataclass(frozen=True)
class R2(Metric):
    """Coefficient of determination, the mean over the columns of the targets: 1 for a perfect
    network, 0 for one that always answers with the mean. A constant column counts 1 where it is
    met exactly and 0 otherwise.
    """

    name: ClassVar[str] = "R2"
    targets: ClassVar[tuple[str, ...]] = (NUMBERS,)
    unit: ClassVar[str] = ""

    def sums(self, outputs: Tensor, y: Tensor) -> Tensor:
        """[4, K]: examples, mean of y, sum of squares about it, sum of squared errors."""
        own = wide(y)
        mean = own.mean(dim=0) if len(own) else own.new_zeros(own.shape[1])
        count = torch.full_like(mean, len(own))
        around, errors = (own - mean).square().sum(0), (wide(outputs) - own).square().sum(0)
        return torch.stack([count, mean, around, errors]).cpu()

    def joined(self, sums: Sequence[Tensor]) -> Tensor:
        # Sums of squares about the means: those about 0 cancel where the mean is large.
        parts = torch.stack(list(sums))
        counts, means = parts[:, 0], parts[:, 1]
        total = counts.sum(dim=0)
        mean = (counts * means).sum(dim=0) / total.clamp(min=1)
        around = parts[:, 2].sum(dim=0) + (counts * (means - mean).square()).sum(dim=0)
        return torch.stack([total, mean, around, parts[:, 3].sum(dim=0)])

    def value(self, sums: Tensor) -> float:
        _, _, around, errors = sums
        met = (errors == 0).double()
        return float(torch.where(around > 0, 1 - errors / around, met).mean())

    def noise(self, value: float, sizes: Tensor | None, total: int, spread: float) -> float:
        return (1 - value) * math.sqrt(2 / total)


@dataclass(frozen=True)
class MetricFunction(Whole):
    """A function of the user's.

    Arguments:
        function: (outputs, targets) of the whole split -> a finite number. It gets both on the CPU
            as the network and the split have them, outputs in at least float32.
        higher_is_better: False for an error.
        unit: "%" for a fraction that is shown in per cent; otherwise the unit, or "".
        title: its name in reports; None takes that of the function.
    """

    function: Callable[[Tensor, Tensor], Any]
    higher_is_better: bool = True  # type: ignore[misc]
    unit: str = ""  # type: ignore[misc]
    title: str | None = None
    targets: ClassVar[tuple[str, ...]] = KINDS

    @property
    def name(self) -> str:  # type: ignore[override]
        """The title, or module and name of the function."""
        return self.title or name_of(self.function)

    def of(self, outputs: Tensor, y: Tensor) -> float:
        """The value. Raises ConfigError where the function fails or returns no finite number."""
        shapes = list(outputs.shape), list(y.shape)
        try:
            returned = self.function(outputs, y)
            value = math.nan if isinstance(returned, (str, bytes)) else float(returned)
        except Exception as error:
            raise ConfigError(
                f"metric {self.name!r} of outputs {shapes[0]} and targets {shapes[1]}: expected a "
                f"number, got {type(error).__name__}: {error}"
            ) from error
        if not math.isfinite(value):
            raise ConfigError(
                f"metric {self.name!r} of outputs {shapes[0]} and targets {shapes[1]}: expected a "
                f"finite number, got {returned!r}"
            )
        return value


METRICS: dict[str, type[Metric]] = {
    kind.name: kind
    for kind in (
        *(Accuracy, BalancedAccuracy, MeanIoU, F1, LabelAccuracy, ExactMatch),
        *(MeanAveragePrecision, R2, MeanSquaredError, RootMeanSquaredError, MeanAbsoluteError),
    )
}


def _mean(values: Sequence[Any]) -> Any:
    return sum(values, type(values[0])(0)) / len(values) if values else Fraction(0)
