"""Boundaries between the frozen and the free channels of a network of masked layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clnp_kernels.nn import MaskedConv2d, MaskedLinear, PartialBatchNorm1d, PartialBatchNorm2d

from ..errors import CapacityError, ConfigError
from ..graph.graph import Graph, build, fuse_relu
from ..graph.groups import Group, find_groups, inputs_of
from .heads import Head, MultiHead

MaskedLayer = MaskedLinear | MaskedConv2d
MASKED: dict[str, Any] = {
    "linear": MaskedLinear,
    "conv2d": MaskedConv2d,
    "depthwise_conv2d": MaskedConv2d,
    "batch_norm1d": PartialBatchNorm1d,
    "batch_norm2d": PartialBatchNorm2d,
}


@dataclass(frozen=True)
class LearnedTask:
    """What the network remembers of a learned task.

    Attributes:
        name: the task's name.
        classes: number of outputs C of its head.
        active: group name -> how many channels were active after it (its boundary).
    """

    name: str
    classes: int
    active: dict[str, int]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LearnedTask:
        """The inverse of `dataclasses.asdict`; raises KeyError, TypeError or ValueError."""
        active = {str(group): int(count) for group, count in data["active"].items()}
        return cls(str(data["name"]), int(data["classes"]), active)


class Boundaries(nn.Module):
    """Layers with a frozen and a free part, and how many channels of each group are frozen.

    Arguments:
        graph: the network's operations.
        layers: name -> dense `torch.nn` module that supplies the first weights, for every node with
            weights.
    """

    def __init__(self, graph: Graph, layers: Mapping[str, Any]) -> None:
        super().__init__()
        self.graph = graph
        self.groups = find_groups(graph)
        self.tasks: list[LearnedTask] = []
        self.in_task = False
        self.sizes = {group.name: group.size for group in self.groups.all}
        self.conversion: Any = None
        fused = fuse_relu(graph)
        masked: dict[str, Any] = {}
        for node in fused.weighted:
            dense = layers[node.name]
            if node.name == self.groups.head:
                masked[node.name] = MultiHead(dense.weight, dense.bias)
            else:
                activation = node.attrs.get("activation", "none")
                masked[node.name] = MASKED[node.op].from_dense(dense, activation=activation)
        self.net = build(fused, masked, ours=True)
        self._masked = {name: m for name, m in masked.items() if name != self.groups.head}
        self.train(any(layer.training for layer in layers.values()))

    # Layers and boundaries

    @property
    def head(self) -> Head:
        """The output layer."""
        head = self.net.get_submodule(self.groups.head)
        assert isinstance(head, Head)
        return head

    @property
    def masked(self) -> dict[str, MaskedLayer | PartialBatchNorm2d]:
        """Name -> module with a frozen and a free part, in execution order, without the head."""
        return self._masked

    @property
    def masked_layers(self) -> dict[str, MaskedLayer]:
        """The linear and convolutional ones of `masked`."""
        return {n: m for n, m in self.masked.items() if not isinstance(m, PartialBatchNorm2d)}

    @property
    def norms(self) -> dict[str, PartialBatchNorm2d]:
        """The batch norms of `masked`."""
        return {n: m for n, m in self.masked.items() if isinstance(m, PartialBatchNorm2d)}

    @property
    def layer_names(self) -> list[str]:
        """All layers with a weight matrix or filters in execution order; the head is the last."""
        return [*self.masked_layers, self.groups.head]

    @property
    def device(self) -> torch.device:
        return self.head.free_weight.device

    @property
    def is_convolutional(self) -> bool:
        """Whether the network works on images [B, C, H, W]."""
        return any("conv2d" in node.op for node in self.graph.nodes)

    def running_statistics(self) -> list[Tensor]:
        """The tensors that training moves although they are no parameters: of every batch norm the
        free channels' mean and variance [Cf], and its count of batches.
        """
        return [
            tensor
            for norm in self.norms.values()
            for tensor in (norm.free_mean, norm.free_var, norm.num_batches_tracked)
        ]

    def layer_weight(self, name: str) -> nn.Parameter:
        """The trainable weight of a layer, [Of, I] or [Of, I, K, K']."""
        if name == self.groups.head:
            return self.head.free_weight
        weight = self._masked[name].free_weight
        assert weight is not None
        return weight

    def active(self, group: Group | str) -> int:
        """How many channels of a group are frozen."""
        name = group if isinstance(group, str) else group.name
        return self.tasks[-1].active[name] if self.tasks else 0

    def free(self, group: Group | str) -> int:
        """How many channels of a group can still be claimed, by the task in training or a later
        one.
        """
        name = group if isinstance(group, str) else group.name
        if not self.groups[name].prunable:
            return 0 if self.tasks else self.sizes[name]
        producer = self.masked_layers[self.groups[name].producers[0]]
        return producer.free_weight.shape[0]

    @property
    def is_full(self) -> bool:
        """Whether the final hidden group has no free channel left."""
        return bool(self.tasks) and self.free(self.groups.last) == 0

    def check_capacity(self) -> None:
        """Raises CapacityError if no further task can be learned: with a single head every task
        needs channels of its own in the final hidden group.
        """
        if self.head.kind == "single" and self.is_full:
            last = self.groups.last.name
            raise CapacityError(
                f"all {self.sizes[last]} channels of the final hidden layer {last!r} belong to "
                "earlier tasks, so a single head has nothing to connect a new task to. Add "
                "channels with expand(), start with a wider network, or use head='multi'"
            )

    def check_task(self, task: int) -> int:
        """Returns the index of a learned task, counting from 0; negative ones count from the end.

        Raises:
            ConfigError: no such task.
        """
        learned = len(self.tasks)
        if isinstance(task, bool) or not isinstance(task, int) or not -learned <= task < learned:
            known = f"0 to {learned - 1}" if learned else "none yet"
            raise ConfigError(f"task={task!r}: expected the index of a learned task ({known})")
        return task % learned

    def width(self, layer: str, active: Mapping[str, int]) -> int:
        """Inputs of a layer when only the active channels exist."""
        group = self.groups[self.groups.reads[layer]]
        if not group.prunable:
            return inputs_of(self.graph[layer])
        return active[group.name] * self.groups.positions[layer]

    def inputs(self, layer: str) -> int:
        """Inputs of a layer when nothing is pruned; of a depthwise layer 1."""
        if layer not in self.groups.reads:
            return 1
        return self.width(layer, self.sizes)

    def frozen_inputs(self, layer: str) -> int:
        """Inputs of a layer that belong to learned tasks."""
        return self.width(layer, self.tasks[-1].active) if self.tasks else 0
