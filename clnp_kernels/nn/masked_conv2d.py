"""``MaskedConv2d``: ``torch.nn.Conv2d`` with a frozen block."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._checks import check_choice
from ..errors import message
from ..ops.masked_conv2d import _pairs
from ..ops.masked_linear import ACTIVATIONS
from ._state import format_of, take_shapes, wrong_dimensions
from .masked_linear import _check_boundary, _check_index, _on_device_of, _parameter

Pair = int | tuple[int, int]
_NAMES = ("active_weight", "active_bias", "free_weight", "free_bias")


class MaskedConv2d(nn.Module):
    """A 2D convolution whose first Oa outputs are frozen and see only its first Ia inputs.

    The boundaries are the shapes of its tensors; only the free ones are parameters:

    - ``active_weight`` [Oa, Ia, K, K'] and ``active_bias`` [Oa]: buffers, frozen
    - ``free_weight`` [Of, I, K, K'] and ``free_bias`` [Of]: parameters

    Depthwise (``groups`` = inputs = outputs > 1) each channel has its own filter: weights
    [Ca, 1, K, K'] and [Cf, 1, K, K'], and the boundaries of inputs and outputs are one.

    With ``active_in = active_out = 0`` it computes exactly what ``torch.nn.Conv2d`` does, and is
    initialised alike. CLNP, Golkar et al. 2019, Sec. 2.1; gradients as in
    :func:`clnp_kernels.ops.masked_conv2d`.

    Arguments:
        in_channels, out_channels: I and O, at least 0.
        kernel_size, stride, padding, dilation: one number or two.
        groups: 1, or the number of channels (depthwise).
        bias: have biases.
        active_in, active_out: Ia and Oa. Frozen tensors start as zeros.
        activation: "none" or "relu".
        full_input_grad: let gradients flow into active inputs too.
        device, dtype: of all tensors.

    Attributes:
        skip_active: if set, ``forward`` computes and returns the free outputs only.

    Raises:
        ValueError: a size or boundary is out of range, the activation is unknown, or ``groups`` is
            neither 1 nor the number of channels.
    """

    active_weight: Tensor
    active_bias: Tensor | None
    free_weight: nn.Parameter
    free_bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        active_in: int = 0,
        active_out: int = 0,
        activation: str = "none",
        full_input_grad: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice("activation", activation, ACTIVATIONS)
        _check_boundary("active_in", active_in, "in_channels", in_channels)
        _check_boundary("active_out", active_out, "out_channels", out_channels)
        if groups != 1 and not groups == in_channels == out_channels:
            wanted = f"1, or {in_channels} with as many outputs as inputs (depthwise)"
            raise ValueError(message("groups", groups, wanted, "leave this layer as it is"))
        self.depthwise = groups > 1
        if self.depthwise and active_in != active_out:
            wanted = f"active_out = {active_out}, as the layer is depthwise"
            raise ValueError(message("active_in", active_in, wanted))
        kernel = [kernel_size] * 2 if isinstance(kernel_size, int) else list(kernel_size)
        if len(kernel) != 2 or min(kernel) < 1:
            raise ValueError(message("kernel_size", kernel_size, "one number or two, at least 1"))
        pairs = [(first, second) for first, second in _pairs(stride, padding, dilation)]
        self.stride, self.padding, self.dilation = pairs
        self.activation, self.full_input_grad, self.skip_active = activation, full_input_grad, False
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        free_out = out_channels - active_out
        ins = (1, 1) if self.depthwise else (active_in, in_channels)
        self.register_buffer("active_weight", torch.zeros(active_out, ins[0], *kernel, **factory))
        self.register_buffer("active_bias", torch.zeros(active_out, **factory) if bias else None)
        self.free_weight = nn.Parameter(torch.empty(free_out, ins[1], *kernel, **factory))
        free_bias = nn.Parameter(torch.empty(free_out, **factory)) if bias else None
        self.register_parameter("free_bias", free_bias)
        self.reset_free_parameters()

    @property
    def in_channels(self) -> int:
        """I, active and free."""
        return self.out_channels if self.depthwise else self.free_weight.shape[1]

    @property
    def out_channels(self) -> int:
        """O, active and free."""
        return self.active_weight.shape[0] + self.free_weight.shape[0]

    @property
    def active_in(self) -> int:
        """Ia: inputs that active outputs see."""
        return self.active_weight.shape[0 if self.depthwise else 1]

    @property
    def active_out(self) -> int:
        """Oa: frozen outputs."""
        return self.active_weight.shape[0]

    @property
    def kernel_size(self) -> tuple[int, int]:
        """K and K'."""
        return self.free_weight.shape[2], self.free_weight.shape[3]

    @classmethod
    def from_dense(
        cls,
        conv: nn.Conv2d,
        *,
        active_in: int = 0,
        active_out: int = 0,
        activation: str = "none",
    ) -> "MaskedConv2d":
        """A masked layer with copies of the weights of ``conv``, without interference.

        Raises:
            ValueError: as the constructor; or padding that is not of zeros or not symmetric.
        """
        weight, bias = conv.weight.detach(), conv.bias
        options: dict[str, Any] = {"active_in": active_in, "active_out": active_out}
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            (weight.shape[2], weight.shape[3]),
            (conv.stride[0], conv.stride[1]),
            _padding(conv),
            (conv.dilation[0], conv.dilation[1]),
            conv.groups,
            bias is not None,
            activation=activation,
            device="meta",
            **options,
        )
        lies, columns = format_of(weight), 1 if layer.depthwise else active_in
        layer.active_weight = weight[:active_out, :columns].clone(memory_format=lies)
        layer.free_weight = nn.Parameter(weight[active_out:].clone(memory_format=lies))
        if bias is not None:
            layer.active_bias = bias.detach()[:active_out].clone()
            layer.free_bias = nn.Parameter(bias.detach()[active_out:].clone())
        return layer.train(conv.training)

    def to_dense(self) -> nn.Conv2d:
        """A ``torch.nn.Conv2d`` without the activation: all weights copied, interference zero."""
        bias = self.free_bias is not None
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.out_channels if self.depthwise else 1,
            bias,
            device="meta",
        )
        weight = self._zeros(self.out_channels, self.free_weight.shape[1])
        weight[: self.active_out, : self.active_weight.shape[1]] = self.active_weight
        weight[self.active_out :] = self.free_weight.detach()
        conv.weight = nn.Parameter(weight)
        if self.free_bias is not None and self.active_bias is not None:
            conv.bias = nn.Parameter(torch.cat([self.active_bias, self.free_bias.detach()]))
        return conv.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, I, H, W] -> y [B, O, H', W'], or [B, Of, H', W'] with ``skip_active``."""
        y = self._call(x, activity=False)
        assert isinstance(y, Tensor)
        return y

    def forward_with_activity(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``forward``, and the sum of ``|y|`` over batch and pixels: [O], float32 or float64."""
        result = self._call(x, activity=True)
        assert isinstance(result, tuple)
        return result

    def _call(self, x: Tensor, activity: bool) -> Tensor | tuple[Tensor, Tensor]:
        weight, bias = self.active_weight, self.active_bias
        if self.skip_active:
            x = x[:, self.active_in :] if self.depthwise else x
            weight, bias = weight[:0], None if bias is None else bias[:0]
        return ops.masked_conv2d(
            x,
            weight,
            self.free_weight,
            bias,
            self.free_bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            depthwise=self.depthwise,
            activation=self.activation,
            activity=activity,
            full_input_grad=self.full_input_grad,
        )

    @torch.no_grad()
    def reset_free_parameters(
        self, generator: torch.Generator | None = None, scale: float = 1.0
    ) -> None:
        """Initialise the free parameters in place as ``torch.nn.Conv2d`` would with I inputs.

        Arguments:
            generator: source of the random numbers, on any device; None: the global one.
            scale: factor on the weights (not on the biases).
        """
        fan_in = self.free_weight.shape[1:].numel()
        if self.free_weight.numel():
            drawn = _on_device_of(generator, self.free_weight)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            self.free_weight.copy_(drawn.mul_(scale))
        if self.free_bias is not None and self.free_bias.numel():
            bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
            drawn = _on_device_of(generator, self.free_bias)
            self.free_bias.copy_(nn.init.uniform_(drawn, -bound, bound, generator=generator))

    @torch.no_grad()
    def freeze(self, keep_out: Tensor, keep_in: Tensor) -> None:
        """Make free channels active: they move behind the active ones, in the order given.

        Old active outputs get zero weights from the new inputs. Kept outputs keep their weights
        from the active and the kept inputs and lose the others. The parameters are replaced by
        smaller ones filled with zeros: call :meth:`reset_free_parameters` next, and build a new
        optimizer. From now on the inputs are expected in the new order: active, kept, rest.

        Arguments:
            keep_out: int64 [n], different numbers of free outputs, 0 to Of - 1.
            keep_in: int64 [m], different numbers of free inputs, 0 to If - 1; of a depthwise layer
                the same as ``keep_out``.

        Raises:
            TypeError, ValueError: an argument is not that; nothing is changed.
        """
        device, old_in = self.free_weight.device, self.active_in
        free_out = self.free_weight.shape[0]
        keep_out = _check_index("keep_out", keep_out, free_out).to(device)
        keep_in = _check_index("keep_in", keep_in, self.in_channels - old_in).to(device)
        kept = self.free_weight[keep_out]
        if self.depthwise:
            if not torch.equal(keep_in, keep_out):
                wanted = "the channels of keep_out, as the layer is depthwise"
                raise ValueError(message("keep_in", keep_in.tolist(), wanted))
            width = 1
        else:
            columns = torch.cat([torch.arange(old_in, device=device), old_in + keep_in])
            kept, width = kept[:, columns], len(columns)
        old_out = self.active_out
        weight = self._zeros(old_out + len(keep_out), width)
        weight[:old_out, : self.active_weight.shape[1]] = self.active_weight
        weight[old_out:] = kept
        free = free_out - len(keep_out)
        if self.free_bias is not None and self.active_bias is not None:
            self.active_bias = torch.cat([self.active_bias, self.free_bias[keep_out]])
            self.free_bias = _parameter(self.free_bias.new_zeros(free), self.free_bias)
        self.active_weight = weight
        zeros = self._zeros(free, self.free_weight.shape[1])
        self.free_weight = _parameter(zeros, self.free_weight)

    @torch.no_grad()
    def expand(self, out_channels: int = 0, in_channels: int = 0) -> None:
        """Add free outputs and free inputs, at the end and filled with zeros.

        The parameters are replaced: build a new optimizer. A depthwise layer takes the same number
        twice.

        Raises:
            ValueError: a number is negative, or the numbers of a depthwise layer differ.
        """
        for name, value in (("out_channels", out_channels), ("in_channels", in_channels)):
            if value < 0:
                raise ValueError(message(name, value, "a number of channels to add, at least 0"))
        if self.depthwise and in_channels != out_channels:
            wanted = f"out_channels = {out_channels}, as the layer is depthwise"
            raise ValueError(message("in_channels", in_channels, wanted))
        rows, columns = self.free_weight.shape[:2]
        added = 0 if self.depthwise else in_channels
        weight = self._zeros(rows + out_channels, columns + added)
        weight[:rows, :columns] = self.free_weight
        self.free_weight = _parameter(weight, self.free_weight)
        if self.free_bias is not None:
            bias = nn.functional.pad(self.free_bias, (0, out_channels))
            self.free_bias = _parameter(bias, self.free_bias)

    def extra_repr(self) -> str:
        """Sizes, boundaries and what is not default."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        text += f", stride={self.stride}, padding={self.padding}, dilation={self.dilation}"
        text += f", active_in={self.active_in}, active_out={self.active_out}"
        text += f", bias={self.free_bias is not None}" + (", depthwise" if self.depthwise else "")
        return text if self.activation == "none" else f"{text}, activation={self.activation!r}"

    def _zeros(self, rows: int, columns: int) -> Tensor:
        """Weights that lie as the free ones do."""
        like = self.free_weight
        shape, lies = (rows, columns, *self.kernel_size), format_of(like)
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=lies).zero_()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Take the boundaries of the state."""
        problem = take_shapes(self, _NAMES, state_dict, prefix, self._nonsense)
        if problem:
            args[4].append(problem)
            return
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _nonsense(self, shapes: Mapping[str, list[int]]) -> str:
        """What is wrong with the shapes of a state, or ''."""
        problem = wrong_dimensions(shapes, 4)
        if problem:
            return problem
        active, free = shapes["active_weight"], shapes["free_weight"]
        for name in ("active_weight", "free_weight"):
            if tuple(shapes[name][2:]) != self.kernel_size:
                return message(f"{name}.shape", shapes[name], f"kernel {self.kernel_size}")
            if self.depthwise and shapes[name][1] != 1:
                return message(f"{name}.shape", shapes[name], "1 input for each depthwise filter")
        if active[1] > free[1]:
            wanted = f"at most {free[1]} inputs, those of free_weight"
            return message("active_weight.shape", active, wanted)
        for part in ("active", "free"):
            bias, rows = shapes.get(f"{part}_bias"), shapes[f"{part}_weight"][:1]
            if bias is not None and bias != rows:
                return message(f"{part}_bias.shape", bias, f"{rows}, the outputs of {part}_weight")
        return ""


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    """The padding of ``conv`` in pixels on each side."""
    if conv.padding_mode != "zeros":
        way_out = "leave this layer as it is"
        raise ValueError(message("conv.padding_mode", repr(conv.padding_mode), "'zeros'", way_out))
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if any(t % 2 for t in total):
            wanted = "the same number of zeros on both sides: an odd kernel"
            raise ValueError(message("conv.padding", "'same'", wanted, "pad in a layer before it"))
        return total[0] // 2, total[1] // 2
    return int(conv.padding[0]), int(conv.padding[1])
