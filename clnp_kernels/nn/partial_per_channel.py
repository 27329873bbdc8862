"""`PartialPerChannel`: a weight per channel, whose first channels are frozen."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from .._checks import check_choice
from ..errors import message
from ._masked import check_boundary, check_index
from ._replaced import replacement
from ._state import Bounded


def _tokens(x: Tensor, weight: Tensor, axis: int) -> tuple[Tensor, int]:
    """Tokens for all examples of x, and the axis of the tokens."""
    return weight.expand(x.shape[0], -1, -1).to(x.dtype), 3 - axis


def _before(x: Tensor, weight: Tensor, axis: int) -> Tensor:
    tokens, dim = _tokens(x, weight, axis)
    return torch.cat([tokens, x], dim)


def _behind(x: Tensor, weight: Tensor, axis: int) -> Tensor:
    tokens, dim = _tokens(x, weight, axis)
    return torch.cat([x, tokens], dim)


_FUNCTIONS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "scale": lambda x, weight, axis: x * weight,
    "shift": lambda x, weight, axis: x + weight,
    "prelu": lambda x, weight, axis: torch.where(x > 0, x, x * weight),
    "before": _before,
    "behind": _behind,
}


class PartialPerChannel(Bounded):
    """A factor, offset, slope or token per channel, for values with their channels on any axis.

    The boundary is the shape of its tensors; only one is a parameter:

    - `active_weight` [Ca, ...]: buffer, frozen
    - `free_weight` [Cf, ...]: parameter

    Plain PyTorch on every device: the weight is joined and multiplied, added, or used as the slope
    of negative values (`torch.nn.PReLU`). Tokens [C, 1, T] stand before or behind those of
    x [B, T', C], whose axes may be swapped.

    Arguments:
        kind: "scale", "shift", "prelu", "before" or "behind".
        weight: [C, ...] initial weight; axis 0 meets `axis` of the input, and the other axes the
            input's others, to which they broadcast.
        axis: axis of the channels of the input.
        fresh: weight of a new channel.
        active: Ca.

    Attributes:
        skip_active: if set, `forward` computes and returns the free channels only: the last Cf of
            `x`, which may be all there are.

    Raises:
        ValueError: an unknown kind, or a boundary beyond C.
    """

    names = ("active_weight", "free_weight")
    functions: ClassVar[Mapping[str, Callable[[Tensor, Tensor, int], Tensor]]] = _FUNCTIONS
    active_weight: Tensor
    free_weight: nn.Parameter
    active_bias: None = None
    free_bias: None = None

    def __init__(
        self, kind: str, weight: Tensor, axis: int, *, fresh: float = 0.0, active: int = 0
    ) -> None:
        super().__init__()
        check_choice("kind", kind, tuple(_FUNCTIONS))
        check_boundary("active", active, "channels", weight.shape[0])
        self.kind, self.axis, self.fresh, self.skip_active = kind, axis, fresh, False
        values = weight.detach().clone()
        self.register_buffer("active_weight", values[:active].clone())
        self.free_weight = nn.Parameter(values[active:].clone())

    @property
    def channels(self) -> int:
        """C, active and free."""
        return self.active_weight.shape[0] + self.free_weight.shape[0]

    @property
    def active(self) -> int:
        """Ca: frozen channels."""
        return self.active_weight.shape[0]

    def to_dense(self) -> nn.ParameterDict:
        """All weights [C, ...], as the entry "weight"."""
        return nn.ParameterDict({"weight": torch.cat([self.active_weight, self.free_weight.data])})

    def forward(self, x: Tensor) -> Tensor:
        """x with C channels on `axis` -> y alike, or with Cf channels with `skip_active`."""
        weight: Tensor = self.free_weight
        if self.skip_active:
            # what came before may have skipped its active channels too
            free = weight.shape[0]
            x = x.narrow(self.axis, x.shape[self.axis] - free, free)
        elif len(self.active_weight):
            weight = torch.cat([self.active_weight, weight])
        return _FUNCTIONS[self.kind](x, weight.movedim(0, self.axis), self.axis)

    def forward_with_activity(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`forward`, and the sum of `|y|` over all other axes: [C], float32 or float64."""
        y = self.forward(x)
        wide = y.double() if y.dtype == torch.float64 else y.float()
        return y, wide.abs().movedim(self.axis, 0).flatten(1).sum(1)

    @torch.no_grad()
    def reset_free_parameters(self) -> None:
        """Fill the free weights with `fresh`, in place."""
        self.free_weight.fill_(self.fresh)

    @torch.no_grad()
    def freeze(self, keep: Tensor) -> None:
        """Make free channels active: they move behind the active ones, in the order given.

        The other free channels are as new, and the parameter is replaced.

        Arguments:
            keep: int64 [n], different numbers of free channels, 0 to Cf - 1.

        Raises:
            TypeError, ValueError: the argument is not that; nothing is changed.
        """
        free = self.free_weight
        keep = check_index("keep", keep, free.shape[0]).to(free.device)
        self.active_weight = torch.cat([self.active_weight, free.detach()[keep]])
        rest = free.detach().new_full((free.shape[0] - len(keep), *free.shape[1:]), self.fresh)
        self.free_weight = replacement(free, rest)

    @torch.no_grad()
    def keep_free(self, keep: Tensor) -> None:
        """Keep only these free channels, in the order given. The parameter is replaced.

        Arguments:
            keep: as in `freeze`.

        Raises:
            TypeError, ValueError: the argument is not that; nothing is changed.
        """
        free = self.free_weight
        keep = check_index("keep", keep, free.shape[0]).to(free.device)
        self.free_weight = replacement(free, free.detach()[keep])

    @torch.no_grad()
    def expand(self, channels: int = 0) -> None:
        """Add free channels at the end, as new. The parameter is replaced.

        Raises:
            ValueError: the number is negative.
        """
        if channels < 0:
            raise ValueError(message("channels", channels, "a number of channels, at least 0"))
        free = self.free_weight
        new = free.detach().new_full((channels, *free.shape[1:]), self.fresh)
        self.free_weight = replacement(free, torch.cat([free.detach(), new]))

    def extra_repr(self) -> str:
        """Kind, sizes and boundary."""
        active = self.active_weight.shape[0]
        return f"{self.kind!r}, {self.channels}, axis={self.axis}, active={active}"

    def _nonsense(self, shapes: Mapping[str, list[int]]) -> str:
        """Describe the first wrong shape of a state, or return ''."""
        rest = list(self.free_weight.shape[1:])
        for name, shape in shapes.items():
            if shape[1:] != rest:
                return message(f"{name}.shape", shape, f"[channels, ...] with {rest} behind")
        return ""
