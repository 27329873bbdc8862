"""Parameter superposition (Cheung et al. 2019, arXiv:1902.05522)."""

from __future__ import annotations

import copy
import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..data.batches import seed_for
from .method import Batch, Method
from .network import ForTask, Heads
from .options import Options, choice


def binary_key(size: int, seed: int) -> Tensor:
    """A random sign for each input, [size] float32 of +1 and -1; its own inverse."""
    generator = torch.Generator().manual_seed(seed)
    return 1.0 - 2.0 * torch.randint(2, (size,), generator=generator).float()


def complex_key(size: int, seed: int) -> Tensor:
    """A random point on the unit circle for each input, [size] complex64; its conjugate is its
    inverse.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.polar(torch.ones(size), 2 * math.pi * torch.rand(size, generator=generator))


class Keyed(nn.Module):
    """A layer whose inputs are bound with a key that the task chooses: y = W (c_k * x) (Eq. 2).

    With complex keys the weight is complex too, W + iV, and the real part W (Re c * x) - V (Im c *
    x) is handed on [reconstruction: the paper leaves open how complex outputs meet a real
    non-linearity].

    Arguments:
        layer: Linear, x [..., I]; or Conv2d, x [B, I, H, W], one key entry per channel.
        kind: "binary" or "complex".
        seed: of the keys.

    Attributes:
        task: whose key is used.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, kind: str, seed: int) -> None:
        super().__init__()
        self.layer, self.kind, self.seed, self.task = layer, kind, seed, 0
        self.keys: dict[tuple[int, torch.device], Tensor] = {}
        self.imaginary: nn.Module | None = None
        if kind == "complex":
            # cos^2 and sin^2 average to 1/2 each, so the outputs keep their scale.
            self.imaginary = _twin(layer)

    def key(self, x: Tensor) -> Tensor:
        """The task's key, shaped to multiply x."""
        at = (self.task, x.device)
        if at not in self.keys:
            conv = isinstance(self.layer, nn.Conv2d)
            size = x.shape[1 if conv else -1]
            make = binary_key if self.kind == "binary" else complex_key
            key = make(size, seed_for(self.seed, "key", self.task)).to(x.device)
            self.keys[at] = key.reshape(-1, 1, 1) if conv else key
        return self.keys[at]

    def forward(self, x: Tensor) -> Tensor:
        key = self.key(x)
        if self.imaginary is None:
            return self.layer(x * key.to(x.dtype))
        return self.layer(x * key.real.to(x.dtype)) - self.imaginary(x * key.imag.to(x.dtype))


def _twin(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """A freshly drawn layer of the same shape, without a bias."""
    twin = copy.deepcopy(layer).to("cpu", torch.float32).requires_grad_()
    twin.register_parameter("bias", None)
    twin.reset_parameters()
    return twin.to(layer.weight)


class Superposition(Method):
    """One set of weights for all tasks, each layer's inputs bound with the task's random key, so
    that tasks lie in nearly orthogonal directions and disturb each other little.

    Heads that belong to one task need no key. "complex" doubles the weights.
    """

    name = "superposition"
    options: ClassVar[Options] = {"keys": choice("binary", "kind of keys", ("binary", "complex"))}

    def prepare(self) -> None:
        self.keyed: list[Keyed] = []
        body = self.net.net
        owned = isinstance(self.net.head, Heads)
        head = self.net.head_name
        for name, module in list(body.named_modules()):
            own = owned and (name == head or name.startswith(f"{head}."))
            if isinstance(module, (nn.Linear, nn.Conv2d)) and not own:
                seed = seed_for(self.settings.seed, "superposition", name)
                keyed = Keyed(module, self.o["keys"], seed)
                body.set_submodule(name, keyed)
                self.keyed.append(keyed)

    def predictor(self, task: int) -> nn.Module:
        return _Keyed(self, task)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self.choose(self.task)
        return super().loss(batch)

    def choose(self, task: int) -> None:
        """Takes a task's keys into use."""
        for keyed in self.keyed:
            keyed.task = task


class _Keyed(ForTask):
    """The network of one task, with its keys."""

    def __init__(self, method: Superposition, task: int) -> None:
        super().__init__(method.net, task)
        self.choose = method.choose

    def forward(self, x: Tensor) -> Tensor:
        self.choose(self.task)
        return super().forward(x)
