"""`PartialLayerNorm` and `PartialRMSNorm`: layer normalisation with frozen blocks of channels."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import ops
from .._checks import check_number, check_tensor
from ..errors import message
from ..reference.channel_activity import accumulator
from ._masked import check_added, check_boundary, check_index
from ._replaced import replacement
from ._state import Partial, wrong_dimensions

# kind -> value of a fresh channel
_FRESH = {"weight": 1.0, "bias": 0.0}


class _PartialNorm(Partial):
    """What both layers share.

    `ends` is part of the state because no tensor has the inner boundaries as its shape. The numbers
    `boundaries` are the same, so that a call reads no tensor.
    """

    dense: ClassVar[Any]
    rms: ClassVar[bool]
    names = ("ends", "active_weight", "active_bias", "free_weight", "free_bias")

    ends: Tensor
    active_weight: Tensor | None
    active_bias: Tensor | None
    free_weight: nn.Parameter | None
    free_bias: nn.Parameter | None
    boundaries: tuple[int, ...]

    def __init__(
        self,
        num_features: int,
        eps: float | None,
        kinds: Sequence[str],
        active: int | Sequence[int],
        full_input_grad: bool,
        factory: dict[str, Any],
    ) -> None:
        super().__init__("none", full_input_grad)
        blocks = active if isinstance(active, (list, tuple)) else ([active] if active else [])
        for end in (0, *blocks):
            check_boundary("active", end, "num_features", num_features)
        self.boundaries = (*map(int, blocks), int(num_features))
        problem = _disorder(self.boundaries)
        if problem:
            raise ValueError(message("active", active, problem))
        if eps is not None:
            check_number("eps", eps)
        self.eps = eps
        self.register_buffer("ends", torch.tensor(self.boundaries, device=factory["device"]))
        for kind, value in _FRESH.items():
            has, split = kind in kinds, self.active
            frozen = torch.full((split,), value, **factory) if has else None
            self.register_buffer(f"active_{kind}", frozen)
            free = torch.full((num_features - split,), value, **factory) if has else None
            self.register_parameter(f"free_{kind}", None if free is None else nn.Parameter(free))

    @property
    def num_features(self) -> int:
        """C, active and free."""
        return self.boundaries[-1]

    @property
    def active(self) -> int:
        """Ca: frozen channels."""
        return self.boundaries[-2] if len(self.boundaries) > 1 else 0

    @property
    def elementwise_affine(self) -> bool:
        """Return whether the layer has weights."""
        return self.free_weight is not None

    @torch.no_grad()
    def _copy(self, norm: Any) -> None:
        """Copy the vectors of a dense layer, with their `requires_grad`."""
        split = self.active
        for kind in _FRESH:
            values, frozen = getattr(norm, kind, None), getattr(self, f"active_{kind}")
            if values is not None:
                frozen.copy_(values[:split])
                free = getattr(self, f"free_{kind}").copy_(values[split:])
                free.requires_grad_(values.requires_grad)
        self.train(norm.training)

    @torch.no_grad()
    def _copy_to(self, norm: Any) -> Any:
        """A dense layer with copies of all vectors."""
        if any(0 < end < self.num_features for end in self.boundaries):
            wanted = f"one block of channels, as {self.dense.__name__} has one mean over all"
            got = list(self.boundaries)
            raise ValueError(message("boundaries", got, wanted, "call this layer itself"))
        for kind in _FRESH:
            free = getattr(self, f"free_{kind}")
            if free is not None:
                getattr(norm, kind).copy_(torch.cat([getattr(self, f"active_{kind}"), free]))
        return norm.train(self.training)

    def _call(self, x: Tensor, activity: bool) -> Tensor | tuple[Tensor, Tensor]:
        check_tensor("x", x)
        eps = torch.finfo(accumulator(x.dtype)).eps if self.eps is None else self.eps
        return ops.partial_layer_norm(
            x,
            self.boundaries,
            self.active_weight,
            self.free_weight,
            self.active_bias,
            self.free_bias,
            eps=eps,
            rms=self.rms,
            skip_active=self.skip_active,
            activity=activity,
            full_input_grad=self.full_input_grad,
        )

    @torch.no_grad()
    def reset_free_parameters(self) -> None:
        """Free channels as new, in place: weight 1, bias 0."""
        for kind, value in _FRESH.items():
            free = getattr(self, f"free_{kind}")
            if free is not None:
                free.fill_(value)

    @torch.no_grad()
    def freeze(self, keep: Tensor) -> None:
        """Make free channels a new active block, behind the active ones, in the order given.

        The block computes what it computes after `keep_free(keep)`: its statistics are those of
        the active and the kept channels. The other free channels are as new
        (`reset_free_parameters`), and the parameters are replaced: build a new optimizer. From now
        on the channels are expected in the new order: active, kept, rest.

        Arguments:
            keep: int64 [n], different numbers of free channels, 0 to Cf - 1. With none the new
                block is empty.

        Raises:
            TypeError, ValueError: the argument is not that; nothing is changed.
        """
        split, channels = self.active, self.num_features
        keep = check_index("keep", keep, channels - split).to(self.ends.device)
        for kind in _FRESH:
            values = getattr(self, f"free_{kind}")
            if values is not None:
                frozen = torch.cat([getattr(self, f"active_{kind}"), values.detach()[keep]])
                setattr(self, f"active_{kind}", frozen)
        self._replace_free(lambda values, value: values.new_empty(channels - split - len(keep)))
        self._set_boundaries((*self.boundaries[:-1], split + len(keep), channels))
        self.reset_free_parameters()

    @torch.no_grad()
    def keep_free(self, keep: Tensor) -> None:
        """Keep only these free channels, in the order given; the layer forgets the others.

        The parameters are replaced: build a new optimizer. What is active stays as it is; the
        statistics of the free channels are those of fewer channels now.

        Arguments:
            keep: as in `freeze`.

        Raises:
            TypeError, ValueError: the argument is not that; nothing is changed.
        """
        keep = check_index("keep", keep, self.num_features - self.active).to(self.ends.device)
        self._replace_free(lambda values, value: values[keep])
        self._set_boundaries((*self.boundaries[:-1], self.active + len(keep)))

    @torch.no_grad()
    def expand(self, num_features: int = 0) -> None:
        """Add free channels at the end, as new. The parameters are replaced.

        The statistics of the free channels are those of more channels now; the active ones compute
        what they did.

        Raises:
            ValueError: the number is negative.
        """
        check_added(num_features=num_features)
        self._replace_free(
            lambda values, value: nn.functional.pad(values, (0, num_features), value=value)
        )
        self._set_boundaries((*self.boundaries[:-1], self.num_features + num_features))

    def _replace_free(self, new: Any) -> None:
        """free_<kind> = new(free_<kind>, value of a fresh channel)."""
        for kind, value in _FRESH.items():
            old = getattr(self, f"free_{kind}")
            if old is not None:
                setattr(self, f"free_{kind}", replacement(old, new(old.detach(), value)))

    def _set_boundaries(self, boundaries: tuple[int, ...]) -> None:
        self.boundaries = boundaries
        self.ends = torch.tensor(boundaries, device=self.ends.device)

    def extra_repr(self) -> str:
        """Sizes, boundaries and what is not default."""
        text = f"{self.num_features}, active={list(self.boundaries[:-1])}, eps={self.eps}"
        return f"{text}, elementwise_affine={self.elementwise_affine}"

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Take the boundaries of the state, unless they are wrong: then nothing is changed."""
        ends = state_dict.get(f"{prefix}ends")
        known = isinstance(ends, Tensor) and not ends.is_meta
        problem = self._wrong_ends(ends, state_dict, prefix) if known else ""
        if problem:
            args[4].append(f"{prefix[:-1] or type(self).__name__}: {problem}")
            return
        before = len(args[4])
        super()._load_from_state_dict(state_dict, prefix, *args)
        if known and len(args[4]) == before:
            self.boundaries = tuple(ends.tolist())

    def _wrong_ends(self, ends: Tensor, state_dict: Mapping[str, Any], prefix: str) -> str:
        """Describe what is wrong with the boundaries of a state, or return ''."""
        if ends.ndim != 1 or not len(ends) or ends.dtype != torch.int64:
            return message(
                "ends", f"{ends.dtype} {list(ends.shape)}", "torch.int64 [k], k at least 1"
            )
        values = ends.tolist()
        problem = _disorder(values)
        if problem:
            return message("ends", values, problem)
        split = values[-2] if len(values) > 1 else 0
        sizes = {"active": split, "free": values[-1] - split}
        for name in self.names[1:]:
            vector, size = state_dict.get(prefix + name), sizes[name.split("_")[0]]
            own = getattr(self, name)
            if own is not None and isinstance(vector, Tensor) and list(vector.shape) != [size]:
                wanted = f"[{size}], as ends are {values}"
                return message(f"{name}.shape", list(vector.shape), wanted)
        return ""

    def _nonsense(self, shapes: Mapping[str, list[int]]) -> str:
        """Describe the first wrong number of dimensions of a state, or return ''."""
        return wrong_dimensions(shapes, 1)


