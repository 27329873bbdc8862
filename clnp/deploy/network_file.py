"""One task's network in a safetensors file: layers as data and tensors, nothing that could run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import CheckpointError, ConfigError
from ..files import checkpoint
from ..graph.graph import Graph, Node, build
from ..graph.plain import plain_module
from ..network.restore import dtype_name, dtype_of

KIND = "network"
CLASS_NAMES = "class_names"  # under which a file keeps them, and `load_network` in `meta`
GRAPH = "clnp_graph"  # where `clnp.extract` leaves the graph, in a GraphModule's `meta`
LAYER = {"weight": "weight", "bias": "bias"}
NORM = {**LAYER, "mean": "running_mean", "var": "running_var"}


def write_network(path: Path, network: nn.Module, class_names: Sequence[str] | None = None) -> None:
    """Writes a network from `clnp.extract`, as `clnp.export` does for `.safetensors`.

    Raises:
        ConfigError: the network comes from elsewhere, so its layers are not known as data.
        SaveError: the file can't be written.
    """
    graph = getattr(network, "meta", {}).get(GRAPH)
    if graph is None:
        raise ConfigError(
            "network: a .safetensors file takes what clnp.extract returned, got "
            f"{type(network).__name__}; other modules go into .pt2 or .onnx"
        )
    data = {"graph": graph.to_json()}
    if class_names is not None:
        data[CLASS_NAMES] = list(class_names)
    checkpoint.write(path, KIND, network.state_dict(), data)


def load_network(path: str | Path) -> fx.GraphModule:
    """Reads a network that `clnp.export` wrote to a `.safetensors` file.

    Nothing in the file is run or unpickled, so it may come from anywhere; `.pt2` files may not,
    because `torch.export.load` unpickles.

    Returns:
        plain `torch.nn` layers in evaluation mode, as `clnp.extract` gave them; x [B, ...] ->
        logits [B, C], the same bits; `meta["class_names"]` holds C names if the file does.

    Raises:
        CheckpointError: no such file, damaged, not a network's, or tensors that do not fit.
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
    except Exception as error:  # anybody can have written anything
        raise CheckpointError(f"{path} does not hold a network: {error}") from error
    network.meta[GRAPH] = graph
    if names is not None:
        network.meta[CLASS_NAMES] = names
    return network


def _class_names(data: Mapping[str, Any], classes: int) -> list[str] | None:
    """Raises ValueError unless a file has a name for each class, or no names."""
    names = data.get(CLASS_NAMES)
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{CLASS_NAMES}: expected strings, got {str(names)[:80]}")
    if len(names) != classes:
        raise ValueError(f"{CLASS_NAMES}: expected {classes} names, got {len(names)}")
    return names


def _own(node: Node, tensors: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """The tensors of a layer; raises ValueError where its vectors have other lengths."""
    norm = node.op.startswith("batch_norm")
    names = NORM if norm else LAYER
    own = {key: tensors.get(f"{node.name}.{name}") for key, name in names.items()}
    rows = tensors[f"{node.name}.{names['mean' if norm else 'weight']}"].shape[:1]
    for key, value in own.items():
        if value is not None and (norm or key != "weight") and value.shape != rows:
            raise ValueError(f"{node.name}.{key} has shape {list(value.shape)}, not {list(rows)}")
    return own


def _check_fits(network: nn.Module, graph: Graph) -> int:
    """The number of outputs; raises where the layers do not fit one another: a batch of shapes
    goes through them.
    """
    shapes = {name: value.to("meta") for name, value in network.state_dict().items()}
    (dtype,) = {value.dtype for value in shapes.values() if value.dtype != torch.int64}
    dtype_of(dtype_name(dtype))
    batch = torch.empty(2, *graph.nodes[0].attrs["shape"][1:], dtype=dtype, device="meta")
    logits: Tensor = torch.func.functional_call(network, shapes, (batch,))
    return logits.shape[-1]
