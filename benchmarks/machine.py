"""The machine of a measurement, and its limits."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks import served
from benchmarks.cases import DTYPES, Size
from benchmarks.harness import timed
from clnp_kernels import info

ROOT = Path(__file__).parent.parent
REPEATS = 7
RATE_SIZE = 512  # side of the products that tell whether a dtype is worth measuring


def facts(device: str) -> dict[str, Any]:
    """Date, revision, hardware and versions, as columns of a CSV file."""
    versions = info.versions()
    cuda = torch.device(device).type == "cuda"
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "revision": revision(),
        "hardware": torch.cuda.get_device_name(device) if cuda else cpu_name(),
        "cpu": versions["cpu"],
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "python": versions["python"],
        "torch": versions["torch"],
        "clnp_kernels": versions["clnp_kernels"],
        "implementation": served.implementation(device),
    }


def brief_facts() -> dict[str, Any]:
    """The few facts that a figure of accuracy needs: date, revision, processor and torch."""
    found = facts("cpu")
    return {name: found[name] for name in ("date", "revision", "cpu", "torch")}


def revision(root: Path = ROOT) -> str:
    """Git's short name of the revision, with "+" where files were changed; "" without git."""
    try:
        name = _git(root, "rev-parse", "--short", "HEAD")
        return name + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def cpu_name() -> str:
    """The processor's name and number of cores."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores"


def ceilings(dtype: str, device: str, size: Size) -> dict[str, float]:
    """The machine's own limits, measured now: GB/s of a copy (read and written), and GFLOP/s of a
    product of square matrices in a dtype.
    """
    elements = (size.copy << 20) // 4
    source, target = (torch.rand(elements, device=device) for _ in range(2))
    copy = _median(lambda: target.copy_(source))
    return {
        "copy_gbs": round(8 * elements / copy / 1e6, 3),
        "gemm_gflops": round(product_rate(dtype, device, size.gemm), 3),
    }


def product_rate(dtype: str, device: str, n: int) -> float:
    """GFLOP/s of a product of two [n, n] matrices in a dtype."""
    a, b = (torch.randn(n, n, device=device).to(DTYPES[dtype]) for _ in range(2))
    return 2 * n**3 / _median(lambda: a @ b) / 1e6


def dtypes(device: str) -> list[str]:
    """The dtypes worth measuring: a processor without instructions for bfloat16 multiplies it
    hundreds of times more slowly than float32, which says nothing about a network.
    """
    rates = {dtype: product_rate(dtype, device, RATE_SIZE) for dtype in DTYPES}
    return [dtype for dtype, rate in rates.items() if rate >= rates["fp32"] / 2]


def _median(step: Callable[[], Any]) -> float:
    """Milliseconds of a step, after two that do not count."""
    return statistics.median([timed(step)[0] for _ in range(REPEATS + 2)][2:])
