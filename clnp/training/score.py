"""The number that the margin is held on: a score of the validation split, higher is better.

A score sees a network's outputs and the targets, nothing else, so that one for another kind of task
(for regression the negative mean squared error) is one more `Score`.
"""

from __future__ import annotations

import functools
import math
import pickle
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..data.batches import batches, count, evaluation_batch
from ..data.inputs import Split
from ..data.task import known_labels
from ..errors import ConfigError, DataError
from ..parallel.ranks import current
from .evaluation import check_outputs, correct_of, evaluating

Value: TypeAlias = Fraction | float
Function: TypeAlias = Callable[[Tensor, Tensor], Any]
Pieces: TypeAlias = Iterable[tuple[Tensor, Tensor]]  # batches (x [B, ...], y [B])

# What a floor leaves for the rounding of a margin, in units of the score.
SLACK = 1e-9


class Score:
    """One way to score a network.

    Attributes:
        name: what reports and files call it.
    """

    name: str

    def of(self, net: nn.Module, pieces: Pieces, total: int, floor: Value) -> Value:
        """The score of a network, in evaluation mode; the same on all ranks that share the work.

        Arguments:
            net: makes outputs [B, C] of x.
            pieces: this rank's batches.
            total: examples of all ranks.
            floor: below it the score need not be exact, only below it.

        Raises:
            TrainingError: an output is NaN.
        """
        raise NotImplementedError

    def floor(self, best: Value, margin: float, total: int) -> Value:
        """The least score within `margin` of `best`; exactly at the margin is within it."""
        return best - margin - SLACK

    def weights(self, sizes: Tensor) -> Tensor | None:
        """The share of the score that each class can cost, [classes] float64; None if unknown.

        Arguments:
            sizes: examples of each class [classes] int64, none of them 0.
        """
        return None

    def chance(self, sizes: Tensor) -> float | None:
        """The score of a network that gives every example the same answer; None if unknown.
        `sizes` as for `weights`.
        """
        weights = self.weights(sizes)
        return None if weights is None else float(weights.max())

    def noise(self, sizes: Tensor, right: float) -> float | None:
        """The standard error of the score of a network that is right on a fraction `right` of each
        class; None where that is unknown. `sizes` as for `weights`.
        """
        weights = self.weights(sizes)
        if weights is None:
            return None
        return math.sqrt(right * (1 - right) * float((weights.square() / sizes).sum()))


class Accuracy(Score):
    """The share of examples whose class is right."""

    name = "accuracy"

    def of(self, net: nn.Module, pieces: Pieces, total: int, floor: Value) -> Fraction:
        """See `Score.of`."""
        most_wrong = total - math.ceil(max(floor, 0) * total)
        return Fraction(current().total(correct_of(net, pieces, most_wrong)), total)

    def floor(self, best: Value, margin: float, total: int) -> Fraction:
        """See `Score.floor`: the share of a whole number of examples."""
        return Fraction(floor_of(round(best * total), margin, total), total)

    def weights(self, sizes: Tensor) -> Tensor:
        """See `Score.weights`."""
        return sizes.double() / sizes.sum()


class BalancedAccuracy(Score):
    """The mean of the classes' recalls, over the classes that occur in the split."""

    name = "balanced accuracy"

    def of(self, net: nn.Module, pieces: Pieces, total: int, floor: Value) -> Fraction:
        """See `Score.of`."""
        right = seen = torch.zeros(0, dtype=torch.int64)
        for outputs, y in _outputs(net, pieces):
            classes = outputs.shape[-1]
            if int(y.max()) >= classes:
                raise DataError(
                    f"validation: expected labels from 0 to {classes - 1}, as the head has, got "
                    f"{int(y.max())}"
                )
            hits = y[outputs.argmax(dim=-1) == y]
            if not seen.numel():
                right = seen = torch.zeros(classes, dtype=torch.int64)
            right = right + hits.bincount(minlength=classes).cpu()
            seen = seen + y.bincount(minlength=classes).cpu()
        right, seen = current().sum(torch.stack([right, seen]))
        pairs = zip(right.tolist(), seen.tolist(), strict=True)
        recalls = [Fraction(hits, examples) for hits, examples in pairs if examples]
        return sum(recalls, Fraction(0)) / len(recalls)

    def weights(self, sizes: Tensor) -> Tensor:
        """See `Score.weights`."""
        return torch.full(sizes.shape, 1 / len(sizes), dtype=torch.float64)


