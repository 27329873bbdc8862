"""`MaskedConv3d`: `torch.nn.Conv3d` with a frozen block."""

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import message
from ._masked import Masked, check_added, check_boundary

Triple = int | tuple[int, int, int]


class MaskedConv3d(Masked):
    """A 3D convolution whose first Oa outputs are frozen and see only its first Ia inputs.

    Plain PyTorch on every device: two convolutions, the frozen one without gradients.

    - `active_weight` [Oa, Ia, K, K', K''] and `active_bias` [Oa]: buffers, frozen
    - `free_weight` [Of, I, K, K', K''] and `free_bias` [Of]: parameters

    The gradient with respect to the first Ia inputs is defined as zero, as in
    `clnp_kernels.ops.masked_conv2d`.

    Arguments:
        in_channels, out_channels: I and O, at least 0.
        kernel_size, stride, padding, dilation: one number or three.
        bias: have biases.
        active_in, active_out: Ia and Oa. Frozen tensors start as zeros.
        activation: "none" or "relu".
        full_input_grad: let gradients flow into active inputs too.
        device, dtype: of all tensors.

    Attributes:
        skip_active: if set, `forward` computes and returns the free outputs only.

    Raises:
        TypeError: a size is not a whole number.
        ValueError: a size or boundary is out of range, or the activation is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Triple,
        stride: Triple = 1,
        padding: Triple = 0,
        dilation: Triple = 1,
        bias: bool = True,
        *,
        active_in: int = 0,
        active_out: int = 0,
        activation: str = "none",
        full_input_grad: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(activation, full_input_grad)
        check_boundary("active_in", active_in, "in_channels", in_channels)
        check_boundary("active_out", active_out, "out_channels", out_channels)
        kernel = _triple("kernel_size", kernel_size, 1)
        self.stride = _triple("stride", stride, 1)
        self.padding = _triple("padding", padding, 0)
        self.dilation = _triple("dilation", dilation, 1)
        active, free = (active_out, active_in), (out_channels - active_out, in_channels)
        self._fill(active, free, kernel, bias, {"device": device, "dtype": dtype})

    @classmethod
    def from_dense(
        cls, conv: nn.Conv3d, *, active_in: int = 0, active_out: int = 0, activation: str = "none"
    ) -> "MaskedConv3d":
        """A masked layer with copies of the weights of `conv`, without interference.

        Raises:
            ValueError: as the constructor; or several groups, or padding that is not a number of
                zeros.
        """
        if conv.groups != 1:
            raise ValueError(message("conv.groups", conv.groups, "1"))
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            wanted = "a number of zeros on each side"
            raise ValueError(message("conv.padding", repr(conv.padding), wanted))
        triples: Any = (conv.weight.shape[2:], conv.stride, conv.padding, conv.dilation)
        kernel, stride, padding, dilation = (tuple(triple) for triple in triples)
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            kernel,
            stride,
            padding,
            dilation,
            conv.bias is not None,
            active_in=active_in,
            active_out=active_out,
            activation=activation,
            device="meta",
        )
        return layer._copy(conv)

    def to_dense(self) -> nn.Conv3d:
        """A `torch.nn.Conv3d` without the activation: all weights copied, interference zero."""
        kernel: Any = tuple(self.free_weight.shape[2:])
        geometry = (self.stride, self.padding, self.dilation)
        bias = self.free_bias is not None
        dense = nn.Conv3d(self.inputs, self.outputs, kernel, *geometry, 1, bias, device="meta")
        return self._copy_to(dense)

    def _call(self, x: Tensor, activity: bool) -> Tensor | tuple[Tensor, Tensor]:
        frozen, parts = self.active_in, []
        if not self.skip_active and self.active_out:
            with contextlib.nullcontext() if self.full_input_grad else torch.no_grad():
                parts.append(self._convolved(x[:, :frozen], self.active_weight, self.active_bias))
        if frozen and not self.full_input_grad and x.requires_grad:
            x = torch.cat([x[:, :frozen].detach(), x[:, frozen:]], dim=1)
        if self.free_weight.shape[0] or not parts:
            parts.append(self._convolved(x, self.free_weight, self.free_bias))
        return self._joined(parts, activity)

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not weight.shape[1]:  # PyTorch returns no outputs at all without inputs
            x = x.new_zeros(len(x), 1, *x.shape[2:])
            weight = weight.new_zeros(weight.shape[0], 1, *weight.shape[2:])
        return F.conv3d(x, weight, bias, self.stride, self.padding, self.dilation)

    def expand(self, out_channels: int = 0, in_channels: int = 0) -> None:
        """Add free outputs and free inputs, at the end and filled with zeros.

        The parameters are replaced: build a new optimizer.

        Raises:
            ValueError: a number is negative.
        """
        check_added(out_channels=out_channels, in_channels=in_channels)
        self._grow(out_channels, in_channels)

    def extra_repr(self) -> str:
        """Sizes, boundaries and what is not default."""
        kernel = tuple(self.free_weight.shape[2:])
        text = f"{self.inputs}, {self.outputs}, kernel_size={kernel}, stride={self.stride}"
        text += f", padding={self.padding}, dilation={self.dilation}"
        return text + self._boundaries()


def _triple(name: str, value: Triple, least: int) -> tuple[int, int, int]:
    """Three numbers. Raises ValueError for other than one number or three, at least `least`."""
    numbers = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(numbers) != 3 or min(numbers) < least:
        raise ValueError(message(name, value, f"one number or three, at least {least}"))
    return int(numbers[0]), int(numbers[1]), int(numbers[2])
