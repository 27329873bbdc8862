"""HAT (Serrà et al., ICML 2018, arXiv:1801.01423): hard attention to the task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..data.batches import count
from ..data.task import Task
from ..errors import ConfigError
from ..graph.groups import Groups, Layout, find_groups
from .method import Batch, Method
from .options import Options, number
from .state import prefixed, without

NO_HIDDEN = Groups((), {}, {}, {}, {}, "", "", 1)  # of a network that is an output layer alone
Gates = dict[str, Tensor]  # group of channels -> [units]
LARGEST_PRODUCT, LARGEST_EMBEDDING = 50.0, 6.0  # as the authors clamp them


class HAT(Method):
    """Every task learns a gate per channel, sigmoid(s e); channels that earlier tasks use hardly
    take gradients.

    A gate multiplies its channel wherever a layer reads it. In each epoch the slope s grows from
    1 / `smax` to `smax`, which makes the gates nearly 0 or 1 (Sec. 2.4, 2.5). The gradient of a
    weight from channel j to channel i is multiplied by 1 - min(a_i, a_j), with the largest gates a
    of all earlier tasks. A penalty `c` on the channels that no earlier task uses keeps room
    (Sec. 2.6). Gates are not exactly 0 or 1, so earlier tasks may move a little.

    Biases of a channel are scaled by 1 - a_i, and batch norms use frozen statistics after the first
    task; the paper's networks have no batch norms.

    Raises:
        ConfigError: (when made) a network whose layers `clnp.convert` refuses or divides, so that
            their channels are unknown.
    """

    name = "hat"
    options: ClassVar[Options] = {
        "smax": number(400.0, "largest slope of the gates", 1),
        "c": number(0.75, "penalty on channels that no earlier task uses", 0),
    }
    # Adam would divide a scaled gradient by its own size, and undo the protection.
    fixed: ClassVar[Mapping[str, Any]] = {"optimizer": "sgd", "lr": 0.05}

    def prepare(self) -> None:
        graph = self.net.graph
        if graph is None and self.net.hidden_parameters():
            raise ConfigError(
                "method 'hat': expected a network whose layers clnp.convert takes as they are, "
                "since each has to know the channels that it reads, got another (GroupNorm is one)"
            )
        if self.settings.optimizer != "sgd":
            raise ConfigError(
                f"optimizer: expected 'sgd' for method 'hat', got {self.settings.optimizer!r}, "
                "which undoes the scaling of gradients"
            )
        self.groups: Groups = NO_HIDDEN if graph is None else find_groups(graph)
        like = next(self.net.parameters())
        self.embeddings = {
            group.name: nn.Parameter(like.new_zeros(group.size)) for group in self.groups.prunable
        }
        self.slope, self.steps = self.o["smax"], 0
        self._gates: Gates | None = None
        for name in self.groups.reads:
            self._module(name).register_forward_pre_hook(self._gate(name))

    def _module(self, name: str) -> nn.Module:
        return self.net.get_submodule(f"net.{name}")

    def _gate(self, name: str) -> Any:
        axis = 1 if isinstance(self._module(name), nn.Conv1d | nn.Conv2d) else -1

        def gate(module: nn.Module, args: tuple[Any, ...]) -> Any:
            if self._gates is None:
                return None
            x = args[0]
            shape = [1] * x.dim()
            shape[axis] = x.shape[axis]
            return (x * self._inputs(name, self._gates, 1.0).view(shape).to(x.dtype), *args[1:])

        return gate

    # Channels as the layers have them

    def _inputs(self, name: str, gates: Gates, given: float) -> Tensor:
        """Values of the channels that a layer reads, in its own order; `given` for the inputs."""
        return _placed(
            self._along(self.groups.reads[name], gates, given), self.groups.columns, name
        )

    def _outputs(self, name: str, gates: Gates, given: float) -> Tensor:
        """Values of the channels that a layer makes, in its own order."""
        return _placed(self._along(self.groups.of(name), gates, given), self.groups.rows, name)

    def _along(self, layout: Layout, gates: Gates, given: float) -> Tensor:
        parts = []
        for group, each in layout:
            units = gates.get(group)
            if units is None:
                units = next(self.net.parameters()).new_full((self.groups[group].size,), given)
            parts.append(units.repeat_interleave(each))
        return torch.cat(parts)

    # Gates

    def gates(self, task: int) -> Gates:
        """The gates of a task, at the largest slope."""
        names = list(self.embeddings)
        if task == self.task:
            return {name: self._open(name, self.o["smax"]).detach() for name in names}
        return {name: self.memory[f"gate.{task}.{name}"] for name in names}

    def _open(self, name: str, slope: float) -> Tensor:
        return torch.sigmoid(slope * self.embeddings[name])

    @contextmanager
    def gated(self, gates: Gates) -> Iterator[None]:
        """Inside, layers read their inputs through the gates."""
        self._gates = gates
        try:
            yield
        finally:
            self._gates = None

    def used(self) -> Gates:
        """The largest gates of all earlier tasks; empty during the first."""
        return without("used.", self.memory)

    # Training

    def begin(self, task: Task) -> None:
        with torch.no_grad():
            for embedding in self.embeddings.values():
                embedding.normal_()

    def start_epoch(self, task: Task, epoch: int) -> None:
        self.seen = 0
        self.steps = max(math.ceil(count(task.train) / self.settings.batch_size), 1)
        self.keep_statistics()

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        least, most = 1 / self.o["smax"], self.o["smax"]
        self.slope = least + (most - least) * self.seen / max(self.steps - 1, 1)
        self.seen += 1
        result = super().step(batch)
        with torch.no_grad():
            for embedding in self.embeddings.values():
                embedding.clamp_(-LARGEST_EMBEDDING, LARGEST_EMBEDDING)
        return result

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        gates = {name: self._open(name, self.slope) for name in self.embeddings}
        with self.gated(gates):
            loss, logits = super().loss(batch)
        used = self.used()
        free = {name: 1 - used[name] if used else torch.ones_like(g) for name, g in gates.items()}
        total = sum(float(f.sum()) for f in free.values())
        claimed = sum((gates[name] * free[name]).sum() for name in gates)
        return loss + self.o["c"] * claimed / max(total, 1e-12), logits

    def adjust(self) -> None:
        """Gradients of weights in use are scaled down, those of the gates made up for the slope."""
        used = self.used()
        if used:
            for name in (*self.groups.reads, *self.groups.carries):
                self._protect(name, used)
        most = self.o["smax"]
        for embedding in self.embeddings.values():
            e, slope = embedding.detach(), self.slope
            steep = torch.cosh((slope * e).clamp(-LARGEST_PRODUCT, LARGEST_PRODUCT)) + 1
            if embedding.grad is not None:
                embedding.grad.mul_(most / slope * steep / (torch.cosh(e) + 1))

    def _protect(self, name: str, used: Gates) -> None:
        """Scale the gradients of a layer (Eq. 2 of the paper)."""
        module, head = self._module(name), name == self.groups.head
        if head and self.net.kind == "multi":
            return  # each task has its own
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        rows = None if head else self._outputs(name, used, 1.0)
        for p in (weight, bias):
            if p is None or p.grad is None:
                continue
            own = p.new_ones(p.shape[0]) if rows is None else rows
            own = own.view(-1, *[1] * (p.dim() - 1))
            if p.dim() > 1 and name in self.groups.reads:
                columns = self._inputs(name, used, 1.0).view(1, -1, *[1] * (p.dim() - 2))
                own = torch.minimum(own, columns)
            p.grad.mul_(1 - own)

    def end(self, task: Task) -> None:
        for name, gate in self.gates(self.task).items():
            self.memory[f"gate.{self.task}.{name}"] = gate
            used = self.memory.get(f"used.{name}")
            self.memory[f"used.{name}"] = gate if used is None else torch.maximum(used, gate)

    # The rest of a method

    def predictor(self, task: int) -> nn.Module:
        return _Gated(self, task)

    def make_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer_over({**self.net.trainable(), **self._named()})

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return {**super().named_parameters(), **self._named()}

    def _named(self) -> dict[str, nn.Parameter]:
        return {f"embedding.{name}": e for name, e in self.embeddings.items()}

    def state(self) -> dict[str, Tensor]:
        return super().state() | prefixed(
            "embedding.", {name: e.detach() for name, e in self.embeddings.items()}
        )

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_state({n: t for n, t in state.items() if not n.startswith("embedding.")})
        with torch.no_grad():
            for name, value in without("embedding.", state).items():
                self.embeddings[name].copy_(value)


class _Gated(nn.Module):
    """The network of one task: x -> its logits."""

    def __init__(self, method: HAT, task: int) -> None:
        super().__init__()
        self.net, self.task = method.net, task
        self._method = [method]  # in a list, so that it is looked up when it is called

    def forward(self, x: Tensor) -> Tensor:
        method = self._method[0]
        with method.gated(method.gates(self.task)):
            logits: Tensor = self.net(x, self.task)
        return logits


def _placed(values: Tensor, orders: Mapping[str, list[int]], name: str) -> Tensor:
    """Values in the order of the dense layer."""
    if name not in orders:
        return values
    placed = torch.empty_like(values)
    return placed.index_copy(0, torch.tensor(orders[name], device=values.device), values)
