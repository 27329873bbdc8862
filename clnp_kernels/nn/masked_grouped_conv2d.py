"""`MaskedGroupedConv2d`: `torch.nn.Conv2d` of several groups, of which the first are frozen."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import message
from ..ops.masked_conv2d import _pairs
from ._masked import Masked, check_added, check_boundary, check_index
from .masked_conv2d import Pair, _padding, kernel_of


class MaskedGroupedConv2d(Masked):
    """A 2D convolution of G groups, each of which reads channels of its own; the first Ga are
    frozen.

    Groups are independent, so there is no interference, and frozen groups read frozen channels
    only. Plain PyTorch on every device: two grouped convolutions, the frozen one without gradients.

    - `active_weight` [Oa, I / G, K, K'] and `active_bias` [Oa]: buffers, frozen
    - `free_weight` [Of, I / G, K, K'] and `free_bias` [Of]: parameters

    Arguments:
        in_channels, out_channels: I and O, multiples of G.
        kernel_size, stride, padding, dilation: one number or two.
        groups: G, at least 1.
        bias: have biases.
        active_groups: Ga. Frozen tensors start as zeros.
        activation: "none" or "relu".
        device, dtype: of all tensors.

    Attributes:
        skip_active: if set, `forward` computes and returns the free outputs only, of the last
            channels of `x`, which may be all there are.

    Raises:
        TypeError: a size is not a whole number.
        ValueError: a size or boundary is out of range, or the activation is unknown.
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
        active_groups: int = 0,
        activation: str = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(activation, False, depthwise=True)
        check_boundary("active_groups", active_groups, "groups", groups)
        for name, size in (("in_channels", in_channels), ("out_channels", out_channels)):
            if groups < 1 or size < 1 or size % groups:
                raise ValueError(message(name, size, f"a multiple of groups = {groups}"))
        kernel = kernel_of(kernel_size)
        pairs = [(first, second) for first, second in _pairs(stride, padding, dilation)]
        self.stride, self.padding, self.dilation = pairs
        self.per_group = in_channels // groups, out_channels // groups
        ins, outs = self.per_group
        active, free = (active_groups * outs, ins), ((groups - active_groups) * outs, ins)
        self._fill(active, free, kernel, bias, {"device": device, "dtype": dtype})

    @property
    def active_in(self) -> int:
        """Inputs of the frozen groups."""
        ins, outs = self.per_group
        return self.active_out // outs * ins

    @property
    def inputs(self) -> int:
        """I, active and free."""
        ins, outs = self.per_group
        return self.outputs // outs * ins

    @classmethod
    def from_dense(
        cls, conv: nn.Conv2d, *, active_groups: int = 0, activation: str = "none"
    ) -> "MaskedGroupedConv2d":
        """A layer with copies of the weights of `conv`.

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
            active_groups=active_groups,
            activation=activation,
            device="meta",
        )
        return layer._copy(conv)

    def to_dense(self) -> nn.Conv2d:
        """A `torch.nn.Conv2d` without the activation, with copies of all weights."""
        kernel = (self.free_weight.shape[2], self.free_weight.shape[3])
        groups, bias = self.outputs // self.per_group[1], self.free_bias is not None
        geometry = (self.stride, self.padding, self.dilation)
        conv = nn.Conv2d(self.inputs, self.outputs, kernel, *geometry, groups, bias, device="meta")
        return self._copy_to(conv)

    def _call(self, x: Tensor, activity: bool) -> Tensor | tuple[Tensor, Tensor]:
        frozen = self.active_in
        free = x[
            :, x.shape[1] - self.free_weight.shape[0] // self.per_group[1] * self.per_group[0] :
        ]
        parts = []
        if not self.skip_active and frozen:
            with torch.no_grad():
                parts.append(self._convolved(x[:, :frozen], self.active_weight, self.active_bias))
        if self.free_weight.shape[0] or not parts:
            parts.append(self._convolved(free, self.free_weight, self.free_bias))
        return self._joined(parts, activity)

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        groups = weight.shape[0] // self.per_group[1]
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, groups)

    def expand(self, out_channels: int = 0, in_channels: int = 0) -> None:
        """Add free groups at the end, filled with zeros; the inputs follow from the outputs.

        The parameters are replaced: build a new optimizer.

        Raises:
            ValueError: the number is negative, or no multiple of the outputs of a group.
        """
        check_added(out_channels=out_channels)
        if out_channels % self.per_group[1]:
            raise ValueError(message("out_channels", out_channels, self._whole_groups()))
        self._grow(out_channels, 0)

    def _whole_groups(self) -> str:
        return f"whole groups of {self.per_group[1]} outputs"

    def _kept(self, keep_out: Tensor, keep_in: Tensor) -> tuple[Tensor, Tensor]:
        """`keep_out` on the layer's device, and the free weights of these outputs."""
        device, outs = self.free_weight.device, self.per_group[1]
        keep_out = check_index("keep_out", keep_out, self.free_weight.shape[0]).to(device)
        places = torch.arange(len(keep_out), device=device) % outs
        blocks = keep_out.div(outs, rounding_mode="floor")
        if len(keep_out) % outs or not torch.equal(
            keep_out, blocks.view(-1, outs)[:, :1].expand(-1, outs).flatten() * outs + places
        ):
            raise ValueError(message("keep_out", keep_out.tolist(), self._whole_groups()))
        return keep_out, self.free_weight.detach()[keep_out]

    def extra_repr(self) -> str:
        """Sizes, boundaries and what is not default."""
        text = f"{self.inputs}, {self.outputs}, groups={self.outputs // self.per_group[1]}"
        text += f", stride={self.stride}, padding={self.padding}, dilation={self.dilation}"
        return f"{text}, active_out={self.active_out}{self._activation_text()}"

    def _nonsense(self, shapes: Mapping[str, list[int]]) -> str:
        """Describe the first wrong shape of a state, or return ''."""
        ins, outs = self.per_group
        for part in ("active", "free"):
            name = f"{part}_weight"
            rest = [ins, *self.free_weight.shape[2:]]
            shape, bias = shapes[name], shapes.get(f"{part}_bias")
            if shape[1:] != rest or shape[0] % outs:
                return message(f"{name}.shape", shape, f"{self._whole_groups()}, then {rest}")
            if bias is not None and bias != shape[:1]:
                return message(f"{part}_bias.shape", bias, f"{shape[:1]}, the outputs of {name}")
        return ""