def _disorder(ends: Sequence[int]) -> str:
    """The wish that ends of blocks do not meet, or ''."""
    ordered = all(before <= end for before, end in pairwise((0, *ends)))
    return "" if ordered else "ends of blocks in order, from 0 to the number of channels"


class PartialLayerNorm(_PartialNorm):
    """Layer normalisation of [..., C] of which each block sees itself and the blocks before it.

    Frozen blocks come first, in the order of their tasks, then the free one; see
    `clnp_kernels.ops.partial_layer_norm`.

    - `active_weight`, `active_bias` [Ca]: buffers, of all frozen blocks
    - `free_weight`, `free_bias` [Cf]: parameters
    - `ends` int64 [k]: a buffer, the ends of all blocks

    With one block it computes what `torch.nn.LayerNorm` does, to rounding. A narrower layer of the
    first blocks computes the same bits as this one for them, whatever the other channels hold.

    Arguments:
        num_features: C, at least 0.
        eps: added to the variance.
        elementwise_affine: have weights.
        bias: have biases; only with weights.
        active: the ends of the frozen blocks, in order; a number stands for one block.
        full_input_grad: let gradients flow into active channels too.
        device, dtype: of all tensors.

    Attributes:
        boundaries: the ends of all blocks, as numbers.
        skip_active: if set, `forward` computes and returns the free channels only, [..., Cf]; it
            takes all channels of `x` in any case, as the statistics are those of all.

    Raises:
        TypeError: a size is not a whole number.
        ValueError: a size is negative, a boundary exceeds it or the next one, or eps is negative.
    """

    dense: ClassVar[Any] = nn.LayerNorm
    rms = False

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        active: int | Sequence[int] = 0,
        full_input_grad: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kinds = ("weight", "bias")[: 1 + bias] if elementwise_affine else ()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(num_features, eps, kinds, active, full_input_grad, factory)

    @classmethod
    def from_dense(
        cls, norm: nn.LayerNorm, *, active: int | Sequence[int] = 0
    ) -> "PartialLayerNorm":
        """A layer with copies of the vectors of `norm`.

        Raises:
            TypeError, ValueError: as the constructor; or `norm` normalises several dimensions.
        """
        options = (norm.elementwise_affine, norm.bias is not None)
        layer = cls(_channels(norm), norm.eps, *options, active=active, **_like(norm.weight))
        layer._copy(norm)
        return layer

    def to_dense(self) -> nn.LayerNorm:
        """A `torch.nn.LayerNorm` with copies of all vectors.

        Raises:
            ValueError: there are several blocks, each with statistics of its own.
        """
        options = (self.eps, self.elementwise_affine, self.free_bias is not None)
        return self._copy_to(nn.LayerNorm(self.num_features, *options, **_like(self.free_weight)))


