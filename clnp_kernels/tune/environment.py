"""The GPU and the versions that a table of kernels holds for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..support import unsupported_device

SCHEMA = 1  # of the entries; another one is another folder
PACKAGE = Path(__file__).parent.parent
# What decides which numbers the kernels compute, and how they are checked.
SOURCES = (
    "triton_kernels/*.py",
    "tune/*.py",
    "cuda_kernels.py",
    "cublaslt.py",
    "_planes.py",
    "_cuda*.so",
)


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        device: as torch calls it; "cpu" stands for one in tests, with Triton's interpreter.
        name: of the model.
        capability: compute capability, major * 10 + minor.
        processors: multiprocessors.
        cache: bytes of the second-level cache.
        plugin: module that processes of the check import first; tests put an emulator there.
    """

    device: str
    name: str
    capability: int
    processors: int
    cache: int
    plugin: str = ""

    @property
    def index(self) -> int | None:
        """Number of the device, None for "cpu"."""
        return torch.device(self.device).index


def card_of(device: torch.device) -> Card:
    """Describe a CUDA device.

    Raises:
        ValueError: the kernels don't run on it; the text is the reason.
    """
    reason = unsupported_device(device)
    if reason:
        raise ValueError(reason)
    index = torch.cuda.current_device() if device.index is None else device.index
    found: Any = torch.cuda.get_device_properties(index)
    return Card(
        f"cuda:{index}",
        found.name,
        found.major * 10 + found.minor,
        found.multi_processor_count,
        found.L2_cache_size,
    )


def manifest(card: Card) -> dict[str, Any]:
    """Everything that results or times of the kernels depend on, for JSON."""
    cudnn: Any = torch.backends.cudnn
    return {
        "schema": SCHEMA,
        "gpu": card.name,
        "capability": card.capability,
        "processors": card.processors,
        "driver": driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cublas": _installed("nvidia-cublas-cu13", "nvidia-cublas-cu12", "nvidia-cublas"),
        "cudnn": _setting(cudnn.version),
        "triton": _installed("triton"),
        "clnp": __version__,
        "kernels": sources_digest(),
        "tf32 matmul": _setting(lambda: torch.backends.cuda.matmul.fp32_precision),
        "tf32 convolution": _setting(lambda: cudnn.conv.fp32_precision),
    }


def digest(facts: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits of a manifest."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The facts that differ, as "driver 550.1 -> 560.2, ..."."""
    names = {**one, **other}
    changed = [name for name in names if one.get(name) != other.get(name)]
    return ", ".join(f"{name} {one.get(name)} -> {other.get(name)}" for name in changed)


def driver(file: Path = Path("/proc/driver/nvidia/version")) -> str:
    """Version of NVIDIA's driver, "" without one."""
    try:
        found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", file.read_text())
    except OSError:
        return ""
    return found[0] if found else ""


@cache
def sources_digest() -> str:
    """Digest of the kernels and of their check, in this copy of the package."""
    sha = hashlib.sha256()
    for pattern in SOURCES:
        for file in sorted(PACKAGE.glob(pattern)):
            sha.update(f"{file.relative_to(PACKAGE)}|".encode() + file.read_bytes())
    return sha.hexdigest()[:16]


def _installed(*names: str) -> str | None:
    """Version of the first of these distributions that is installed."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _setting(read: Callable[[], Any]) -> str:
    """Read a setting; torch refuses to read old settings that contradict new ones, and versions
    that don't fit each other.
    """
    try:
        return str(read())
    except RuntimeError:
        return "mixed"


def to_line(card: Card) -> str:
    """A card as a line of JSON."""
    return json.dumps(asdict(card))
