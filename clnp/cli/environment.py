"""Versions, hardware and threads: of a run, and for the report of a bug (`clnp info`)."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from clnp_kernels import info

PACKAGES = ("clnp", "torch", "triton", "numpy", "safetensors")
# Optional packages and what each is for.
OPTIONAL = {
    "torchvision": "downloads, networks by name",
    "onnx": "ONNX files",
    "onnxscript": "ONNX files",
    "onnxruntime": "running ONNX files",
}


def environment() -> dict[str, Any]:
    """{"python", "packages": {name: version or None}, "system", "cpu", "cores", "threads", "gpus",
    ...}, JSON-able.

    No host name, user, path or date.
    """
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(_gpus())],
    }


def _gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def info_lines() -> list[str]:
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
    return _version(name) or f"not installed ({use})"
