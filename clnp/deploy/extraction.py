"""Taking one task's network out."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.utils.flop_counter import FlopCounterMode

from ..graph.graph import Graph, build
from ..network.model import Model
from .network_file import GRAPH


def extract(model: Model, task: int, *, fold_batch_norm: bool = False) -> fx.GraphModule:
    """The network of one learned task as a plain, narrow torch module.

    It holds `torch.nn` modules only (Linear, Conv2d, BatchNorm, activations, pooling), under the
    names that they had in the original network, with contiguous copies of the task's weights; it
    needs no `clnp` to run, train further, compile or export, and later tasks do not change it.
    `clnp.export` writes it to a file.

    Arguments:
        model: a converted network.
        task: index of a learned task, from 0.
        fold_batch_norm: merge every batch norm into the layer before it, where nothing else reads
            that layer: faster, and the same function but for rounding. Without it the logits are
            those of `model(x, task=task)` bit for bit.

    Returns:
        a `torch.fx.GraphModule` in evaluation mode; x [B, ...] -> logits [B, C].

    Raises:
        ConfigError: no such task.
    """
    narrow, graph = copy.deepcopy(model.subnetwork(task, fresh=True)), model.narrow_graph
    if fold_batch_norm:
        graph, layers = _folded(graph, dict(narrow.named_modules()))
        narrow = build(graph, layers).eval()
    narrow.meta[GRAPH] = graph
    return narrow.requires_grad_(True)


def _folded(graph: Graph, modules: Mapping[str, nn.Module]) -> tuple[Graph, dict[str, nn.Module]]:
    """The graph without the batch norms that follow a layer directly, and its layers."""
    layers = {node.name: modules[node.name] for node in graph.weighted}
    gone: dict[str, str] = {}
    for node in graph.weighted:
        source = node.inputs[0]
        if not node.op.startswith("batch_norm") or source not in layers:
            continue
        layer, norm = layers[source], layers[node.name]
        if len(graph.readers(source)) > 1 or isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            continue
        fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        layers[source] = fuse(layer, norm)  # type: ignore[type-var, arg-type]
        gone[node.name] = source
    nodes = tuple(
        replace(node, inputs=tuple(gone.get(name, name) for name in node.inputs))
        for node in graph.nodes
        if node.name not in gone
    )
    kept = {name: layer for name, layer in layers.items() if name not in gone}
    return Graph(nodes, gone.get(graph.output, graph.output)), kept


@dataclass(frozen=True)
class Footprint:
    """What a network costs to keep and to run.

    Attributes:
        parameters: how many.
        bytes: of parameters and buffers.
        multiply_adds: of its products and convolutions for one example.
        seconds: median of a forward pass over the batch that it was measured with.
    """

    parameters: int
    bytes: int
    multiply_adds: int
    seconds: float


def footprint(network: nn.Module, x: Tensor, repeats: int = 5) -> Footprint:
    """Measures a network in evaluation mode on a batch x [B, ...].

    Arguments:
        network: the network, left in the mode that it was in.
        x: the batch, on the network's device.
        repeats: timed passes, after one that is not.
    """
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            with FlopCounterMode(display=False) as counter:
                network(x)
            seconds = statistics.median(_timed(network, x) for _ in range(repeats))
    finally:
        network.train(training)
    tensors = [*network.parameters(), *network.buffers()]
    return Footprint(
        parameters=sum(p.numel() for p in network.parameters()),
        bytes=sum(t.numel() * t.element_size() for t in tensors),
        multiply_adds=counter.get_total_flops() // 2 // max(len(x), 1),
        seconds=seconds,
    )


def _timed(network: nn.Module, x: Tensor) -> float:
    start = time.perf_counter()
    network(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - start
