"""A network that has a task behind it and is in its second, for the tests of training loops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clnp
from clnp.network.model import Model
from clnp_kernels.optim import SGDL1, AdamL1
from tests.clnp.cases import random_keep

NETWORKS: dict[str, Any] = {
    "linear": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(48, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU()
    ),
    "conv": lambda: nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1, groups=12),
        nn.Conv2d(12, 8, 3, stride=2),
        nn.Flatten(),
    ),
}
"""A hidden network of each kind of layer; `network` adds the head."""

OPTIMIZERS: dict[str, Any] = {
    "AdamL1": lambda params, **more: AdamL1(params, **{"lr": 0.01, "l1": 1e-3, **more}),
    "SGDL1": lambda params, **more: SGDL1(
        params, **{"lr": 0.05, "momentum": 0.9, "l1": 1e-3, **more}
    ),
    "AdamW": lambda params, **more: torch.optim.AdamW(
        params, **{"lr": 0.01, "weight_decay": 0.1, **more}
    ),
}


def batch(seed: int, rows: int = 12, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Random images x [B, 3, 4, 4] of three classes y [B]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, 4, 4, generator=generator)
    return x.to(dtype), torch.arange(rows) % 3


@dataclass
class Case:
    """A network in its second task.

    Attributes:
        model: the network.
        x, logits: a batch and what the first task's network made of it when it was learned.
        frozen: copies of all that was frozen then.
    """

    model: Model
    x: Tensor
    logits: Tensor
    frozen: dict[str, Tensor]

    def loss(self, seed: int = 0, model: nn.Module | None = None) -> Tensor:
        x, y = batch(seed, dtype=self.x.dtype)
        net = self.model if model is None else model  # a compiled one has no truth value
        return F.cross_entropy(net(x), y)

    def step(self, optimizer: torch.optim.Optimizer, seed: int = 0) -> None:
        optimizer.zero_grad()
        self.loss(seed).backward()
        optimizer.step()

    def parameters(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]

    def check(self, model: Model | None = None) -> None:
        """The first task is what it was, and the second one can be learned."""
        model = model or self.model
        held = frozen(model)
        for name, value in self.frozen.items():
            corner = tuple(slice(size) for size in value.shape)
            assert torch.equal(held[name][corner], value)
        assert torch.equal(model.subnetwork(0, fresh=True)(self.x), self.logits)
        model.compact(random_keep(model, torch.Generator().manual_seed(2)))
        clnp.consolidate(model)
        assert torch.equal(model(self.x, task=0), self.logits)
        assert torch.isfinite(model(self.x, task=1)).all()


def frozen(model: Model) -> dict[str, Tensor]:
    """Everything that belongs to learned tasks."""
    return {
        name: value.clone()
        for name, value in model.named_buffers()
        if "active_" in name or name.endswith(("weight_0", "bias_0"))
    }


def second_task(name: str, dtype: torch.dtype = torch.float32) -> Case:
    torch.manual_seed(0)
    net = NETWORKS[name]()
    x, y = batch(99, dtype=dtype)
    with torch.no_grad():
        width = net(x.float()).shape[1]
    net = nn.Sequential(*net, nn.Linear(width, 3)).to(dtype)
    model = clnp.convert(net, x, verbose=False)
    clnp.begin_task(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.compact(random_keep(model, torch.Generator().manual_seed(0)))
    clnp.consolidate(model)
    logits = model(x, task=0).detach()
    clnp.begin_task(model, generator=torch.Generator().manual_seed(1))
    return Case(model, x, logits, frozen(model))


def same(one: Any, other: Any, **tolerance: float) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, **tolerance)
