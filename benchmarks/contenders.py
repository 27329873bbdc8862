"""Ways to train a network of which a part is frozen, all from the same `State`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.sliced import HeldBatchNorm, SlicedBatchNorm, SlicedLayer
from benchmarks.state import L1, LR, State, dense_network, frozen_rows, plain_network, skipped
from clnp.network.heads import Head
from clnp.training.fit import parameter_groups
from clnp.training.frozen_cache import FrozenActivations
from clnp_kernels.nn import MaskedConv2d, MaskedLinear, PartialBatchNorm2d
from clnp_kernels.optim import AdamL1

BATCHES_CACHED = 16


class Contender(ABC):
    """One way to train; it owns copies of the state's weights.

    Attributes:
        exact: whether it computes what the method says (frozen part, L1); dense training does not.
        network: the module in training.
    """

    exact: ClassVar[bool] = True
    network: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(self, state: State) -> None:
        self.state = state
        self.frozen = frozen_rows(state.model)
        self.bias_is_free = state.model.head.free_bias is not None
        self.skipped = skipped(state.model)

    def logits(self, x: Tensor) -> Tensor:
        """The network on a batch [B, ...]: [B, C]."""
        device, enabled = x.device.type, self.state.autocast
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            return self.network(x)

    def prepare(self, x: Tensor, labels: Tensor) -> None:
        """Prepare a task with these examples [N, ...], [N]."""
        return None

    def step(
        self, x: Tensor | None = None, labels: Tensor | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """One training step on a batch (the state's own, without one); returns the loss.

        Arguments:
            rows: [B], where the batch stands among the examples of `prepare`.
        """
        x = self.state.x if x is None else x
        labels = self.state.labels if labels is None else labels
        logits = self.logits(x)
        loss = F.cross_entropy(logits.float() if self.state.autocast else logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.backward(loss)
        self.optimizer.step()
        self.after_step()
        return loss.detach()

    def backward(self, loss: Tensor) -> None:
        """Gradients of everything that is trained."""
        loss.backward()

    def after_step(self) -> None:
        """Finish a step after the optimizer."""
        return None

    @abstractmethod
    def free_rows(self, name: str) -> list[Tensor]:
        """Weight [Of, I, ...], and bias [Of] if any, of a layer's or batch norm's free channels."""

    def free_weights(self) -> list[Tensor]:
        """The free tensors of all layers and batch norms, in the same order for all contenders."""
        return [tensor.detach() for name in self.frozen for tensor in self.free_rows(name)]

    def held_bytes(self) -> dict[str, int]:
        """Bytes of weights and buffers, gradients, optimizer, and of what else training keeps."""
        parameters = list(self.network.parameters())
        moments = (v for values in self.optimizer.state.values() for v in values.values())
        return {
            "weights": _bytes([*parameters, *self.network.buffers()]),
            "gradients": _bytes(p.grad for p in parameters if p.grad is not None),
            "optimizer": _bytes(v for v in moments if isinstance(v, Tensor) and v.dim()),
            "other": _bytes(self.kept_tensors()),
        }

    def kept_tensors(self) -> list[Tensor]:
        """Tensors besides the module's and the optimizer's."""
        return []


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Ours(Contender):
    """The masked layers of a `clnp.Model` and `AdamL1`, as `clnp.Learner` trains them."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        model = state.model
        self.network = model.net
        alphas = dict.fromkeys(model.layer_names, L1)
        self.optimizer = AdamL1(parameter_groups(model, alphas), lr=LR)

    def free_rows(self, name: str) -> list[Tensor]:
        layer = self.network.get_submodule(name)
        return _present(layer, "free_weight", "free_bias")


class OursCached(Ours):
    """`Ours` with the activations of frozen channels computed once per task, as `Learner` does
    where nothing is random. The state's batch is looked up among `BATCHES_CACHED` copies of it.
    """

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.dtype = torch.bfloat16 if state.autocast else torch.float32
        self.cache: FrozenActivations | None = None
        self.turn = 0

    def prepare(self, x: Tensor, labels: Tensor) -> None:
        self.cache = FrozenActivations(self.state.model, (x, labels), self.dtype)

    def step(
        self, x: Tensor | None = None, labels: Tensor | None = None, rows: Tensor | None = None
    ) -> Tensor:
        size = len(self.state.x)
        if self.cache is None:
            copies = [BATCHES_CACHED] + [1] * (self.state.x.dim() - 1)
            self.prepare(self.state.x.repeat(copies), self.state.labels.repeat(BATCHES_CACHED))
        assert self.cache is not None
        if rows is None:
            self.turn = (self.turn + 1) % BATCHES_CACHED
            rows = torch.arange(self.turn * size, (self.turn + 1) * size)
        with self.cache.looked_up():
            self.cache.rows = rows.to(self.state.x.device)
            return super().step(x, labels)

    def kept_tensors(self) -> list[Tensor]:
        return list(self.cache.values.values()) if self.cache is not None else []


class Dense(Contender):
    """Plain dense PyTorch with fused Adam: no masks and no L1, so not the same computation."""

    exact = False

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.network = dense_network(state)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=LR, fused=True)

    def free_rows(self, name: str) -> list[Tensor]:
        layer = self.network.get_submodule(name)
        tensors = [tensor[self.frozen[name] :] for tensor in _present(layer, "weight", "bias")]
        if name != self.state.model.groups.head:
            return tensors
        return [tensors[0][:, self.skipped :], *tensors[1:]][: 1 + self.bias_is_free]


