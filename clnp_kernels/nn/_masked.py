"""Base of the layers with a frozen block: tensors, boundaries and state."""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .. import ops
from ..errors import message
from ..reference.masked_conv2d import memory_format
from ._replaced import replacement
from ._state import Partial, wrong_dimensions

Layer = TypeVar("Layer", bound="Masked")
Dense = TypeVar("Dense", nn.Linear, nn.Conv2d, nn.Conv3d)


class Masked(Partial):
    """A layer whose first Oa outputs are frozen and see only its first Ia inputs.

    Weights are [rows, columns, *kernel]; the kernel of a linear layer is (). A depthwise layer has
    one column, and its inputs are its outputs.
    """

    names = ("active_weight", "active_bias", "free_weight", "free_bias")
    active_weight: Tensor
    active_bias: Tensor | None
    free_weight: nn.Parameter
    free_bias: nn.Parameter | None
    depthwise: bool

    def __init__(self, activation: str, full_input_grad: bool, depthwise: bool = False) -> None:
        super().__init__(activation, full_input_grad)
        self.depthwise = depthwise

    def _fill(
        self,
        active: tuple[int, int],
        free: tuple[int, int],
        kernel: tuple[int, ...],
        bias: bool,
        factory: dict[str, Any],
    ) -> None:
        """Make the tensors: (rows, columns) of the frozen and of the free weight."""
        self.register_buffer("active_weight", torch.zeros(*active, *kernel, **factory))
        self.register_buffer("active_bias", torch.zeros(active[0], **factory) if bias else None)
        self.free_weight = nn.Parameter(torch.empty(*free, *kernel, **factory))
        free_bias = nn.Parameter(torch.empty(free[0], **factory)) if bias else None
        self.register_parameter("free_bias", free_bias)
        self.reset_free_parameters()

    @torch.no_grad()
    def _copy(self: Layer, dense: Any) -> Layer:
        """Copy the weights [O, I, ...] of a dense layer, with their `requires_grad` and without
        interference.
        """
        weight, bias, (rows, columns) = dense.weight, dense.bias, self.active_weight.shape[:2]
        layout = memory_format(weight)
        self.active_weight = weight[:rows, :columns].clone(memory_format=layout)
        free = weight[rows:].clone(memory_format=layout)
        self.free_weight = nn.Parameter(free, requires_grad=weight.requires_grad)
        if bias is not None:
            self.active_bias = bias[:rows].clone()
            self.free_bias = nn.Parameter(bias[rows:].clone(), requires_grad=bias.requires_grad)
        return self.train(dense.training)

    def _copy_to(self, dense: Dense) -> Dense:
        """A dense layer with copies of all weights, interference zero."""
        rows, columns = self.active_weight.shape[:2]
        weight = self._zeros(rows + self.free_weight.shape[0], self.free_weight.shape[1])
        weight[:rows, :columns] = self.active_weight
        weight[rows:] = self.free_weight.detach()
        dense.weight = nn.Parameter(weight)
        if self.free_bias is not None and self.active_bias is not None:
            dense.bias = nn.Parameter(torch.cat([self.active_bias, self.free_bias.detach()]))
        return dense.train(self.training)

    @property
    def active_in(self) -> int:
        """Ia: inputs that active outputs see."""
        return self.active_weight.shape[0 if self.depthwise else 1]

    @property
    def active_out(self) -> int:
        """Oa: frozen outputs."""
        return self.active_weight.shape[0]

    @property
    def inputs(self) -> int:
        """I, active and free."""
        return self.outputs if self.depthwise else self.free_weight.shape[1]

    @property
    def outputs(self) -> int:
        """O, active and free."""
        return self.active_weight.shape[0] + self.free_weight.shape[0]

    @torch.no_grad()
    def reset_free_parameters(
        self, generator: torch.Generator | None = None, scale: float = 1.0
    ) -> None:
        """Initialise the free parameters in place as the dense `torch.nn` layer would with all
        inputs.

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
        smaller ones filled with zeros: call `reset_free_parameters` next, and build a new
        optimizer. From now on the inputs are expected in the new order: active, kept, rest.

        Arguments:
            keep_out: int64 [n], different numbers of free outputs, 0 to Of - 1.
            keep_in: int64 [m], different numbers of free inputs, 0 to If - 1; of a depthwise layer
                the same as `keep_out`.

        Raises:
            TypeError, ValueError: an argument is not that; nothing is changed.
        """
        rows, old_out = self.free_weight.shape[0], self.active_out
        keep_out, kept = self._kept(keep_out, keep_in)
        weight = self._zeros(old_out + len(keep_out), kept.shape[1])
        weight[:old_out, : self.active_weight.shape[1]] = self.active_weight
        weight[old_out:] = kept
        if self.free_bias is not None and self.active_bias is not None:
            self.active_bias = torch.cat([self.active_bias, self.free_bias[keep_out]])
            zeros = self.free_bias.new_zeros(rows - len(keep_out))
            self.free_bias = replacement(self.free_bias, zeros)
        self.active_weight = weight
        zeros = self._zeros(rows - len(keep_out), self.free_weight.shape[1])
        self.free_weight = replacement(self.free_weight, zeros)

    @torch.no_grad()
    def keep_free(self, keep_out: Tensor, keep_in: Tensor) -> None:
        """Keep only these free outputs and free inputs, in the order given; the layer forgets the
        others.

        The parameters are replaced: build a new optimizer. What is active stays as it is.

        Arguments:
            keep_out, keep_in: as in `freeze`.

        Raises:
            TypeError, ValueError: an argument is not that; nothing is changed.
        """
        keep_out, kept = self._kept(keep_out, keep_in)
        weight = self._zeros(*kept.shape[:2]).copy_(kept)
        if self.free_bias is not None:
            self.free_bias = replacement(self.free_bias, self.free_bias[keep_out])
        self.free_weight = replacement(self.free_weight, weight)

    def _kept(self, keep_out: Tensor, keep_in: Tensor) -> tuple[Tensor, Tensor]:
        """`keep_out` on the layer's device, and the free weights of these outputs from the active
        inputs and `keep_in`.
        """
        device, active = self.free_weight.device, self.active_in
        keep_out = check_index("keep_out", keep_out, self.free_weight.shape[0]).to(device)
        keep_in = check_index("keep_in", keep_in, self.inputs - active).to(device)
        kept = self.free_weight.detach()[keep_out]
        if not self.depthwise:
            return keep_out, kept[
                :, torch.cat([torch.arange(active, device=device), active + keep_in])
            ]
        if not torch.equal(keep_in, keep_out):
            wanted = "the channels of keep_out, as the layer is depthwise"
            raise ValueError(message("keep_in", keep_in.tolist(), wanted))
        return keep_out, kept

    def _joined(self, parts: list[Tensor], activity: bool) -> Tensor | tuple[Tensor, Tensor]:
        """The result of a layer out of its frozen and free outputs before the activation."""
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        y = nn.functional.relu(y) if self.activation == "relu" else y
        return (y, ops.channel_activity(y, dim=1)) if activity else y

    @torch.no_grad()
    def _grow(self, outputs: int, inputs: int) -> None:
        """Add free outputs and free inputs, at the end and filled with zeros."""
        rows, columns = self.free_weight.shape[:2]
        weight = self._zeros(rows + outputs, columns + (0 if self.depthwise else inputs))
        weight[:rows, :columns] = self.free_weight
        self.free_weight = replacement(self.free_weight, weight)
        if self.free_bias is not None:
            bias = nn.functional.pad(self.free_bias, (0, outputs))
            self.free_bias = replacement(self.free_bias, bias)

    def _zeros(self, rows: int, columns: int) -> Tensor:
        """Zero weights in the memory format of the present ones."""
        like = self.free_weight
        # An empty tensor does not show its format.
        layout = memory_format(like if like.numel() else self.active_weight)
        shape = (rows, columns, *like.shape[2:])
        return torch.empty(
            shape, dtype=like.dtype, device=like.device, memory_format=layout
        ).zero_()

    def _boundaries(self) -> str:
        text = f", active_in={self.active_in}, active_out={self.active_out}"
        text += f", bias={self.free_bias is not None}" + (", depthwise" if self.depthwise else "")
        return text + self._activation_text()

    def _nonsense(self, shapes: Mapping[str, list[int]]) -> str:
        """Describe the first wrong shape of a state, or return ''."""
        kernel = list(self.free_weight.shape[2:])
        problem = wrong_dimensions(shapes, self.free_weight.ndim)
        if problem:
            return problem
        active, free = shapes["active_weight"], shapes["free_weight"]
        for name in ("active_weight", "free_weight"):
            if shapes[name][2:] != kernel:
                return message(f"{name}.shape", shapes[name], f"kernel {tuple(kernel)}")
            if self.depthwise and shapes[name][1] != 1:
                return message(f"{name}.shape", shapes[name], "1 input for each depthwise filter")
        if active[1] > free[1]:
            wanted = f"at most {free[1]} columns, the inputs of free_weight"
            return message("active_weight.shape", active, wanted)
        for part in ("active", "free"):
            bias, rows = shapes.get(f"{part}_bias"), shapes[f"{part}_weight"][:1]
            if bias is not None and bias != rows:
                return message(f"{part}_bias.shape", bias, f"{rows}, the outputs of {part}_weight")
        return ""


