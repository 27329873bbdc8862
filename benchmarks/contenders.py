"""Ways to train an MLP of which a part of each hidden layer is frozen, for ``benchmarks.step``.

A problem is dense weights, the fraction of active channels in each hidden layer, and a batch. Each
contender turns it into a function that makes one training step, and can return its free weights.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clnp_kernels.nn import MaskedLinear
from clnp_kernels.optim import AdamL1


@dataclass(frozen=True)
class Problem:
    """What is trained: weights and biases of all layers, their boundaries, and the data."""

    weights: list[Tensor]  # [O, I] each
    biases: list[Tensor]  # [O] each
    active: list[tuple[int, int]]  # (Ia, Oa) of each layer
    x: Tensor  # [B, I]
    labels: Tensor  # [B]
    l1: float
    lr: float
    dtype: torch.dtype  # float32, or bfloat16 for autocast

    def autocast(self) -> AbstractContextManager[None]:
        """The context in which forward and loss are computed."""
        enabled = self.dtype != torch.float32
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


def make_problem(width: int, batch: int, fraction: float, dtype: torch.dtype) -> Problem:
    """MLP 784-width-width-10 with random weights and data; interference weights are zero."""
    generator = torch.Generator().manual_seed(0)
    sizes, active = [784, width, width, 10], round(width * fraction)
    boundaries = [(784 if active else 0, active), (active, active), (active, 0)]
    weights, biases = [], []
    for i, (_, boundary) in enumerate(zip(sizes[1:], boundaries, strict=True)):
        bound = sizes[i] ** -0.5
        weight = (torch.rand(sizes[i + 1], sizes[i], generator=generator) * 2 - 1) * bound
        weight[: boundary[1], boundary[0] :] = 0
        weights.append(weight)
        biases.append((torch.rand(sizes[i + 1], generator=generator) * 2 - 1) * bound)
    x = torch.rand(batch, 784, generator=generator)
    labels = torch.randint(10, (batch,), generator=generator)
    return Problem(weights, biases, boundaries, x, labels, 1e-5, 1e-3, dtype)


class Contender(ABC):
    """One way to train; constructed from a problem, it owns copies of the weights."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @abstractmethod
    def step(self) -> None:
        """One training step: forward, loss, backward, update."""

    @abstractmethod
    def free_weights(self) -> list[Tensor]:
        """The free weights [Of, I] of each layer."""


def _dense_layers(problem: Problem) -> list[nn.Linear]:
    layers = []
    for weight, bias in zip(problem.weights, problem.biases, strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data.copy_(weight)
        layer.bias.data.copy_(bias)
        layers.append(layer)
    return layers


class Dense(Contender):
    """Plain dense PyTorch with fused Adam: no masks and no L1, so not the same computation."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        first, second, head = self.layers = _dense_layers(problem)
        self.net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), head)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=problem.lr, fused=True)

    def step(self) -> None:
        self.optimizer.zero_grad()
        with self.problem.autocast():
            loss = F.cross_entropy(self.net(self.problem.x), self.problem.labels)
        loss.backward()
        self.optimizer.step()

    def free_weights(self) -> list[Tensor]:
        pairs = zip(self.layers, self.problem.active, strict=True)
        return [layer.weight.detach()[active_out:] for layer, (_, active_out) in pairs]


class EagerMasked(Dense):
    """What is usually written: L1 in the loss, masks on gradients, frozen weights restored."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=problem.lr)
        self.masks, self.kept = [], []
        for layer, (_, active_out) in zip(self.layers, problem.active, strict=True):
            for parameter in (layer.weight, layer.bias):
                mask = torch.ones_like(parameter)
                mask[:active_out] = 0
                self.masks.append(mask)
                self.kept.append(parameter.detach().clone())

    def step(self) -> None:
        problem, parameters = self.problem, list(self.net.parameters())
        self.optimizer.zero_grad()
        with problem.autocast():
            loss = F.cross_entropy(self.net(problem.x), problem.labels)
        penalty = torch.stack([parameter.abs().sum() for parameter in parameters]).sum()
        (loss + problem.l1 * penalty).backward()
        for parameter, mask in zip(parameters, self.masks, strict=True):
            assert parameter.grad is not None
            parameter.grad.mul_(mask)
        self.optimizer.step()
        with torch.no_grad():
            for parameter, mask, kept in zip(parameters, self.masks, self.kept, strict=True):
                parameter.copy_(torch.where(mask.bool(), parameter, kept))


class _SlicedLinear(nn.Module):
    """A masked layer in plain PyTorch operators with autograd."""

    active_weight: Tensor
    active_bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, active: tuple[int, int]) -> None:
        super().__init__()
        active_in, active_out = self.active_in, self.active_out = active
        self.register_buffer("active_weight", weight[:active_out, :active_in].clone())
        self.register_buffer("active_bias", bias[:active_out].clone())
        self.free_weight = nn.Parameter(weight[active_out:].clone())
        self.free_bias = nn.Parameter(bias[active_out:].clone())

    def forward(self, x: Tensor) -> Tensor:
        free = F.linear(x, self.free_weight, self.free_bias)
        if self.active_out == 0:
            return free
        with torch.no_grad():
            active = F.linear(x[:, : self.active_in], self.active_weight, self.active_bias)
        return torch.cat([active, free], 1)


class Slices(Contender):
    """Frozen and free slices in plain PyTorch with fused Adam, L1 in the loss."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        parts = zip(problem.weights, problem.biases, problem.active, strict=True)
        first, second, head = self.layers = [_SlicedLinear(*part) for part in parts]
        self.net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), head)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=problem.lr, fused=True)

    def step(self) -> None:
        problem = self.problem
        self.optimizer.zero_grad()
        with problem.autocast():
            loss = F.cross_entropy(self.net(problem.x), problem.labels)
        penalty = torch.stack([parameter.abs().sum() for parameter in self.net.parameters()]).sum()
        (loss + problem.l1 * penalty).backward()
        self.optimizer.step()

    def free_weights(self) -> list[Tensor]:
        return [layer.free_weight.detach() for layer in self.layers]


class Ours(Contender):
    """clnp_kernels: MaskedLinear and AdamL1."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.layers = []
        dense = _dense_layers(problem)
        for layer, (active_in, active_out) in zip(dense, problem.active, strict=True):
            activation = "none" if layer is dense[-1] else "relu"
            masked = MaskedLinear.from_dense(
                layer, active_in=active_in, active_out=active_out, activation=activation
            )
            self.layers.append(masked)
        self.net = nn.Sequential(*self.layers)
        self.optimizer = AdamL1(self.net.parameters(), lr=problem.lr, l1=problem.l1)

    def step(self) -> None:
        self.optimizer.zero_grad()
        with self.problem.autocast():
            loss = F.cross_entropy(self.net(self.problem.x), self.problem.labels)
        loss.backward()
        self.optimizer.step()

    def free_weights(self) -> list[Tensor]:
        return [layer.free_weight.detach() for layer in self.layers]


CONTENDERS: dict[str, Callable[[Problem], Contender]] = {
    "eager-masked": EagerMasked,
    "dense": Dense,
    "slices": Slices,
    "ours": Ours,
}
