"""The masked network: one set of layers that learns task after task, and a narrow network for every
learned task.

Life of a task: `begin_task` re-initialises the free weights; any training loop updates
`parameters()`; `compact` drops the channels that pruning left out; `consolidate` freezes what is
left and gives the dropped channels back as free capacity.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from clnp_kernels.nn import PartialBatchNorm2d

from ..errors import ConfigError
from ..parallel.ranks import refuse_sharded
from .boundaries import LearnedTask, MaskedLayer
from .guards import check_begin, check_name, check_parameters, refuse_backward, retiring
from .heads import HEADS
from .keep import Keep, check_keep, free_inputs, head_columns, keep_first, rows
from .narrow import pruned_layers
from .shapes import Structured


class Model(Structured):
    """A network of masked layers; made by `clnp.convert`.

    Arguments:
        graph: the network's operations.
        layers: name -> dense `torch.nn` module that supplies the first weights, for every node with
            weights.

    Calling it:
        `model(x)`: while a task is being learned, and before the first one, the whole network in
            training; otherwise the network of the task learned last.
        `model(x, task=k)`: the network of learned task k: a narrow plain network in evaluation
            mode, whose logits never change again (bit for bit, for the same batch, dtype, device
            and number of threads).
        Raises DataError where x does not fit the network, ConfigError for an unknown task.
    """

    @retiring
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
        """Re-initialises the free weights and places the task's head (paper, Algorithm 1). The
        first task starts from the weights that the network was converted with.

        Arguments:
            classes: number of outputs; default: as the network had when it was converted. A single
                head can't change it.
            generator: CPU random generator for the new weights; default: torch's global one.
            most_new: group -> how many of its free channels the task trains; the others come back
                when it ends. Default: all.

        Raises:
            CapacityError: single head and no free channel left in the final hidden group.
            ConfigError: a task has begun already, an argument is out of range, or `classes` does
                not fit the head.
        """
        head = self.head
        if self.in_task:
            raise ConfigError(
                "a task has already begun; end it with consolidate() or cancel_task()"
            )
        self._require_parameters("begin_task")
        check_begin(self, classes, generator, most_new)
        wanted = self.graph[self.groups.head].attrs["out_features"]
        classes = wanted if classes is None else classes
        if head.kind == "single":
            if classes > wanted:
                raise ConfigError(f"classes={classes}: the single head has {wanted} outputs")
            classes = wanted
            self.check_capacity()
        new_head = bool(self.tasks) or classes != head.classes
        if new_head:
            self._place_head(classes)
        self.in_task = True
        if most_new:
            # Before the weights are drawn, whose spread depends on a layer's inputs.
            self.compact(keep_first(self, most_new))
        if self.tasks:
            for layer in self.masked_layers.values():
                layer.reset_free_parameters(generator)
            for norm in self.norms.values():
                norm.reset_free_parameters()
        if new_head:
            head.reset_free_parameters(generator)
        self._skip_active()

    def _place_head(self, classes: int) -> None:
        name = self.groups.head
        self.head.place(classes, self.frozen_inputs(name), self.inputs(name))

    @retiring
    def compact(self, keep: Keep) -> None:
        """Prunes: of the free channels only `keep` stays; the rest disappears from every layer
        until `consolidate`.

        The function of what stays is the function of the network with the other channels cut.
        """
        self._require_task("compact")
        check_keep(self, keep)
        device = self.device
        read_by_head = head_columns(self, keep)
        outputs = {name: rows(self, name, keep, device) for name in self.masked}
        for name, module in self.masked.items():
            kept = outputs[name]
            if isinstance(module, PartialBatchNorm2d):
                module.keep_free(kept)
            elif name in self.groups.carries:
                module.keep_free(kept, kept)
            else:
                module.keep_free(kept, free_inputs(self, name, keep, device))
        self.head.select(read_by_head)

    def pruned_network(self, keep: Keep) -> fx.GraphModule:
        """The network in training with all free channels but `keep` cut, as a narrow plain network
        in evaluation mode.

        Its weights are laid out as `consolidate` will lay them out, so its logits are those of the
        learned task, bit for bit.
        """
        self._require_task("pruned_network")
        return self._build(pruned_layers(self, keep))

    @retiring
    def consolidate(self, keep: Keep | None = None, *, name: str | None = None) -> LearnedTask:
        """Ends a task: freezes the channels that are left and returns the others as free capacity.

        Arguments:
            keep: passed to `compact` first, if given; otherwise all channels that are still there
                are frozen.
            name: the task's name; default "task k".
        """
        self._require_task("consolidate")
        check_name(name)
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
        for part, module in self.masked.items():
            _freeze_all(module)
            self._restore_size(part, module)
        self._union.clear()
        record = LearnedTask(name or f"task {len(self.tasks)}", classes, active)
        self.tasks.append(record)
        self._close()
        return record

    def _restore_size(self, name: str, module: MaskedLayer | PartialBatchNorm2d) -> None:
        """Gives the channels that pruning took from a module back as free ones."""
        group = self.groups.of(name)
        if isinstance(module, PartialBatchNorm2d):
            module.expand(self.sizes[group.name] - module.num_features)
            return
        outputs = self.sizes[group.name] - module.outputs
        if name in self.groups.carries:
            module.expand(outputs, outputs)
        else:
            module.expand(outputs, self.inputs(name) - module.inputs)

    def _close(self) -> None:
        """Leaves the state between tasks: nothing is in training, the free weights are zero until
        the next task.
        """
        self.in_task = False
        if self.tasks:
            self._place_head(self.tasks[-1].classes)

    @retiring
    def cancel_task(self) -> None:
        """Leaves a task unlearned; its weights are dropped (those of the first task stay as they
        are now, but are drawn anew where channels of it were cut or a number is not finite).
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
        """Free weights are zero between tasks; before the first they are its first weights."""
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
        for norm in self.norms.values():
            norm.reset_free_parameters()

    @retiring
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
        if layer not in self.groups.makes:
            raise ConfigError(f"layer={layer!r}: expected one of {list(self.groups.makes)}")
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
        for name, module in self.masked.items():
            self._restore_size(name, module)
        self._close()

    def _require_task(self, what: str) -> None:
        if not self.in_task:
            raise ConfigError(f"{what}() needs a task in training; call begin_task() first")
        self._require_parameters(what)

    def _require_parameters(self, what: str) -> None:
        refuse_sharded(self)
        check_parameters({**self.masked, self.groups.head: self.head}, what)

    def extra_repr(self) -> str:
        sizes = ", ".join(
            f"{g.name} {self.active(g)}/{self.sizes[g.name]}" for g in self.groups.prunable
        )
        return f"{len(self.tasks)} tasks learned, {self.head.kind} head, active channels: {sizes}"


def _freeze_all(module: MaskedLayer | PartialBatchNorm2d) -> None:
    """Makes every free channel of a module active."""
    if isinstance(module, PartialBatchNorm2d):
        module.freeze(torch.arange(module.free_mean.shape[0]))
        return
    outputs = torch.arange(module.outputs - module.active_out)
    inputs = torch.arange(module.inputs - module.active_in)
    module.freeze(outputs, inputs)