class Custom(Score):
    """A function of the user's.

    Arguments:
        function: (outputs [N, C], labels [N]) of the whole split -> a finite number. It gets both
            on the CPU, outputs in at least float32.
    """

    def __init__(self, function: Function) -> None:
        self.function, self.name = function, name_of(function)

    def of(self, net: nn.Module, pieces: Pieces, total: int, floor: Value) -> float:
        """See `Score.of`.

        Raises:
            ConfigError: the function failed, or returned no finite number.
        """
        ranks, rows = current(), []
        for outputs, y in _outputs(net, pieces):
            wide = torch.promote_types(outputs.dtype, torch.float32)
            rows.append((outputs.to("cpu", wide), y.cpu()))
        own = torch.cat([outputs for outputs, _ in rows]), torch.cat([y for _, y in rows])
        outputs, y = (torch.cat(parts) for parts in zip(*ranks.gather(own), strict=True))
        with ranks.together(f"score {self.name!r}"):
            value = self._called(outputs, y)
        return ranks.from_first(value)

    def _called(self, outputs: Tensor, y: Tensor) -> float:
        shapes = list(outputs.shape), list(y.shape)
        try:
            returned = self.function(outputs, y)
            value = math.nan if isinstance(returned, (str, bytes)) else float(returned)
        except Exception as error:
            raise ConfigError(
                f"score {self.name!r} of logits {shapes[0]} and labels {shapes[1]}: expected a "
                f"number, got {type(error).__name__}: {error}"
            ) from error
        if not math.isfinite(value):
            raise ConfigError(
                f"score {self.name!r} of logits {shapes[0]} and labels {shapes[1]}: expected a "
                f"finite number, got {returned!r}"
            )
        return value


SCORES: dict[str, type[Score]] = {kind.name: kind for kind in (Accuracy, BalancedAccuracy)}
WANTED = (
    f"one of {sorted(SCORES)} or a function (logits [N, C], labels [N]) -> number, higher is better"
)


def make(setting: Any) -> Score:
    """The score that the setting names. Raises ConfigError for what is none."""
    if not is_score(setting):
        raise ConfigError(f"score: expected {WANTED}, got {setting!r}")
    return Custom(setting) if callable(setting) else SCORES[setting]()


def is_score(setting: Any) -> bool:
    """True for the name of a score and for a function."""
    return callable(setting) or (isinstance(setting, str) and setting in SCORES)


def name_of(setting: Any) -> str:
    """The name of a score in files and reports; of a function "module.qualified name"."""
    if isinstance(setting, str):
        return setting
    named = setting if hasattr(setting, "__qualname__") else type(setting)
    return f"{named.__module__}.{named.__qualname__}"


def given_again(name: Any, setting: Any = None) -> Any:
    """The score of a learner that is read from a file. Files hold its name only.

    Arguments:
        name: from the file.
        setting: what the caller gives; a function has to be given.

    Raises:
        ConfigError: the score is another one, or a function that was not given.
    """
    if setting is None and is_score(name):
        return name
    if setting is not None and name_of(setting) == name:
        return setting
    got = "nothing" if setting is None else repr(name_of(setting))
    raise ConfigError(
        f"score: expected {name!r}, the score of the saved learner, got {got}; a file holds no "
        "functions, so pass the same one: load(path, score=function)"
    )


def check_sendable(setting: Any, workers: int) -> None:
    """Raises ConfigError for a function that can't be sent to worker processes."""
    if workers == 1 or isinstance(setting, str):
        return
    try:
        pickle.dumps(setting)
    except Exception as error:
        raise ConfigError(
            f"score: expected a function at the top of a module, to be sent to {workers} workers, "
            f"got {name_of(setting)} ({error}); workers=1 sends nothing"
        ) from error


class Validation:
    """A split on which networks are scored.

    Arguments:
        split: (x [N, ...], y [N]) or a data set of (x, y).
        score: the setting: a name or a function.
        device: where networks and batches live.
    """

    def __init__(self, split: Split, score: Any, device: torch.device) -> None:
        self.split, self.device, self.score = split, device, make(score)
        self.total = count(split)

    def __call__(self, net: nn.Module) -> Value:
        """The score of a network, in evaluation mode."""
        return self.of(
            net, batches(self.split, evaluation_batch(self.split), self.device, ranks=current())
        )

    def of(self, net: nn.Module, pieces: Pieces, floor: Value = -math.inf) -> Value:
        """The score of a network that reads this rank's batches in another form; below `floor` it
        need not be exact.
        """
        return self.score.of(net, pieces, self.total, floor)

    def floor(self, best: Value, margin: float) -> Value:
        """The least score within `margin` of `best`."""
        return self.score.floor(best, margin, self.total)

    def check(self, net: nn.Module) -> None:
        """Tries a function of the user's, before there is any work to lose.

        Raises:
            ConfigError: it fails, or returns no finite number.
        """
        if isinstance(self.score, Custom):
            self(net)

    @functools.cached_property
    def class_sizes(self) -> Tensor:
        """Examples of each class [classes] int64; a data set that does not tell its labels is read
        for them.
        """
        known = known_labels(self.split)
        if known is None:
            pieces = batches(self.split, evaluation_batch(self.split), torch.device("cpu"))
            known = torch.cat([y for _, y in pieces])
        return known.cpu().bincount()


def _outputs(net: nn.Module, pieces: Pieces) -> Iterator[tuple[Tensor, Tensor]]:
    """(outputs [B, C], labels [B]) of every batch. Raises TrainingError where an output is NaN."""
    for x, y in pieces:
        with evaluating(net):
            outputs = net(x)
        check_outputs(outputs)
        yield outputs, y


def floor_of(best: int, margin: float, total: int) -> int:
    """The least number of correct examples (of `total`) within `margin` (a fraction, 0.0005 = 0.05
    %) of `best` correct ones.
    """
    # The small term keeps 0.0005 * 10000 from becoming 4.999...: exactly at the margin is within
    # it.
    return max(0, math.ceil(best - margin * total - 1e-9))
