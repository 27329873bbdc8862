"""The channels that a task keeps: the highest thresholds within the margin (paper, Sec. 2.2)."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ..data.batches import batches, evaluation_batch, first_inputs
from ..data.inputs import Split
from ..graph.graph import build
from ..graph.groups import Group
from ..network.model import Model
from ..network.narrow import pruned_layers
from ..objectives.metrics import Value
from ..parallel.ranks import ALONE, current
from ..training.evaluation import evaluating
from ..training.validation import Validation
from .activity import check_scores
from .line_search import Sliced, cut, features, hardest, rows_of

FEATURE_BYTES = 1 << 30
SHARES = (Fraction(1), Fraction(1, 2), Fraction(1, 5))
SHARED_GROUPS = 3
JOINT_GROUPS = 8
HEADROOM = 1.01  # of a threshold above a group of which no channel is kept
# Examples that a search along one group looks at; there have to be twice as many.
HARD_SHARE, HARD_LEAST = 0.2, 200


@dataclass(frozen=True, repr=False)
class Pruning:
    """The outcome of a threshold search.

    Attributes:
        keep: group name -> ascending indices of the free channels that stay.
        thresholds: group name -> theta, as `threshold_between` says; kept channels score more.
        validation: metric of the validation split afterwards.
        cost: what the search minimises: over the groups, the sum of the squared fractions of free
            channels that are kept.
        scores: group name -> [channels] float64, the ranking of its channels; NaN for those that
            are not computed.
    """

    keep: dict[str, Tensor]
    thresholds: dict[str, float]
    validation: float
    cost: float
    scores: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def nothing_kept(cls, model: Model, validation: float, cost: float = 0.0) -> Pruning:
        """The pruning of a task that trained its head alone: no free channel reaches it."""
        keep, scores = {}, {}
        for group in model.groups.prunable:
            channels = model.active(group) + model.free(group)
            keep[group.name] = torch.empty(0, dtype=torch.int64)
            scores[group.name] = torch.full((channels,), torch.nan, dtype=torch.float64)
        return cls(keep, dict.fromkeys(keep, 0.0), validation, cost, scores)

    @property
    def kept(self) -> int:
        """Number of free channels that stay, over all groups."""
        return sum(indices.numel() for indices in self.keep.values())

    def __repr__(self) -> str:
        groups = ", ".join(f"{name}: {indices.numel()}" for name, indices in self.keep.items())
        return f"Pruning(channels kept: {groups}; validation={self.validation:.4f})"

    def apply(self, model: Model) -> None:
        """Remove the channels that are not kept from a model in a task."""
        model.compact(self.keep)


def find_pruning(
    model: Model,
    train: Split,
    validation: Validation,
    floor: Value,
    *,
    rank: Callable[[Model, Split, torch.device], dict[str, Tensor]],
    search: str = "auto",
    granularity: int = 1,
    on_evaluation: Callable[[int], None] = lambda done: None,
) -> Pruning:
    """Rank the free channels of a model in a task and search how many of each group it needs.

    Arguments:
        model: trained; it stays as it is.
        train: split on which channels are ranked.
        validation: split on which networks are measured.
        floor: the least value, higher is better.
        rank: (model, split, device) -> group -> scores [channels], of a `Sparsifier`.
        search, granularity: as of `clnp.Settings`.
        on_evaluation: called with the number of networks evaluated so far.

    Raises:
        TrainingError: the rank of a channel is not finite.
    """
    scores = rank(model, train, model.device)
    check_scores(model, scores)
    found = ThresholdSearch(model, scores, validation, floor, granularity, on_evaluation)
    return found.run(search)


def threshold_between(ranked: Tensor, kept: int) -> float:
    """The threshold theta of a group: half-way between the lowest score that is kept and the
    highest that is not. Scores that are measured again in other arithmetic (dtype, threads) then
    make the same choice by `score > theta`.

    Where the two are equal, theta is their score: of the channels that share it, the first in order
    were kept. Where all channels are kept it is 0, where none is a little above the highest score.

    Arguments:
        ranked: scores of the free channels [channels] float64, descending.
        kept: how many are kept, the first.
    """
    if kept == len(ranked):
        return 0.0
    dropped = float(ranked[kept])
    if kept == 0:
        return dropped * HEADROOM
    lowest = float(ranked[kept - 1])
    middle = dropped + (lowest - dropped) / 2
    return middle if middle < lowest else dropped  # neighbours have no number between them


class ThresholdSearch:
    """Finds high thresholds above a floor of the metric by bisection over the sorted activities.

    Arguments:
        model: in a task, trained.
        activity: from `measure_activity`.
        validation: what networks are measured on.
        floor: the least value, higher is better.
        granularity: active channels of a group are rounded up to a multiple of this.
        on_evaluation: called with the number of networks evaluated so far.
    """

    def __init__(
        self,
        model: Model,
        activity: Mapping[str, Tensor],
        validation: Validation,
        floor: Value,
        granularity: int = 1,
        on_evaluation: Callable[[int], None] = lambda done: None,
    ) -> None:
        self.model, self.validation, self.floor = model, validation, floor
        self.activity = activity
        self.evaluations, self.on_evaluation = 0, on_evaluation
        self.granularity = granularity
        self.groups = model.groups.prunable
        self.order: dict[str, Tensor] = {}
        self.sorted: dict[str, Tensor] = {}
        self.least: dict[str, int] = {}
        self.most: dict[str, int] = {}
        for group in self.groups:
            free = activity[group.name][model.active(group) :]
            self.sorted[group.name], self.order[group.name] = free.sort(
                descending=True, stable=True
            )
            own = model.head.kind == "single" and group == model.groups.last
            self.least[group.name] = int(own or model.active(group) == 0)
            # theta = 0 already prunes the channels that never fire, at no cost.
            alive = max(int((free > 0).sum()), self.least[group.name])
            self.most[group.name] = self._rounded(group, alive)
            self.least[group.name] = self._rounded(group, self.least[group.name])
        self.known: dict[tuple[int, ...], Value] = {}
        self.lines: dict[tuple[Any, ...], Callable[[int, Value], Value]] = {}

    def _rounded(self, group: Group, kept: int) -> int:
        total = self.model.active(group) + kept
        up = math.ceil(total / self.granularity) * self.granularity - self.model.active(group)
        return min(up, self.order[group.name].numel()) if kept else 0

    def keep(self, counts: Mapping[str, int]) -> dict[str, Tensor]:
        """The most active free channels of each group, so many as `counts` says, as ascending
        indices.
        """
        return {name: self.order[name][:n].sort().values for name, n in counts.items()}

    def cost(self, counts: Mapping[str, int]) -> float:
        """Kept channels as fractions of those that are still free in their groups, squared and
        summed: the next tasks fit until one group is full, so the largest fraction counts most.
        """
        return sum((n / max(self.order[name].numel(), 1)) ** 2 for name, n in counts.items())

    def value(self, counts: Mapping[str, int]) -> Value:
        """Value of the network pruned to `counts`."""
        key = tuple(counts[group.name] for group in self.groups)
        if key not in self.known:
            network = self.model.pruned_network(self.keep(counts))
            self.known[key] = self.validation(network)
            self._evaluated()
        return self.known[key]

    def _evaluated(self) -> None:
        self.evaluations += 1
        self.on_evaluation(self.evaluations)

    def run(self, method: str) -> Pruning:
        """Searches by the method that `Settings.search` names."""
        if method == "auto":
            method = "joint" if len(self.groups) <= JOINT_GROUPS else "global"
        methods = {"joint": self.joint, "global": self.common}
        try:
            return methods[method]()
        finally:
            self.lines.clear()  # each holds activations, and this search, so that neither would go

    def common(self) -> Pruning:
        """One threshold for all groups, in units of each group's mean activity, found by bisection:
        about log2(channels) evaluations, however many groups there are.
        """
        return self._result(self._common())

    def _common(self) -> dict[str, int]:
        scales = {
            name: float(values.clamp(min=0).mean()) or 1.0 for name, values in self.sorted.items()
        }
        levels = torch.cat([self.sorted[n][: self.most[n]] / s for n, s in scales.items()])
        levels = levels.unique()

        def counts(index: int) -> dict[str, int]:
            """Kept channels where everything up to the given level is cut; -1 cuts nothing."""
            if index < 0:
                return dict(self.most)
            found = {}
            for group in self.groups:
                name = group.name
                kept = int((self.sorted[name] / scales[name] > levels[index]).sum())
                kept = self._rounded(group, max(kept, self.least[name]))
                found[name] = min(kept, self.most[name])
            return found

        low, high = -1, len(levels) - 1  # low holds the floor
        while low < high:
            middle = (low + high + 1) // 2
            if self.value(counts(middle)) >= self.floor:
                low = middle
            else:
                high = middle - 1
        return counts(low)

    def joint(self) -> Pruning:
        """The cheapest of several ways to divide the margin among the groups, then improved group
        by group.

        The last group gets all, half or a fifth of the slack, the one before it the same share of
        what is left, and so on; the first one gets the rest. The same is tried from the first group
        to the last. Of more than three groups each way would take hundreds of evaluations: there
        the common threshold is the start.
        """
        order = list(reversed(self.groups))
        if len(order) == 1:
            best = self._descend(order, SHARES[0])
        elif len(order) <= SHARED_GROUPS:
            ways = itertools.product((order, order[::-1]), SHARES)
            best = min((self._descend(*way) for way in ways), key=self.cost)
        else:
            best = self._descend(order, SHARES[0], self._common(), bisect=True)
        while True:
            improved = self._descend(order, SHARES[0], best)
            if self.cost(improved) >= self.cost(best):
                return self._result(best)
            best = improved

    def _descend(
        self,
        order: list[Group],
        share: Fraction,
        start: Mapping[str, int] | None = None,
        bisect: bool | None = None,
    ) -> dict[str, int]:
        """Lowers the groups' counts one after the other; each may use `share` of the slack that is
        left. Bisection is for the first time, from no `start`, unless it is asked for.
        """
        bisect = start is None if bisect is None else bisect
        counts = dict(start or self.most)
        for position, group in enumerate(order):
            value = self.value(counts)
            last = position == len(order) - 1
            floor = self.floor if last else value - share * (value - self.floor)
            counts[group.name] = self._fewest(group, counts, floor, bisect)
        return counts

    def _fewest(self, group: Group, counts: Mapping[str, int], floor: Value, bisect: bool) -> int:
        """The fewest channels of one group that hold a floor, the other groups' counts being fixed.

        The value is not quite monotone in the threshold: after the bisection (or instead of it),
            lower counts are probed too.
        """
        evaluate = self._line(group, counts)
        low, high = self.least[group.name], counts[group.name]

        def holds(n: int) -> bool:
            return n == counts[group.name] or evaluate(n, floor) >= floor

        while bisect and low < high:
            middle = self._rounded(group, (low + high) // 2)
            if middle >= high:
                break
            if holds(middle):
                high = middle
            else:
                low = middle + 1
        probing = True
        while probing:
            probing = False
            for factor in (0.98, 0.95, 0.9, 0.85):
                fewer = self._rounded(group, max(int(high * factor), self.least[group.name]))
                if self.least[group.name] <= fewer < high and holds(fewer):
                    high, probing = fewer, True
                    break
        return self._confirmed(group, counts, high, floor)

    def _confirmed(self, group: Group, counts: Mapping[str, int], n: int, floor: Value) -> int:
        """The fewest channels from n on with which the whole network holds the floor on the whole
        split. A line search looks at the hardest examples only, and may round differently in the
        last bit.
        """
        most, step, fails = counts[group.name], 1, n - 1

        def holds(n: int) -> bool:
            return n == most or self.value({**counts, group.name: n}) >= floor

        while not holds(n):
            fails, n = n, min(self._rounded(group, n + step), most)
            step *= 2
        while fails + 1 < n:
            middle = self._rounded(group, (fails + n) // 2)
            if not fails < middle < n:
                break
            if holds(middle):
                n = middle
            else:
                fails = middle
        return n

    def _line(self, group: Group, counts: Mapping[str, int]) -> Callable[[int, Value], Value]:
        """An evaluator (count, floor) -> value for one group, right about failing the floor.

        In a chain of layers, everything before the group is computed once, with its channels sorted
        by activity, so that a count is a slice. With accuracy as metric, only the hardest examples
        are looked at and the others pass for right, so that the value may be too high;
        `_confirmed` looks at all.
        """
        key = (group.name, *(counts[g.name] for g in self.groups))
        if key not in self.lines:
            self.lines = {key: self._new_line(group, dict(counts))}
        return self.lines[key]

    def _new_line(self, group: Group, counts: dict[str, int]) -> Callable[[int, Value], Value]:
        reader = group.consumers[0]
        layout = self.model.groups.reads[reader]
        if self.model.groups.gathers or len(layout) > 1:
            parts = None
        else:
            parts = cut(self.model.narrow_graph, group)
        if parts is None:
            return lambda n, floor: self.value({**counts, group.name: n})
        front, back = parts
        keep = self.keep(counts)
        keep[group.name] = self.order[group.name][: counts[group.name]]
        layers = pruned_layers(self.model, keep)
        first, device = build(front, layers), self.model.device
        split: Split = self.validation.split
        with evaluating(first):
            example = first(first_inputs(split, 1).to(device))
        if self.validation.total * example.numel() * example.element_size() > FEATURE_BYTES:
            return lambda n, floor: self.value({**counts, group.name: n})
        easy, ranks = 0, current()
        if self._hard is not None:
            mine = ranks.rows(self.validation.total)
            easy = mine.stop - mine.start - len(self._hard[1])
            split, ranks = self._hard, ALONE
        values, labels = features(first, split, device, ranks)
        sliced = Sliced(layers[reader])
        layers[reader] = sliced
        net = build(back, layers)
        positions, axis = layout[0][1], sliced.axis
        frozen = values.shape[axis] - counts[group.name] * positions

        def evaluate(n: int, floor: Value) -> Value:
            self._evaluated()
            own = values.narrow(axis, 0, frozen + n * positions), labels
            pieces = batches(own, evaluation_batch(own), device)
            return self.validation.of(net, pieces, floor, easy)

        return evaluate

    @functools.cached_property
    def _hard(self) -> tuple[Tensor, Tensor] | None:
        """This rank's validation examples that pruning endangers most: those with the least
        distance between the right output and the next of the unpruned network. None where all are
        looked at.
        """
        split, ranks = self.validation.split, current()
        wanted = max(HARD_LEAST, math.ceil(HARD_SHARE * self.validation.total))
        if not self.validation.counts_examples or 2 * wanted > self.validation.total:
            return None
        network = self.model.pruned_network(self.keep(self.most))
        logits, labels = features(network, split, self.model.device, ranks)
        hard = hardest(logits, labels, math.ceil(wanted / ranks.size))
        return rows_of(split, hard, self.model.device, ranks)

    def _result(self, counts: Mapping[str, int]) -> Pruning:
        thresholds = {name: threshold_between(self.sorted[name], n) for name, n in counts.items()}
        shown = self.validation.shown(self.value(counts))
        return Pruning(self.keep(counts), thresholds, shown, self.cost(counts), self.activity)
