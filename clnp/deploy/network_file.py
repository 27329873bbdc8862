"""A task's network in a safetensors file: a graph as JSON, and tensors; no code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import CheckpointError, ConfigError
from ..files import checkpoint
from ..files.checkpoint import dtype_name, dtype_of
from ..graph.graph import Graph, Node, build
from ..graph.plain import plain_module

KIND = "network"
CLASS_NAMES = "class_names"  # key in files, and in the `meta` of the result of `load_network`
GRAPH = "clnp_graph"  # key of the graph in the `meta` of the result of `clnp.extract`
LAYER = {"weight": "weight", "bias": "bias"}
NORM = {**LAYER, "mean": "running_mean", "var": "running_var"}


def write_network(path: Path, network: nn.Module, class_names: Sequence[str] | None = None) -> None:
    """Write a network from `clnp.extract` to a `.safetensors` file.

    Raises:
        ConfigError: another network, whose graph is not known.
        SaveError: the file can't be written.
    """
    graph = getattr(network, "meta", {}).get(GRAPH)
    if graph is None:
        raise ConfigError(
            "network: expected a result of clnp.extract for a .safetensors file, got "
            f"{type(network).__name__}; write other modules to .pt2 or .onnx"
        )
    data = {"graph": graph.to_json()}
    if class_names is not None:
        data[CLASS_NAMES] = list(class_names)
    checkpoint.write(path, KIND, network.state_dict(), data)


def load_network(path: str | Path) -> fx.GraphModule:
    """Read a network that `clnp.export` wrote to a `.safetensors` file.

    Nothing in the file is executed or unpickled, so it may come from an untrusted source. This
    doesn't hold for `.pt2` files, because `torch.export.load` unpickles.

    Returns:
        the network of `clnp.extract`, of plain `torch.nn` layers in evaluation mode; x [B, ...] ->
        logits [B, C] with the same bits. `meta["class_names"]` has the C names, if the file does.

    Raises:
        CheckpointError: no such file, damaged, of another kind, or with tensors that don't fit.
    """
    path = Path(path)
    tensors, data = checkpoint.read(path, KIND)
    try:
        graph = Graph.from_json(data["graph"])
        layers = {
            node.name: plain_module(node.op, node.attrs, _own(node, tensors))
            for node in graph.weighted
        }
        network = build(graph, layers).eval()
        network.load_state_dict(tensors)
        names = _class_names(data, _check_fits(network, graph))
    except Exception as error:  # a file may contain anything
        raise CheckpointError(f"{path}: expected the file of a network: {error}") from error
    network.meta[GRAPH] = graph
    if names is not None:
        network.meta[CLASS_NAMES] = names
    return network


def _class_names(data: Mapping[str, Any], classes: int) -> list[str] | None:
    """Return the class names; raises ValueError unless there is one per class, or none at all."""
    names = data.get(CLASS_NAMES)
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{CLASS_NAMES}: expected strings, got {str(names)[:80]}")
    if len(names) != classes:
        raise ValueError(f"{CLASS_NAMES}: expected {classes} names, got {len(names)}")
    return names


def _own(node: Node, tensors: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """Return the tensors of a layer; raises ValueError if its vectors have different lengths."""
    norm = node.op.startswith("batch_norm")
    names = NORM if norm else LAYER
    own = {key: tensors.get(f"{node.name}.{name}") for key, name in names.items()}
    if own["weight"] is None and "affine" in node.attrs and not norm:
        return own
    if node.op == "embedding":
        return own
    rows = tensors[f"{node.name}.{names['mean' if norm else 'weight']}"].shape[:1]
    for key, value in own.items():
        if value is not None and (norm or key != "weight") and value.shape != rows:
            raise ValueError(
                f"{node.name}.{key}: expected shape {list(rows)}, got {list(value.shape)}"
            )
    return own


def _check_fits(network: nn.Module, graph: Graph) -> int:
    """Run the network on the meta device, which raises if layers don't fit; return C."""
    shapes = {name: value.to("meta") for name, value in network.state_dict().items()}
    (dtype,) = {value.dtype for value in shapes.values() if value.dtype != torch.int64}
    dtype_of(dtype_name(dtype))
    first = graph.nodes[0].attrs
    dtype = torch.int64 if first.get("integers") else dtype
    batch = torch.empty(2, *first["shape"][1:], dtype=dtype, device="meta")
    logits: Tensor = torch.func.functional_call(network, shapes, (batch,))
    return logits.shape[-1]
