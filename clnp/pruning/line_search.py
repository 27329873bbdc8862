"""A search along one group: the network up to the layer that reads it is computed once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.batches import batches, evaluation_batch
from ..data.inputs import Split
from ..graph.graph import Graph, Node
from ..graph.groups import Group
from ..parallel.ranks import Ranks
from ..training.evaluation import evaluating


def cut(graph: Graph, group: Group) -> tuple[Graph, Graph] | None:
    """Splits a chain of operations before the layer that reads `group`; None where the graph is no
    chain, or the layer neither linear nor a 2-D convolution.
    """
    if len(group.consumers) != 1 or graph[group.consumers[0]].op not in ("linear", "conv2d"):
        return None
    if any(
        node.inputs != (before.name,)
        for before, node in zip(graph.nodes, graph.nodes[1:], strict=False)
    ):
        return None
    at = [node.name for node in graph.nodes].index(group.consumers[0])
    border = graph.nodes[at - 1].name
    start = Node(border, "input", attrs={"shape": []})
    return Graph(graph.nodes[:at], border), Graph((start, *graph.nodes[at:]), graph.output)


class Sliced(nn.Module):
    """A linear or convolutional layer that reads as many inputs as it is given, the first ones.

    Arguments:
        layer: reads all of them.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        self.layer = layer
        self.axis = -1 if isinstance(layer, nn.Linear) else 1  # of the channels

    def forward(self, x: Tensor) -> Tensor:
        layer, n = self.layer, x.shape[self.axis]
        weight, bias = layer.weight[:, :n], layer.bias
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)


def features(
    net: nn.Module, split: Split, device: torch.device, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """A network's outputs over this rank's piece of a split, in evaluation mode, and the labels."""
    values, labels = [], []
    with evaluating(net):
        for x, y in batches(split, evaluation_batch(split), device, ranks=ranks):
            values.append(net(x))
            labels.append(y)
    return torch.cat(values), torch.cat(labels)


def hardest(logits: Tensor, labels: Tensor, n: int) -> Tensor:
    """The n examples whose right output is the least above (or the most below) the next one.

    Arguments:
        logits: [N, C].
        labels: [N] int64.
        n: how many; all where there are fewer.

    Returns:
        ascending indices [n] int64.
    """
    right = F.one_hot(labels, logits.shape[1]).bool()
    others = logits.masked_fill(right, -torch.inf).amax(dim=1)
    distance = logits[right] - others
    return distance.argsort(stable=True)[:n].sort().values


def rows_of(
    split: Split, places: Tensor, device: torch.device, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """Some examples of this rank's piece of a split, on a device.

    Arguments:
        split: any.
        places: ascending indices [n] int64 into the piece.
        device: of the result.
        ranks: who shares the split.
    """
    values, labels, start = [], [], 0
    for x, y in batches(split, evaluation_batch(split), device, ranks=ranks):
        here = places[(places >= start) & (places < start + len(y))] - start
        values.append(x[here])
        labels.append(y[here])
        start += len(y)
    return torch.cat(values), torch.cat(labels)
