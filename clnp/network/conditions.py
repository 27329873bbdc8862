"""Numerical conditions that affect the rounding of matrix products."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from clnp_kernels.tune.environment import driver

from ..files.checkpoint import dtype_name

ENVIRONMENT = (
    "CUBLAS_WORKSPACE_CONFIG",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
)


@contextmanager
def fixed(device: torch.device) -> Iterator[None]:
    """Switch autocast off, and let cuDNN use deterministic algorithms without benchmarking."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    if device.type == "cuda":
        cudnn.benchmark, cudnn.deterministic = False, True
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if device.type == "cuda":
            cudnn.benchmark, cudnn.deterministic = before


def conditions_of(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return the conditions that affect the bits of logits, beside weights and inputs, for JSON.

    Conditions that `fixed` sets are left out.
    """
    backends: Any = torch.backends
    found = {
        "dtype": dtype_name(dtype),
        "device": device.type,
        "torch": torch.__version__,
        "matmul precision": _precision(torch.get_float32_matmul_precision),
        "fp32 precision": _precision(lambda: backends.fp32_precision),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        **{name: os.environ.get(name, "") for name in ENVIRONMENT},
    }
    return found | (_of_cuda(device) if device.type == "cuda" else _of_cpu())


def _of_cpu() -> dict[str, Any]:
    mkldnn: Any = torch.backends.mkldnn
    return {
        "hardware": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "oneDNN": mkldnn.is_available() and mkldnn.enabled,
        "oneDNN deterministic": mkldnn.deterministic,
        "oneDNN matmul precision": _precision(lambda: mkldnn.matmul.fp32_precision),
        "oneDNN convolution precision": _precision(lambda: mkldnn.conv.fp32_precision),
        "denormal numbers": bool(torch.tensor(1e-310, dtype=torch.float64, device="cpu") != 0),
    }


def _of_cuda(device: torch.device) -> dict[str, Any]:
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    flags = (
        "fp16_reduced_precision_reduction",
        "bf16_reduced_precision_reduction",
        "fp16_accumulation",
    )
    return {
        "hardware": torch.cuda.get_device_name(device),
        "CUDA": torch.version.cuda,
        "driver": driver(),
        "cuDNN": cudnn.version() if cudnn.enabled else None,
        "CUDA matmul precision": _precision(lambda: matmul.fp32_precision),
        "cuDNN convolution precision": _precision(lambda: cudnn.conv.fp32_precision),
        "BLAS": str(torch.backends.cuda.preferred_blas_library()),
        **{flag: str(getattr(matmul, f"allow_{flag}")) for flag in flags},
    }


def _precision(read: Callable[[], str]) -> str:
    """Read a setting; torch refuses to read old settings that contradict new ones."""
    try:
        return str(read())
    except RuntimeError:
        return "mixed"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Describe each condition that differs, as "threads 1 -> 2"."""
    return tuple(
        f"{name} {before[name]!s} -> {value!s}"
        for name, value in now.items()
        if name in before and before[name] != value
    )
