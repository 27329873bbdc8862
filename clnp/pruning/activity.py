"""Mean activity of every channel on a task (paper, Algorithm 1), and its effect on the layers that
read it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clnp_kernels import ops

from ..data.batches import batches, evaluation_batch
from ..data.inputs import Split
from ..errors import TrainingError
from ..graph.graph import fuse_relu
from ..graph.groups import Group
from ..network.layout import units_of
from ..network.model import Model
from ..parallel.ranks import current
from ..training.evaluation import evaluating


def measure_activity(model: Model, split: Split, device: torch.device) -> dict[str, Tensor]:
    """Mean absolute activity E|a| of every channel over a data set, in evaluation mode (paper,
    Algorithm 1).

    A channel's activity is what the layers that read it see, after the non-linearity; where several
    read it, the largest of their means.

    Returns:
        group name -> [channels] float64 on the CPU, active channels first. NaN for channels that
        were not computed (a single head's final group holds earlier tasks' channels, which the task
        in training does not touch).
    """
    seen = read_activity(model, split, device)
    activity = {}
    for group in model.groups.prunable:
        parts = [units(model, name, group, seen[name]) for name in group.consumers]
        mean = torch.stack([part.mean(dim=1) for part in parts]).amax(dim=0)
        activity[group.name] = _all_channels(model, group, mean)
    return activity


def measure_contribution(model: Model, split: Split, device: torch.device) -> dict[str, Tensor]:
    """Contribution of every channel to the layers that read it: E|a| times the sum of the absolute
    trainable weights by which they read it, summed over these layers. (The criterion of Wanda, Sun
    et al. 2023, arXiv:2306.11695, for whole channels and with the mean for the norm.)

    A channel that is active but that no trained weight reads counts 0: a channel of an earlier task
    is then not reused, and a free one can be cut at no cost.

    Returns:
        as `measure_activity`.
    """
    seen = read_activity(model, split, device)
    contribution = {}
    for group in model.groups.prunable:
        parts = []
        for name in group.consumers:
            reading = units(model, name, group, _reading(model, name, seen[name].numel()))
            mean = units(model, name, group, seen[name]).mean(dim=1)
            parts.append(mean * reading.sum(dim=1))
        contribution[group.name] = _all_channels(model, group, torch.stack(parts).sum(dim=0))
    return contribution


def units(model: Model, layer: str, group: Group, values: Tensor) -> Tensor:
    """Values [I, ...] of the inputs of a layer, or of its free ones -> [units, entries per unit,
    ...] of a group, active ones first.
    """
    layout = model.groups.reads[layer]
    if len(layout) == 1:  # a single head may lack the active ones
        return values.unflatten(0, (-1, layout[0][1]))
    return values[units_of(layout, model.stages(), group.name)]


def _reading(model: Model, layer: str, inputs: int) -> Tensor:
    """Sum of the absolute trainable weights by which a layer reads each of its inputs, [I] float64
    on the CPU; 0 for those in front that it has no weights for.
    """
    weight = model.layer_weight(layer).detach().abs().double()
    sums = weight.flatten(2).sum(dim=2) if weight.dim() > 2 else weight
    read = sums.sum(dim=0).cpu()
    return F.pad(read, (inputs - read.numel(), 0))


def _all_channels(model: Model, group: Group, values: Tensor) -> Tensor:
    """Values of the channels that were computed, behind NaN for those that were not."""
    missing = model.active(group) + model.free(group) - values.numel()
    return torch.cat([values.new_full((missing,), math.nan), values])


def read_activity(model: Model, split: Split, device: torch.device) -> dict[str, Tensor]:
    """E|a| of the inputs of a layer: layer -> [I] float64 on the CPU.

    A layer whose output is read unchanged adds up its activity itself; other activations (behind
    pooling, sums and the like) are reduced apart. Ranks that share their work read a piece of the
    split each.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(readers: Iterable[str], activity: Tensor, values: Tensor) -> None:
        for reader in readers:
            sums[reader] = sums.get(reader, 0) + activity.double()
            counts[reader] = counts.get(reader, 0) + values.numel() // max(activity.numel(), 1)

    sources = _sources(model)
    if not sources:  # a network of a head alone
        return {}
    with contextlib.ExitStack() as stack, evaluating(model):
        for source, readers in sources.items():
            measured = _measured if source in model.masked else _reduced
            stack.enter_context(measured(model, source, readers, add))
        for x, _ in batches(split, evaluation_batch(split), device, ranks=current()):
            model.net(x)
    return _divided(sums, counts)


def _sources(model: Model) -> dict[str, list[str]]:
    """Places of measurement: masked layer or batch norm -> the layers that read its output
    unchanged in evaluation mode; any other reader of a prunable group -> itself.
    """
    graph = fuse_relu(model.graph)
    sources: dict[str, list[str]] = {}
    readers = (name for group in model.groups.prunable for name in group.consumers)
    for reader in dict.fromkeys(readers):
        node = graph[graph[reader].inputs[0]]
        while node.op in ("identity", "dropout", "dropout2d"):
            node = graph[node.inputs[0]]
        sources.setdefault(node.name if node.name in model.masked else f" {reader}", []).append(
            reader
        )
    return sources


@contextlib.contextmanager
def _reduced(model: Model, source: str, readers: list[str], add: Any) -> Iterator[None]:
    """Reduce the input of a reader whenever the network is called."""
    (reader,) = readers

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x, dim = channels_of(model, reader, args[0])
        add(readers, ops.channel_activity(x, dim=dim), x)

    handle = model.net.get_submodule(reader).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _measured(model: Model, source: str, readers: list[str], add: Any) -> Iterator[None]:
    """Let a layer add up its activity whenever the network is called."""
    module = model.masked[source]

    def forward(x: Tensor) -> Tensor:
        y, activity = module.forward_with_activity(x)
        add(readers, activity, y)
        return y

    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward


def _divided(sums: dict[str, Tensor], counts: dict[str, int]) -> dict[str, Tensor]:
    """Sums over counts, of the examples of all ranks that share the work."""
    flat = torch.cat([*sums.values(), *(t.new_tensor([counts[n]]) for n, t in sums.items())])
    numbers = current().sum(flat)
    totals = numbers[: -len(sums)].split([total.numel() for total in sums.values()])
    return {
        name: total / count
        for name, total, count in zip(sums, totals, numbers[-len(sums) :], strict=True)
    }


def channels_of(model: Model, layer: str, x: Tensor) -> tuple[Tensor, int]:
    """The value that a layer reads, and the axis of its channels."""
    return x, 1 if model.graph[layer].op in ("conv2d", "conv3d") else -1


def check_scores(model: Model, scores: Mapping[str, Tensor]) -> None:
    """Raises TrainingError where the channels of a task were ranked by what is no number."""
    for group in model.groups.prunable:
        # Those of active channels are NaN where nothing computed them.
        if not bool(torch.isfinite(scores[group.name][model.active(group) :]).all()):
            raise TrainingError(
                f"activity of {group.name!r}: expected finite means, got NaN or Inf; look for NaN "
                "or huge numbers in the inputs, or take a lower lr"
            )
