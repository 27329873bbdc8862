"""Mean activity of every channel on a task (paper, Algorithm 1), and its effect on the layers that
read it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
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
        mean = torch.stack([seen[name] for name in group.consumers]).amax(dim=0)
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
        parts = [seen[name] * _reading(model, name, seen[name].numel()) for name in group.consumers]
        contribution[group.name] = _all_channels(model, group, torch.stack(parts).sum(dim=0))
    return contribution


def _reading(model: Model, layer: str, channels: int) -> Tensor:
    """Sum of the absolute trainable weights by which a layer reads each of its input channels,
    [channels] float64 on the CPU; 0 for those in front that it has no weights for.
    """
    weight = model.layer_weight(layer).detach().abs().double()
    positions = model.groups.positions[layer]
    sums = weight.flatten(2).sum(dim=2) if weight.dim() > 2 else weight
    read = sums.sum(dim=0).unflatten(0, (-1, positions)).sum(dim=1).cpu()
    return F.pad(read, (channels - read.numel(), 0))


def _all_channels(model: Model, group: Group, values: Tensor) -> Tensor:
    """Values of the channels that were computed, behind NaN for those that were not."""
    missing = model.active(group) + model.free(group) - values.numel()
    return torch.cat([values.new_full((missing,), math.nan), values])


def read_activity(model: Model, split: Split, device: torch.device) -> dict[str, Tensor]:
    """E|a| of the channels that a layer reads: layer -> [channels] float64 on the CPU.

    A layer that computes what another one reads adds up its activity on the way; elsewhere (behind
    pooling, sums and the like) it is reduced apart.
    """

    def of(layer: str, x: Tensor) -> tuple[Tensor, int]:
        x, dim = channels_of(model, layer, x)
        return ops.channel_activity(x, dim=dim).double(), x.numel() // max(x.shape[dim], 1)

    return _means(model, split, device, of, _sources(model))


def _readers(model: Model) -> list[str]:
    return [name for group in model.groups.prunable for name in group.consumers]


def _sources(model: Model) -> dict[str, str]:
    """Reader -> masked layer or batch norm whose output it reads unchanged in evaluation mode."""
    graph = fuse_relu(model.graph)
    sources = {}
    for reader in _readers(model):
        node = graph[graph[reader].inputs[0]]
        while node.op in ("identity", "dropout", "dropout2d"):
            node = graph[node.inputs[0]]
        if node.name in model.masked:
            sources[reader] = node.name
    return sources


def _means(
    model: Model,
    split: Split,
    device: torch.device,
    of: Callable[[str, Tensor], tuple[Tensor, int]],
    sources: dict[str, str],
) -> dict[str, Tensor]:
    """Means over a data set, in evaluation mode, of what the readers of prunable groups read. Ranks
    that share their work read a piece of it each.

    Arguments:
        of: (layer, its input) -> (sums, how many numbers were added up in each).
        sources: reader -> layer whose own activity stands for `of` of its input.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(layer: str, added: Tensor, number: int) -> None:
        sums[layer] = sums.get(layer, 0) + added
        counts[layer] = counts.get(layer, 0) + number

    readers = _readers(model)
    if not readers:  # a network of a head alone
        return {}
    with contextlib.ExitStack() as stack, evaluating(model):
        for name in readers:
            if name not in sources:
                stack.enter_context(_watched(model, name, of, add))
        for source in dict.fromkeys(sources.values()):
            served = [name for name in sources if sources[name] == source]
            stack.enter_context(_measured(model, source, served, add))
        for x, _ in batches(split, evaluation_batch(split), device, ranks=current()):
            model.net(x)
    return _divided(sums, counts)


@contextlib.contextmanager
def _watched(
    model: Model, reader: str, of: Callable[[str, Tensor], tuple[Tensor, int]], add: Any
) -> Iterator[None]:
    """Reduce the input of a reader whenever the network is called."""

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        add(reader, *of(reader, args[0]))

    handle = model.net.get_submodule(reader).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _measured(model: Model, source: str, readers: list[str], add: Any) -> Iterator[None]:
    """Let a layer add up its activity for its readers whenever the network is called."""
    module = model.masked[source]

    def forward(x: Tensor) -> Tensor:
        y, sums = module.forward_with_activity(x)
        for reader in readers:
            add(reader, sums.double(), y.numel() // max(sums.numel(), 1))
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
    """The value that a layer reads with its channels on an axis of their own, and that axis."""
    if model.graph[layer].op == "conv2d":
        return x, 1
    positions = model.groups.positions[layer]
    if positions > 1:
        return x.unflatten(-1, (-1, positions)), x.dim() - 1
    return x, -1


def check_scores(model: Model, scores: Mapping[str, Tensor]) -> None:
    """Raises TrainingError where the channels of a task were ranked by what is no number."""
    for group in model.groups.prunable:
        # Those of active channels are NaN where nothing computed them.
        if not bool(torch.isfinite(scores[group.name][model.active(group) :]).all()):
            raise TrainingError(
                f"activity of {group.name!r}: expected finite means, got NaN or Inf; look for NaN "
                "or huge numbers in the inputs, or take a lower lr"
            )
