"""`MaskedConv2d`: `torch.nn.Conv2d` with a frozen block."""

from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..errors import message
from ..ops.masked_conv2d import _pairs
from ._masked import Masked, check_added, check_boundary

Pair = int | tuple[int, int]


class MaskedConv2d(Masked):
    """A 2D convolution whose first Oa outputs are frozen and see only its first Ia inputs.

    The boundaries are the shapes of its tensors; only the free ones are parameters:

    - `active_weight` [Oa, Ia, K, K'] and `active_bias` [Oa]: buffers, frozen
    - `free_weight` [Of, I, K, K'] and `free_bias` [Of]: parameters

    Depthwise (`groups` = inputs = outputs > 1) each channel has its own filter: weights
    [Ca, 1, K, K'] and [Cf, 1, K, K'], and the boundaries of inputs and outputs are one.

    With `active_in = active_out = 0` it computes exactly what `torch.nn.Conv2d` does, and is
    initialised alike. CLNP, Golkar et al. 2019, Sec. 2.1; gradients as in
    `clnp_kernels.ops.masked_conv2d`.

    Arguments:
        in_channels, out_channels: I and O, at least 0.
        kernel_size, stride, padding, dilation: one number or two.
        groups: 1, or the number of channels (depthwise).
        bias: have biases.
        active_in, active_out: Ia and Oa. Frozen tensors start as zeros.
        activation: "none" or "relu".
        full_input_grad: let gradients flow into active inputs too.
        device, dtype: of all tensors.

    Attributes:
        skip_active: if set, `forward` computes and returns the free outputs only; a depthwise
            layer then takes the last Cf channels of `x`, which may be all there are.

    Raises:
        TypeError: a size is not a whole number.
        ValueError: a size or boundary is out of range, the activation is unknown, or `groups` is
            neither 1 nor the number of channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        active_in: int = 0,
        active_out: int = 0,
        activation: str = "none",
        full_input_grad: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(activation, full_input_grad, groups > 1)
        check_boundary("active_in", active_in, "in_channels", in_channels)
        check_boundary("active_out", active_out, "out_channels", out_channels)
        if groups != 1 and not groups == in_channels == out_channels:
            wanted = f"1, or {in_channels} with as many outputs as inputs (depthwise)"
            raise ValueError(message("groups", groups, wanted, "leave this layer as it is"))
        if self.depthwise and active_in != active_out:
            wanted = f"active_out = {active_out}, as the layer is depthwise"
            raise ValueError(message("active_in", active_in, wanted))
        kernel = kernel_of(kernel_size)
        pairs = [(first, second) for first, second in _pairs(stride, padding, dilation)]
        self.stride, self.padding, self.dilation = pairs
        ins = (1, 1) if self.depthwise else (active_in, in_channels)
        active, free = (active_out, ins[0]), (out_channels - active_out, ins[1])
        self._fill(active, free, kernel, bias, {"device": device, "dtype": dtype})

    @property
    def in_channels(self) -> int:
        """I, active and free."""
        return self.inputs

    @property
    def out_channels(self) -> int:
        """O, active and free."""
        return self.outputs

    @property
    def kernel_size(self) -> tuple[int, int]:
        """K and K'."""
        return self.free_weight.shape[2], self.free_weight.shape[3]

    @classmethod
    def from_dense(
        cls, conv: nn.Conv2d, *, active_in: int = 0, active_out: int = 0, activation: str = "none"
    ) -> "MaskedConv2d":
        """A masked layer with copies of the weights of `conv`, without interference.

        Raises:
            ValueError: as the constructor; or padding that is not of zeros or not symmetric.
        """
        pairs: Any = (conv.weight.shape[2:], conv.stride, _padding(conv), conv.dilation)
        kernel, stride, padding, dilation = ((first, second) for first, second in pairs)
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            kernel,
            stride,
            padding,
            dilation,
            conv.groups,
            conv.bias is not None,
            active_in=active_in,
            active_out=active_out,
            activation=activation,
            device="meta",
        )
        return layer._copy(conv)

    def to_dense(self) -> nn.Conv2d:
        """A `torch.nn.Conv2d` without the activation: all weights copied, interference zero."""
        sizes = (self.in_channels, self.out_channels, self.kernel_size)
        geometry = (self.stride, self.padding, self.dilation)
        groups, bias = self.out_channels if self.depthwise else 1, self.free_bias is not None
        return self._copy_to(nn.Conv2d(*sizes, *geometry, groups, bias, device="meta"))

    def _call(self, x: Tensor, activity: bool) -> Tensor | tuple[Tensor, Tensor]:
        weight, bias = self.active_weight, self.active_bias
        if self.skip_active:
            # what came before may have skipped its active channels too
            x = x[:, x.shape[1] - self.free_weight.shape[0] :] if self.depthwise else x
            weight, bias = weight[:0], None if bias is None else bias[:0]
        return ops.masked_conv2d(
            x,
            weight,
            self.free_weight,
            bias,
            self.free_bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            depthwise=self.depthwise,
            activation=self.activation,
            activity=activity,
            full_input_grad=self.full_input_grad,
        )

    def expand(self, out_channels: int = 0, in_channels: int = 0) -> None:
        """Add free outputs and free inputs, at the end and filled with zeros.

        The parameters are replaced: build a new optimizer. A depthwise layer takes the same number
        twice.

        Raises:
            ValueError: a number is negative, or the numbers of a depthwise layer differ.
        """
        check_added(out_channels=out_channels, in_channels=in_channels)
        if self.depthwise and in_channels != out_channels:
            wanted = f"out_channels = {out_channels}, as the layer is depthwise"
            raise ValueError(message("in_channels", in_channels, wanted))
        self._grow(out_channels, in_channels)

    def extra_repr(self) -> str:
        """Sizes, boundaries and what is not default."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        text += f", stride={self.stride}, padding={self.padding}, dilation={self.dilation}"
        return text + self._boundaries()


def kernel_of(kernel_size: Pair) -> tuple[int, int]:
    """K and K'. Raises ValueError for other than one number or two, at least 1."""
    kernel = (kernel_size,) * 2 if isinstance(kernel_size, int) else tuple(kernel_size)
    if len(kernel) != 2 or min(kernel) < 1:
        raise ValueError(message("kernel_size", kernel_size, "one number or two, at least 1"))
    return kernel


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    """The padding of `conv` in pixels on each side."""
    if conv.padding_mode != "zeros":
        way_out = "leave this layer as it is"
        raise ValueError(message("conv.padding_mode", repr(conv.padding_mode), "'zeros'", way_out))
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if any(t % 2 for t in total):
            wanted = "the same number of zeros on both sides: an odd kernel"
            raise ValueError(message("conv.padding", "'same'", wanted, "pad in a layer before it"))
        return total[0] // 2, total[1] // 2
    return int(conv.padding[0]), int(conv.padding[1])
