"""Which channels a task keeps: the highest thresholds that accuracy allows (paper, Sec. 2.2)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clnp.activity import read_means
from clnp.batches import (
    batches,
    correct_of,
    count,
    count_correct,
    evaluating,
    evaluation_batch,
    first_inputs,
)
from clnp.data.task import Split
from clnp.graph import Graph, Node, build
from clnp.groups import Group
from clnp.model import Model
from clnp.narrow import pruned_layers
from clnp.pruning import compensate, compensated, mean_outputs, read_columns, trained_bias
from clnp.ranks import Ranks, current

FEATURE_BYTES = 1 << 30
SHARES = (1.0, 0.5, 0.2)
SHARED_GROUPS = 3
JOINT_GROUPS = 8


@dataclass(frozen=True)
class Pruning:
    """The outcome of a threshold search.

    Attributes:
        keep: group name -> ascending indices of the free channels that stay.
        thresholds: group name -> theta; kept channels have E|a| > theta.
        correct: correctly classified validation examples afterwards.
        cost: what the search minimises: over the groups, the sum of the squared fractions of free
            channels that are kept.
        scores: group name -> [channels] float64, what its channels were ranked by; NaN for those
            that are not computed.
        means: layer -> mean of each of its inputs, where what is cut is compensated by it.
    """

    keep: dict[str, Tensor]
    thresholds: dict[str, float]
    correct: int
    cost: float
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    means: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def nothing_kept(cls, model: Model, correct: int, cost: float = 0.0) -> Pruning:
        """Of a task that trained its head alone: no free channel has a way to it."""
        keep, scores = {}, {}
        for group in model.groups.prunable:
            channels = model.active(group) + model.free(group)
            keep[group.name] = torch.empty(0, dtype=torch.int64)
            scores[group.name] = torch.full((channels,), torch.nan, dtype=torch.float64)
        return cls(keep, dict.fromkeys(keep, 0.0), correct, cost, scores)

    @property
    def kept(self) -> int:
        """Number of free channels that stay, over all groups."""
        return sum(indices.numel() for indices in self.keep.values())

    def apply(self, model: Model) -> None:
        """Takes the channels that are not kept from a model in a task."""
        compensate(model, self.keep, self.means)
        model.compact(self.keep)


def find_pruning(
    model: Model,
    train: Split,
    validation: Split,
    floor: int,
    *,
    rank: Callable[[Model, Split, torch.device], dict[str, Tensor]],
    search: str = "auto",
    granularity: int = 1,
    compensate: bool = False,
    on_evaluation: Callable[[int], None] = lambda done: None,
) -> Pruning:
    """Ranks the free channels of a model in a task and searches how many of each group it needs.

    Arguments:
        model: trained; it stays as it is.
        train: what channels are ranked and means measured on.
        validation: split on which accuracy is counted.
        floor: the least number of correctly classified validation examples.
        rank: (model, split, device) -> group -> scores [channels], of a `Sparsifier`.
        search, granularity, compensate: as of `clnp.Settings`.
        on_evaluation: called with the number of networks evaluated so far.
    """
    device = model.device
    scores = rank(model, train, device)
    means = read_means(model, train, device) if compensate else None
    found = ThresholdSearch(
        model, scores, validation, floor, device, granularity, on_evaluation, means
    )
    return found.run(search)


class ThresholdSearch:
    """Finds high thresholds under an accuracy floor by bisection over the sorted activities.

    Arguments:
        model: in a task, trained.
        activity: from `measure_activity`.
        validation: split on which accuracy is counted.
        floor: the least number of correctly classified validation examples.
        device: where to evaluate.
        granularity: active channels of a group are rounded up to a multiple of this.
        means: from `read_means`: what is cut is compensated by its mean (`pruning.compensate`).
            None: it is cut.
        on_evaluation: called with the number of networks evaluated so far.
    """

    def __init__(
        self,
        model: Model,
        activity: Mapping[str, Tensor],
        validation: Split,
        floor: int,
        device: torch.device,
        granularity: int = 1,
        on_evaluation: Callable[[int], None] = lambda done: None,
        means: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model, self.validation, self.floor, self.device = model, validation, floor, device
        self.activity = activity
        self.evaluations, self.on_evaluation = 0, on_evaluation
        self.granularity, self.means = granularity, means or {}
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
        self.known: dict[tuple[int, ...], int] = {}
        self.lines: dict[tuple[Any, ...], Callable[[int, int], int]] = {}

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

    def correct(self, counts: Mapping[str, int]) -> int:
        """Correct validation examples of the network pruned to `counts`."""
        key = tuple(counts[group.name] for group in self.groups)
        if key not in self.known:
            keep = self.keep(counts)
            with compensated(self.model, keep, self.means):
                network = self.model.pruned_network(keep)
            self.known[key] = count_correct(network, self.validation, self.device)
            self._evaluated()
        return self.known[key]

    def _evaluated(self) -> None:
        self.evaluations += 1
        self.on_evaluation(self.evaluations)

    def run(self, method: str) -> Pruning:
        """Searches by the method that `Settings.search` names."""
        if method == "auto":
            method = "joint" if len(self.groups) <= JOINT_GROUPS else "global"
        methods = {"joint": self.joint, "layerwise": self.layerwise, "global": self.common}
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
            if self.correct(counts(middle)) >= self.floor:
                low = middle
            else:
                high = middle - 1
        return counts(low)

    def layerwise(self) -> Pruning:
        """One group after the other, the last first, each as far as the whole margin allows."""
        return self._result(self._descend(list(reversed(self.groups)), 1.0))

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
            best = self._descend(order, 1.0)
        elif len(order) <= SHARED_GROUPS:
            ways = itertools.product((order, order[::-1]), SHARES)
            best = min((self._descend(*way) for way in ways), key=self.cost)
        else:
            best = self._descend(order, 1.0, self._common(), bisect=True)
        while True:
            improved = self._descend(order, 1.0, best)
            if self.cost(improved) >= self.cost(best):
                return self._result(best)
            best = improved

    def _descend(
        self,
        order: list[Group],
        share: float,
        start: Mapping[str, int] | None = None,
        bisect: bool | None = None,
    ) -> dict[str, int]:
        """Lowers the groups' counts one after the other; each may use `share` of the slack that is
        left. Bisection is for the first time, from no `start`, unless it is asked for.
        """
        bisect = start is None if bisect is None else bisect
        counts = dict(start or self.most)
        for position, group in enumerate(order):
            here = self.correct(counts)
            last = position == len(order) - 1
            floor = self.floor if last else math.ceil(here - share * (here - self.floor))
            counts[group.name] = self._fewest(group, counts, floor, bisect)
        return counts

    def _fewest(self, group: Group, counts: Mapping[str, int], floor: int, bisect: bool) -> int:
        """The fewest channels of one group that keep `floor` examples right, the other groups'
        counts being fixed.

        Accuracy is not quite monotone in the threshold: after the bisection (or instead of it),
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

    def _confirmed(self, group: Group, counts: Mapping[str, int], n: int, floor: int) -> int:
        """Line searches may round differently from the whole network in the last bit: the whole
        network decides.
        """
        while n < counts[group.name] and self.correct({**counts, group.name: n}) < floor:
            n = min(self._rounded(group, n + max(1, n // 50)), counts[group.name])
        return n

    def _line(self, group: Group, counts: Mapping[str, int]) -> Callable[[int, int], int]:
        """An evaluator (count, floor) -> correct examples, exact down to the floor, for one group.
        In a chain of layers, everything before the group is computed once, with its channels sorted
        by activity, so that a count is a slice."""
        key = (group.name, *(counts[g.name] for g in self.groups))
        if key not in self.lines:
            self.lines = {key: self._new_line(group, dict(counts))}
        return self.lines[key]

    def _new_line(self, group: Group, counts: dict[str, int]) -> Callable[[int, int], int]:
        cut = _cut(self.model.narrow_graph, group)
        if cut is None:
            return lambda n, floor: self.correct({**counts, group.name: n})
        front, back = cut
        keep = self.keep(counts)
        keep[group.name] = self.order[group.name][: counts[group.name]]
        with compensated(self.model, keep, self.means):
            layers = pruned_layers(self.model, keep)
        first, total = build(front, layers), count(self.validation)
        with evaluating(first):
            example = first(first_inputs(self.validation, 1).to(self.device))
        if total * example.numel() * example.element_size() > FEATURE_BYTES:
            return lambda n, floor: self.correct({**counts, group.name: n})
        ranks = current()
        features, labels = _features(first, self.validation, self.device, ranks)
        reader = group.consumers[0]
        layers[reader] = _Sliced(layers[reader], self._means_of_line(reader, keep))
        net = build(back, layers)
        positions = self.model.groups.positions[reader]
        frozen = features.shape[1] - counts[group.name] * positions

        def evaluate(n: int, floor: int) -> int:
            self._evaluated()
            own = features[:, : frozen + n * positions], labels
            pieces = batches(own, evaluation_batch(own), self.device)
            return ranks.total(correct_of(net, pieces, total - floor))

        return evaluate

    def _means_of_line(self, reader: str, keep: Mapping[str, Tensor]) -> Tensor | None:
        """The means of a reader's inputs in the order of a line, if they are compensated."""
        if reader not in self.means or trained_bias(self.model, reader) is None:
            return None
        columns = read_columns(self.model, reader, keep)
        return self.means[reader].to(self.device)[columns]

    def _result(self, counts: Mapping[str, int]) -> Pruning:
        thresholds = {}
        for name, n in counts.items():
            values = self.sorted[name]
            thresholds[name] = float(values[n]) if n < values.numel() else 0.0
        correct, cost = self.correct(counts), self.cost(counts)
        return Pruning(self.keep(counts), thresholds, correct, cost, self.activity, self.means)


def _cut(graph: Graph, group: Group) -> tuple[Graph, Graph] | None:
    """Splits a chain of operations before the layer that reads `group`; None where the graph is no
    chain.
    """
    if len(group.consumers) != 1 or any(
        node.inputs != (before.name,)
        for before, node in zip(graph.nodes, graph.nodes[1:], strict=False)
    ):
        return None
    at = [node.name for node in graph.nodes].index(group.consumers[0])
    border = graph.nodes[at - 1].name
    start = Node(border, "input", attrs={"shape": []})
    return Graph(graph.nodes[:at], border), Graph((start, *graph.nodes[at:]), graph.output)


class _Sliced(nn.Module):
    """A linear or convolutional layer that reads as many inputs as it is given, the first ones.

    Arguments:
        layer: reads all of them.
        means: of all inputs, [I]; those of the inputs that are not given go into the bias.
    """

    def __init__(self, layer: nn.Module, means: Tensor | None) -> None:
        super().__init__()
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        self.layer, self.means = layer, means

    def forward(self, x: Tensor) -> Tensor:
        layer, n = self.layer, x.shape[1]
        weight, bias = layer.weight[:, :n], layer.bias
        if self.means is not None and bias is not None:
            bias = bias + mean_outputs(layer.weight[:, n:], self.means[n:])
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)


def _features(
    net: nn.Module, split: Split, device: torch.device, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """A network's outputs over this rank's piece of a split, in evaluation mode, and the labels."""
    values, labels = [], []
    with evaluating(net):
        for x, y in batches(split, evaluation_batch(split), device, ranks=ranks):
            values.append(net(x))
            labels.append(y)
    return torch.cat(values), torch.cat(labels)
