"""Single operators: their cases, the contenders, and what is right."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import DTYPES, SEED, Size
from benchmarks.checks import judge, mean_error
from benchmarks.optimizer_ops import OptimizerStep
from benchmarks.sliced import HeldBatchNorm, SlicedBatchNorm, SlicedLayer
from clnp.models.networks import seeded_weights
from clnp_kernels import ops
from clnp_kernels.nn import MaskedConv2d, MaskedLinear, PartialBatchNorm2d

LAYERS = ("masked_linear", "masked_conv2d", "partial_batch_norm")
OPTIMIZERS = ("adam_l1", "sgd_l1")
OPERATORS = (*LAYERS, "channel_activity", "dropout", *OPTIMIZERS)
# Where torch.compile has something to fuse.
COMPILED = ("masked_linear", "partial_batch_norm", "channel_activity", "dropout")
# I, O, kernel, stride, side of the image: layers of the networks and of resnet50 at 224 x 224
CONVOLUTIONS = {
    "narrow": ((32, 32, 3, 1, 32), (64, 64, 3, 1, 16)),
    "wide": ((128, 256, 3, 2, 32), (256, 512, 3, 1, 15), (1024, 2048, 3, 1, 7)),
    "resnet18": (
        (64, 64, 3, 1, 32),
        (128, 128, 3, 1, 16),
        (256, 256, 3, 1, 8),
        (512, 512, 3, 1, 4),
    ),
    "resnet50": (
        (256, 64, 1, 1, 56),
        (128, 512, 1, 1, 28),
        (256, 256, 3, 1, 14),
        (2048, 512, 1, 1, 7),
    ),
}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
NORMS = ((64, 32), (256, 8), (512, 13), (256, 56))  # C, side of the image


@dataclass(frozen=True)
class OpCase:
    """An operator in one situation.

    Attributes:
        op: its name.
        sizes: masked_linear (I, O); masked_conv2d (I, O, kernel, stride, side); partial_batch_norm
            and channel_activity (C, side of the image); dropout (C,); optimizers (I, O) of one
            weight.
        batch: examples.
        fraction: of inputs and outputs that are frozen.
        dtype: key of `DTYPES`; all tensors have it.
        device: where.
    """

    op: str
    sizes: tuple[int, ...]
    batch: int
    fraction: float
    dtype: str = "fp32"
    device: str = "cpu"

    @property
    def name(self) -> str:
        """The operator and its sizes."""
        return f"{self.op} {' x '.join(map(str, self.sizes))}"

    def frozen(self, channels: int) -> int:
        """Number of frozen channels."""
        return round(channels * self.fraction)


def cases(size: Size, dtype: str, device: str) -> list[OpCase]:
    """The cases of a run, nothing frozen."""
    found = [OpCase("masked_linear", (w, w), 256, 0.0) for w in size.widths]
    found += [OpCase("masked_linear", (2048, 2048), b, 0.0) for b in size.batches if b != 256]
    rows = CONVOLUTIONS.values() if size.scale == 1 else [CONVOLUTIONS["narrow"]]
    found += [OpCase("masked_conv2d", sizes, 64, 0.0) for row in rows for sizes in row]
    norms = NORMS if size.scale == 1 else NORMS[1:2]
    found += [OpCase("partial_batch_norm", sizes, 64, 0.0) for sizes in norms]
    found += [OpCase("channel_activity", sizes, 64, 0.0) for sizes in norms]
    found += [OpCase("dropout", (w,), 256, 0.0) for w in size.widths]
    if dtype == "fp32":  # weights and moments stay in float32 under autocast
        found += [OpCase(op, (w, w), 1, 0.0) for op in OPTIMIZERS for w in size.widths]
    batch = 1.0 if size.scale == 1 else size.batch
    return [
        replace(case, dtype=dtype, device=device, batch=max(1, round(case.batch * batch)))
        for case in found
    ]


def contenders(case: OpCase, compiled: bool = True) -> list[str]:
    """The contenders that can take part."""
    names = ["eager-masked", "dense", "compiled", "slices", "ours"]
    if case.op in ("channel_activity", "dropout"):
        names = ["dense", "compiled", "ours"]
    if not compiled or case.op not in COMPILED:
        names.remove("compiled")
    return names


def make(case: OpCase, name: str) -> Callable[[], Any]:
    """One call of an operator with its backward."""
    keep_memory()
    return builder(case)(case, name)


def keep_memory() -> None:
    """Keep the C library's allocator from returning memory to the system.

    An operator's buffers are given back or not depending on the order in which it frees them, and
    new pages take as long as the work on them; in a network, others take them over.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def builder(case: OpCase) -> Callable[[OpCase, str], Any]:
    """The class of a case's contenders: callable, with `results()` after a call."""
    if case.op in OPTIMIZERS:
        return OptimizerStep
    others = {"channel_activity": Activity, "dropout": Dropping}
    return others.get(case.op, Layer)


