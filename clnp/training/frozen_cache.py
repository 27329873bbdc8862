"""Activations of frozen channels, computed once per task instead of once per step.

Active channels depend on frozen weights and on the example only. Where the examples are the same in
every epoch and nothing random lies before a layer, its active outputs need not be computed again:
they are looked up, and the layer computes its free outputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from clnp_kernels.nn import MaskedEmbedding, MaskedLinear

from ..data.batches import batches, count, evaluation_batch, placed
from ..data.inputs import Split
from ..graph.graph import Graph
from ..network.model import Model
from ..objectives.metrics import Value
from ..parallel.ranks import current
from .validation import Validation

CACHE_BYTES = 2 << 30
LEAST_SHARE = 0.05
RANDOM = ("dropout", "dropout2d", "stochastic_depth")


class FrozenActivations:
    """The active outputs of a model's layers over a whole data set.

    Arguments:
        model: in a task.
        split: (x [N, ...], y); any other data set is not cached, for its examples may be drawn anew
            in every epoch. None caches nothing.
        dtype: what autocast computes in; float32 means no autocast.
        budget: most bytes to keep. Layers are taken in execution order until it is used up.
        training: whether the model is in training mode when it looks them up; in evaluation mode
            nothing is random.

    Attributes:
        names: the layers that are looked up.
        rows: the examples of the split that the next forward is given.
    """

    def __init__(
        self,
        model: Model,
        split: Split | None,
        dtype: torch.dtype,
        budget: int = CACHE_BYTES,
        *,
        training: bool = True,
    ) -> None:
        self.model, self.dtype = model, dtype
        self.values: dict[str, Tensor] = {}
        if isinstance(split, tuple) and model.tasks and budget > 0:
            self._compute(split, budget, RANDOM if training else ())
        self.rows: Tensor | None = None

    @property
    def names(self) -> list[str]:
        return list(self.values)

    @property
    def bytes(self) -> int:
        """Bytes kept."""
        return sum(values.nbytes for values in self.values.values())

    def __bool__(self) -> bool:
        return bool(self.values)

    @torch.no_grad()
    def _compute(self, split: tuple[Tensor, Tensor], budget: int, random: Sequence[str]) -> None:
        names = [n for n in deterministic_layers(self.model.graph, random) if self._pays(n)]
        if not names:
            return
        x, total, size = split[0], count(split), evaluation_batch(split)
        device = self.model.device
        found: dict[str, Tensor] = {}
        # All that is frozen, and nothing else.
        frozen = self.model.subnetwork(-1, fresh=True)
        for name in names:
            frozen.get_submodule(name).register_forward_hook(partial(_keep, found, name))
        for start in range(0, total, size):
            with torch.autocast(device.type, self.dtype, enabled=self._autocast):
                frozen(placed(x[start : start + size], device))
            for name, active in list(found.items()):
                if start == 0:
                    wanted = total * active[:1].numel() * active.element_size()
                    if wanted > budget:
                        continue
                    budget -= wanted
                    self.values[name] = active.new_empty(total, *active.shape[1:])
                if name in self.values:
                    self.values[name][start : start + len(active)] = active

    @property
    def _autocast(self) -> bool:
        return self.dtype != torch.float32

    def _pays(self, name: str) -> bool:
        """True if enough of a layer's work is frozen to pay for joining two tensors."""
        layer = self.model.masked_layers.get(name)
        if isinstance(layer, MaskedEmbedding) or name in self.model.groups.mixes:
            return False  # it looks up its numbers anyway; or works on free channels too
        if layer is None or layer.skip_active or len(self.model.groups.of(name)) > 1:
            return False  # several groups have another order in a task's network
        frozen = layer.active_out * layer.active_in
        return frozen > 0 and frozen >= LEAST_SHARE * layer.outputs * layer.inputs

    @contextlib.contextmanager
    def looked_up(self) -> Iterator[None]:
        """Inside, the layers take their active outputs from here, for the examples that `rows`
        names.
        """
        handles = []
        for name, values in self.values.items():
            layer = self.model.masked_layers[name]
            layer.skip_active = True

            def hook(
                module: nn.Module, args: tuple[Tensor, ...], y: Tensor, values: Tensor = values
            ) -> Tensor:
                assert self.rows is not None
                active = values.index_select(0, self.rows.to(values.device))
                axis = y.dim() - 1 if isinstance(module, MaskedLinear) else 1  # of the channels
                apart = (active.shape[:axis], active.shape[axis + 1 :])
                if apart != (y.shape[:axis], y.shape[axis + 1 :]) or active.dtype != y.dtype:
                    raise RuntimeError("the cached activations belong to other examples")
                return torch.cat([active, y], dim=axis)

            handles.append(layer.register_forward_hook(hook))
        try:
            yield
        finally:
            for name, handle in zip(self.values, handles, strict=True):
                handle.remove()
                self.model.masked_layers[name].skip_active = False
            self.rows = None

    def measured(self, validation: Validation) -> Value:
        """Metric of the model on the split of these activations, as `validation` measures it."""
        split, ranks = validation.split, current()
        pieces = batches(split, evaluation_batch(split), self.model.device, ranks=ranks)
        with self.looked_up():
            named = self._named(pieces, ranks.rows(count(split)).start)
            return validation.of(self.model, named)

    def _named(
        self, pieces: Iterable[tuple[Tensor, Tensor]], start: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in order, from example `start` on; each with its `rows`."""
        for x, y in pieces:
            self.rows = torch.arange(start, start + len(y), device=x.device)
            start += len(y)
            yield x, y


def _keep(
    found: dict[str, Tensor], name: str, module: nn.Module, args: tuple[Tensor, ...], y: Tensor
) -> None:
    found[name] = y


def deterministic_layers(graph: Graph, random: Sequence[str] = RANDOM) -> list[str]:
    """The layers without one of the `random` operations before them, in execution order."""
    reached: set[str] = set()
    layers = []
    for node in graph.nodes:
        drops = node.op in random or (random and node.op == "attention" and node.attrs["p"] > 0)
        if drops or reached.intersection(node.inputs):
            reached.add(node.name)
        elif node.role == "layer":
            layers.append(node.name)
    return layers
