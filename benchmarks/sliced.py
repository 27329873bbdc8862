"""The design in plain PyTorch operators with autograd: frozen and free slices, joined by cat."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clnp.network.heads import Head
from clnp_kernels.nn import MaskedConv2d, MaskedLinear, PartialBatchNorm2d


class _Sliced(nn.Module):
    """A layer with copies of the frozen and of the free tensors of a masked one."""

    def __init__(self, masked: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        for name in names:
            for part in ("active", "free"):
                tensor = getattr(masked, f"{part}_{name}", None)
                if isinstance(tensor, nn.Parameter):
                    copy = nn.Parameter(tensor.detach().clone())
                    self.register_parameter(f"{part}_{name}", copy)
                else:
                    copied = None if tensor is None else tensor.clone()
                    self.register_buffer(f"{part}_{name}", copied)


class SlicedLayer(_Sliced):
    """A linear layer or convolution: x [B, I, ...] -> y [B, O, ...]."""

    active_weight: Tensor
    free_weight: nn.Parameter

    def __init__(self, masked: MaskedLinear | MaskedConv2d | Head) -> None:
        super().__init__(masked, ("weight", "bias"))
        self.depthwise = bool(getattr(masked, "depthwise", False))
        self.skip_active = bool(getattr(masked, "skip_active", False))
        if isinstance(masked, Head) and masked.free_bias is None:
            self.free_bias = masked.current_bias()  # a single head's, frozen
        self.options: dict[str, Any] = {}
        if isinstance(masked, MaskedConv2d):
            names = ("stride", "padding", "dilation")
            self.options = {name: getattr(masked, name) for name in names}

    def forward(self, x: Tensor) -> Tensor:
        active_out, active_in = self.active_weight.shape[:2]
        seen = x
        if self.depthwise:
            active_in, seen = active_out, x[:, active_out:]
        elif x.shape[1] > self.free_weight.shape[1]:
            seen = x[:, x.shape[1] - self.free_weight.shape[1] :]  # a single head
        free = self._product(seen, self.free_weight, self.free_bias)
        if active_out == 0 or self.skip_active:
            return free
        with torch.no_grad():
            active = self._product(x[:, :active_in], self.active_weight, self.active_bias)
        return torch.cat([active, free], 1)

    def _product(self, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        if weight.dim() == 2:
            return F.linear(x, weight, bias)
        groups = x.shape[1] if self.depthwise else 1
        return F.conv2d(x, weight, bias, groups=groups, **self.options)


class SlicedBatchNorm(_Sliced):
    """A batch norm of images whose first channels keep their statistics."""

    active_mean: Tensor
    active_var: Tensor
    free_mean: Tensor
    free_var: Tensor

    def __init__(self, masked: PartialBatchNorm2d) -> None:
        super().__init__(masked, ("weight", "bias", "mean", "var"))
        self.eps, self.momentum = masked.eps, masked.momentum or 0.1

    def forward(self, x: Tensor) -> Tensor:
        split = self.active_mean.shape[0]
        free = self._norm("free", x[:, split:], self.training)
        if split == 0:
            return free
        with torch.no_grad():
            active = self._norm("active", x[:, :split], False)
        return torch.cat([active, free], 1)

    def _norm(self, part: str, x: Tensor, training: bool) -> Tensor:
        mean, var, weight, bias = (
            getattr(self, f"{part}_{name}") for name in ("mean", "var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias, training, self.momentum, self.eps)


class HeldBatchNorm(nn.BatchNorm2d):
    """A batch norm whose channels that a mask names are in evaluation mode always."""

    held: Tensor  # [C] bool
    held_mean: Tensor  # [C]
    held_var: Tensor  # [C]

    @classmethod
    def from_dense(cls, norm: nn.BatchNorm2d, held: Tensor) -> HeldBatchNorm:
        """A copy of a batch norm that holds the channels of ``held`` [C]."""
        layer = cls(norm.num_features, norm.eps, norm.momentum, norm.affine)
        layer.to(device=held.device, dtype=norm.weight.dtype)
        layer.load_state_dict(norm.state_dict())
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.register_buffer("held", held)
        layer.register_buffer("held_mean", layer.running_mean.clone())
        layer.register_buffer("held_var", layer.running_var.clone())
        return layer.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not self.training:
            return y
        held = F.batch_norm(
            x, self.held_mean, self.held_var, self.weight, self.bias, False, 0.0, self.eps
        )
        return torch.where(self.held[:, None, None], held, y)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the running statistics of held channels back."""
        for running, kept in (
            (self.running_mean, self.held_mean),
            (self.running_var, self.held_var),
        ):
            assert running is not None
            running.copy_(torch.where(self.held, kept, running))
