"""`MaskedLinear`: `torch.nn.Linear` with a frozen block."""

import torch
from torch import Tensor, nn

from .. import ops
from ._masked import Masked, check_added, check_boundary


class MaskedLinear(Masked):
    """A linear layer whose first Oa outputs are frozen and see only its first Ia inputs.

    The boundaries are the shapes of its tensors; only the free ones are parameters:

    - `active_weight` [Oa, Ia] and `active_bias` [Oa]: buffers, frozen
    - `free_weight` [Of, I] and `free_bias` [Of]: parameters

    With `active_in = active_out = 0` it computes exactly what `torch.nn.Linear` does, and is
    initialised alike. CLNP, Golkar et al. 2019, Sec. 2.1; gradients as in
    `clnp_kernels.ops.masked_linear`.

    Arguments:
        in_features, out_features: I and O, at least 0.
        bias: have biases.
        active_in, active_out: Ia and Oa. Frozen tensors start as zeros.
        activation: "none" or "relu".
        full_input_grad: let gradients flow into active inputs too.
        device, dtype: of all tensors.

    Attributes:
        skip_active: if set, `forward` computes and returns the free outputs only, [..., Of].

    Raises:
        TypeError: a size is not a whole number.
        ValueError: a size is negative, a boundary exceeds its size, or the activation is unknown.
    """

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
        super().__init__(activation, full_input_grad)
        check_boundary("active_in", active_in, "in_features", in_features)
        check_boundary("active_out", active_out, "out_features", out_features)
        active, free = (active_out, active_in), (out_features - active_out, in_features)
        self._fill(active, free, (), bias, {"device": device, "dtype": dtype})

    @property
    def in_features(self) -> int:
        """I, active and free."""
        return self.inputs

    @property
    def out_features(self) -> int:
        """O, active and free."""
        return self.outputs

    @classmethod
    def from_dense(
        cls, linear: nn.Linear, *, active_in: int = 0, active_out: int = 0, activation: str = "none"
    ) -> "MaskedLinear":
        """A masked layer with copies of the weights of `linear`, without interference.

        Raises:
            ValueError: as the constructor.
        """
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            active_in=active_in,
            active_out=active_out,
            activation=activation,
            device="meta",
        )
        return layer._copy(linear)

    def to_dense(self) -> nn.Linear:
        """A `torch.nn.Linear` without the activation: all weights copied, interference zero."""
        sizes, bias = (self.in_features, self.out_features), self.free_bias is not None
        return self._copy_to(nn.Linear(*sizes, bias, device="meta"))

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

    def expand(self, out_features: int = 0, in_features: int = 0) -> None:
        """Add free outputs (rows) and free inputs (columns), at the end and filled with zeros.

        The parameters are replaced: build a new optimizer.

        Raises:
            ValueError: a number is negative.
        """
        check_added(out_features=out_features, in_features=in_features)
        self._grow(out_features, in_features)

    def extra_repr(self) -> str:
        """Sizes, boundaries and what is not default."""
        text = f"in_features={self.in_features}, out_features={self.out_features}"
        return text + self._boundaries()
