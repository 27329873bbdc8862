"""Boundaries between active and free channels in a network of masked layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clnp_kernels.nn import (
    MaskedConv2d,
    MaskedConv3d,
    MaskedEmbedding,
    MaskedGroupedConv2d,
    MaskedLinear,
    PartialBatchNorm1d,
    PartialBatchNorm2d,
    PartialLayerNorm,
    PartialPerChannel,
    PartialRMSNorm,
)

from ..errors import CapacityError, ConfigError
from ..graph.graph import Graph, build, fuse_relu, in_units
from ..graph.groups import Group, find_groups
from .heads import Head, MultiHead
from .layout import Counts, Gathering, entries, gathered

MaskedLayer = MaskedLinear | MaskedConv2d | MaskedConv3d | MaskedGroupedConv2d | MaskedEmbedding
NormAcross = PartialLayerNorm | PartialRMSNorm
Carrier = PartialBatchNorm2d | PartialPerChannel | NormAcross
MASKED: dict[str, Any] = {
    "linear": MaskedLinear,
    "conv2d": MaskedConv2d,
    "conv3d": MaskedConv3d,
    "depthwise_conv2d": MaskedConv2d,
    "grouped_conv2d": MaskedGroupedConv2d,
    "batch_norm1d": PartialBatchNorm1d,
    "batch_norm2d": PartialBatchNorm2d,
    "embedding": MaskedEmbedding,
    "layer_norm": PartialLayerNorm,
    "rms_norm": PartialRMSNorm,
}


@dataclass(frozen=True)
class LearnedTask:
    """Record of a learned task.

    Attributes:
        name: name of the task; "" if it was forgotten.
        classes: number of outputs C of its head; 0 if it was forgotten.
        active: group -> number of active units after the task (its boundary).
    """

    name: str
    classes: int
    active: dict[str, int]

    @property
    def forgotten(self) -> bool:
        """True if only the boundary is left, because later tasks stand behind it."""
        return self.classes == 0

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LearnedTask:
        """Rebuild from `dataclasses.asdict`; raises KeyError, TypeError or ValueError."""
        active = {str(group): int(count) for group, count in data["active"].items()}
        return cls(str(data["name"]), int(data["classes"]), active)


class Boundaries(nn.Module):
    """Masked layers, and the number of active channels of each group.

    Attributes:
        sizes: group -> units, active and free.
        left: group -> free units; during a task those that it still has.

    Arguments:
        graph: the network's operations.
        layers: name -> dense `torch.nn` module with the initial weights, for every node with
            weights.
    """

    def __init__(self, graph: Graph, layers: Mapping[str, Any]) -> None:
        super().__init__()
        self.graph = graph
        self.groups = find_groups(graph)
        self.tasks: list[LearnedTask] = []
        self.in_task = False
        self.sizes = {group.name: group.size for group in self.groups.all}
        self.left = dict(self.sizes)
        self.conversion: Any = None
        fused = fuse_relu(graph)
        masked: dict[str, Any] = {}
        gathers = {name: Gathering() for name in self.groups.gathers}
        for node in fused.weighted:
            dense = self._in_order(node.name, layers[node.name])
            if node.name == self.groups.head:
                masked[node.name] = MultiHead(dense.weight, dense.bias)
            elif isinstance(dense, nn.ParameterDict):
                axis, fresh = node.attrs["axis"], node.attrs["fresh"]
                masked[node.name] = PartialPerChannel(node.op, dense["weight"], axis, fresh=fresh)
            elif node.role == "norm_across" or node.op == "embedding":
                masked[node.name] = MASKED[node.op].from_dense(dense)
            else:
                activation = node.attrs.get("activation", "none")
                masked[node.name] = MASKED[node.op].from_dense(dense, activation=activation)
                if node.name in self.groups.mixes:  # all channels, free ones too, go through it
                    masked[node.name].full_input_grad = True
        self.net = build(in_units(fused), masked | gathers, kernels=True)
        self._gathers = gathers
        if not self.head.free_weight.is_meta:  # else a file is read, whose sizes may be anything
            self._arrange()
        self._masked = {name: m for name, m in masked.items() if name != self.groups.head}
        self.train(any(layer.training for layer in layers.values()))

    def _in_order(self, name: str, dense: Any) -> Any:
        """Return a layer with its outputs and inputs in the order of the layouts."""
        rows, columns = self.groups.rows.get(name), self.groups.columns.get(name)
        if not rows and not columns:
            return dense
        dense = copy.deepcopy(dense)
        with torch.no_grad():
            for key, value in [*dense.named_parameters(), *dense.named_buffers()]:
                if isinstance(dense, nn.Embedding):
                    value.data = value[:, rows]
                elif value.dim() and rows:
                    value.data = value[rows]
                if key == "weight" and columns:
                    value.data = value[:, columns]
        return dense

    def _arrange(self) -> None:
        """Let concatenations and slices follow the present boundaries."""
        stages = self.stages()
        for name, module in self._gathers.items():
            module.operation = gathered(self.groups.gathers[name], stages)

    def _disarrange(self) -> None:
        for module in self._gathers.values():
            module.operation = ("", {})

    # Layers and boundaries

    @property
    def head(self) -> Head:
        """The output layer."""
        head = self.net.get_submodule(self.groups.head)
        assert isinstance(head, Head)
        return head

    @property
    def masked(self) -> dict[str, MaskedLayer | Carrier]:
        """Name -> module with an active and a free part, in execution order, without the head."""
        return self._masked

    @property
    def masked_layers(self) -> dict[str, MaskedLayer]:
        """The linear and convolutional layers of `masked`."""
        return {n: m for n, m in self.masked.items() if not isinstance(m, Carrier)}

    @property
    def carriers(self) -> dict[str, Carrier]:
        """The batch norms and weights per channel of `masked`."""
        return {n: m for n, m in self.masked.items() if isinstance(m, Carrier)}

    @property
    def norms(self) -> dict[str, PartialBatchNorm2d]:
        """The batch norms of `masked`."""
        return {n: m for n, m in self.masked.items() if isinstance(m, PartialBatchNorm2d)}

    @property
    def layer_names(self) -> list[str]:
        """All linear and convolutional layers in execution order; the head is the last."""
        return [*self.masked_layers, self.groups.head]

    @property
    def device(self) -> torch.device:
        return self.head.free_weight.device

    @property
    def is_convolutional(self) -> bool:
        """True if the network works on images [B, C, H, W]."""
        return any("conv" in node.op for node in self.graph.nodes)

    def running_statistics(self) -> list[Tensor]:
        """Return the buffers that training changes.

        For every batch norm: mean [Cf] and variance [Cf] of the free channels, and the number of
        batches [].
        """
        return [
            tensor
            for norm in self.norms.values()
            for tensor in (norm.free_mean, norm.free_var, norm.num_batches_tracked)
        ]

    def layer_weight(self, name: str) -> nn.Parameter:
        """Return the trainable weight of a layer, [Of, I] or [Of, I, K, K']."""
        if name == self.groups.head:
            return self.head.free_weight
        weight = self._masked[name].free_weight
        assert weight is not None
        return weight

    def active(self, group: Group | str) -> int:
        """Return the number of active units of a group."""
        name = group if isinstance(group, str) else group.name
        return self.tasks[-1].active[name] if self.tasks else 0

    def free(self, group: Group | str) -> int:
        """Return the number of free units of a group.

        During a task these are the units that it trains.
        """
        return self.left[group if isinstance(group, str) else group.name]

    def _set_left(self) -> None:
        """Count what is not active as free."""
        self.left = {name: size - self.active(name) for name, size in self.sizes.items()}

    def frozen_stages(self, task: int | None = None) -> list[Counts]:
        """Return the units that each task added, up to the given one; default: the last."""
        tasks = self.tasks if task is None else self.tasks[: task + 1]
        none = dict.fromkeys(self.sizes, 0)
        before = [none, *(t.active for t in tasks)]
        return [
            {name: after.active[name] - b[name] for name in none}
            for b, after in zip(before, tasks, strict=False)
        ]

    def stages(self) -> list[Counts]:
        """Return the units that each task added, and the free ones."""
        return [*self.frozen_stages(), self.left]

    @property
    def is_full(self) -> bool:
        """True if the groups that the head reads have no free channel left."""
        return bool(self.tasks) and not any(map(self.free, self.groups.read_by_head))

    def check_capacity(self) -> None:
        """Raise CapacityError if no further task can be learned.

        With a single head, every task needs new channels in the last hidden group.
        """
        if self.head.kind == "single" and self.is_full:
            last = self.groups.last.name
            raise CapacityError(
                f"the last hidden layer {last!r}: expected free channels for a single head, got "
                f"none of {self.sizes[last]}; add channels with expand(), start with a wider "
                "network, or use head='multi'"
            )

    def check_task(self, task: int) -> int:
        """Return the index of a learned task from 0; negative indices count from the end.

        Raises:
            ConfigError: no such task.
        """
        learned = len(self.tasks)
        if isinstance(task, bool) or not isinstance(task, int) or not -learned <= task < learned:
            known = f"0 to {learned - 1}" if learned else "none yet"
            raise ConfigError(f"task: expected the index of a learned task ({known}), got {task!r}")
        task %= learned
        if self.tasks[task].forgotten:
            raise ConfigError(f"task: expected a learned task, got {task}, which was forgotten")
        return task

    @property
    def present(self) -> list[int]:
        """Indices of the learned tasks that have not been forgotten."""
        return [k for k, task in enumerate(self.tasks) if not task.forgotten]

    def width(self, layer: str, active: Counts) -> int:
        """Return the inputs of a layer if only the given active units exist."""
        return entries(self.groups.reads[layer], active)

    def outputs(self, name: str, units: Counts) -> int:
        """Return the outputs of a layer or carrier if only the given units exist."""
        return entries(self.groups.of(name), units)

    def inputs(self, layer: str) -> int:
        """Return the inputs of a layer if nothing is pruned; 1 for a depthwise layer."""
        if layer not in self.groups.reads:
            return 1
        return self.width(layer, self.sizes)

    def frozen_inputs(self, layer: str) -> int:
        """Return the number of inputs of a layer that belong to learned tasks."""
        return self.width(layer, self.tasks[-1].active) if self.tasks else 0