def check_boundary(name: str, value: int, size_name: str, size: int) -> None:
    """Raise TypeError or ValueError unless `value` is a boundary within `size` channels."""
    for what, number in ((size_name, size), (name, value)):
        if not hasattr(number, "__index__"):
            raise TypeError(message(what, repr(number), "a whole number"))
    if size < 0:
        raise ValueError(message(size_name, size, "a number of channels, at least 0"))
    if not 0 <= value <= size:
        raise ValueError(message(name, value, f"0 to {size_name} = {size}"))


def check_added(**numbers: int) -> None:
    """Raise ValueError unless all numbers of channels to add are at least 0."""
    for name, value in numbers.items():
        if value < 0:
            raise ValueError(message(name, value, "a number of channels to add, at least 0"))


def check_index(name: str, index: Tensor, size: int) -> Tensor:
    """`index` if it holds different numbers from 0 to `size - 1`; else raise."""
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.ndim != 1:
        is_tensor = isinstance(index, Tensor)
        got = f"{index.dtype} {list(index.shape)}" if is_tensor else type(index).__name__
        raise TypeError(message(name, got, "an int64 tensor of one dimension"))
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
        got = f"{int(index.min())} to {int(index.max())}"
        raise ValueError(message(name, got, f"numbers of free channels, 0 to {size - 1}"))
    if len(torch.unique(index)) != len(index):
        raise ValueError(message(name, "a number twice", "different numbers"))
    return index


def _on_device_of(generator: torch.Generator | None, tensor: Tensor) -> Tensor:
    """An empty contiguous tensor like the given one where the generator can fill it, so that a CPU
    generator gives the same weights on every device and in every memory format.
    """
    device = tensor.device if generator is None else generator.device
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
