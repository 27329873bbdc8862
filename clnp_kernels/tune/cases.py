"""Arguments of every operator for layers of given sizes: small for the check, real for times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference.masked_conv2d import output_size


@dataclass(frozen=True)
class Layer:
    """Sizes of a layer whose first inputs and outputs are active.

    Attributes:
        rows: examples.
        active_in, free_in, active_out, free_out: channels.
        side: height of an image, whose width is one less; 0 for none.
        kernel, stride, padding: of a convolution, in both directions.
        depthwise: each channel by itself; inputs are outputs.
        last: images in channels_last.
        plain: without bias, ReLU, activity and statistics of the batch.
    """

    rows: int
    active_in: int
    free_in: int
    active_out: int
    free_out: int
    side: int = 0
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    depthwise: bool = False
    last: bool = True
    plain: bool = False

    @property
    def inputs(self) -> int:
        """All input channels."""
        return self.active_in + self.free_in

    @property
    def outputs(self) -> int:
        """All output channels."""
        return self.active_out + self.free_out

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int], bool]:
        """Stride, padding, dilation and depthwise, as the operators take them."""
        return [self.stride] * 2, [self.padding] * 2, [1, 1], self.depthwise


class Maker:
    """Makes the arguments of an operator from seeded random numbers.

    Arguments:
        layer: sizes.
        dtype, device: of the tensors; "meta" for shapes only.
        seed: of the numbers, which are the same on every run on a device.
    """

    def __init__(self, layer: Layer, dtype: torch.dtype, device: str, seed: int = 0) -> None:
        self.layer, self.dtype, self.device = layer, dtype, device
        self.generator: torch.Generator | None = None
        if device != "meta":
            self.generator = torch.Generator(device).manual_seed(seed)

    def arguments(self, operator: str) -> tuple[Any, ...]:
        """The arguments of one call."""
        return _MAKERS[operator](self)

    def randn(self, *shape: int) -> Tensor:
        """Normal random numbers."""
        made = torch.randn(*shape, generator=self.generator, device=self.device)
        return made.to(self.dtype)

    def images(self, channels: int, *, out: bool = False) -> Tensor:
        """Images [B, C, H, W], or a matrix [B, C] of a layer without images."""
        layer = self.layer
        if not layer.side:
            return self.randn(layer.rows, channels)
        size = [layer.side, max(layer.side - 1, 1)]
        if out:
            like = torch.empty(1, 1, *size, device="meta")
            size = output_size(like, [layer.kernel] * 2, *layer.geometry[:3])
        images = self.randn(layer.rows, channels, *size)
        format_ = torch.channels_last if layer.last else torch.contiguous_format
        return torch.empty_like(images, memory_format=format_).copy_(images)

    def weights(self) -> tuple[Tensor, Tensor]:
        """Frozen and free weight."""
        layer = self.layer
        kernel = [layer.kernel] * 2 if layer.side else []
        ins = (1, 1) if layer.depthwise else (layer.active_in, layer.inputs)
        return (
            self.randn(layer.active_out, ins[0], *kernel),
            self.randn(layer.free_out, ins[1], *kernel),
        )

    def biases(self) -> tuple[Tensor | None, Tensor | None]:
        """Frozen and free bias, or None twice."""
        if self.layer.plain:
            return None, None
        return self.randn(self.layer.active_out), self.randn(self.layer.free_out)

    @property
    def rest(self) -> tuple[Any, ...]:
        """Activation and activity."""
        return ("none", False) if self.layer.plain else ("relu", True)

    @property
    def geometry(self) -> tuple[Any, ...]:
        """Geometry of a convolution; nothing for a matrix."""
        return self.layer.geometry if self.layer.side else ()


def _forward(make: Maker) -> tuple[Any, ...]:
    x = make.images(make.layer.inputs)
    return (x, *make.weights(), *make.biases(), *make.geometry, *make.rest)


def _relu_grad(make: Maker) -> tuple[Any, ...]:
    layer = make.layer
    grad, y = (make.images(layer.outputs, out=True) for _ in range(2))
    return grad, y.relu(), layer.active_out, not layer.plain


def _dgrad(make: Maker) -> tuple[Any, ...]:
    layer, free = make.layer, make.weights()[1]
    x = (make.images(layer.inputs),) if layer.side else ()
    grad = make.images(layer.free_out, out=True)
    return (grad, *x, free, layer.active_in, *make.geometry)


def _wgrad(make: Maker) -> tuple[Any, ...]:
    layer = make.layer
    kernel = ([layer.kernel] * 2,) if layer.side else ()
    grad, x = make.images(layer.free_out, out=True), make.images(layer.inputs)
    return (grad, x, *kernel, *make.geometry, not layer.plain)


def _vectors(make: Maker, *sizes: int) -> list[Tensor]:
    """Positive numbers, float32 for narrower types, as batch norms keep them."""
    wide = torch.float64 if make.dtype == torch.float64 else torch.float32
    made = [torch.rand(n, generator=make.generator, device=make.device) + 0.5 for n in sizes]
    return [vector.to(wide) for vector in made]


def _norm_fwd(make: Maker) -> tuple[Any, ...]:
    active, free = make.layer.active_out, make.layer.free_out
    x = make.images(active + free)
    statistics = _vectors(make, active, active, free, free)
    affine = [None] * 4 if make.layer.plain else _vectors(make, active, free, active, free)
    return (x, *statistics, *affine, not make.layer.plain, 1e-5, *make.rest)


def _norm_bwd(make: Maker) -> tuple[Any, ...]:
    active, free = make.layer.active_out, make.layer.free_out
    grad, x, y = (make.images(active + free) for _ in range(3))
    mean, var, weight = _vectors(make, free, free, free)
    plain = make.layer.plain
    last = (None if plain else weight, not plain, 1e-5)
    return (grad, x, None if plain else y.relu(), mean, var, *last)


def _layer_norm_fwd(make: Maker) -> tuple[Any, ...]:
    active, free = make.layer.active_out, make.layer.free_out
    sizes = (active, free, active, free)
    affine = [None] * 4 if make.layer.plain else _vectors(make, *sizes)
    step = gcd(16, active)  # two frozen blocks, of the same alignment
    ends = [active // (2 * step) * step, active, active + free]
    x, plain = make.randn(make.layer.rows, active + free), make.layer.plain
    return (x, ends, *affine, 1e-5, plain, False, not plain)


def _layer_norm_bwd(make: Maker) -> tuple[Any, ...]:
    layer = make.layer
    grad, x = make.randn(layer.rows, layer.free_out), make.randn(layer.rows, layer.outputs)
    mean, rstd, weight = _vectors(make, layer.rows, layer.rows, layer.free_out)
    if layer.plain:
        return grad, x, mean[:0], rstd, None, True, True
    return grad, x, mean, rstd, weight, False, True


def _activity(make: Maker) -> tuple[Any, ...]:
    return make.images(make.layer.free_out), 1


def _lists(make: Maker, count: int) -> list[list[Tensor]]:
    """`count` lists of tensors like the parameters of the layer, and one of an odd size."""
    layer = make.layer
    shapes = [(layer.free_out, layer.inputs), (layer.free_out,), (37,)]
    return [[make.randn(*shape) for shape in shapes] for _ in range(count)]


def _adam(make: Maker) -> tuple[Any, ...]:
    params, grads, first, second = _lists(make, 4)
    steps = [torch.full((), 3.0, device=make.device) for _ in params]
    state = (params, grads, first, [tensor.abs() for tensor in second], steps, _rates(make))
    return (*state, [0.05] * len(params), 0.9, 0.99, 1e-8, 0.1, False, None, None)


def _sgd(make: Maker) -> tuple[Any, ...]:
    params, grads, buffers = _lists(make, 3)
    count, rest = len(params), (0.9, 0.1, False, 0.1, False, None, None)
    return (params, grads, buffers, [False] * count, _rates(make), [0.05] * count, *rest)


def _rates(make: Maker) -> list[Tensor]:
    """A learning rate for each tensor of `_lists`, of two groups of parameters."""
    one, other = (torch.tensor(rate, device=make.device) for rate in (1e-2, 3e-3))
    return [one, one, other]


_MAKERS: dict[str, Callable[[Maker], tuple[Any, ...]]] = {
    **{f"masked_{stem}_fwd": _forward for stem in ("linear", "conv2d")},
    **{f"masked_{stem}_relu_grad": _relu_grad for stem in ("linear", "conv2d")},
    **{f"masked_{stem}_dgrad": _dgrad for stem in ("linear", "conv2d")},
    **{f"masked_{stem}_wgrad": _wgrad for stem in ("linear", "conv2d")},
    "partial_batch_norm_fwd": _norm_fwd,
    "partial_batch_norm_bwd": _norm_bwd,
    "partial_layer_norm_fwd": _layer_norm_fwd,
    "partial_layer_norm_bwd": _layer_norm_bwd,
    "channel_activity": _activity,
    "adam_l1": _adam,
    "sgd_l1": _sgd,
}


def dense(operator: str, make: Maker) -> Callable[[], Any] | None:
    """The plain layer of the same size, without a frozen part: what a network without masks would
    compute. None where there is none.
    """
    layer = make.layer
    if operator not in ("masked_linear_fwd", "masked_conv2d_fwd") or layer.depthwise:
        return None
    kernel = [layer.kernel] * 2 if layer.side else []
    x, weight = make.images(layer.inputs), make.randn(layer.outputs, layer.inputs, *kernel)
    bias = make.randn(layer.outputs)
    if layer.side:
        return lambda: F.conv2d(x, weight, bias, *layer.geometry[:3]).relu_()
    return lambda: F.linear(x, weight, bias).relu_()


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Arguments with every tensor changed, those in lists too."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(one, change) for one in value)
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors among arguments or results, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors_in(one)


def multiple(size: int, alignment: int) -> int:
    """An odd multiple of the alignment near a size, 0 for 0."""
    return alignment * (size // alignment | 1) if size else 0


# rows, active and free inputs, active and free outputs: an ordinary layer, and empty parts
SMALL = ((9, 5, 12, 3, 9), (6, 0, 11, 0, 13), (6, 11, 0, 13, 0), (1, 3, 4, 2, 5))
LARGE = ((300, 130, 290, 150, 310), (1000, 70, 20, 30, 500))  # several tiles, long sums


def check_layers(operator: str, alignment: int, *, small: bool) -> list[Layer]:
    """The layers that an implementation is checked on.

    Arguments:
        operator: its name.
        alignment: of all boundaries: the largest power of two up to 16 that divides them.
        small: for an interpreter, the first one only.
    """
    sizes = SMALL[:1] if small else (*SMALL, *LARGE)
    layers = []
    for rows, *channels in sizes:
        active_in, free_in, active_out, free_out = (multiple(n, alignment) for n in channels)
        layers.append(Layer(rows, active_in, free_in, active_out, free_out))
    if operator.startswith(("masked_conv2d", "partial_batch_norm")):
        layers = list(_with_images(layers, operator, small=small))
    return [*layers, replace(layers[0], plain=True)]


def _with_images(layers: Sequence[Layer], operator: str, *, small: bool) -> Iterator[Layer]:
    """Layers of images in both formats; for convolutions strided, pointwise and depthwise ones."""
    for i, layer in enumerate(layers):
        rows = min(layer.rows, 8)
        yield replace(layer, rows=2 if small else rows, side=4 if small else 6, last=i % 2 == 0)
    if operator.startswith("masked_conv2d"):
        first = replace(layers[0], rows=2, side=5)
        yield replace(first, stride=2, padding=0, last=False)
        yield replace(first, kernel=1, padding=0)
        active, free = first.active_in, first.free_in
        yield replace(first, active_out=active, free_out=free, depthwise=True)
