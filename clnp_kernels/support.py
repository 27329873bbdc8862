"""Devices that the kernels for GPUs run on."""

from functools import cache

import torch

OLDEST = (8, 0)  # compute capability


@cache
def unsupported_device(device: torch.device) -> str:
    """Return the reason why our kernels can't run on a device, or '' (for a CPU too, where they
    are interpreted or emulated).
    """
    if device.type != "cuda":
        return ""
    if torch.version.hip is not None:
        return "this torch is built for ROCm; the kernels are written and checked for NVIDIA GPUs"
    if torch.cuda.get_device_capability(device) < OLDEST:
        return f"{torch.cuda.get_device_name(device)} is older than sm_80"
    return ""
