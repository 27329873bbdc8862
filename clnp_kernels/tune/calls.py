"""Description of a call of an operator: everything that its implementation is chosen by.

Boundaries between active and free channels move with every task, so entries of a table hold for a
`Key`: sizes in half octaves, the active fraction in quarters, and the alignment of the boundaries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd, log2
from typing import Any, NamedTuple

import torch
from torch import Tensor

ALIGNMENTS = (16, 8, 4, 2, 1)
MODES = ("eager", "graph")


class Call(NamedTuple):
    """A call of an operator.

    Attributes:
        operator: its name.
        dtype: of the tensors, as "float32"; several are joined by "+".
        alignment: the largest of `ALIGNMENTS` that divides all boundaries, in elements.
        sizes: rows or pixels, then channels and what else the operator has.
        fraction: of the channels that are active.
        options: names of what else the call computes, joined by "+".
        mode: "graph" within a captured step, else "eager".
        flop: floating-point operations of a product, else 0.
    """

    operator: str
    dtype: str
    alignment: int
    sizes: tuple[int, ...]
    fraction: float
    options: str
    mode: str
    flop: int = 0

    @property
    def key(self) -> Key:
        """The key of the table's entries for calls like this one."""
        sizes = tuple(round(2 * log2(size)) if size else -1 for size in self.sizes)
        quarter = round(4 * self.fraction)
        return Key(*self[:3], sizes, quarter, self.options, self.mode)


class Key(NamedTuple):
    """A class of calls; `sizes` are in half octaves, `active` in quarters of the channels."""

    operator: str
    dtype: str
    alignment: int
    sizes: tuple[int, ...]
    active: int
    options: str
    mode: str

    @property
    def kind(self) -> tuple[str, str, int, str, str]:
        """The part that an entry and a call must have in common."""
        return self.operator, self.dtype, self.alignment, self.options, self.mode

    def distance(self, other: Key) -> int:
        """Return the largest difference of two keys of a kind, in half octaves or quarters."""
        pairs = zip((*self.sizes, self.active), (*other.sizes, other.active), strict=True)
        return max(abs(one - two) for one, two in pairs)


# What a formula below returns: boundaries, sizes, (active, all) channels, options, flop.
Parts = tuple[Sequence[int], tuple[int, ...], tuple[int, int], Sequence[Any], int]


def call_of(operator: str, args: Sequence[Any], mode: str) -> Call:
    """Describe a call from its arguments (tensors of any device, only their shapes are read)."""
    tensors = args[0] if isinstance(args[0], (list, tuple)) else args[:1]
    boundaries, sizes, (active, channels), options, flop = _PARTS[operator](*args)
    return Call(
        operator,
        _dtypes(tensors),
        gcd(ALIGNMENTS[0], *boundaries),
        sizes,
        active / channels if channels else 0.0,
        "+".join(filter(None, options)),
        mode,
        flop,
    )


def _dtypes(tensors: Sequence[Tensor]) -> str:
    if len(tensors) == 1:
        return name_of(tensors[0].dtype)
    return "+".join(sorted({name_of(tensor.dtype) for tensor in tensors}))


def runs(implementation: str, capability: int) -> bool:
    """Return whether an implementation is meant for a compute capability (major * 10 + minor)."""
    return implementation != "triton-persistent" or capability >= TMA


def takes(implementation: str, dtype: torch.dtype, alignment: int) -> bool:
    """Return whether an implementation is made for boundaries at multiples of `alignment`."""
    return implementation not in ALIGNED or alignment * dtype.itemsize % 16 == 0


def name_of(dtype: torch.dtype) -> str:
    """Return "float32" for `torch.float32`."""
    return str(dtype).rpartition(".")[2]


def _pixels(x: Tensor) -> int:
    """Elements of a channel of [B, C, ...]."""
    return x.numel() // max(x.shape[1], 1)


def _layout(x: Tensor) -> str:
    return "channels_last" if x.ndim == 4 and x.stride(1) == 1 else ""


def _forward(x: Tensor, active: Tensor, free: Tensor, bias: Any, *rest: Any) -> Parts:
    """`masked_linear_fwd` and `masked_conv2d_fwd`, whose last arguments are alike."""
    *geometry, activation, activity = rest[1:]
    depthwise, kernel = bool(geometry and geometry[3]), active.shape[2:].numel()
    outputs, ins = active.shape[0] + free.shape[0], active.shape[0 if depthwise else 1]
    sizes = (_pixels(x), x.shape[1], outputs, *([kernel] if geometry else []))
    options = (
        bias is not None and "bias",
        activation == "relu" and "relu",
        activity and "activity",
        depthwise and "depthwise",
        _layout(x),
    )
    flop = 2 * _pixels(x) * (active.numel() + free.numel())
    boundaries = (ins, x.shape[1], active.shape[0], outputs)
    return boundaries, sizes, (active.shape[0], outputs), options, flop


