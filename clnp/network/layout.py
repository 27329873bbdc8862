"""Order of the entries of a value: in training, in stored weights, and in a task's network.

In training, and in every stored weight, entries stand stage by stage: what the first task froze,
what the second task added, and so on, then the free ones; within a stage, group by group. So what a
task sees is always in front. A task's network has its groups one behind the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..graph.groups import Gather, Layout
from ..graph.operations import OPS, Attrs

Counts = Mapping[str, int]  # group -> units
MOST_PARTS = 256  # slices of one concatenation; more are picked by index


@dataclass(frozen=True)
class Span:
    """Adjacent entries of one group and stage.

    Attributes:
        group: name of the group.
        each: entries per unit.
        start: the first entry.
        units: number of units.
    """

    group: str
    each: int
    start: int
    units: int

    @property
    def stop(self) -> int:
        return self.start + self.each * self.units


def entries(layout: Layout, counts: Counts) -> int:
    """Return the number of entries of a value with so many units of each group."""
    return sum(each * counts[group] for group, each in layout)


def spans(layout: Layout, stages: Sequence[Counts]) -> list[Span]:
    """Return the parts of a value, in order; `stages` are the units that each stage adds."""
    found, start = [], 0
    for stage in stages:
        for group, each in layout:
            span = Span(group, each, start, stage[group])
            found.append(span)
            start = span.stop
    return found


def units_of(layout: Layout, stages: Sequence[Counts], group: str) -> Tensor:
    """Return the entries [units, entries per unit] of a group, in the order of the stages."""
    own = [span for span in spans(layout, stages) if span.group == group]
    if not own:
        return torch.empty(0, dict(layout)[group], dtype=torch.long)
    return torch.cat([torch.arange(s.start, s.stop).view(s.units, s.each) for s in own])


def by_group(layout: Layout, stages: Sequence[Counts]) -> Tensor | None:
    """Return the entries in the order of a task's network; None if that is the stored order."""
    if len(layout) == 1 or len(stages) == 1:
        return None
    parts = [units_of(layout, stages, group).flatten() for group, _ in layout]
    return torch.cat(parts)


def blocks(layout: Layout, stages: Sequence[Counts]) -> Attrs:
    """Return where the channels of each stage end, for a norm over channels in a task's network.

    "order" has the channels stage by stage; None if they stand so.
    """
    ends, end = [0], 0
    for stage in stages:
        end += entries(layout, stage)
        ends += [end] if end > ends[-1] else []
    index = by_group(layout, stages) if len(ends) > 2 else None
    order = None if index is None else index.argsort().tolist()
    return {"ends": ends[1:], "order": order}


def reordered(tensor: Tensor, dim: int, index: Tensor | None) -> Tensor:
    """Return the entries of an axis in another order; all as they are for None."""
    return tensor if index is None else tensor.index_select(dim, index.to(tensor.device))


def gathered(gather: Gather, stages: Sequence[Counts]) -> tuple[str, Attrs]:
    """Return the operation that puts the result of a `Gather` together, for a value of `stages`."""
    inputs = [spans(layout, stages) for layout in gather.inputs]
    sizes = [found[-1].stop for found in inputs]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    within = torch.arange(gather.positions)
    index: list[Tensor] = []
    width = len(gather.result)
    for at, span in enumerate(spans(gather.result, stages)):
        stage = at // width
        columns = []
        for i, place in gather.parts[span.group]:
            source = _find(inputs[i], len(gather.inputs[i]), stage, span.group)
            first = starts[i] + source.start + place * gather.positions
            units = torch.arange(source.units) * source.each
            columns.append(first + units[:, None] + within)
        index.append(torch.stack(columns, dim=1).flatten())
    whole = torch.cat(index)
    if torch.equal(whole, torch.arange(sum(sizes))):
        if len(sizes) == 1:
            return "identity", {}
        return "concat", {"dim": gather.axis, "sizes": sizes}
    parts = _runs(whole, starts)
    if len(parts) > MOST_PARTS:
        return "picked", {"dim": gather.axis, "index": whole.tolist()}
    return "parts", {"dim": gather.axis, "parts": parts}


def _find(found: list[Span], width: int, stage: int, group: str) -> Span:
    return next(s for s in found[stage * width : (stage + 1) * width] if s.group == group)


def _runs(index: Tensor, starts: list[int]) -> list[list[int]]:
    """Divide indices into runs [input, start, stop]; input i begins at `starts[i]`."""
    if not len(index):
        return [[0, 0, 0]]
    first = torch.tensor(starts)
    source = torch.searchsorted(first, index, right=True) - 1
    breaks = (index.diff() != 1) | (source.diff() != 0)
    begins = torch.cat([torch.zeros(1, dtype=torch.long), breaks.nonzero()[:, 0] + 1])
    ends = torch.cat([begins[1:] - 1, torch.tensor([len(index) - 1])])
    at, own = source[begins], index - first[source]
    rows = torch.stack([at, own[begins], own[ends] + 1], dim=1)
    return [[int(n) for n in row] for row in rows.tolist()]


class Gathering(nn.Module):
    """Concatenation, slice or shuffle of channels in training; `Boundaries` sets its operation."""

    def __init__(self) -> None:
        super().__init__()
        self.operation: tuple[str, Attrs] = ("", {})

    def forward(self, *inputs: Tensor) -> Any:
        op, attrs = self.operation
        if not op:
            raise RuntimeError("the network was loaded by halves; call its own load_state_dict")
        if op == "identity":
            return inputs[0]
        function = OPS[op].function
        assert function is not None
        return function(*inputs, **attrs)

    def extra_repr(self) -> str:
        return str(self.operation[0])
