"""Checkpoint format: tensors and JSON in one safetensors file, with a digest; never pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError, SaveError
from .atomic import replacing

FORMAT = "clnp-1"
MAX_JSON = 64 << 20
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
}


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        sha.update(tensor_bytes(tensor))
    return sha.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in row-major order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())


def write(
    path: str | Path, kind: str, tensors: Mapping[str, Tensor], data: Mapping[str, Any]
) -> None:
    """Write tensors and JSON data into one safetensors file, atomically.

    Arguments:
        path: the file; its folder is created if missing.
        kind: type of content ("learner", ...), checked by `read`.
        tensors: any device and layout; stored contiguous, shared storage is stored twice.
        data: anything that `json` writes.

    Raises:
        SaveError: the file can't be written (no space, no permission).
    """
    path = Path(path)
    owned = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    text = json.dumps(data)
    header = {"format": FORMAT, "kind": kind, "data": text, "sha256": _digest(text, owned)}
    try:
        with replacing(path) as temporary:
            save_file(owned, str(temporary), metadata=header)
    except (OSError, SafetensorError) as error:
        raise SaveError(
            f"{path} can't be written: {error}. The previous file is intact; make room or choose "
            "another folder, and save again"
        ) from error


def read(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `write` and verify every byte of it.

    Nothing in the file is executed or unpickled. Memory use is bounded by the size of the file.

    Returns:
        tensors on the CPU, and the JSON data.

    Raises:
        CheckpointError: no such file, damaged, of another kind, or not written by this package.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            _check_header(path, header, kind)
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        digest = _digest(header["data"], tensors)
    except CheckpointError:
        raise
    # torch raises TypeError or RuntimeError for element types that it lacks
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from error
    if digest != header["sha256"]:
        raise CheckpointError(f"{path} is damaged: its contents do not match its checksum")
    return tensors, _parsed(path, header["data"])


def _check_header(path: Path, header: Mapping[str, str], kind: str) -> None:
    if not {"format", "kind", "data", "sha256"} <= set(header):
        raise CheckpointError(f"{path} was not written by clnp")
    if header["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: expected format {FORMAT!r}, got {header['format']!r}; "
            "read it with the version of clnp that wrote it, or a newer one"
        )
    if header["kind"] != kind:
        raise CheckpointError(f"{path}: expected a {kind!r} file, got a {header['kind']!r} file")
    if len(header["data"]) > MAX_JSON:
        raise CheckpointError(f"{path}: expected a header of at most {MAX_JSON >> 20} MiB")


def _parsed(path: Path, text: str) -> dict[str, Any]:
    """Parse the JSON of a header; a valid checksum doesn't prove that `write` made it."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} was not written by clnp: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} was not written by clnp: its data isn't a JSON object")
    return data


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype in files and messages, such as "float32"."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: Any) -> torch.dtype:
    """Return the dtype of a name from a file; raises CheckpointError for an unknown name."""
    if not isinstance(name, str) or name not in DTYPES:
        raise CheckpointError(f"dtype: expected one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]
