"""A network of masked layers: its boundaries, what it computes, and the narrow ones within it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from clnp_kernels.nn import MaskedConv2d, MaskedLinear, PartialBatchNorm1d, PartialBatchNorm2d

from ..errors import CapacityError, ConfigError, DataError
from ..graph.graph import Graph, build, for_inference, fuse_relu
from ..graph.groups import Group, find_groups, inputs_of
from .heads import Head, MultiHead
from .inference import check_rule, choose
from .learned import LearnedTask
from .narrow import task_layers, union_layers

MaskedLayer = MaskedLinear | MaskedConv2d
MASKED: dict[str, Any] = {
    "linear": MaskedLinear,
    "conv2d": MaskedConv2d,
    "depthwise_conv2d": MaskedConv2d,
    "batch_norm1d": PartialBatchNorm1d,
    "batch_norm2d": PartialBatchNorm2d,
}


class Network(nn.Module):
    """What `Model` computes, without the life of its tasks.

    Arguments:
        graph: the network's operations.
        layers: name -> dense `torch.nn` module that supplies the first weights, for every node with
            weights.
    """

    def __init__(self, graph: Graph, layers: Mapping[str, Any]) -> None:
        super().__init__()
        self.graph = graph
        self.narrow_graph = for_inference(graph)  # the operations of a learned task's network
        self.groups = find_groups(graph)
        self.tasks: list[LearnedTask] = []
        self.in_task = False
        self.sizes = {group.name: group.size for group in self.groups.all}
        self._narrow: dict[int, fx.GraphModule] = {}
        self._union: list[fx.GraphModule] = []  # a list, or it would be part of the state
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

    # Calling

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
