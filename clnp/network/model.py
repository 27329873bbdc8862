"""The masked network, which learns task after task, with a narrow network per learned task.

`begin_task` re-initialises the free weights; any training loop updates `parameters()`; `compact`
removes pruned channels; `consolidate` freezes the remaining ones and returns the pruned ones as
free channels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor, fx

from clnp_kernels.nn import PartialBatchNorm2d

from ..errors import ConfigError
from ..parallel.ranks import refuse_sharded
from .boundaries import Carrier, LearnedTask, MaskedLayer, NormAcross
from .forgetting import Forgotten, check_forget, outcome, plan, state_without, structure_without
from .guards import check_begin, check_name, check_parameters, refuse_backward, retiring
from .heads import HEADS
from .keep import Keep, check_keep, free_inputs, head_columns, keep_first, kept_units, rows
from .narrow import pruned_layers
from .shapes import EXTRA, Structured


class Model(Structured):
    """A network of masked layers, made by `clnp.convert`.

    `model(x)` computes the whole network in training during a task and before the first one, and
    otherwise the network of the task learned last. `model(x, task=k)` computes the narrow plain
    network of learned task k, in evaluation mode. Its logits never change (bit for bit, for the
    same batch, dtype, device and number of threads). Both raise DataError if x doesn't fit the
    network, and ConfigError for an unknown task.

    Arguments:
        graph: the network's operations.
        layers: name -> dense `torch.nn` module with the initial weights, for every node with
            weights.
    """

    @retiring
    def set_head(self, kind: str) -> None:
        """Choose a "multi" or "single" head before the first task is learned.

        Raises:
            ConfigError: unknown kind, or a task was already learned with another head.
        """
        if kind not in HEADS:
            raise ConfigError(f"head: expected one of {sorted(HEADS)}, got {kind!r}")
        if kind == self.head.kind:
            return
        if self.tasks:
            raise ConfigError(
                f"head: expected {self.head.kind!r}, with which this network has already learned "
                f"{len(self.tasks)} task(s), got {kind!r}; convert a new network"
            )
        if kind == "single" and not any(g.prunable for g in self.groups.read_by_head):
            raise ConfigError(
                "head: expected 'multi' for a network without a hidden layer before the output "
                "layer, got 'single', which divides that layer among the tasks"
            )
        self._swap_head(kind)

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        logits = super().forward(x, task)
        trained = self.in_task or not self.tasks
        if task is None and not trained and self.training and not torch.compiler.is_compiling():
            refuse_backward(logits)
        return logits

    # The life of a task

    @retiring
    def begin_task(
        self,
        classes: int | None = None,
        *,
        generator: torch.Generator | None = None,
        most_new: Mapping[str, int] | None = None,
    ) -> None:
        """Begin a task: re-initialise the free weights and place its head (paper, Algorithm 1).

        The first task starts from the weights that the network was converted with.

        Arguments:
            classes: number of outputs; default: as in the converted network. A single head can't
                change it.
            generator: CPU random generator for the new weights; default: torch's global one.
            most_new: group -> number of its free channels that the task trains; the others are free
                again when it ends. Default: all.

        Raises:
            CapacityError: single head and no free channel left in the last hidden group.
            ConfigError: a task has already begun, an argument is out of range, or `classes` doesn't
                fit the head.
        """
        head = self.head
        if self.in_task:
            raise ConfigError(
                "begin_task(): a task has already begun; end it with consolidate() or cancel_task()"
            )
        self._require_parameters("begin_task")
        check_begin(self, classes, generator, most_new)
        outputs = self.graph[self.groups.head].attrs["out_features"]
        classes = outputs if classes is None else classes
        if head.kind == "single":
            if classes > outputs:
                raise ConfigError(
                    f"classes: expected at most {outputs}, the outputs of the single head, got "
                    f"{classes}; use head='multi'"
                )
            classes = outputs
            self.check_capacity()
        new_head = bool(self.tasks) or classes != head.classes
        if new_head:
            self._place_head(classes)
        self.in_task = True
        if most_new:
            # Before the weights are drawn, because their spread depends on a layer's inputs.
            self.compact(keep_first(self, most_new))
        if self.tasks:
            for layer in self.masked_layers.values():
                layer.reset_free_parameters(generator)
            for carrier in self.carriers.values():
                carrier.reset_free_parameters()
        if new_head:
            head.reset_free_parameters(generator)
        self._skip_active()

    def _place_head(self, classes: int) -> None:
        name = self.groups.head
        self.head.place(classes, self.frozen_inputs(name), self.inputs(name))

    @retiring
    def compact(self, keep: Keep) -> None:
        """Prune: remove all free channels but `keep` from every layer until `consolidate`.

        The result computes the same function as the network with the pruned channels set to zero.
        """
        self._require_task("compact")
        check_keep(self, keep)
        device = self.device
        read_by_head = head_columns(self, keep)
        outputs = {name: rows(self, name, keep, device) for name in self.masked}
        for name, module in self.masked.items():
            kept = outputs[name]
            if isinstance(module, Carrier):
                module.keep_free(kept)
            elif name in self.groups.carries:
                module.keep_free(kept, kept)
            else:
                module.keep_free(kept, free_inputs(self, name, keep, device))
        self.head.select(read_by_head)
        self.left = kept_units(self, keep)
        self._arrange()

    def pruned_network(self, keep: Keep) -> fx.GraphModule:
        """Return the network in training without the free channels outside `keep`.

        It is a narrow plain network in evaluation mode. Its weights have the layout that
        `consolidate` gives them, so its logits equal those of the learned task bit for bit.
        """
        self._require_task("pruned_network")
        stages = [*self.frozen_stages(), kept_units(self, keep)]
        return self._build(pruned_layers(self, keep), stages)

    @retiring
    def consolidate(self, keep: Keep | None = None, *, name: str | None = None) -> LearnedTask:
        """End a task: freeze its remaining channels and return the pruned ones as free channels.

        Arguments:
            keep: passed to `compact` first, if given; otherwise all remaining channels are frozen.
            name: name of the task; default "task k".

        Raises:
            ConfigError: no task has begun, or an argument is invalid.
        """
        self._require_task("consolidate")
        check_name(name)
        if keep is not None:
            self.compact(keep)
        active = {name: self.active(name) + free for name, free in self.left.items()}
        classes = self.head.classes
        self.head.freeze()
        for part, module in self.masked.items():
            _freeze_all(module)
            self._restore_size(part, module)
        self._union.clear()
        record = LearnedTask(name or f"task {len(self.tasks)}", classes, active)
        self.tasks.append(record)
        self._close()
        return record

    def _restore_size(self, name: str, module: MaskedLayer | Carrier) -> None:
        """Return the pruned channels of a module as free ones."""
        total = self.outputs(name, self.sizes)
        if isinstance(module, Carrier):
            module.expand(total - _channels(module))
            return
        outputs = total - module.outputs
        if name in self.groups.carries:
            module.expand(outputs, outputs)
        else:
            module.expand(outputs, self.inputs(name) - module.inputs)

    def _close(self) -> None:
        """Enter the state between tasks, in which the free weights are zero."""
        self.in_task = False
        self._set_left()
        self._arrange()
        if self.tasks:
            self._place_head(self.tasks[-1].classes)

    @retiring
    def cancel_task(self) -> None:
        """End a task without learning it, and drop its weights.

        Weights of the first task stay as they are; they are drawn anew if channels were pruned or a
        number is not finite.
        """
        self._require_task("cancel_task")
        whole = all(self.free(group) == self.sizes[group.name] for group in self.groups.prunable)
        numbers = [*self.parameters(), *self.running_statistics()]
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in numbers)
        if self.tasks or not (whole and finite):
            for name, module in self.masked.items():
                self._restore_size(name, module)
            self._drop_weights()
        self._close()

    def _drop_weights(self) -> None:
        """Reset the free weights: to zero between tasks, to new random ones before the first."""
        if not self.tasks:
            for layer in self.masked_layers.values():
                layer.reset_free_parameters()
            self._place_head(self.head.classes)
            self.head.reset_free_parameters()
        else:
            with torch.no_grad():
                for module in self.masked.values():
                    for parameter in module.parameters():
                        parameter.zero_()
        for carrier in self.carriers.values():
            carrier.reset_free_parameters()

    @retiring
    def expand(self, layer: str, channels: int) -> None:
        """Add free channels to the group of a layer's outputs, between tasks (paper, Sec. 4).

        Arguments:
            layer: name of a hidden layer.
            channels: number of channels to add.

        Raises:
            ConfigError: unknown layer, during a task, or before the first task (convert a wider
                network then).
        """
        if layer not in self.groups.makes:
            raise ConfigError(f"layer: expected one of {list(self.groups.makes)}, got {layer!r}")
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
            raise ConfigError(f"channels: expected a positive integer, got {channels!r}")
        if self.in_task or not self.tasks:
            raise ConfigError(
                "expand(): channels can be added between tasks only; before the first, convert a "
                "wider network"
            )
        layout = self.groups.makes[layer]
        (name, each), group = layout[0], self.groups[layout[0][0]]
        if len(layout) > 1 or channels % each:
            wanted = f"a multiple of {each}" if len(layout) == 1 else "another layer"
            raise ConfigError(
                f"channels: expected {wanted}, since channels of {layer!r} are divided among "
                f"several readers or tied in groups, got {channels} for {layer!r}"
            )
        if not group.prunable:
            raise ConfigError(
                f"layer: expected one with prunable channels, got {layer!r}, which is added to the "
                "network's input"
            )
        self.sizes[name] += channels // each
        for name, module in self.masked.items():
            self._restore_size(name, module)
        self._close()

    @retiring
    def forget(self, task: int, *, cascade: bool = False) -> Forgotten:
        """Forget a learned task, between tasks: its output weights, its record, and every channel
        that no kept task reads. The logits of the kept tasks keep their bits, and their indices.

        Channels behind those of the last kept task are free again. Other unread channels are set to
        zero. Channels that later tasks read stay, because their logits come from them.

        Arguments:
            task: index of a learned task; negative indices count from the end.
            cascade: forget the tasks that read its channels too, until nothing of it is left.

        Returns:
            what has gone, and what has stayed for whom.

        Raises:
            ConfigError: no such task, or a task is in training.
        """
        check_forget(self, cascade)
        self._require_parameters("forget")
        what = plan(self, self.check_task(task), cascade)
        result = outcome(self, what)
        text = json.dumps(structure_without(self, what)).encode()
        structure = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self.load_state_dict({**state_without(self, what), EXTRA: structure}, unlearn=True)
        self._drop_weights()
        self._close()
        return result

    def _require_task(self, what: str) -> None:
        if not self.in_task:
            raise ConfigError(
                f"{what}(): expected a task in training, got none; call begin_task() first"
            )
        self._require_parameters(what)

    def _require_parameters(self, what: str) -> None:
        refuse_sharded(self)
        check_parameters({**self.masked, self.groups.head: self.head}, what)

    def __repr__(self) -> str:
        """Short table: a line per layer with its active and free channels."""
        state = ", one in training" if self.in_task else ""
        learned = len(self.tasks)
        lines = [f"Model: {learned} task{'s' * (learned != 1)} learned{state}"]
        width = max(map(len, self.layer_names))
        for name in self.masked_layers:
            frozen = self.outputs(name, self.tasks[-1].active) if learned else 0
            counts = f"{frozen} active, {self.outputs(name, self.left)} free"
            lines.append(f"  {name:{width}}  {counts} of {self.outputs(name, self.sizes)} channels")
        lines.append(f"  {self.groups.head:{width}}  {self.head.kind} head")
        return "\n".join(lines)


def _freeze_all(module: MaskedLayer | Carrier) -> None:
    """Make every free channel of a module active."""
    if isinstance(module, Carrier):
        module.freeze(torch.arange(_channels(module, free=True)))
        return
    outputs = torch.arange(module.outputs - module.active_out)
    inputs = torch.arange(module.inputs - module.active_in)
    module.freeze(outputs, inputs)


def _channels(module: Carrier, free: bool = False) -> int:
    """Return the number of channels of a carrier, or of its free ones."""
    if isinstance(module, NormAcross):
        return module.num_features - (module.active if free else 0)
    parts = ("free",) if free else ("active", "free")
    kind = "mean" if isinstance(module, PartialBatchNorm2d) else "weight"
    return sum(getattr(module, f"{part}_{kind}").shape[0] for part in parts)
