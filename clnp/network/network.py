"""Computation of a network of masked layers, and of the narrow networks in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import DataError
from ..graph.graph import Graph, build, for_inference
from .boundaries import Boundaries
from .inference import Rule, check_rule, choose
from .layout import Counts, blocks, gathered
from .narrow import task_layers, union_layers


class Network(Boundaries):
    """Forward pass, narrow networks and task inference of a `Model`.

    Arguments:
        graph: the network's operations.
        layers: name -> dense `torch.nn` module with the initial weights, for every node with
            weights.
    """

    def __init__(self, graph: Graph, layers: Mapping[str, Any]) -> None:
        super().__init__(graph, layers)
        self.narrow_graph = for_inference(graph)  # of learned tasks, with whole concatenations
        self._narrow: dict[int, fx.GraphModule] = {}
        self._union: list[fx.GraphModule] = []  # in a list, so that it is not a submodule

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        self.check_input(x)
        if task is None:
            if self.in_task or not self.tasks:
                return self.net(x)
            task = len(self.tasks) - 1
        return self.subnetwork(task)(x)

    @property
    def input_dtype(self) -> torch.dtype:
        """Dtype of x: that of the weights, or int64 for a network that begins with an embedding."""
        integers = self.graph.nodes[0].attrs.get("integers", False)
        return torch.int64 if integers else self.head.free_weight.dtype

    @property
    def vocabulary(self) -> int:
        """Number of integers that every embedding knows; 0 for a network that reads none."""
        return min(
            (n.attrs["in_features"] for n in self.graph.nodes if n.op == "embedding"), default=0
        )

    def check_input(self, x: Tensor) -> None:
        """Raise DataError unless x [B, ...] has the shape, dtype and device of this network."""
        if not isinstance(x, Tensor):
            raise DataError(f"x: expected a tensor, got {type(x).__name__}")
        shape = list(self.graph.nodes[0].attrs["shape"][1:])
        if list(x.shape[1:]) != shape or x.dim() < 1:
            expected = ", ".join(map(str, ["B", *shape]))
            raise DataError(f"x: expected shape [{expected}], got {list(x.shape)}")
        weight = self.head.free_weight
        if x.device != weight.device:
            raise DataError(
                f"x: expected a tensor on {weight.device}, like the network, got {x.device}; move "
                "one of them"
            )
        dtype = self.input_dtype
        cast = dtype != torch.int64 and torch.is_autocast_enabled(x.device.type)
        if x.dtype != dtype and not (cast and x.is_floating_point()):
            raise DataError(
                f"x: expected {dtype}, like the network, got {x.dtype}; convert one of them"
            )

    def subnetwork(self, task: int, *, fresh: bool = False) -> fx.GraphModule:
        """Return the narrow network of a learned task, in evaluation mode.

        It has contiguous copies of the task's part of every layer.

        Arguments:
            task: index of the task.
            fresh: copy the frozen buffers anew instead of returning an earlier copy.
        """
        task = self.check_task(task)
        if fresh or task not in self._narrow:
            narrow = self._build(task_layers(self, task), self.frozen_stages(task))
            if fresh:
                return narrow
            self._narrow[task] = narrow
        return self._narrow[task]

    def predict(self, x: Tensor, rule: str | Rule = "entropy") -> tuple[Tensor, Tensor]:
        """Infer task and class of examples of unknown task: the most confident task wins.

        Arguments:
            x: [B, ...].
            rule: "entropy" or "energy", see `clnp.network.inference.choose`; or a classifier of the
                task from `clnp.calibrated`, which is right far more often.

        Returns:
            the task [B] and the class within it [B], int64.

        Raises:
            DataError: x doesn't fit the network.
            ConfigError: no task has been learned; an unknown rule, or one fitted for other tasks.
        """
        check_rule(rule)
        return choose(self.all_tasks(x), rule)

    def all_tasks(self, x: Tensor) -> list[Tensor]:
        """Compute the logits of every learned task in one pass.

        The network of a task is a part of the next task's, so shared channels are computed once.

        Arguments:
            x: [B, ...].

        Returns:
            logits [B, C], or [B, C, H, W] and the like, per task, equal to `model(x, task=k)` up to
            rounding; [B, 0] of a forgotten task.

        Raises:
            DataError: x doesn't fit the network.
            ConfigError: no task has been learned.
        """
        self.check_input(x)
        self.check_task(-1)
        if not self._union:
            self._union.append(
                self._build(union_layers(self), self.frozen_stages(), self.groups.logits)
            )
        axis = self.groups.class_axis
        logits = self._union[0](x).split([task.classes for task in self.tasks], dim=axis)
        normalise = any(node.op == "log_softmax" for node in self.graph.nodes)
        return [part.log_softmax(axis) if normalise else part for part in logits]

    def narrowed_graph(self, stages: Sequence[Counts]) -> Graph:
        """Return the operations of a network of the units that each stage adds."""
        units = {name: sum(stage[name] for stage in stages) for name in self.sizes}
        nodes = []
        for node in self.narrow_graph.nodes:
            if node.name in self.groups.gathers:
                op, attrs = gathered(self.groups.gathers[node.name], [units])
                node = replace(node, op=op, attrs=attrs)
            elif node.role == "norm_across":
                found = blocks(self.groups.of(node.name), stages)
                node = replace(node, attrs=node.attrs | found)
            nodes.append(node)
        return Graph(tuple(nodes), self.narrow_graph.output)

    def graph_of_task(self, task: int) -> Graph:
        """Return the operations of a learned task's network."""
        return self.narrowed_graph(self.frozen_stages(self.check_task(task)))

    def _build(
        self, layers: Mapping[str, nn.Module], stages: Sequence[Counts], output: str = ""
    ) -> fx.GraphModule:
        graph = self.narrowed_graph(stages).up_to(output)
        return build(graph, layers).eval().requires_grad_(False)
