"""The channels that a task keeps: the highest thresholds within the margin (paper, Sec. 2.2)."""

from __future__ import annotations

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
from ..parallel.ranks import current
from ..training.evaluation import evaluating
from ..training.score import Validation, Value
from .activity import check_scores
from .line_search import Sliced, cut, features

FEATURE_BYTES = 1 << 30
SHARES = (Fraction(1), Fraction(1, 2), Fraction(1, 5))
SHARED_GROUPS = 3
JOINT_GROUPS = 8
HEADROOM = 1.01  # of a threshold above a group of which no channel is kept


@dataclass(frozen=True, repr=False)
class Pruning:
    """The outcome of a threshold search.

    Attributes:
        keep: group name -> ascending indices of the free channels that stay.
        thresholds: group name -> theta, as `threshold_between` says; kept channels score more.
        validation: score of the validation split afterwards.
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
        validation: split on which networks are scored.
        floor: the least score.
        rank: (model, split, device) -> group -> scores [channels], of a `Sparsifier`.
        search, granularity: as of `clnp.Settings`.
        on_evaluation: called with the number of networks evaluated so far.

    Raises:
        TrainingError: a channel's score is not finite.
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
    """Finds high thresholds above a floor of the score by bisection over the sorted activities.

    Arguments:
        model: in a task, trained.
        activity: from `measure_activity`.
        validation: what networks are scored on.
        floor: the least score.
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

    def score(self, counts: Mapping[str, int]) -> Value:
        """Score of the network pruned to `counts`."""
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
            if self.score(counts(middle)) >= self.floor:
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
            score = self.score(counts)
            last = position == len(order) - 1
            floor = self.floor if last else score - share * (score - self.floor)
            counts[group.name] = self._fewest(group, counts, floor, bisect)
        return counts

    def _fewest(self, group: Group, counts: Mapping[str, int], floor: Value, bisect: bool) -> int:
        """The fewest channels of one group that hold a floor, the other groups' counts being fixed.

        The score is not quite monotone in the threshold: after the bisection (or instead of it),
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
        """Line searches may round differently from the whole network in the last bit: the whole
        network decides.
        """
        while n < counts[group.name] and self.score({**counts, group.name: n}) < floor:
            n = min(self._rounded(group, n + max(1, n // 50)), counts[group.name])
        return n

    def _line(self, group: Group, counts: Mapping[str, int]) -> Callable[[int, Value], Value]:
        """An evaluator (count, floor) -> score, exact down to the floor, for one group.
        In a chain of layers, everything before the group is computed once, with its channels sorted
        by activity, so that a count is a slice."""
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
            return lambda n, floor: self.score({**counts, group.name: n})
        front, back = parts
        keep = self.keep(counts)
        keep[group.name] = self.order[group.name][: counts[group.name]]
        layers = pruned_layers(self.model, keep)
        first, split, device = build(front, layers), self.validation.split, self.model.device
        with evaluating(first):
            example = first(first_inputs(split, 1).to(device))
        if self.validation.total * example.numel() * example.element_size() > FEATURE_BYTES:
            return lambda n, floor: self.score({**counts, group.name: n})
        values, labels = features(first, split, device, current())
        layers[reader] = Sliced(layers[reader])
        net = build(back, layers)
        positions = layout[0][1]
        frozen = values.shape[1] - counts[group.name] * positions

        def evaluate(n: int, floor: Value) -> Value:
            self._evaluated()
            own = values[:, : frozen + n * positions], labels
            pieces = batches(own, evaluation_batch(own), device)
            return self.validation.of(net, pieces, floor)

        return evaluate

    def _result(self, counts: Mapping[str, int]) -> Pruning:
        thresholds = {name: threshold_between(self.sorted[name], n) for name, n in counts.items()}
        validation, cost = float(self.score(counts)), self.cost(counts)
        return Pruning(self.keep(counts), thresholds, validation, cost, self.activity)
