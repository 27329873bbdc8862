"""`clnp info`: what the report of a bug should say about the machine."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from clnp_kernels import info

from .environment import environment

# Optional packages and what each is for.
OPTIONAL = {
    "torchvision": "downloads, networks by name",
    "onnx": "ONNX files",
    "onnxscript": "ONNX files",
    "onnxruntime": "running ONNX files",
}


def lines() -> list[str]:
    """Versions, hardware, optional packages, and who serves each operator. No host name, user or
    path.
    """
    found = environment()
    rows: dict[str, Any] = {**found.pop("packages"), **found}
    rows |= {name: _optional(name, use) for name, use in OPTIONAL.items()}
    rows["cuda library"] = info.versions()["cuda library"]
    return [*(f"{name:15} {_text(value)}" for name, value in rows.items()), "", *info.table()]


def _text(value: Any) -> str:
    return ", ".join(value) or "none" if isinstance(value, list) else str(value)


def _optional(name: str, use: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"not installed ({use})"