class PartialRMSNorm(_PartialNorm):
    """RMS normalisation of [..., C] in blocks: as `PartialLayerNorm`, without mean and bias.

    Arguments:
        num_features: C, at least 0.
        eps: added to the mean square; None: the precision of float32 (float64 for float64), as in
            `torch.nn.RMSNorm`.
        elementwise_affine, active, full_input_grad, device, dtype: as of `PartialLayerNorm`.

    Attributes:
        boundaries, skip_active: as of `PartialLayerNorm`.

    Raises:
        TypeError, ValueError: as of `PartialLayerNorm`.
    """

    dense: ClassVar[Any] = nn.RMSNorm
    rms = True

    def __init__(
        self,
        num_features: int,
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        active: int | Sequence[int] = 0,
        full_input_grad: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kinds = ("weight",) if elementwise_affine else ()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(num_features, eps, kinds, active, full_input_grad, factory)

    @classmethod
    def from_dense(cls, norm: nn.RMSNorm, *, active: int | Sequence[int] = 0) -> "PartialRMSNorm":
        """A layer with copies of the weight of `norm`.

        Raises:
            TypeError, ValueError: as the constructor; or `norm` normalises several dimensions.
        """
        options = (norm.eps, norm.elementwise_affine)
        layer = cls(_channels(norm), *options, active=active, **_like(norm.weight))
        layer._copy(norm)
        return layer

    def to_dense(self) -> nn.RMSNorm:
        """A `torch.nn.RMSNorm` with a copy of the weight.

        Raises:
            ValueError: as `PartialLayerNorm.to_dense`.
        """
        options = (self.eps, self.elementwise_affine)
        return self._copy_to(nn.RMSNorm(self.num_features, *options, **_like(self.free_weight)))


def _channels(norm: nn.LayerNorm | nn.RMSNorm) -> int:
    """The channels of a dense layer, which normalises the last dimension only."""
    shape = tuple(norm.normalized_shape)
    if len(shape) != 1:
        raise ValueError(message("norm.normalized_shape", shape, "one dimension, the channels"))
    return shape[0]


def _like(vector: Tensor | None) -> dict[str, Any]:
    """Device and dtype of a vector; the defaults if there is none."""
    return {} if vector is None else {"device": vector.device, "dtype": vector.dtype}
