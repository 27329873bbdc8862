"""`channel_activity`: how strongly each channel of a tensor is active."""

from typing import cast

from torch import Tensor

from .. import _register
from .._checks import check_tensor
from ..errors import message
from ..reference import channel_activity as reference


def _fake(x: Tensor, dim: int) -> Tensor:
    return x.new_empty(x.shape[dim], dtype=reference.accumulator(x.dtype))


def _no_gradient(ctx: object, grad: Tensor) -> tuple[None, None]:
    raise NotImplementedError(
        "channel_activity has no gradient: it measures. For an activity penalty use x.abs().sum()"
    )


_register.define(
    "channel_activity", "(Tensor x, int dim) -> Tensor", reference.channel_activity, _fake
)
_register.differentiate("channel_activity", _no_gradient, lambda ctx, inputs, output: None)
_register.vmap_by_loop("channel_activity")


def channel_activity(x: Tensor, dim: int = -1) -> Tensor:
    """Sum of `|x|` over every dimension but `dim` (CLNP, Golkar et al. 2019, Sec. 2.2).

    Divided by the number of summed elements and averaged over a data set this is the average
    activity by which a channel counts as active.

    Arguments:
        x: [..., C, ...], float32, bfloat16, float16 or float64, any strides.
        dim: the dimension of the channels.

    Returns:
        [C], float32 (float64 for a float64 `x`). No gradient flows through it.

    Raises:
        TypeError: `x` is not a dense floating-point tensor.
        ValueError: `dim` is not a dimension of `x`.
    """
    check_tensor("x", x)
    if not isinstance(dim, int):
        raise TypeError(message("dim", repr(dim), "a whole number"))
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(message("dim", dim, f"a dimension of x, whose shape is {list(x.shape)}"))
    return cast(Tensor, _register.call("channel_activity", x.detach(), dim % x.ndim))
