"""Extraction of one task's network, and its size and speed."""

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
    """Return the network of one learned task as a plain, narrow torch module.

    It consists of `torch.nn` modules only (Linear, Conv2d, BatchNorm, activations, pooling), with
    the names of the original network and contiguous copies of the task's weights. It runs, trains,
    compiles and exports without `clnp`, and later tasks don't change it. `clnp.export` writes it to
    a file.

    Arguments:
        model: a converted network.
        task: index of a learned task, from 0.
        fold_batch_norm: merge each batch norm into the layer before it, if nothing else reads that
            layer. This is faster and changes logits by rounding only. Without it, logits equal
            those of `model(x, task=task)` bit for bit.

    Returns:
        a `torch.fx.GraphModule` in evaluation mode; x [B, ...] -> logits [B, C].

    Raises:
        ConfigError: no such task.
    """
    narrow, graph = copy.deepcopy(model.subnetwork(task, fresh=True)), model.graph_of_task(task)
    if fold_batch_norm:
        graph, layers = _folded(graph, dict(narrow.named_modules()))
        narrow = build(graph, layers).eval()
    narrow.meta[GRAPH] = graph
    return narrow.requires_grad_(True)


def _folded(graph: Graph, modules: Mapping[str, nn.Module]) -> tuple[Graph, dict[str, nn.Module]]:
    """Merge batch norms into the layers directly before them."""
    layers = {node.name: modules[node.name] for node in graph.weighted}
    merged: dict[str, str] = {}
    for node in graph.weighted:
        source = node.inputs[0]
        if not node.op.startswith("batch_norm") or source not in layers:
            continue
        layer, norm = layers[source], layers[node.name]
        if len(graph.readers(source)) > 1 or not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        layers[source] = fuse(layer, norm)  # type: ignore[type-var, arg-type]
        merged[node.name] = source
    nodes = tuple(
        replace(node, inputs=tuple(merged.get(name, name) for name in node.inputs))
        for node in graph.nodes
        if node.name not in merged
    )
    kept = {name: layer for name, layer in layers.items() if name not in merged}
    return Graph(nodes, merged.get(graph.output, graph.output)), kept


@dataclass(frozen=True)
class Footprint:
    """Size and speed of a network. `print` shows them in one line.

    Attributes:
        parameters: number of parameters.
        bytes: size of parameters and buffers.
        multiply_adds: multiply-adds of products and convolutions for one example.
        seconds: median time of a forward pass over the measured batch.
    """

    parameters: int
    bytes: int
    multiply_adds: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.parameters:,} parameters, {self.bytes / 1e6:.3g} MB, "
            f"{self.multiply_adds:,} multiply-adds per example, {1e3 * self.seconds:.3g} ms"
        )


def footprint(network: nn.Module, x: Tensor, repeats: int = 5) -> Footprint:
    """Measure a network in evaluation mode on a batch x [B, ...].

    Arguments:
        network: the network; its mode is restored.
        x: the batch, on the network's device.
        repeats: number of timed passes, after an untimed one.
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
