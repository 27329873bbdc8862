"""The step of an optimizer with L1 on one weight of which the first rows are frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import SEED
from benchmarks.state import L1, LR
from clnp_kernels.optim import SGDL1, AdamL1

MOMENTUM = 0.9


class OptimizerStep:
    """One step, as one of the contenders does it.

    Arguments:
        case: an `OpCase` with sizes (I, O).
        name: "ours" and "slices" hold the free rows only; "eager-masked" all of them, with masks;
            "dense" all of them, without L1.
        double: compute in float64.
    """

    def __init__(self, case: Any, name: str, double: bool = False) -> None:
        inputs, outputs = case.sizes
        generator = torch.Generator().manual_seed(SEED)
        weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        grad = torch.randn(outputs, inputs, generator=generator) * 1e-3
        dtype = torch.float64 if double else torch.float32
        self.name, self.frozen = name, case.frozen(outputs)
        self.start = self.frozen if name in ("ours", "slices") else 0
        self.weight = weight[self.start :].to(case.device, dtype).requires_grad_()
        self.grad = grad[self.start :].to(case.device, dtype)
        self.mask = torch.ones_like(self.weight.detach())
        self.mask[: self.frozen - self.start] = 0
        self.kept = self.weight.detach().clone()
        self.optimizer = self._optimizer(case.op == "adam_l1")

    def _optimizer(self, adam: bool) -> torch.optim.Optimizer:
        weights = [self.weight]
        if self.name == "ours" and adam:
            return AdamL1(weights, LR, l1=L1)
        if self.name == "ours":
            return SGDL1(weights, LR, MOMENTUM, l1=L1)
        fused = None if self.name == "eager-masked" else True
        if adam:
            return torch.optim.Adam(weights, LR, fused=fused)
        return torch.optim.SGD(weights, LR, MOMENTUM, fused=fused)

    @torch.no_grad()
    def __call__(self) -> None:
        self.weight.grad = self.grad
        if self.name == "slices":
            self.weight.grad = self.grad.add(self.weight.sign(), alpha=L1)
        if self.name == "eager-masked":
            self.weight.grad = self.grad.add(self.weight.sign(), alpha=L1).mul_(self.mask)
        self.optimizer.step()
        if self.name == "eager-masked":
            self.weight.copy_(torch.where(self.mask.bool(), self.weight, self.kept))

    def results(self) -> list[Tensor]:
        """The free weights."""
        return [self.weight.detach()[self.frozen - self.start :]]