def _relu_grad(grad: Tensor, y: Tensor, active: int, bias: bool) -> Parts:
    channels = grad.shape[1]
    options = (bias and "bias", _layout(grad))
    return (active, channels), (_pixels(grad), channels), (active, channels), options, 0


def _linear_dgrad(grad: Tensor, free: Tensor, active: int) -> Parts:
    outputs, inputs = free.shape
    flop = 2 * len(grad) * outputs * (inputs - active)
    sizes = (len(grad), inputs, outputs)
    return (active, inputs, outputs), sizes, (active, inputs), (), flop


def _linear_wgrad(grad: Tensor, x: Tensor, bias: bool) -> Parts:
    outputs, inputs = grad.shape[1], x.shape[1]
    sizes = (len(x), inputs, outputs)
    return (inputs, outputs), sizes, (0, inputs), (bias and "bias",), 2 * grad.numel() * inputs


def _conv_dgrad(grad: Tensor, x: Tensor, free: Tensor, active: int, *geometry: Any) -> Parts:
    outputs, inputs, kernel = free.shape[0], x.shape[1], free.shape[2:].numel()
    options = (geometry[3] and "depthwise", _layout(x))
    sizes = (_pixels(x), inputs, outputs, kernel)
    flop = 2 * _pixels(grad) * free.numel()
    return (active, inputs, outputs), sizes, (active, inputs), options, flop


def _conv_wgrad(grad: Tensor, x: Tensor, kernel: Sequence[int], *rest: Any) -> Parts:
    *geometry, bias = rest
    outputs, inputs, taps = grad.shape[1], x.shape[1], kernel[0] * kernel[1]
    options = (bias and "bias", geometry[3] and "depthwise", _layout(x))
    flop = 2 * grad.numel() * taps * (1 if geometry[3] else inputs)
    return (inputs, outputs), (_pixels(x), inputs, outputs, taps), (0, inputs), options, flop


def _norm_fwd(x: Tensor, active_mean: Tensor, *rest: Any) -> Parts:
    training, _, activation, activity = rest[-4:]
    options = (training and "training", activation == "relu" and "relu", activity and "activity")
    return _norm(x, len(active_mean), (*options, _layout(x)))


def _norm_bwd(grad: Tensor, x: Tensor, y: Any, free_mean: Tensor, *rest: Any) -> Parts:
    options = (rest[-2] and "training", y is not None and "relu", _layout(x))
    return _norm(x, x.shape[1] - len(free_mean), options)


def _norm(x: Tensor, active: int, options: Sequence[Any]) -> Parts:
    channels = x.shape[1]
    return (active, channels), (_pixels(x), channels), (active, channels), options, 0


def _layer_norm_fwd(x: Tensor, ends: Sequence[int], *rest: Any) -> Parts:
    rms, skip_active, activity = rest[-3:]
    active = ends[-2] if len(ends) > 1 else 0
    options = (rms and "rms", skip_active and "skip_active", activity and "activity")
    return ends, tuple(x.shape), (active, x.shape[1]), options, 0


def _layer_norm_bwd(grad: Tensor, x: Tensor, *rest: Any) -> Parts:
    channels, rms, affine = x.shape[1], *rest[-2:]
    active, options = channels - grad.shape[1], (rms and "rms", affine and "affine")
    return (active, channels), tuple(x.shape), (active, channels), options, 0


def _activity(x: Tensor, dim: int) -> Parts:
    channels = x.shape[dim]
    last = "last" if x.stride(dim) == 1 else ""
    return (channels,), (x.numel() // max(channels, 1), channels), (0, channels), (last,), 0


def _optimizer(params: Sequence[Tensor], *rest: Any) -> Parts:
    return (1,), (sum(map(Tensor.numel, params)), len(params)), (0, 1), (), 0


_PARTS: dict[str, Callable[..., Parts]] = {
    "masked_linear_fwd": _forward,
    "masked_linear_relu_grad": _relu_grad,
    "masked_linear_dgrad": _linear_dgrad,
    "masked_linear_wgrad": _linear_wgrad,
    "masked_conv2d_fwd": _forward,
    "masked_conv2d_relu_grad": _relu_grad,
    "masked_conv2d_dgrad": _conv_dgrad,
    "masked_conv2d_wgrad": _conv_wgrad,
    "partial_batch_norm_fwd": _norm_fwd,
    "partial_batch_norm_bwd": _norm_bwd,
    "partial_layer_norm_fwd": _layer_norm_fwd,
    "partial_layer_norm_bwd": _layer_norm_bwd,
    "channel_activity": _activity,
    "adam_l1": _optimizer,
    "sgd_l1": _optimizer,
}
OPERATORS = (*_PARTS,)
# Implementations that take runs of memory at multiples of 16 bytes only.
ALIGNED = ("cublaslt", "triton-persistent")
TMA = 90  # compute capability from which on the processors copy tiles in the background
LISTS = ("adam_l1", "sgd_l1")  # take lists of any tensors, so they have no boundaries