def image(case: OpCase, channels: int, side: int, generator: torch.Generator) -> Tensor:
    """Random values [B, C, H, W] in channels_last, or [B, C] for a side of 0."""
    shape = (case.batch, channels, side, side) if side else (case.batch, channels)
    x = torch.randn(shape, generator=generator).to(case.device, DTYPES[case.dtype])
    return x.contiguous(memory_format=torch.channels_last) if side else x


def masked_layer(case: OpCase) -> tuple[nn.Module, Tensor]:
    """The masked module of a case and its input, with ReLU."""
    sizes, frozen = case.sizes, case.frozen
    generator = torch.Generator().manual_seed(SEED)
    layer: nn.Module
    with seeded_weights(SEED):
        if case.op == "partial_batch_norm":
            norm = nn.BatchNorm2d(sizes[0])
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            layer = PartialBatchNorm2d.from_dense(norm, active=frozen(sizes[0]), activation="relu")
            return layer, image(case, sizes[0], sizes[1], generator)
        bounds = {"active_in": frozen(sizes[0]), "active_out": frozen(sizes[1])}
        if case.op == "masked_linear":
            linear = nn.Linear(sizes[0], sizes[1])
            layer = MaskedLinear.from_dense(linear, activation="relu", **bounds)
            return layer, image(case, sizes[0], 0, generator)
        inputs, outputs, kernel, stride, side = sizes
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
        layer = MaskedConv2d.from_dense(conv, activation="relu", **bounds)
        return layer, image(case, inputs, side, generator)


class Layer:
    """Forward and backward of a layer with its ReLU, as one of the contenders does it."""

    def __init__(self, case: OpCase, name: str, double: bool = False) -> None:
        masked, x = masked_layer(case)
        self.frozen_in = 0 if x.dim() == 2 and case.fraction == 0 else case.frozen(x.shape[1])
        dense = masked.to_dense()  # type: ignore[operator]
        networks: dict[str, Callable[[], Any]] = {
            "ours": lambda: masked,
            "slices": lambda: nn.Sequential(_sliced(masked), nn.ReLU()),
            "dense": lambda: nn.Sequential(dense, nn.ReLU()),
            "eager-masked": lambda: nn.Sequential(_held(dense, case), nn.ReLU()),
            "compiled": lambda: torch.compile(nn.Sequential(dense, nn.ReLU())),
        }
        dtype = torch.float64 if double else x.dtype
        masked.to(case.device, dtype)
        dense.to(case.device, dtype)
        if x.dim() == 4:
            masked.to(memory_format=torch.channels_last)
            dense.to(memory_format=torch.channels_last)
        self.network = networks[name]().train()
        self.x = x.to(dtype).requires_grad_()
        self.grad_y = self.network(self.x).detach().sign() + 0.5
        self.masks = self._masks(case) if name == "eager-masked" else []

    def _masks(self, case: OpCase) -> list[tuple[nn.Parameter, Tensor]]:
        pairs = []
        for parameter in self.network.parameters():
            mask = torch.ones_like(parameter)
            mask[: case.frozen(parameter.shape[0])] = 0
            pairs.append((parameter, mask))
        return pairs

    def __call__(self) -> Tensor:
        self.x.grad = None
        for parameter in self.network.parameters():
            parameter.grad = None
        y: Tensor = self.network(self.x)
        y.backward(self.grad_y)
        for parameter, mask in self.masks:
            assert parameter.grad is not None
            parameter.grad.mul_(mask)
        self.y = y.detach()
        return self.y

    def results(self) -> list[Tensor]:
        """Output, gradient of the free inputs, gradients of the free parameters."""
        assert self.x.grad is not None
        grads = [p.grad for p in self.network.parameters() if p.grad is not None]
        return [self.y, self.x.grad[:, self.frozen_in :], *grads]


def _sliced(masked: nn.Module) -> nn.Module:
    if isinstance(masked, PartialBatchNorm2d):
        return SlicedBatchNorm(masked)
    assert isinstance(masked, MaskedLinear | MaskedConv2d)
    return SlicedLayer(masked)


def _held(dense: nn.Module, case: OpCase) -> nn.Module:
    """A dense layer; a batch norm holds its frozen channels."""
    if not isinstance(dense, nn.BatchNorm2d) or not case.fraction:
        return dense
    held = torch.arange(dense.num_features, device=case.device) < case.frozen(dense.num_features)
    return HeldBatchNorm.from_dense(dense, held)


