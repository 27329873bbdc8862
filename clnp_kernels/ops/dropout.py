"""`dropout`: dropout that remembers one number instead of a mask."""

from typing import Any, cast

import torch
from torch import Tensor

from .. import _register
from .._checks import check_tensor
from ..errors import message
from ..reference import dropout as reference

_SEEDS = 1 << 62


def _fake(x: Tensor, seed: Tensor, p: float) -> Tensor:
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, seed, ctx.p = inputs
    ctx.save_for_backward(seed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    # Linear in x, so the gradient goes through the same mask.
    return _register.call("dropout", grad, *ctx.saved_tensors, ctx.p), None, None


_register.define("dropout", "(Tensor x, Tensor seed, float p) -> Tensor", reference.dropout, _fake)
_register.differentiate("dropout", _backward, _setup)
_register.vmap_by_loop("dropout")


def dropout(x: Tensor, p: float = 0.5) -> Tensor:
    """Zero each element with probability `p` and divide the others by `1 - p` (Srivastava et
    al. 2014).

    Which elements are dropped follows from one number that PyTorch's generator of the CPU gives,
    and from their places: the numbers of Philox4x32-10 (Salmon et al. 2011). So no mask is kept for
    the gradient, and the result is the same for any number of threads and on every device.

    Arguments:
        x: any shape, float32, bfloat16, float16 or float64, any strides.
        p: 0 <= p < 1, in steps of 1 / 65536.

    Returns:
        contiguous, like `x` otherwise; with the gradient of the elements that stay.

    Raises:
        TypeError: `x` is not a dense floating-point tensor, or `p` no number.
        ValueError: `p` is out of range.
    """
    check_tensor("x", x)
    if isinstance(p, bool) or not isinstance(p, (int, float)):
        raise TypeError(message("p", repr(p), "a number"))
    if not 0 <= p < 1:
        raise ValueError(message("p", p, "0 <= p < 1"))
    seed = torch.randint(_SEEDS, (1,), dtype=torch.int64)
    return cast(Tensor, _register.call("dropout", x, seed, float(p)))
