"""Small networks and data for the tests of `clnp`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clnp
from clnp.data import Task
from clnp.network.model import Model


class Functional(nn.Module):
    """A plain module with functional calls, a view and a nested block."""

    def __init__(self, inputs: int = 12, width: int = 16, classes: int = 3) -> None:
        super().__init__()
        self.inputs = inputs
        self.first = nn.Linear(inputs, width)
        self.block = nn.Sequential(
            nn.Linear(width, width + 3, bias=False), nn.ReLU(), nn.Dropout(0.2)
        )
        self.out = nn.Linear(width + 3, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(x.size(0), -1)
        x = F.relu(self.first(x))
        x = F.dropout(x, 0.1, self.training)
        return self.out(self.block(x))


class Residual(nn.Module):
    """Sums of hidden values: their channels live and die together."""

    def __init__(self, inputs: int = 12, width: int = 16, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.inner = nn.Linear(width, width // 2)
        self.outer = nn.Linear(width // 2, width)
        self.out = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.outer(torch.relu(self.inner(x)))
        return self.out(torch.relu(x))


class InputResidual(nn.Module):
    """A sum with the network's own input, whose channels can't be pruned."""

    def __init__(self, inputs: int = 12, width: int = 16, classes: int = 3) -> None:
        super().__init__()
        self.inner = nn.Linear(inputs, width)
        self.outer = nn.Linear(width, inputs)
        self.hidden = nn.Linear(inputs, width)
        self.out = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.outer(torch.relu(self.inner(x)))
        return self.out(torch.relu(self.hidden(x)))


def mlp(
    widths: list[int],
    *,
    inputs: int = 12,
    classes: int = 3,
    bias: bool = True,
    dropout: float = 0.0,
) -> nn.Sequential:
    """ReLU layers of the given widths."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width, bias), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, classes, bias))


def convert(net: nn.Module, inputs: int = 12, head: str = "multi") -> Model:
    """A quiet conversion with the given head."""
    model = clnp.convert(
        net, torch.zeros(2, inputs, dtype=next(net.parameters()).dtype), verbose=False
    )
    model.set_head(head)
    return model


def blobs(
    seed: int,
    *,
    inputs: int = 12,
    classes: int = 3,
    rows: int = 240,
    dtype: torch.dtype = torch.float32,
) -> Task:
    """A task that small networks learn quickly: noisy points around one centre per class."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, inputs, generator=generator)
    y = torch.arange(rows) % classes
    x = (centres[y] + 0.6 * torch.randn(rows, inputs, generator=generator)).to(dtype)
    third = rows // 3
    parts = [(x[i * third : (i + 1) * third], y[i * third : (i + 1) * third]) for i in range(3)]
    return Task(f"blobs-{seed}", *parts, classes=classes)


def some_steps(model: Model, steps: int = 4) -> None:
    """A few optimizer steps on random data with everything that could move frozen weights: decay,
    momentum.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    model.train()
    for _ in range(steps):
        shape = model.graph.nodes[0].attrs["shape"][1:]
        x = torch.randn(9, *shape, dtype=model.head.free_weight.dtype)
        loss = F.cross_entropy(model(x), torch.randint(model.head.classes, (9,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def random_keep(model: Model, generator: torch.Generator) -> dict[str, Tensor]:
    """Any set of free channels that a task may keep."""
    keep = {}
    for group in model.groups.prunable:
        free = model.free(group)
        least = int(
            model.active(group) == 0 or (model.head.kind == "single" and group == model.groups.last)
        )
        n = int(torch.randint(min(least, free), max(free // 2, least) + 1, (), generator=generator))
        keep[group.name] = torch.randperm(free, generator=generator)[:n].sort().values
    return keep
