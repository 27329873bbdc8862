"""Cases and the float64 oracle of masked_conv2d."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FORMATS = {"planes": torch.contiguous_format, "channels_last": torch.channels_last}


class Case(NamedTuple):
    """Sizes of a convolution: B, (Ia, If), (Oa, Of), (H, W), kernel and geometry."""

    batch: int
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    size: tuple[int, int]
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    depthwise: bool = False

    @property
    def geometry(self) -> dict[str, Any]:
        """Keywords of masked_conv2d."""
        names = ("stride", "padding", "dilation", "depthwise")
        return {name: getattr(self, name) for name in names}


CASES = {
    "even": Case(4, (8, 8), (8, 8), (8, 8), padding=(1, 1)),
    "odd": Case(3, (3, 4), (2, 7), (9, 6), (3, 2), (2, 1), (1, 2), (1, 2)),
    "pointwise": Case(2, (5, 6), (7, 3), (5, 4), (1, 1)),
    "one pixel": Case(3, (2, 3), (4, 2), (3, 3)),
    "one": Case(1, (1, 1), (1, 1), (1, 1), (1, 1)),
    "gray": Case(2, (0, 1), (3, 2), (5, 5)),
    "depthwise": Case(3, (3, 5), (3, 5), (7, 6), (3, 3), (2, 1), (1, 1), depthwise=True),
    "depthwise free": Case(2, (0, 4), (0, 4), (5, 5), depthwise=True),
    "depthwise frozen": Case(2, (4, 0), (4, 0), (5, 5), depthwise=True),
    "no images": Case(0, (2, 3), (3, 2), (5, 5)),
    "nothing frozen": Case(2, (0, 5), (0, 6), (6, 6)),
    "everything frozen": Case(2, (5, 0), (6, 0), (6, 6)),
    "no active inputs": Case(2, (0, 4), (3, 2), (5, 5)),
    "no active outputs": Case(2, (3, 2), (0, 4), (5, 5)),
    "no free inputs": Case(2, (4, 0), (3, 2), (5, 5)),
    "no inputs": Case(2, (0, 0), (3, 2), (5, 5)),
    "no outputs": Case(2, (3, 2), (0, 0), (5, 5)),
}


class Arguments(NamedTuple):
    """Tensors of masked_conv2d."""

    x: Tensor
    active_weight: Tensor
    free_weight: Tensor
    active_bias: Tensor | None
    free_bias: Tensor | None

    def to(self, dtype: torch.dtype) -> "Arguments":
        """The same numbers in another dtype."""
        return Arguments(*(None if t is None else t.to(dtype) for t in self))


def random_arguments(
    case: Case, dtype: torch.dtype, bias: bool, layout: str, generator: torch.Generator
) -> Arguments:
    """Fresh random arguments; the images have the format `layout`."""

    def randn(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype)

    (active_in, free_in), (active_out, free_out) = case.inputs, case.outputs
    x = randn(case.batch, active_in + free_in, *case.size)
    ins = (1, 1) if case.depthwise else (active_in, active_in + free_in)
    weights = randn(active_out, ins[0], *case.kernel), randn(free_out, ins[1], *case.kernel)
    biases = (randn(active_out), randn(free_out)) if bias else (None, None)
    # .contiguous() leaves one channel as it is
    images = torch.empty(x.shape, dtype=dtype, memory_format=FORMATS[layout]).copy_(x)
    return Arguments(images, *weights, *biases)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, case: Case) -> Tensor:
    """F.conv2d, or what it would say of no channels and no images."""
    geometry = (case.stride, case.padding, case.dilation)
    if x.numel() and weight.numel():
        return F.conv2d(x, weight, bias, *geometry, x.shape[1] if case.depthwise else 1)
    like = F.conv2d(
        x.new_zeros(1, 1, *x.shape[2:]), x.new_zeros(1, 1, *case.kernel), None, *geometry
    )
    y = like.new_zeros(x.shape[0], weight.shape[0], *like.shape[2:]) + 0 * (x.sum() + weight.sum())
    return y if bias is None else y + bias[:, None, None]


def masked_conv2d(arguments: Arguments, case: Case, activation: str = "none") -> Tensor:
    """y [B, O, H', W'], differentiable, by slices in plain PyTorch at the arguments' dtype."""
    x, active_weight, free_weight, active_bias, free_bias = arguments
    active = case.inputs[0]
    front = plain(x[:, :active], active_weight, active_bias, case)
    back = plain(x[:, active:] if case.depthwise else x, free_weight, free_bias, case)
    y = torch.cat([front, back], 1)
    return y.relu() if activation == "relu" else y
