"""Parameters that were replaced say so to an optimizer that still holds them."""

from torch import Tensor, nn


class ReplacedParameter(nn.Parameter):
    """A parameter that its layer does not hold any more, because a boundary moved.

    It never gets a gradient again, so an optimizer that was built before would train nothing and
    not say so. Optimizers, gradient scalers and gradient clipping look at `grad` before all else:
    that raises.
    """

    @property
    def grad(self) -> Tensor | None:  # type: ignore[override]
        """Raises RuntimeError."""
        raise RuntimeError(
            "this parameter belongs to a layer that has replaced it, because its boundary between "
            "frozen and free channels moved; build the optimizer anew from the model's parameters"
        )


def retire(old: nn.Parameter) -> None:
    """Mark a parameter as replaced, in place, as `torch.nn.UninitializedParameter` changes into a
    parameter.
    """
    if type(old) is nn.Parameter:
        old.grad = None
        old.__class__ = ReplacedParameter


def replacement(old: Tensor, value: Tensor) -> nn.Parameter:
    """A parameter with `value` in the place of `old`, which is retired."""
    new = nn.Parameter(value, requires_grad=old.requires_grad)
    if isinstance(old, nn.Parameter):
        retire(old)
    return new
