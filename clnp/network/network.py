"""A network of masked layers: what it computes, and the narrow networks within it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import DataError
from ..graph.graph import Graph, build, for_inference
from .boundaries import Boundaries
from .inference import check_rule, choose
from .narrow import task_layers, union_layers


class Network(Boundaries):
    """The computation of a `Model`, without the life of its tasks.

    Arguments:
        graph: the network's operations.
        layers: name -> dense `torch.nn` module that supplies the first weights, for every node with
            weights.
    """

    def __init__(self, graph: Graph, layers: Mapping[str, Any]) -> None:
        super().__init__(graph, layers)
        self.narrow_graph = for_inference(graph)  # the operations of a learned task's network
        self._narrow: dict[int, fx.GraphModule] = {}
        self._union: list[fx.GraphModule] = []  # a list, or it would be part of the state

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        self.check_input(x)
        if task is None:
            if self.in_task or not self.tasks:
                return self.net(x)
            task = len(self.tasks) - 1
        return self.subnetwork(task)(x)

    def check_input(self, x: Tensor) -> None:
        """Raises DataError unless x [B, ...] has the shape, dtype and device of this network."""
        if not isinstance(x, Tensor):
            raise DataError(f"x: expected a tensor, got {type(x).__name__}")
        shape = list(self.graph.nodes[0].attrs["shape"][1:])
        if list(x.shape[1:]) != shape or x.dim() < 1:
            wanted = ", ".join(map(str, ["B", *shape]))
            raise DataError(f"x: expected shape [{wanted}], got {list(x.shape)}")
        weight = self.head.free_weight
        if x.device != weight.device:
            raise DataError(f"x is on {x.device}, the network on {weight.device}; move one of them")
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise DataError(f"x is {x.dtype}, the network {weight.dtype}; convert one of them")

    def subnetwork(self, task: int, *, fresh: bool = False) -> fx.GraphModule:
        """The narrow network of a learned task: contiguous copies of its corner of every layer, in
        evaluation mode.

        Arguments:
            task: index of the task.
            fresh: copy anew from the frozen buffers rather than reuse the copy made before.
        """
        task = self.check_task(task)
        if fresh or task not in self._narrow:
            narrow = self._build(task_layers(self, task))
            if fresh:
                return narrow
            self._narrow[task] = narrow
        return self._narrow[task]

    def predict(self, x: Tensor, rule: str = "entropy") -> tuple[Tensor, Tensor]:
        """Task and class of examples whose task is not known: the task whose network is surest.

        Arguments:
            x: [B, ...].
            rule: "entropy" or "energy", see `clnp.network.inference.choose`.

        Returns:
            the task [B] and the class within it [B], int64.

        Raises:
            DataError: x does not fit the network.
            ConfigError: no task has been learned; an unknown rule.
        """
        check_rule(rule)
        return choose(self.all_tasks(x), rule)

    def all_tasks(self, x: Tensor) -> list[Tensor]:
        """The logits of every learned task in one pass: a task's network is a part of the next
        one's, so their common work is done once.

        Arguments:
            x: [B, ...].

        Returns:
            per task its logits [B, C], equal to `model(x, task=k)` but for rounding.

        Raises:
            DataError: x does not fit the network.
            ConfigError: no task has been learned.
        """
        self.check_input(x)
        self.check_task(-1)
        if not self._union:
            self._union.append(self._build(union_layers(self), self.groups.head))
        logits = self._union[0](x).split([task.classes for task in self.tasks], dim=-1)
        normalise = any(node.op == "log_softmax" for node in self.graph.nodes)
        return [part.log_softmax(-1) if normalise else part for part in logits]

    def _build(self, layers: Mapping[str, nn.Module], output: str = "") -> fx.GraphModule:
        return build(self.narrow_graph.up_to(output), layers).eval().requires_grad_(False)
