"""Networks and examples of a learner: checks, and their form in a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError, ConvertError
from ..files.checkpoint import dtype_of
from ..graph.graph import OPS, Graph, build
from ..network.conversion import convert
from ..network.model import Model
from ..training.evaluation import evaluating

SPARE = 1 << 20
MOST_VALUES = 1 << 28  # of a batch


def check_network(net: Any, example: Any) -> None:
    """Raises ConfigError unless `net` is a dense module, `example` a batch [B, ...] on its device,
    and the outputs one row of logits for each example.
    """
    if not isinstance(net, nn.Module) or isinstance(net, Model):
        raise ConfigError(
            f"net: expected a dense torch.nn.Module, got {type(net).__name__}; methods take the "
            "network before clnp.convert"
        )
    if not isinstance(example, Tensor) or example.dim() < 2 or not len(example):
        got = list(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise ConfigError(f"example_input: expected a batch [B, ...] with B >= 1, got {got}")
    with evaluating(net):
        logits = net(example)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or len(shape) != 2 or shape[0] != len(example):
        raise ConfigError(
            f"net: expected logits [B, C], got {shape} for {len(example)} example(s); pool or "
            "flatten before the last layer"
        )


def graph_of(net: nn.Module, example: Tensor) -> Graph | None:
    """The network's layers as data, or None where they can't be read, or where a network made of
    them would have its weights under other names.
    """
    try:
        graph = convert(net, example, verbose=False).graph
    except ConvertError:
        return None
    with torch.device("meta"):
        made = build(graph, _layers(graph))
    same = _shapes(made) == _shapes(net)
    return graph if same else None


def _shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in net.state_dict().items()}


def network_of(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network that `MethodLearner.save` described, with fresh weights.

    Arguments:
        data, tensors: what the file holds.

    Raises:
        ConfigError: its layers were not written.
        CheckpointError: its layers are far larger than the tensors that were saved with them.
    """
    if data["graph"] is None:
        raise ConfigError(
            "net: expected the network, which could not be written as data, got None; pass it: "
            "clnp.methods.load(path, net=...)"
        )
    graph = Graph.from_json(data["graph"])
    with torch.device("meta"):
        wanted = sum(t.numel() for m in _layers(graph).values() for t in m.state_dict().values())
    # A head that no task has learned yet is in the graph alone.
    if wanted > 2 * sum(t.numel() for t in tensors.values()) + SPARE:
        raise CheckpointError(
            f"graph: expected about as many weights as in its tensors, got {wanted}"
        )
    return build(graph, _layers(graph)).to(dtype_of(data["dtype"]))


def _layers(graph: Graph) -> dict[str, nn.Module]:
    return {
        node.name: made(**{a: node.attrs[a] for a in OPS[node.op].attrs})
        for node in graph.weighted
        if (made := OPS[node.op].make) is not None
    }


def example_of(data: Mapping[str, Any]) -> Tensor:
    """A batch of the shape that the learner was made with. Raises CheckpointError for a shape that
    no example has.
    """
    shape = data["shape"]
    if not 0 < math.prod(shape) <= MOST_VALUES:
        raise CheckpointError(f"its examples have shape {shape}")
    return torch.zeros(shape, dtype=dtype_of(data["dtype"]))
