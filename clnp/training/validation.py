"""The metric of networks on a split, and what is known of it before a network is trained."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..data.batches import batches, count, evaluation_batch
from ..data.inputs import Split
from ..data.split import known_sizes, known_targets, target_shape
from ..data.targets import class_counts
from ..errors import ConfigError, DataError
from ..objectives.metrics import Accuracy, MetricFunction, Value, Whole
from ..objectives.objective import Objective
from ..objectives.shapes import CLASSES, LABELS
from ..parallel.ranks import current
from .evaluation import check_outputs, correct_of, evaluating

Pieces: TypeAlias = Iterable[tuple[Tensor, Tensor]]  # batches (x [B, ...], y [B, ...])
TRIED = 2  # examples on which an objective is tried before training


class Validation:
    """A split on which networks are measured. Values are oriented: higher is better, so those of an
    error have their sign changed (`shown` changes it back).

    Arguments:
        split: (x [N, ...], y [N, ...]) or a data set of (x, y).
        objective: whose metric is measured.
        device: where networks and batches live.
    """

    def __init__(self, split: Split, objective: Objective, device: torch.device) -> None:
        self.split, self.device, self.objective = split, device, objective
        self.metric = objective.metric
        self.total = count(split)

    def __call__(self, net: nn.Module) -> Value:
        """The metric of a network, in evaluation mode."""
        return self.of(net, self._batches())

    def of(self, net: nn.Module, pieces: Pieces, floor: Value = -math.inf, easy: int = 0) -> Value:
        """The metric of a network that reads this rank's batches in another form; below `floor` it
        need not be exact, only below it. All ranks that share the work get the same value. Where
        `counts_examples`, `easy` more examples of this rank may pass for right.

        Raises:
            TrainingError: an output is NaN.
            DataError: the outputs do not fit the targets.
        """
        if self.counts_examples:
            most_wrong = self.total - math.ceil(max(floor, 0) * self.total)
            right = easy + correct_of(net, pieces, most_wrong)
            return Fraction(current().total(right), self.total)
        if isinstance(self.metric, Whole):
            return self.objective.oriented(self._of_whole(net, pieces))
        sums = [self.metric.sums(*self.objective.rows(o, y)) for o, y in outputs_of(net, pieces)]
        own = [self.metric.joined(sums)] if sums else []
        parts = [part for rank in current().gather(own) for part in rank]
        return self.objective.oriented(self.metric.value(self.metric.joined(parts)))

    def _of_whole(self, net: nn.Module, pieces: Pieces) -> Value:
        ranks, metric, rows = current(), self.metric, []
        for outputs, y in outputs_of(net, pieces):
            wide = torch.promote_types(outputs.dtype, torch.float32)
            rows.append((outputs.to("cpu", wide), y.cpu()))
        own = torch.cat([outputs for outputs, _ in rows]), torch.cat([y for _, y in rows])
        outputs, y = (torch.cat(parts) for parts in zip(*ranks.gather(own), strict=True))
        with ranks.together(f"metric {metric.name!r}"):
            if not isinstance(metric, MetricFunction):
                outputs, y = self.objective.rows(outputs, y)
            value = metric.of(outputs, y)
        return ranks.from_first(value)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return batches(self.split, evaluation_batch(self.split), self.device, ranks=current())

    def shown(self, value: Value) -> float:
        """A value in the units of the metric, as reports have it."""
        return float(self.objective.oriented(value))

    def value_of(self, shown: float) -> Value | None:
        """The value that `shown` made a float of; None where only measuring again is exact."""
        if not self.counts_examples:
            return None
        return Fraction(round(shown * self.total), self.total)

    def floor(self, best: Value, margin: float) -> Value:
        """The least value within `margin` of `best`."""
        return self.metric.floor(best, margin, self.labels)

    def check(self, net: nn.Module) -> None:
        """Try loss and metric on a network, before there is any work to lose.

        Raises:
            ConfigError: a function of the user's fails, or returns no finite number.
            DataError: the outputs do not fit the targets.
        """
        if isinstance(self.metric, MetricFunction):
            self(net)
        pieces = batches(self.split, min(TRIED, self.total), self.device)
        outputs, y = next(outputs_of(net, pieces))
        self._tried(outputs, y)

    def _tried(self, outputs: Tensor, y: Tensor) -> None:
        loss = self.objective.loss
        if not isinstance(self.metric, MetricFunction):
            self.objective.rows(outputs, y)
        try:
            value = loss.mean(outputs, y)
        except (ConfigError, DataError):
            raise
        except Exception as error:
            raise ConfigError(
                f"loss {loss.name!r} of outputs {list(outputs.shape)} and targets {list(y.shape)}: "
                f"expected a number, got {type(error).__name__}: {error}"
            ) from error
        if not bool(torch.isfinite(value)):
            raise ConfigError(
                f"loss {loss.name!r} of outputs {list(outputs.shape)} and targets {list(y.shape)}: "
                f"expected a finite number, got {float(value)}"
            )

    # What is known of the targets

    @functools.cached_property
    def counts_examples(self) -> bool:
        """True for the accuracy of examples with one class each, which all count."""
        loss = self.objective.loss
        single = loss.targets == CLASSES and not loss.ignores and target_shape(self.split) == ()
        return single and isinstance(self.metric, Accuracy)

    @functools.cached_property
    def _targets(self) -> Tensor | None:
        """All targets, where they were read or lie in memory."""
        return known_targets(self.split)

    @functools.cached_property
    def class_sizes(self) -> Tensor:
        """Examples (or pixels, or tokens) of each class [classes] int64, without those that do not
        count; a data set that does not tell its labels is read for them. [0] for other targets.
        """
        if self.objective.targets != CLASSES:
            return torch.zeros(0, dtype=torch.int64)
        return class_sizes(self.split, self.objective)

    @property
    def labels(self) -> int:
        """Number of labels that a metric of classes counts, or of examples."""
        sizes = self.class_sizes
        return int(sizes.sum()) if sizes.numel() else self.total

    @functools.cached_property
    def chance(self) -> float | None:
        """The metric of the best network that gives every example the same answer; None where that
        is not known.
        """
        metric, sizes = self.metric, self.class_sizes
        if isinstance(metric, MetricFunction):
            return None
        if self.objective.targets == CLASSES:
            return metric.chance(sizes[sizes > 0])
        if self._targets is None or self._targets.dim() > 2:
            return None
        y = self._targets.cpu()
        y = (y if y.dim() == 2 else y[:, None]).double()
        values = [float(metric.of(answer.expand_as(y), y)) for answer in self._constant(y)]
        return max(values) if metric.higher_is_better else min(values)

    def _constant(self, y: Tensor) -> list[Tensor]:
        """The same answer for all examples of targets [N, K], in several ways [K]."""
        if self.objective.targets != LABELS:
            return [y.mean(dim=0), y.median(dim=0).values]
        rows, counts = (y > 0.5).unique(dim=0, return_counts=True)
        answers = [rows[counts.argmax()], y.mean(dim=0) > 0.5, torch.ones(y.shape[1])]
        return [2 * answer.double() - 1 for answer in answers]

    def noise(self, right: float) -> float | None:
        """Standard error of the metric of a network that covers a share `right` of the way from
        chance to perfection (of an accuracy: is right so often); None where it is not known.
        """
        sizes = self.class_sizes
        spread = self.spread
        if spread is None:
            return None
        own = sizes[sizes > 0] if sizes.numel() else None
        return self.metric.noise(right, own, self.total, spread)

    @property
    def spread(self) -> float | None:
        """Difference between a perfect network and chance; 1 for a fraction."""
        if self.metric.unit == "%":
            return 1.0
        best = 1.0 if self.metric.higher_is_better else 0.0
        return None if self.chance is None else abs(best - self.chance)


def class_sizes(split: Split, objective: Objective) -> Tensor:
    """Places of each class [classes] int64 in a split, without those that do not count."""
    known = known_sizes(split, objective.loss)
    if known is not None:
        return known
    parts = batches(split, evaluation_batch(split), torch.device("cpu"))
    return class_counts((y for _, y in parts), objective.loss)


def known_classes(split: Split, objective: Objective) -> set[int]:
    """The classes that occur in a split; none where it was not read for them."""
    sizes = known_sizes(split, objective.loss)
    return set() if sizes is None else set(sizes.nonzero().flatten().tolist())


def outputs_of(net: nn.Module, pieces: Pieces) -> Iterator[tuple[Tensor, Tensor]]:
    """(outputs [B, ...], targets [B, ...]) of every batch. Raises TrainingError where an output is
    NaN.
    """
    for x, y in pieces:
        with evaluating(net):
            outputs = net(x)
        check_outputs(outputs)
        yield outputs, y


def measured(net: nn.Module, split: Split, objective: Objective, device: torch.device) -> float:
    """The metric of a network on a split, in its own units."""
    validation = Validation(split, objective, device)
    return validation.shown(validation(net))