class Activity:
    """The sum of absolute values of every channel."""

    def __init__(self, case: OpCase, name: str, double: bool = False) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self.x = image(case, case.sizes[0], case.sizes[1], generator)
        if double:
            self.x = self.x.double()
        dims = (0, 2, 3)
        plain: Callable[[Tensor], Tensor] = lambda x: x.abs().sum(dims)  # noqa: E731
        functions: dict[str, Callable[[Tensor], Tensor]] = {
            "ours": lambda x: ops.channel_activity(x, dim=1),
            "dense": plain,
            "slices": plain,
        }
        compiled: Any = torch.compile(plain) if name == "compiled" else plain
        self.function = functions.get(name, compiled)

    def __call__(self) -> Tensor:
        self.y = self.function(self.x)
        return self.y

    def results(self) -> list[Tensor]:
        """The sums."""
        return [self.y]


class Dropping:
    """Dropout, forward and backward."""

    P = 0.5

    def __init__(self, case: OpCase, name: str, double: bool = False) -> None:
        generator = torch.Generator().manual_seed(SEED)
        x = image(case, case.sizes[0], 0, generator)
        self.x = (x.double() if double else x).requires_grad_()
        self.grad_y = torch.ones_like(self.x)
        plain: Callable[[Tensor, float], Tensor] = F.dropout
        if name == "compiled":
            plain = torch.compile(plain)
        self.function = ops.dropout if name == "ours" else plain

    def __call__(self) -> Tensor:
        self.x.grad = None
        y = self.function(self.x, self.P)
        y.backward(self.grad_y)
        self.y = y.detach()
        return self.y

    def results(self) -> list[Tensor]:
        """Output and gradient, each with what it would be if nothing had been dropped in the places
        of the dropped elements, of which there are as many as there should be (within six
        deviations), and the same in both.
        """
        assert self.x.grad is not None
        dropped = self.x.grad == 0
        off = abs(float(dropped.double().mean()) - self.P)
        assert off < 6 * (self.P * (1 - self.P) / dropped.numel()) ** 0.5, off
        assert bool((self.y[dropped] == 0).all())
        kept = 1 / (1 - self.P)
        return [
            torch.where(dropped, self.x.detach() * kept, self.y),
            torch.where(dropped, self.grad_y * kept, self.x.grad),
        ]


def check(case: OpCase, make: Callable[[OpCase, str], Any] = make) -> None:
    """Checks ours against plain PyTorch in float64, by the error of plain PyTorch at the dtype.

    Raises:
        WrongResultError: ours is wrong.
    """
    exact = builder(case)(case, "slices", True)  # type: ignore[call-arg]
    torchs, ours = builder(case)(case, "slices"), make(case, "ours")
    for contender in (exact, torchs, ours):
        contender()
    triples = zip(ours.results(), torchs.results(), exact.results(), strict=True)
    for i, (own, plain, true) in enumerate(triples):
        # One rounding of the result is right even where PyTorch happens to have none.
        rounding = torch.finfo(own.dtype).eps * float(true.abs().mean())
        allowed = max(mean_error([plain], [true]), rounding)
        judge(mean_error([own], [true]), allowed, "ours", f"{case}, result {i}")


def work(case: OpCase) -> tuple[float, float]:
    """GFLOP, and GB of least traffic with memory, of one call of ours.

    Traffic: inputs and free weights are read by forward and backward, outputs and gradients pass
    once, frozen weights once; an optimizer reads weight, gradient and two moments (one for SGD) and
    writes all but the gradient.
    """
    size = torch.finfo(DTYPES[case.dtype]).bits / 8e9
    if case.op in OPTIMIZERS:
        free = case.sizes[0] * (case.sizes[1] - case.frozen(case.sizes[1]))
        return 0.0, free * size * (7 if case.op == "adam_l1" else 5)
    if case.op == "dropout":
        return 0.0, size * case.batch * case.sizes[0] * 4
    if case.op == "channel_activity":
        return 0.0, size * case.batch * case.sizes[0] * case.sizes[1] ** 2
    if case.op == "partial_batch_norm":
        values = case.batch * case.sizes[0] * case.sizes[1] ** 2
        return 0.0, size * values * (3 + 3 * (1 - case.fraction))
    inputs, outputs, kernel, stride, side = (*case.sizes, 1, 1, 1)[:5]
    pixels = (side + 2 * (kernel // 2) - kernel) // stride + 1
    active_in, active_out = case.frozen(inputs), case.frozen(outputs)
    free_weights = (outputs - active_out) * inputs * kernel**2
    active_weights = active_out * active_in * kernel**2
    backward = (outputs - active_out) * (inputs - active_in) * kernel**2
    rows = case.batch * pixels**2
    read = case.batch * side**2 * (2 * inputs + (inputs - active_in))
    made = rows * (outputs + (outputs - active_out))
    traffic = read + made + 2 * free_weights + active_weights + backward
    return 2e-9 * rows * (2 * free_weights + active_weights + backward), size * traffic
