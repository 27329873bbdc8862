"""Triton kernels for CUDA devices, experimental.

They have run in Triton's interpreter and have been compiled for sm_80, sm_90 and sm_100, but on no
GPU yet: `CLNP_GPU=triton` chooses them, see `chooser`. Importing this folder does not import
triton; its modules do, and the first CUDA tensor imports them. With `TRITON_INTERPRET=1` set
before that they run on CPU tensors.
"""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST = (8, 0)  # compute capability


def unsupported(x: Tensor) -> str:
    """Return the reason why these kernels can't take a tensor like `x`, or ''."""
    if x.dtype not in DTYPES:
        return f"the Triton kernels have no {x.dtype}"
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < OLDEST:
        return f"{torch.cuda.get_device_name(x.device)} is older than sm_80"
    return ""
