"""`PartialBatchNorm2d`: `torch.nn.BatchNorm2d` whose first channels are frozen."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import ops
from .._checks import check_number, check_tensor
from ..errors import message
from ._masked import check_added, check_boundary, check_index
from ._replaced import replacement
from ._state import Partial, wrong_dimensions
from .synchronised import shared_statistics

# kind -> value of a fresh channel
_FRESH = {"mean": 0.0, "var": 1.0, "weight": 1.0, "bias": 0.0}
_NAMES = tuple(f"{part}_{kind}" for part in ("active", "free") for kind in _FRESH)


class PartialBatchNorm2d(Partial):
    """Batch normalisation of images [B, C, H, W] whose first Ca channels are frozen.

    The boundary is the shape of its tensors; only two are parameters:

    - `active_mean`, `active_var`, `active_weight`, `active_bias` [Ca]: buffers, frozen; the
      active channels are in evaluation mode always
    - `free_mean`, `free_var` [Cf]: buffers, running statistics
    - `free_weight`, `free_bias` [Cf]: parameters

    With `active = 0` it computes what `torch.nn.BatchNorm2d` does, to rounding. CLNP, Golkar et
    al. 2019, Sec. 2; see `clnp_kernels.ops.partial_batch_norm`.

    Arguments:
        num_features: C, at least 0.
        eps: added to the variance.
        momentum: of the running statistics; None: their cumulative average.
        affine: have weights and biases.
        active: Ca.
        activation: "none" or "relu".
        full_input_grad: let gradients flow into active channels too.
        device, dtype: of all tensors.

    Attributes:
        skip_active: if set, `forward` computes and returns the free channels only: the last Cf of
            `x`, which may be all there are.
        process_group: None, or a group of `torch.distributed`: in training the free channels take
            the statistics of the batches of all its processes, as `torch.nn.SyncBatchNorm` does.

    Raises:
        TypeError: a size is not a whole number.
        ValueError: a size is negative, the boundary exceeds it, momentum or eps is out of range, or
            the activation is unknown.
    """

    dense: ClassVar[Any] = nn.BatchNorm2d
    names = _NAMES

    active_mean: Tensor
    active_var: Tensor
    active_weight: Tensor | None
    active_bias: Tensor | None
    free_mean: Tensor
    free_var: Tensor
    free_weight: nn.Parameter | None
    free_bias: nn.Parameter | None
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        active: int = 0,
        activation: str = "none",
        full_input_grad: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(activation, full_input_grad)
        check_boundary("active", active, "num_features", num_features)
        check_number("eps", eps)
        if momentum is not None:
            check_number("momentum", momentum)
            if momentum > 1:
                raise ValueError(message("momentum", momentum, "a number from 0 to 1, or None"))
        self.eps, self.momentum = eps, momentum
        self.process_group: Any = None
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        for part, size in (("active", active), ("free", num_features - active)):
            for kind, value in _FRESH.items():
                has = affine or kind in ("mean", "var")
                tensor = torch.full((size,), value, **factory) if has else None
                if part == "free" and kind in ("weight", "bias"):
                    parameter = None if tensor is None else nn.Parameter(tensor)
                    self.register_parameter(f"free_{kind}", parameter)
                else:
                    self.register_buffer(f"{part}_{kind}", tensor)
        batches = torch.tensor(0, dtype=torch.long, device=device)
        self.register_buffer("num_batches_tracked", batches)

    @property
    def num_features(self) -> int:
        """C, active and free."""
        return self.active_mean.shape[0] + self.free_mean.shape[0]

    @property
    def active(self) -> int:
        """Ca: frozen channels."""
        return self.active_mean.shape[0]

    @property
    def affine(self) -> bool:
        """Return whether the layer has weights and biases."""
        return self.free_weight is not None

    @classmethod
    def from_dense(
        cls, norm: nn.BatchNorm1d | nn.BatchNorm2d, *, active: int = 0, activation: str = "none"
    ) -> "PartialBatchNorm2d":
        """A layer with copies of the tensors of `norm`.

        Raises:
            ValueError: as the constructor; or `norm` has no running statistics.
        """
        if norm.running_mean is None or norm.running_var is None:
            wanted = "running statistics, to be frozen"
            raise ValueError(message("norm.track_running_stats", False, wanted))
        options = (norm.num_features, norm.eps, norm.momentum, norm.affine)
        factory: Any = {"device": norm.running_mean.device, "dtype": norm.running_mean.dtype}
        layer = cls(*options, active=active, activation=activation, **factory)
        kinds = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        with torch.no_grad():
            for kind, values in zip(_FRESH, kinds, strict=True):
                if values is not None:
                    getattr(layer, f"active_{kind}").copy_(values[:active])
                    free = getattr(layer, f"free_{kind}").copy_(values[active:])
                    free.requires_grad_(values.requires_grad)
            if norm.num_batches_tracked is not None:
                layer.num_batches_tracked.copy_(norm.num_batches_tracked)
        return layer.train(norm.training)

    def to_dense(self) -> nn.BatchNorm1d | nn.BatchNorm2d:
        """The `torch.nn` layer with copies of all tensors, without the activation."""
        like = self.free_mean
        options = (self.num_features, self.eps, self.momentum, self.affine)
        norm = self.dense(*options, device=like.device, dtype=like.dtype)
        targets = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        with torch.no_grad():
            for kind, target in zip(_FRESH, targets, strict=True):
                if target is not None:
                    parts = [getattr(self, f"{part}_{kind}") for part in ("active", "free")]
                    target.copy_(torch.cat(parts))
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(self.num_batches_tracked)
        return norm.train(self.training)

    def _call(self, x: Tensor, activity: bool) -> Tensor | tuple[Tensor, Tensor]:
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.momentum is None:
            momentum = 1.0 / (float(self.num_batches_tracked) + 1.0)
        active = [self.active_mean, self.active_var, self.active_weight, self.active_bias]
        if self.skip_active:
            # what came before may have skipped its active channels too
            x = x[:, x.shape[1] - self.free_mean.shape[0] :]
            active = [None if tensor is None else tensor[:0] for tensor in active]
        mean, var, weight, bias = active
        assert mean is not None
        assert var is not None
        training, free_mean, free_var = self.training, self.free_mean, self.free_var
        if training and self.process_group is not None and len(free_mean):
            x, free_mean, free_var = self._shared_statistics(x, momentum)
            training = False
        result = ops.partial_batch_norm(
            x,
            mean,
            var,
            free_mean,
            free_var,
            weight,
            self.free_weight,
            bias,
            self.free_bias,
            training=training,
            momentum=momentum,
            eps=self.eps,
            activation=self.activation,
            activity=activity,
            full_input_grad=self.full_input_grad,
        )
        if self.training:  # a batch that was refused does not count
            self.num_batches_tracked.add_(1)
        return result

    def _shared_statistics(self, x: Tensor, momentum: float) -> tuple[Tensor, Tensor, Tensor]:
        """x and the free channels' mean and variance over all processes, towards which the running
        ones move.
        """
        free = len(self.free_mean)
        x, mean, var, n = shared_statistics(x, free, self.eps, self.process_group)
        mean, var = mean.to(self.free_mean.dtype), var.to(self.free_var.dtype)
        with torch.no_grad():
            self.free_mean.lerp_(mean, momentum)
            self.free_var.lerp_(var * (n / (n - 1).clamp(min=1)).to(var.dtype), momentum)
        return x, mean, var

    @torch.no_grad()
    def reset_free_parameters(self) -> None:
        """Free channels as new, in place: mean 0, variance 1, weight 1, bias 0, no batches seen."""
        for kind, value in _FRESH.items():
            tensor = getattr(self, f"free_{kind}")
            if tensor is not None:
                tensor.fill_(value)
        self.num_batches_tracked.zero_()

    @torch.no_grad()
    def freeze(self, keep: Tensor) -> None:
        """Make free channels active: they move behind the active ones, in the order given.

        Their statistics and parameters stay as they are. The other free channels are as new
        (`reset_free_parameters`), and the parameters are replaced: build a new optimizer.
        From now on the channels are expected in the new order: active, kept, rest.

        Arguments:
            keep: int64 [n], different numbers of free channels, 0 to Cf - 1.

        Raises:
            TypeError, ValueError: the argument is not that; nothing is changed.
        """
        free = self.free_mean.shape[0]
        keep = check_index("keep", keep, free).to(self.free_mean.device)
        for kind in _FRESH:
            values = getattr(self, f"free_{kind}")
            if values is not None:
                frozen = torch.cat([getattr(self, f"active_{kind}"), values.detach()[keep]])
                setattr(self, f"active_{kind}", frozen)
        self._replace_free(lambda values, value: values.new_empty(free - len(keep)))
        self.reset_free_parameters()

    @torch.no_grad()
    def keep_free(self, keep: Tensor) -> None:
        """Keep only these free channels, in the order given; the layer forgets the others.

        The parameters are replaced: build a new optimizer. What is active stays as it is.

        Arguments:
            keep: as in `freeze`.

        Raises:
            TypeError, ValueError: the argument is not that; nothing is changed.
        """
        keep = check_index("keep", keep, self.free_mean.shape[0]).to(self.free_mean.device)
        self._replace_free(lambda values, value: values[keep])

    @torch.no_grad()
    def expand(self, num_features: int = 0) -> None:
        """Add free channels at the end, as new. The parameters are replaced.

        Raises:
            ValueError: the number is negative.
        """
        check_added(num_features=num_features)
        self._replace_free(
            lambda values, value: nn.functional.pad(values, (0, num_features), value=value)
        )

    def _replace_free(self, new: Any) -> None:
        """free_<kind> = new(free_<kind>, value of a fresh channel)."""
        for kind, value in _FRESH.items():
            old = getattr(self, f"free_{kind}")
            if old is not None:
                tensor = new(old.detach(), value)
                is_parameter = isinstance(old, nn.Parameter)
                setattr(self, f"free_{kind}", replacement(old, tensor) if is_parameter else tensor)

    def extra_repr(self) -> str:
        """Sizes, boundary and what is not default."""
        text = f"{self.num_features}, active={self.active}, eps={self.eps}"
        return f"{text}, momentum={self.momentum}, affine={self.affine}{self._activation_text()}"

    def _nonsense(self, shapes: Mapping[str, list[int]]) -> str:
        """Describe the first wrong shape of a state, or return ''."""
        problem = wrong_dimensions(shapes, 1)
        if problem:
            return problem
        for name, shape in shapes.items():
            like = name.split("_")[0] + "_mean"
            if shape != shapes[like]:
                return message(f"{name}.shape", shape, f"{shapes[like]} like {like}")
        return ""


class PartialBatchNorm1d(PartialBatchNorm2d):
    """Batch normalisation of vectors [B, C] whose first Ca channels are frozen; arguments, tensors
    and methods as of `PartialBatchNorm2d`.
    """

    dense: ClassVar[Any] = nn.BatchNorm1d

    def _call(self, x: Tensor, activity: bool) -> Tensor | tuple[Tensor, Tensor]:
        check_tensor("x", x)
        if x.ndim != 2:
            raise ValueError(message("x.shape", list(x.shape), "[B, C]"))
        result = super()._call(x[:, :, None, None], activity)
        if isinstance(result, tuple):
            return result[0].flatten(1), result[1]
        return result.flatten(1)
