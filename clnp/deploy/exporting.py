"""Export of a network to a file that is read without training code."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, DataError, ExportError, SaveError, out_of_memory
from ..files.atomic import replacing
from ..network.conditions import fixed
from ..objectives.shapes import channel_axis
from .export_check import check_same, first_wrong
from .network_file import CLASS_NAMES, GRAPH, write_network

SUFFIXES = (".pt2", ".onnx", ".safetensors")
ONNX_PACKAGES = ("onnx", "onnxscript")


def export(
    network: nn.Module,
    path: str | Path,
    example: Tensor,
    *,
    class_names: Sequence[str] | None = None,
) -> Path:
    """Write a network, for any batch size, to a file in the format given by its suffix.

    The file is compared with the network on random data, and then written atomically.

    - `.pt2`: `torch.export`, read by `torch.export.load(path).module()`.
    - `.onnx`: ONNX, read by onnxruntime, with input "x" [batch, ...] and output "logits" [batch,
      C]; needs the packages onnx and onnxscript.
    - `.safetensors`: read by `clnp.load_network(path)`; for networks of `clnp.extract` only. It is
      the only format that is safe to read from untrusted sources.

    Arguments:
        network: a plain module, e.g. from `clnp.extract`; written in evaluation mode.
        path: the file.
        example: a batch [B, ...] that the network accepts, on its device; its values aren't used.
        class_names: C names, stored as "class_names": JSON in `metadata_props` of ONNX, an extra
            file of `.pt2`, and in `meta` of the result of `load_network`.

    Returns:
        the path.

    Raises:
        ConfigError: another suffix, a missing package, or another number of names than C.
        DataError: the network doesn't accept the example.
        ExportError: the format can't express the network, or the file gives other results.
        SaveError: the file can't be written.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"path: expected a path, got {type(path).__name__}")
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"path: expected a file that ends in {' or '.join(SUFFIXES)}, got {str(path)!r}"
        )
    if not isinstance(network, nn.Module):
        raise ConfigError(f"network: expected a module, got {type(network).__name__}")
    if path.suffix == ".onnx":
        _require_onnx()
    training = network.training
    network.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            example, classes = _example(network, example)
            names = _names(class_names, classes)
            with fixed(example.device):
                _write(network, path, example, names)
    finally:
        network.train(training)
    return path


def _write(network: nn.Module, path: Path, example: Tensor, names: list[str] | None) -> None:
    attempt = _attempt(path.suffix, names)
    try:
        with replacing(path) as temporary:
            try:
                attempt(network, temporary, example)
            except ExportError as error:
                wrong = first_wrong(network, temporary, example, _attempt(path.suffix, None))
                if not wrong:
                    raise
                raise ExportError(f"{wrong}: {error}") from error
    except SaveError:
        raise
    except OSError as error:
        raise SaveError(
            f"{path} can't be written ({error}); make room or choose another folder"
        ) from error


def _attempt(suffix: str, names: list[str] | None) -> Callable[[nn.Module, Path, Tensor], None]:
    """Return a function that writes a network in one format and compares the file with it.

    Failures other than of disk and memory become ExportError.
    """
    write = {".pt2": _write_pt2, ".onnx": _write_onnx, ".safetensors": _write_safetensors}[suffix]

    def attempt(network: nn.Module, path: Path, example: Tensor) -> None:
        try:
            write(network, path, example, names)
            check_same(network, path, suffix, example)
        except (ConfigError, SaveError, ExportError, OSError):
            raise
        except Exception as error:  # exporters raise any type
            if out_of_memory(error):
                raise
            raise ExportError(
                f"{suffix}: this network can't be written: {type(error).__name__}: "
                f"{_short(error)}; {_way_out(suffix)}"
            ) from error

    return attempt


def _way_out(suffix: str) -> str:
    others = [other for other in SUFFIXES if other != suffix]
    return f"use {' or '.join(others)}, or another operation"


def _short(error: Exception) -> str:
    """Return the beginning of the first cause of an exporter's error, without colour codes."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())[:300]


def _example(network: nn.Module, example: Any) -> tuple[Tensor, int]:
    """Check the example; return zeros [4, ...] like it and C.

    An exporter would treat a batch size of 1 as constant.
    """
    if not isinstance(example, Tensor) or example.dim() < 1:
        got = f"shape {list(example.shape)}" if isinstance(example, Tensor) else repr(example)[:80]
        raise DataError(f"example: expected a tensor [B, ...], got {got}")
    tensors = [*network.parameters(), *network.buffers()]
    like = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    graph = getattr(network, "meta", {}).get(GRAPH)
    integers = graph is not None and graph.nodes[0].attrs.get("integers", False)
    wanted = torch.int64 if integers or like is None else like.dtype
    if like is not None and (like.device, wanted) != (example.device, example.dtype):
        raise DataError(
            f"example: expected {wanted} on {like.device}, like the network, got "
            f"{example.dtype} on {example.device}; convert one of them"
        )
    if graph is not None and list(example.shape[1:]) != list(graph.nodes[0].attrs["shape"][1:]):
        expected = ", ".join(map(str, ["B", *graph.nodes[0].attrs["shape"][1:]]))
        raise DataError(f"example: expected shape [{expected}], got {list(example.shape)}")
    example = example.new_zeros(4, *example.shape[1:])
    try:
        logits = network(example)
    except Exception as error:
        raise DataError(
            f"example: expected an input of the network, got {example.dtype} of shape "
            f"{list(example.shape)}: {_short(error)}"
        ) from error
    if not isinstance(logits, Tensor):
        raise DataError(f"network: expected one tensor of logits, got {type(logits).__name__}")
    return example, logits.shape[channel_axis(logits.shape)]


def _names(names: Sequence[str] | None, classes: int) -> list[str] | None:
    if names is None:
        return None
    found = [names] if isinstance(names, str) else list(names)
    if isinstance(names, str) or not all(isinstance(name, str) for name in found):
        raise ConfigError(f"class_names: expected a list of strings, got {names!r}")
    if len(found) != classes:
        raise ConfigError(f"class_names: expected {classes} names, got {len(found)}")
    return found


def _write_safetensors(
    network: nn.Module, path: Path, example: Tensor, names: list[str] | None
) -> None:
    write_network(path, network, names)


def _write_pt2(network: nn.Module, path: Path, example: Tensor, names: list[str] | None) -> None:
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network, (example,), dynamic_shapes=dynamic)
    extra = {} if names is None else {CLASS_NAMES: json.dumps(names)}
    # An open file, because torch requires a path to end in .pt2.
    with open(path, "wb") as file:
        torch.export.save(program, file, extra_files=extra)


def _require_onnx() -> None:
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f".onnx: expected {' and '.join(missing)} to be installed; pip install 'clnp[onnx]'"
        )


def _write_onnx(network: nn.Module, path: Path, example: Tensor, names: list[str] | None) -> None:
    options: dict[str, Any] = {"dynamo": True, "verbose": False}
    program = torch.onnx.export(
        network,
        (example,),
        input_names=["x"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        **options,
    )
    assert program is not None
    model = program.model_proto
    if names is not None:
        model.metadata_props.add(key=CLASS_NAMES, value=json.dumps(names))
    path.write_bytes(model.SerializeToString())
