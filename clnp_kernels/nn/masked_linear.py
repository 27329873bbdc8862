"""``MaskedLinear``: ``torch.nn.Linear`` with a frozen block."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._checks import check_choice
from ..errors import message
from ..ops.masked_linear import ACTIVATIONS


class MaskedLinear(nn.Module):
    """A linear layer whose first Oa outputs are frozen and see only its first Ia inputs.

    The boundaries are the shapes of its tensors; only the free ones are parameters:

    - ``active_weight`` [Oa, Ia] and ``active_bias`` [Oa]: buffers, frozen
    - ``free_weight`` [Of, I] and ``free_bias`` [Of]: parameters

    With ``active_in = active_out = 0`` it computes exactly what ``torch.nn.Linear`` does, and is
    initialised alike. CLNP, Golkar et al. 2019, Sec. 2.1; gradients as in
    :func:`clnp_kernels.ops.masked_linear`.

    Arguments:
        in_features, out_features: I and O, at least 0.
        bias: have biases.
        active_in, active_out: Ia and Oa. Frozen tensors start as zeros.
        activation: "none" or "relu".
        full_input_grad: let gradients flow into active inputs too.
        device, dtype: of all tensors.

    Attributes:
        skip_active: if set, ``forward`` computes and returns the free outputs only, [..., Of].

    Raises:
        ValueError: a size is negative, a boundary exceeds its size, or the activation is unknown.
    """

    active_weight: Tensor
    active_bias: Tensor | None
    free_weight: nn.Parameter
    free_bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
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
        _check_boundary("active_in", active_in, "in_features", in_features)
        _check_boundary("active_out", active_out, "out_features", out_features)
        self.activation, self.full_input_grad, self.skip_active = activation, full_input_grad, False
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        free_out = out_features - active_out
        self.register_buffer("active_weight", torch.zeros(active_out, active_in, **factory))
        self.register_buffer("active_bias", torch.zeros(active_out, **factory) if bias else None)
        self.free_weight = nn.Parameter(torch.empty(free_out, in_features, **factory))
        free_bias = nn.Parameter(torch.empty(free_out, **factory)) if bias else None
        self.register_parameter("free_bias", free_bias)
        self.reset_free_parameters()

    @property
    def in_features(self) -> int:
        """I, active and free."""
        return self.free_weight.shape[1]

    @property
    def out_features(self) -> int:
        """O, active and free."""
        return self.active_weight.shape[0] + self.free_weight.shape[0]

    @property
    def active_in(self) -> int:
        """Ia: inputs that active outputs see."""
        return self.active_weight.shape[1]

    @property
    def active_out(self) -> int:
        """Oa: frozen outputs."""
        return self.active_weight.shape[0]

    @classmethod
    def from_dense(
        cls,
        linear: nn.Linear,
        *,
        active_in: int = 0,
        active_out: int = 0,
        activation: str = "none",
    ) -> "MaskedLinear":
        """A masked layer with copies of the weights of ``linear``, without interference.

        Raises:
            ValueError: as the constructor.
        """
        weight, bias = linear.weight.detach(), linear.bias
        layer = cls(
            linear.in_features,
            linear.out_features,
            bias is not None,
            active_in=active_in,
            active_out=active_out,
            activation=activation,
            device="meta",
        )
        layer.active_weight = weight[:active_out, :active_in].clone()
        layer.free_weight = nn.Parameter(weight[active_out:].clone())
        if bias is not None:
            layer.active_bias = bias.detach()[:active_out].clone()
            layer.free_bias = nn.Parameter(bias.detach()[active_out:].clone())
        return layer.train(linear.training)

    def to_dense(self) -> nn.Linear:
        """A ``torch.nn.Linear`` without the activation: all weights copied, interference zero."""
        bias = self.free_bias is not None
        linear = nn.Linear(self.in_features, self.out_features, bias, device="meta")
        weight = self.free_weight.new_zeros(self.out_features, self.in_features)
        weight[: self.active_out, : self.active_in] = self.active_weight
        weight[self.active_out :] = self.free_weight.detach()
        linear.weight = nn.Parameter(weight)
        if self.free_bias is not None and self.active_bias is not None:
            linear.bias = nn.Parameter(torch.cat([self.active_bias, self.free_bias.detach()]))
        return linear.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] -> y [..., O], or [..., Of] with ``skip_active``."""
        y = self._call(x, activity=False)
        assert isinstance(y, Tensor)
        return y

    def forward_with_activity(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``forward``, and the sum of ``|y|`` over leading dimensions: [O], float32 or float64."""
        result = self._call(x, activity=True)
        assert isinstance(result, tuple)
        return result

    def _call(self, x: Tensor, activity: bool) -> Tensor | tuple[Tensor, Tensor]:
        weight, bias = self.active_weight, self.active_bias
        if self.skip_active:
            weight, bias = weight[:0], None if bias is None else bias[:0]
        return ops.masked_linear(
            x,
            weight,
            self.free_weight,
            bias,
            self.free_bias,
            activation=self.activation,
            activity=activity,
            full_input_grad=self.full_input_grad,
        )

    @torch.no_grad()
    def reset_free_parameters(
        self, generator: torch.Generator | None = None, scale: float = 1.0
    ) -> None:
        """Initialise the free parameters in place as ``torch.nn.Linear`` would with I inputs.

        Arguments:
            generator: source of the random numbers, on any device; None: the global one.
            scale: factor on the weights (not on the biases).
        """
        if self.in_features == 0:
            if self.free_bias is not None:
                self.free_bias.zero_()
            return
        if self.free_weight.numel():
            drawn = _on_device_of(generator, self.free_weight)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            self.free_weight.copy_(drawn.mul_(scale))
        if self.free_bias is not None and self.free_bias.numel():
            bound = 1 / math.sqrt(self.in_features)
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
            keep_in: int64 [m], different numbers of free inputs, 0 to If - 1.

        Raises:
            TypeError, ValueError: an argument is not that; nothing is changed.
        """
        old_out, old_in = self.active_weight.shape
        keep_out = _check_index("keep_out", keep_out, self.free_weight.shape[0]).to(
            self.free_weight.device
        )
        keep_in = _check_index("keep_in", keep_in, self.in_features - old_in).to(
            self.free_weight.device
        )
        active_columns = torch.arange(old_in, device=keep_in.device)
        columns = torch.cat([active_columns, old_in + keep_in])
        kept, free_out = len(keep_out), self.free_weight.shape[0] - len(keep_out)
        weight = self.active_weight.new_zeros(old_out + kept, len(columns))
        weight[:old_out, :old_in] = self.active_weight
        weight[old_out:] = self.free_weight[keep_out][:, columns]
        free_weight = self.free_weight.new_zeros(free_out, self.in_features)
        if self.free_bias is not None and self.active_bias is not None:
            self.active_bias = torch.cat([self.active_bias, self.free_bias[keep_out]])
            self.free_bias = _parameter(self.free_bias.new_zeros(free_out), self.free_bias)
        self.active_weight = weight
        self.free_weight = _parameter(free_weight, self.free_weight)

    @torch.no_grad()
    def expand(self, out_features: int = 0, in_features: int = 0) -> None:
        """Add free outputs (rows) and free inputs (columns), at the end and filled with zeros.

        The parameters are replaced: build a new optimizer.

        Raises:
            ValueError: a number is negative.
        """
        for name, value in (("out_features", out_features), ("in_features", in_features)):
            if value < 0:
                raise ValueError(message(name, value, "a number of channels to add, at least 0"))
        padded = nn.functional.pad(self.free_weight, (0, in_features, 0, out_features))
        self.free_weight = _parameter(padded, self.free_weight)
        if self.free_bias is not None:
            bias = nn.functional.pad(self.free_bias, (0, out_features))
            self.free_bias = _parameter(bias, self.free_bias)

    def extra_repr(self) -> str:
        """Sizes, boundaries and what is not default."""
        text = f"in_features={self.in_features}, out_features={self.out_features}"
        text += f", active_in={self.active_in}, active_out={self.active_out}"
        text += f", bias={self.free_bias is not None}"
        return text if self.activation == "none" else f"{text}, activation={self.activation!r}"

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Take the boundaries of the state: tensors change their shapes, not their identity."""
        error_msgs = args[4]
        names = [name for name in _NAMES if getattr(self, name) is not None]
        entries = {name: state_dict.get(prefix + name) for name in names}
        new = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
        if len(new) == len(names):
            problem = _nonsense(new)
            if problem:
                error_msgs.append(f"{prefix[:-1] or type(self).__name__}: {problem}")
                return
            for name, value in new.items():
                own = getattr(self, name)
                if own.shape != value.shape:
                    # .data keeps the parameter that an optimizer already holds
                    own.data = torch.empty(value.shape, dtype=own.dtype, device=own.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


_NAMES = ("active_weight", "active_bias", "free_weight", "free_bias")


def _nonsense(new: Mapping[str, Tensor]) -> str:
    """What is wrong with the shapes of a state, or ''."""
    shapes = {name: list(value.shape) for name, value in new.items()}
    for name, shape in shapes.items():
        ndim = 2 if name.endswith("weight") else 1
        if len(shape) != ndim:
            return message(f"{name}.shape", shape, f"{ndim} dimensions")
    if shapes["active_weight"][1] > shapes["free_weight"][1]:
        wanted = f"at most {shapes['free_weight'][1]} columns, the inputs of free_weight"
        return message("active_weight.shape", shapes["active_weight"], wanted)
    for part in ("active", "free"):
        bias, rows = shapes.get(f"{part}_bias"), shapes[f"{part}_weight"][:1]
        if bias is not None and bias != rows:
            return message(f"{part}_bias.shape", bias, f"{rows}, the outputs of {part}_weight")
    return ""


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    """A parameter that requires a gradient if ``like`` does."""
    return nn.Parameter(value, requires_grad=like.requires_grad)


def _check_boundary(name: str, value: int, size_name: str, size: int) -> None:
    if size < 0:
        raise ValueError(message(size_name, size, "a number of channels, at least 0"))
    if not 0 <= value <= size:
        raise ValueError(message(name, value, f"0 to {size_name} = {size}"))


def _check_index(name: str, index: Tensor, size: int) -> Tensor:
    """``index`` if it holds different numbers from 0 to ``size - 1``."""
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.ndim != 1:
        got = (
            f"{index.dtype} {list(index.shape)}"
            if isinstance(index, Tensor)
            else type(index).__name__
        )
        raise TypeError(message(name, got, "an int64 tensor of one dimension"))
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
        got = f"{int(index.min())} to {int(index.max())}"
        raise ValueError(message(name, got, f"numbers of free channels, 0 to {size - 1}"))
    if len(torch.unique(index)) != len(index):
        raise ValueError(message(name, "a number twice", "different numbers"))
    return index


def _on_device_of(generator: torch.Generator | None, tensor: Tensor) -> Tensor:
    """An empty tensor like the given one where the generator can fill it, so that a CPU generator
    gives the same weights on every device.
    """
    return torch.empty_like(tensor, device=None if generator is None else generator.device)
