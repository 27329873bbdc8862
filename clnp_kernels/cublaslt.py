"""Products of `masked_linear` by cuBLASLt on slices: bias, ReLU and the bias's gradient inside.

Results are written straight into the columns of the output, so nothing is joined afterwards. The
library is the one that torch has loaded (`csrc/cuda/cublaslt.h`). Where it has no way, PyTorch's
operators serve the call: pointers or rows at other than multiples of 16 bytes, and sizes that are
new within the capture of a graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .reference.channel_activity import accumulator
from .slices import masked_linear as slices
from .slices.channel_activity import channel_activity
from .support import unsupported_device
from .triton_kernels import tiles

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load() -> str:
    """Find the library that torch has loaded; return the reason why that failed, or ''."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    try:
        torch.ops.clnp_kernels_cuda.cublaslt_load(library_of(torch.version.cuda))
    except (RuntimeError, AttributeError) as error:
        return str(error).splitlines()[0]
    return ""


def library_of(cuda: str) -> str:
    """Name of the library's file for a version of CUDA."""
    return f"libcublasLt.so.{cuda.partition('.')[0]}"


def unsupported(x: Tensor) -> str:
    """Return the reason why the library can't take a tensor like `x`, or ''."""
    if x.dtype not in DTYPES:
        return f"the cuBLASLt products have no {x.dtype}"
    return unsupported_device(x.device)


def _product(
    left: Tensor,
    right: Tensor,
    out: Tensor,
    bias: Tensor | None = None,
    relu: bool = False,
    sums: Tensor | None = None,
) -> bool:
    """Fill `out` by left @ right; return False, with nothing done, where the library can't.

    Arguments:
        left, right: [M, K] and [K, N].
        out: [M, N].
        bias: [N], added.
        relu: take the ReLU of the result.
        sums: [M], filled by the sums of `left` over K; only without bias and ReLU.
    """
    tf32 = tiles.precision_of(out.dtype, conv=tiles.within_convolution()) == "tf32"
    prepare = not (out.is_cuda and torch.cuda.is_current_stream_capturing())
    done: bool = torch.ops.clnp_kernels_cuda.cublaslt_product(
        left, right, out, bias, relu, sums, tf32, prepare
    )
    return done


@torch.no_grad()
def masked_linear_fwd(
    x: Tensor,  # [B, I]
    active_weight: Tensor,  # [Oa, Ia]
    free_weight: Tensor,  # [Of, I]
    active_bias: Tensor | None,  # [Oa]
    free_bias: Tensor | None,  # [Of]
    activation: str,
    activity: bool,
) -> tuple[Tensor, Tensor]:
    """y [B, O] and its activity [O] (or an empty tensor)."""
    active_out, active_in = active_weight.shape
    y = x.new_empty(x.shape[0], active_out + free_weight.shape[0])
    parts = (
        (x[:, :active_in], active_weight, active_bias, y[:, :active_out]),
        (x, free_weight, free_bias, y[:, active_out:]),
    )
    for seen, weight, bias, out in parts:
        if out.shape[1] and not _product(seen, weight.t(), out, bias, activation == "relu"):
            biases = active_bias, free_bias
            weights = active_weight, free_weight
            return slices.masked_linear_fwd(x, *weights, *biases, activation, activity)
    sums = channel_activity(y, 1) if activity else y.new_empty(0, dtype=accumulator(y.dtype))
    return y, sums


@torch.no_grad()
def masked_linear_dgrad(
    grad_z: Tensor,  # [B, Of]
    free_weight: Tensor,  # [Of, I]
    active: int,  # Ia
) -> Tensor:
    """Gradient of the input, [B, I]: zero for active inputs."""
    grad_x = grad_z.new_empty(grad_z.shape[0], free_weight.shape[1])
    if not _product(grad_z, free_weight[:, active:], grad_x[:, active:]):
        return slices.masked_linear_dgrad(grad_z, free_weight, active)
    grad_x[:, :active].zero_()
    return grad_x


@torch.no_grad()
def masked_linear_wgrad(grad_z: Tensor, x: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    """Gradients of the free weight [Of, I] and bias [Of] (empty without `bias`), in one product.

    `grad_z` is [B, Of] and `x` [B, I].
    """
    free_out = grad_z.shape[1]
    grad_weight = grad_z.new_empty(free_out, x.shape[1])
    grad_bias = grad_z.new_empty(free_out if bias else 0)
    if not _product(grad_z.t(), x, grad_weight, sums=grad_bias if bias else None):
        return slices.masked_linear_wgrad(grad_z, x, bias)
    return grad_weight, grad_bias
