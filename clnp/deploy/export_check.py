"""Comparison of an exported file with its network, and search for the first wrong operation."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ExportError
from ..graph.graph import Graph, build
from .network_file import GRAPH, load_network

BATCHES = (1, 5)
Run = Callable[[Tensor], Tensor]


@torch.no_grad()
def check_same(network: nn.Module, path: Path, suffix: str, example: Tensor) -> None:
    """Compare a file with its network on seeded random data, at two batch sizes.

    Half of the dtype's digits must agree.

    Arguments:
        network: the network, in evaluation mode.
        path: the file, with any suffix.
        suffix: its format, ".pt2", ".onnx" or ".safetensors".
        example: a batch that the network accepts.

    Raises:
        ExportError: other logits, or no package that can run the file.
    """
    run = runner(path, suffix)
    generator = torch.Generator("cpu").manual_seed(0)
    for batch in BATCHES:
        noise = torch.rand(batch, *example.shape[1:], generator=generator, device="cpu")
        x = (6 * noise - 3).to(example) if example.is_floating_point() else _numbers(network, noise)
        expected = network(x)
        got = run(x).to(expected.device)
        if got.shape != expected.shape:
            raise ExportError(
                f"{suffix}: expected logits {list(expected.shape)} for a batch of {batch}, got "
                f"{list(got.shape)} from the file; use another format"
            )
        _compare(got.double(), expected.double(), torch.finfo(expected.dtype).eps, suffix)


def _numbers(network: nn.Module, noise: Tensor) -> Tensor:
    """Return numbers, of noise in [0, 1), that every embedding knows."""
    tables = [m.num_embeddings for m in network.modules() if isinstance(m, nn.Embedding)]
    return (noise * min(tables, default=2)).long()


def runner(path: Path, suffix: str) -> Run:
    """Return a function x [B, ...] -> logits [B, C] that runs a file written by this process.

    Arguments:
        path: the file, with any suffix.
        suffix: its format, ".pt2", ".onnx" or ".safetensors".
    """
    return {".pt2": _run_pt2, ".onnx": _run_onnx, ".safetensors": _run_safetensors}[suffix](path)


def _compare(got: Tensor, expected: Tensor, eps: float, suffix: str) -> None:
    scale = float(expected.nan_to_num(0, 0, 0).abs().max()) if expected.numel() else 0.0
    if torch.allclose(got, expected, rtol=0, atol=eps**0.5 * scale + eps, equal_nan=True):
        return
    biggest = float((got - expected).nan_to_num(float("inf")).abs().max())
    raise ExportError(
        f"{suffix}: expected the logits of the network, got differences up to {biggest:.3g} "
        f"(largest logit {scale:.3g}) on random data; use "
        f"{'.pt2 or .safetensors' if suffix == '.onnx' else '.onnx or .safetensors'}, or another "
        "operation"
    )


def _run_pt2(path: Path) -> Run:
    # Unpickling is safe, because this process wrote the file.
    with open(path, "rb") as file:
        module: Any = torch.export.load(file).module()
    return lambda x: module(x)


def _run_safetensors(path: Path) -> Run:
    network = load_network(path)
    return lambda x: network.to(x.device)(x)


def _run_onnx(path: Path) -> Run:
    """Run by onnxruntime, or else by the reference evaluator of onnx."""

    def run(x: Tensor) -> Tensor:
        reasons = []
        for make in (_onnxruntime, _onnx_reference):
            try:
                return torch.as_tensor(make(path)(x.cpu().numpy()))
            except Exception as error:  # either may lack an operation or a dtype
                reasons.append(f"{make.__name__[1:]}: {' '.join(str(error).split())[:200]}")
        raise ExportError(
            ".onnx: no installed package can run the file to compare it with the network ("
            + "; ".join(reasons)
            + "); pip install onnxruntime, convert the network to float32, or use .pt2"
        )

    return run


def _onnxruntime(path: Path) -> Callable[[Any], Any]:
    if importlib.util.find_spec("onnxruntime") is None:
        raise ImportError("is not installed")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=providers)
    return lambda x: session.run(["logits"], {"x": x})[0]


def _onnx_reference(path: Path) -> Callable[[Any], Any]:
    import onnx
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(onnx.load_model_from_string(path.read_bytes()))
    return lambda x: session.run(["logits"], {"x": x})[0]  # type: ignore[index]


def first_wrong(
    network: nn.Module, path: Path, example: Tensor, attempt: Callable[..., None]
) -> str:
    """Find the first operation that makes the export fail, by bisection.

    Arguments:
        network: the network; its operations are known if it comes from `clnp.extract`.
        path: file that the attempts overwrite.
        example: a batch that the network accepts.
        attempt: (network, path, example) -> None; raises ExportError.

    Returns:
        the name of the operation, "" if the operations are not known.
    """
    graph: Graph | None = getattr(network, "meta", {}).get(GRAPH)
    if graph is None:
        return ""
    layers = {node.name: network.get_submodule(node.name) for node in graph.weighted}

    def fails(last: int) -> bool:
        part = build(graph.up_to(graph.nodes[last].name), layers).eval()
        part.meta[GRAPH] = graph.up_to(graph.nodes[last].name)
        try:
            attempt(part, path, example)
        except ExportError:
            return True
        return False

    # The input alone succeeds and the whole network fails; halve until they are adjacent.
    good, bad = 0, len(graph.nodes) - 1
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (good, middle) if fails(middle) else (middle, bad)
    node = graph.nodes[bad]
    return f"operation {node.name!r} ({node.op})"