class UnderCompile(Contender):
    """Mixed into a contender: its network under torch.compile."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.compiled = cast(nn.Module, torch.compile(self.network))

    def logits(self, x: Tensor) -> Tensor:
        device, enabled = x.device.type, self.state.autocast
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            logits: Tensor = self.compiled(x)
            return logits


class Compiled(UnderCompile, Dense):
    """`Dense` with its network under torch.compile."""


class OursCompiled(UnderCompile, Ours):
    """`Ours` with its network under torch.compile."""


class EagerMasked(Dense):
    """The usual code: L1 in the loss, masks on gradients, frozen weights restored, and
    batch norms that hold frozen channels.
    """

    exact = True

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.norms: list[HeldBatchNorm] = []
        self.masked: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        self.penalised: list[Tensor] = []
        for name, rows in self.frozen.items():
            layer = self.network.get_submodule(name)
            if isinstance(layer, nn.BatchNorm2d) and rows:
                held = torch.arange(layer.num_features, device=state.x.device) < rows
                layer = HeldBatchNorm.from_dense(layer, held)
                self.network.set_submodule(name, layer)
                self.norms.append(layer)
            weight = layer.weight
            assert isinstance(weight, nn.Parameter)
            if not isinstance(layer, nn.BatchNorm2d):
                self.penalised.append(weight)
            for parameter in layer.parameters(recurse=False):
                mask = torch.ones_like(parameter)
                mask[:rows] = 0
                self._mask_head(name, mask)
                self.masked.append((parameter, mask, parameter.detach().clone()))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=LR)

    def _mask_head(self, name: str, mask: Tensor) -> None:
        """A single head holds what earlier tasks own of it: its first columns and its bias."""
        if name == self.state.model.groups.head:
            if mask.dim() == 2:
                mask[:, : self.skipped] = 0
            elif not self.bias_is_free:
                mask.zero_()

    def backward(self, loss: Tensor) -> None:
        penalty = torch.stack([weight.abs().sum() for weight in self.penalised]).sum()
        (loss + L1 * penalty).backward()
        for parameter, mask, _ in self.masked:
            assert parameter.grad is not None
            parameter.grad.mul_(mask)

    @torch.no_grad()
    def after_step(self) -> None:
        for parameter, mask, kept in self.masked:
            parameter.copy_(torch.where(mask.bool(), parameter, kept))
        for norm in self.norms:
            norm.restore()

    def kept_tensors(self) -> list[Tensor]:
        return [tensor for _, mask, kept in self.masked for tensor in (mask, kept)]


class Slices(Contender):
    """Frozen and free slices in plain PyTorch with fused Adam; L1 is added to the gradients, which
    is cheaper than through autograd.
    """

    def __init__(self, state: State) -> None:
        super().__init__(state)
        model = state.model
        self.network = plain_network(state)
        self.penalised: list[Tensor] = []
        for name, masked in [*model.masked.items(), (model.groups.head, model.head)]:
            sliced: nn.Module
            if isinstance(masked, PartialBatchNorm2d):
                sliced = SlicedBatchNorm(masked)
            else:
                assert isinstance(masked, MaskedLinear | MaskedConv2d | Head)
                sliced = SlicedLayer(masked)
                self.penalised.append(sliced.free_weight)
            self.network.set_submodule(name, sliced)
        if state.x.dim() == 4:
            self.network.to(memory_format=torch.channels_last)
        self.network.train()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=LR, fused=True)

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        with torch.no_grad():
            for weight in self.penalised:
                assert weight.grad is not None
                weight.grad.add_(weight.sign(), alpha=L1)

    def free_rows(self, name: str) -> list[Tensor]:
        found = _present(self.network.get_submodule(name), "free_weight", "free_bias")
        return [tensor for tensor in found if isinstance(tensor, nn.Parameter)]


def _present(layer: nn.Module, *names: str) -> list[Tensor]:
    found: list[Any] = [getattr(layer, name, None) for name in names]
    return [tensor for tensor in found if tensor is not None]


CONTENDERS: dict[str, Callable[[State], Contender]] = {
    "eager-masked": EagerMasked,
    "dense": Dense,
    "compiled": Compiled,
    "slices": Slices,
    "ours": Ours,
    "ours compiled": OursCompiled,
    "ours cached": OursCached,
}
