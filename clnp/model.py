"""The masked network: one set of layers that learns task after task, and a narrow network for every
learned task.

Life of a task: `begin_task` re-initialises the free weights; any training loop updates
    `parameters()`; `compact` drops the
channels that pruning left out; `consolidate` freezes what is left and gives the dropped channels
back as free capacity.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, fx, nn

from clnp.errors import CapacityError, CheckpointError, ConfigError, DataError
from clnp.graph import Graph, build, fuse_relu, plain_linear
from clnp.groups import Group, find_groups
from clnp.heads import HEADS, Head, MultiHead
from clnp.learned import LearnedTask, check_shapes
from clnp.pruning import Keep, check_keep, columns, head_columns, pruned_layers, rows
from clnp_kernels.nn import MaskedLinear


class Model(nn.Module):
    """A network of masked layers; made by `clnp.convert`.

    Arguments:
        graph: the network's operations.
        layers: layer name -> dense `torch.nn.Linear` that supplies its first weights.

    Calling it:
        `model(x)`: while a task is being learned, and before the first one, the whole network in
            training; otherwise the network of the task learned last.
        `model(x, task=k)`: the network of learned task k: a narrow plain network in evaluation
        mode, whose logits
            never change again (bit for bit, for the same batch, dtype, device and number of
            threads).
        Raises DataError where x does not fit the network, ConfigError for an unknown task.
    """

    def __init__(self, graph: Graph, layers: Mapping[str, nn.Linear]) -> None:
        super().__init__()
        self.graph = graph
        self.groups = find_groups(graph)
        self.tasks: list[LearnedTask] = []
        self.in_task = False
        self.sizes = {group.name: group.size for group in self.groups.all}
        self._narrow: dict[int, fx.GraphModule] = {}
        self.conversion: Any = None
        fused = fuse_relu(graph)
        masked: dict[str, nn.Module] = {}
        for node in fused.layers:
            dense = layers[node.name]
            if node.name == self.groups.head:
                masked[node.name] = MultiHead(dense.weight, dense.bias)
            else:
                activation = node.attrs.get("activation", "none")
                masked[node.name] = MaskedLinear.from_dense(dense, activation=activation)
        self.net = build(fused, masked)
        self.train(any(layer.training for layer in layers.values()))

    # Layers and boundaries

    @property
    def head(self) -> Head:
        """The output layer."""
        head = self.net.get_submodule(self.groups.head)
        assert isinstance(head, Head)
        return head

    @property
    def masked_layers(self) -> dict[str, MaskedLinear]:
        """Layer name -> masked layer, in execution order, without the head."""
        return {name: self._layer(name) for name in self.groups.makes}

    def _layer(self, name: str) -> MaskedLinear:
        layer = self.net.get_submodule(name)
        assert isinstance(layer, MaskedLinear)
        return layer

    @property
    def layer_names(self) -> list[str]:
        """All layers with weights in execution order; the head is the last."""
        return [*self.groups.makes, self.groups.head]

    def layer_weight(self, name: str) -> nn.Parameter:
        """The trainable weight of a layer, [Of, I]."""
        return (self.head if name == self.groups.head else self._layer(name)).free_weight

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

    def set_head(self, kind: str) -> None:
        """Chooses "multi" or "single" head; possible until the first task is learned.

        Raises:
            ConfigError: unknown kind, or a task was already learned with another.
        """
        if kind not in HEADS:
            raise ConfigError(f"head={kind!r}: expected one of {sorted(HEADS)}")
        if kind == self.head.kind:
            return
        if self.tasks:
            raise ConfigError(
                f"head={kind!r}: this network has already learned {len(self.tasks)} task(s) with a "
                f"{self.head.kind} head; convert a new network"
            )
        if kind == "single" and not self.groups.last.prunable:
            raise ConfigError(
                "head='single' needs a hidden layer before the output layer to divide among the "
                "tasks; use head='multi'"
            )
        self._swap_head(kind)

    def _swap_head(self, kind: str) -> None:
        old = self.head
        bias = None if old.free_bias is None else old.free_bias.detach()
        self.net.set_submodule(self.groups.head, HEADS[kind](old.free_weight.detach(), bias))

    # Calling

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        self._check_input(x)
        if task is None:
            if self.in_task or not self.tasks:
                return self.net(x)
            task = len(self.tasks) - 1
        return self.subnetwork(task)(x)

    def _check_input(self, x: Tensor) -> None:
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
            narrow = build(self.graph, self._task_layers(task)).eval().requires_grad_(False)
            if fresh:
                return narrow
            self._narrow[task] = narrow
        return self._narrow[task]

    def _task_layers(self, task: int) -> dict[str, nn.Module]:
        bounds = self.tasks[task].active
        before = self.tasks[task - 1].active if task else dict.fromkeys(bounds, 0)
        last, head = self.groups.last.name, self.head
        own_only = head.kind == "single" and self.groups.only_feeds_head()
        layers: dict[str, nn.Module] = {}
        for name, layer in self.masked_layers.items():
            made = self.groups.makes[name]
            rows = slice(before[made] if own_only and made == last else 0, bounds[made])
            columns = slice(0, self.width(name, bounds))
            bias = None if layer.active_bias is None else layer.active_bias[rows]
            layers[name] = plain_linear(layer.active_weight[rows, columns], bias)
        weight, bias = head.task_weights(task, before[last], bounds[last])
        if head.kind == "single" and not own_only:
            # Other layers read the earlier tasks' channels, so they are computed; this head does
            # not look at them.
            weight = torch.cat([weight.new_zeros(weight.shape[0], before[last]), weight], dim=1)
        layers[self.groups.head] = plain_linear(weight, bias)
        return layers

    def width(self, layer: str, active: Mapping[str, int]) -> int:
        """Inputs of a layer when only the active channels exist."""
        group = self.groups[self.groups.reads[layer]]
        return active[group.name] if group.prunable else self.graph[layer].attrs["in_features"]

    # The life of a task

    def begin_task(
        self,
        classes: int | None = None,
        *,
        generator: torch.Generator | None = None,
        reinit_scale: float = 1.0,
    ) -> None:
        """Re-initialises the free weights and places the task's head (paper, Algorithm 1). The
        first task starts from the weights that the network was converted with.

        Arguments:
            classes: number of outputs; default: as the network had when it was converted. A single
                head can't change it.
            generator: CPU random generator for the new weights; default: torch's global one.
            reinit_scale: factor on the re-initialised hidden weights.

        Raises:
            CapacityError: single head and no free channel left in the final hidden group.
            ConfigError: a task has begun already, or `classes` does not fit the head.
        """
        head = self.head
        if self.in_task:
            raise ConfigError(
                "a task has already begun; end it with consolidate() or cancel_task()"
            )
        wanted = self.graph[self.groups.head].attrs["out_features"]
        classes = wanted if classes is None else classes
        if head.kind == "single":
            if classes > wanted:
                raise ConfigError(f"classes={classes}: the single head has {wanted} outputs")
            classes = wanted
            self.check_capacity()
        if self.tasks:
            for layer in self.masked_layers.values():
                layer.reset_free_parameters(generator, reinit_scale)
            head.place(
                classes,
                self.width(self.groups.head, self.tasks[-1].active),
                self._inputs_of_head(),
            )
            head.reset_free_parameters(generator)
        elif classes != head.classes:
            head.place(classes, 0, self._inputs_of_head())
            head.reset_free_parameters(generator)
        self.in_task = True
        self._skip_active()

    def _inputs_of_head(self) -> int:
        group = self.groups.last
        return (
            self.sizes[group.name]
            if group.prunable
            else self.graph[self.groups.head].attrs["in_features"]
        )

    def _skip_active(self) -> None:
        """A single head does not look at earlier tasks' channels; where nothing else does, they are
        not computed.
        """
        skip = self.head.kind == "single" and self.groups.only_feeds_head()
        for name in self.groups.last.producers:
            self.masked_layers[name].skip_active = skip

    def compact(self, keep: Keep) -> None:
        """Prunes: of the free channels only `keep` stays; the rest disappears from every layer
        until `consolidate`.

        The function of what stays is the function of the network with the other channels cut.
        """
        self._require_task("compact")
        check_keep(self, keep)
        chosen = {
            name: (rows(self, name, keep), columns(self, name, keep)) for name in self.masked_layers
        }
        read_by_head = head_columns(self, keep)
        for name, layer in self.masked_layers.items():
            kept, read = chosen[name]
            layer.free_weight = nn.Parameter(layer.free_weight.detach()[kept][:, read])
            if layer.free_bias is not None:
                layer.free_bias = nn.Parameter(layer.free_bias.detach()[kept])
        self.head.select(read_by_head)

    def pruned_network(self, keep: Keep) -> fx.GraphModule:
        """The network in training with all free channels but `keep` cut, as a narrow plain network
        in evaluation mode.

        Its weights are laid out as `consolidate` will lay them out, so its logits are those of the
        learned task, bit for bit.
        """
        self._require_task("pruned_network")
        return build(self.graph, pruned_layers(self, keep)).eval().requires_grad_(False)

    def consolidate(self, keep: Keep | None = None, *, name: str | None = None) -> LearnedTask:
        """Ends a task: freezes the channels that are left and returns the others as free capacity.

        Arguments:
            keep: passed to `compact` first, if given; otherwise all channels that are still there
                are frozen.
            name: the task's name; default "task k".
        """
        self._require_task("consolidate")
        if keep is not None:
            self.compact(keep)
        active = {}
        for group in self.groups.all:
            if group.prunable:
                active[group.name] = self.active(group) + self.free(group)
            else:
                active[group.name] = self.sizes[group.name]
        classes = self.head.classes
        self.head.freeze()
        for layer_name, layer in self.masked_layers.items():
            everything = layer.free_weight.shape
            device = layer.free_weight.device
            layer.freeze(
                torch.arange(everything[0], device=device),
                torch.arange(everything[1] - layer.active_in, device=device),
            )
            layer.expand(*self._missing(layer_name, layer))
        record = LearnedTask(name or f"task {len(self.tasks)}", classes, active)
        self.tasks.append(record)
        self._close()
        return record

    def _missing(self, name: str, layer: MaskedLinear) -> tuple[int, int]:
        """(outputs, inputs) that pruning took from a layer and that come back free."""
        made, read = (self.groups[g[name]] for g in (self.groups.makes, self.groups.reads))
        outputs = self.sizes[made.name] - layer.out_features if made.prunable else 0
        inputs = self.sizes[read.name] - layer.in_features if read.prunable else 0
        return outputs, inputs

    def _close(self) -> None:
        """Leaves the state between tasks: nothing is in training, the free weights are zero until
        the next task.
        """
        self.in_task = False
        if self.tasks:
            self.head.place(
                self.tasks[-1].classes,
                self.width(self.groups.head, self.tasks[-1].active),
                self._inputs_of_head(),
            )

    def cancel_task(self) -> None:
        """Leaves a task unlearned; its weights are dropped (those of the first task stay as they
        are now).
        """
        self._require_task("cancel_task")
        if self.tasks:
            with torch.no_grad():
                for name, layer in self.masked_layers.items():
                    layer.expand(*self._missing(name, layer))
                    for parameter in layer.parameters():
                        parameter.zero_()
        self._close()

    def expand(self, layer: str, channels: int) -> None:
        """Adds free channels to the group that a layer makes (paper, Sec. 4: bottlenecks can be
        widened between tasks).

        Arguments:
            layer: name of a hidden layer.
            channels: how many to add.

        Raises:
            ConfigError: unknown layer, during a task, or before the first task (convert a wider
                network then).
        """
        if layer not in self.masked_layers:
            raise ConfigError(f"layer={layer!r}: expected one of {list(self.masked_layers)}")
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
            raise ConfigError(f"channels={channels!r}: expected a positive integer")
        if self.in_task or not self.tasks:
            raise ConfigError(
                "channels can be added between tasks only; before the first, convert a wider "
                "network"
            )
        group = self.groups[self.groups.makes[layer]]
        if not group.prunable:
            raise ConfigError(
                f"layer={layer!r} writes into the network's input channels, which can't grow"
            )
        self.sizes[group.name] += channels
        for name, module in self.masked_layers.items():
            module.expand(*self._missing(name, module))
        self._close()

    def _require_task(self, what: str) -> None:
        if not self.in_task:
            raise ConfigError(f"{what}() needs a task in training; call begin_task() first")

    # State

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As `torch.nn.Module.load_state_dict`, also from a state with other boundaries; tensors
        that contradict the saved structure are refused.

        Raises:
            CheckpointError: the state belongs to another network, or its shapes do not fit
                together.
        """
        result = super().load_state_dict(state_dict, strict, assign)
        check_shapes(self)
        return result

    def structure(self) -> dict[str, Any]:
        """Everything but the numbers, as JSON-able data: graph, sizes, head kind, learned tasks."""
        return {
            "graph": self.graph.to_json(),
            "sizes": dict(self.sizes),
            "head": self.head.kind,
            "in_task": self.in_task,
            "tasks": [asdict(task) for task in self.tasks],
        }

    @classmethod
    def from_structure(cls, data: Mapping[str, Any]) -> Model:
        """A network with the given structure; its numbers come from `load_state_dict`.

        Raises:
            CheckpointError: the data does not describe a network.
        """
        try:
            graph = Graph.from_json(data["graph"])
            model = cls(graph, {n.name: nn.Linear(**n.attrs) for n in graph.layers})
            model._set_structure(data)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"this does not describe a network: {error}") from error
        return model

    def _set_structure(self, data: Mapping[str, Any]) -> None:
        if data["graph"] != json.loads(json.dumps(self.graph.to_json())):
            raise CheckpointError("the saved state belongs to a network with other layers")
        self.sizes = {str(name): int(size) for name, size in data["sizes"].items()}
        if data["head"] != self.head.kind:
            self._swap_head(data["head"])
        self.in_task = bool(data["in_task"])
        self.tasks = [LearnedTask.from_json(task) for task in data["tasks"]]
        self._skip_active()
        self._narrow.clear()

    def get_extra_state(self) -> Tensor:
        """The structure as bytes in a tensor, so that a state dict holds tensors only."""
        text = json.dumps(self.structure()).encode()
        return torch.frombuffer(bytearray(text), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        self._set_structure(json.loads(bytes(state.cpu().tolist())))

    def _apply(self, fn: Any, recurse: bool = True) -> Model:
        self._narrow.clear()
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        sizes = ", ".join(
            f"{g.name} {self.active(g)}/{self.sizes[g.name]}" for g in self.groups.prunable
        )
        return f"{len(self.tasks)} tasks learned, {self.head.kind} head, active channels: {sizes}"
