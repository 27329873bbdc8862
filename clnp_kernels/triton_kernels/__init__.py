"""Triton kernels for CUDA devices, experimental.

They have run in Triton's interpreter and have been compiled for sm_80 to sm_120, but on no
GPU yet: on a user's GPU they serve once they passed their check there, see `tune`. Importing this
folder does not import triton; its modules do, and the first call that they serve imports them. With
`TRITON_INTERPRET=1` set before that they run on CPU tensors.
"""

import torch
from torch import Tensor

from ..support import unsupported_device

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unsupported(x: Tensor) -> str:
    """Return the reason why these kernels can't take a tensor like `x`, or ''."""
    if x.dtype not in DTYPES:
        return f"the Triton kernels have no {x.dtype}"
    return unsupported_device(x.device)
