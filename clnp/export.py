"""Writing a network to a file that needs no training code to be read."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clnp.atomic import replacing
from clnp.errors import ConfigError, SaveError
from clnp.network_file import CLASS_NAMES, write_network

SUFFIXES = (".pt2", ".onnx", ".safetensors")
ONNX_PACKAGES = ("onnx", "onnxscript")


def export(
    network: nn.Module,
    path: str | Path,
    example: Tensor,
    *,
    class_names: Sequence[str] | None = None,
) -> Path:
    """Writes a network for any batch size, whole or not at all.

    Arguments:
        network: a plain module, e.g. from `clnp.extract`; written in evaluation mode.
        path: the file. Its ending chooses the format: `.pt2` for `torch.export`, read by
            `torch.export.load(path).module()`; `.onnx` for ONNX (needs the packages onnx and
            onnxscript), read by onnxruntime; input "x" [batch, ...], output "logits" [batch, C];
            `.safetensors`, read by `clnp.load_network(path)`, the one that may safely be read
            from strangers (of a network from `clnp.extract`).
        example: a batch [B, ...] that the network takes, on its device; its numbers do not matter.
        class_names: of the outputs, to be written too: JSON under "class_names" in the metadata of
            ONNX and among the extra files of `.pt2`; `load_network(path).meta["class_names"]`.

    Returns:
        the path.

    Raises:
        ConfigError: another ending, or a package that is needed is missing.
        SaveError: the file can't be written.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"path={str(path)!r}: expected a file that ends in {' or '.join(SUFFIXES)}"
        )
    if path.suffix == ".safetensors":
        write_network(path, network, class_names)
        return path
    # A batch of 1 would be taken for a constant.
    example = example[:1].repeat(4, *[1] * (example.dim() - 1))
    training = network.training
    network.eval()
    try:
        with replacing(path) as temporary:
            write = _write_onnx if path.suffix == ".onnx" else _write_pt2
            write(network, temporary, example, class_names)
    except OSError as error:
        raise SaveError(
            f"{path}: can't be written ({error}); make room, or name another"
        ) from error
    finally:
        network.train(training)
    return path


def _write_pt2(
    network: nn.Module, path: Path, example: Tensor, names: Sequence[str] | None
) -> None:
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network, (example,), dynamic_shapes=dynamic)
    # A file, because torch insists on the ending of a path.
    with open(path, "wb") as file:
        torch.export.save(program, file, extra_files=_named(names))


def _write_onnx(
    network: nn.Module, path: Path, example: Tensor, names: Sequence[str] | None
) -> None:
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"ONNX files need {' and '.join(missing)}: pip install 'clnp[onnx]'")
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
    written = program.model_proto
    for key, value in _named(names).items():
        written.metadata_props.add(key=key, value=value)
    path.write_bytes(written.SerializeToString())


def _named(names: Sequence[str] | None) -> dict[str, Any]:
    return {} if names is None else {CLASS_NAMES: json.dumps(list(names))}
