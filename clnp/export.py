"""Writing a network to a file that needs no clnp to be read."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clnp.atomic import replacing
from clnp.errors import CheckpointError, ConfigError

SUFFIXES = (".pt2", ".onnx")
ONNX_PACKAGES = ("onnx", "onnxscript")


def export(network: nn.Module, path: str | Path, example: Tensor) -> Path:
    """Writes a network for any batch size, whole or not at all.

    Arguments:
        network: a plain module, e.g. from `clnp.extract`; written in evaluation mode.
        path: the file. Its ending chooses the format: `.pt2` for `torch.export`, read by
            `torch.export.load(path).module()`; `.onnx` for ONNX (needs the packages onnx and
            onnxscript), read by onnxruntime; input "x" [batch, ...], output "logits" [batch, C].
        example: a batch [B, ...] that the network takes, on its device; its numbers do not matter.

    Returns:
        the path.

    Raises:
        ConfigError: another ending, or a package that is needed is missing.
        CheckpointError: the file can't be written.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"path={str(path)!r}: expected a file that ends in {' or '.join(SUFFIXES)}"
        )
    # A batch of 1 would be taken for a constant.
    example = example[:1].repeat(4, *[1] * (example.dim() - 1))
    training = network.training
    network.eval()
    try:
        with replacing(path) as temporary:
            # torch insists on the ending
            named = temporary.with_suffix(path.suffix)
            write = _write_onnx if path.suffix == ".onnx" else _write_pt2
            write(network, named, example)
            named.replace(temporary)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be written ({error})") from error
    finally:
        network.train(training)
    return path


def _write_pt2(network: nn.Module, path: Path, example: Tensor) -> None:
    dynamic = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(network, (example,), dynamic_shapes=dynamic), path)


def _write_onnx(network: nn.Module, path: Path, example: Tensor) -> None:
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"ONNX files need {' and '.join(missing)}: pip install 'clnp[onnx]'")
    options: dict[str, Any] = {"dynamo": True, "external_data": False, "verbose": False}
    torch.onnx.export(
        network,
        (example,),
        path,
        input_names=["x"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        **options,
    )
