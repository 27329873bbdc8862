"""Sums, products and the like: with a number, with a tensor that forward makes, of two values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from .axes import Step, UnclearError
from .calls import name_of
from .channels import Value
from .constants import MOST_NUMBERS, encoded
from .recognised import BINARY
from .weights import Layer, changed, per_channel, static_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from .statics import Static

Shape = tuple[int, ...]
NUMBERS = ("add", "sub", "mul", "div", "pow")
REVERSED = {"sub": "rsub", "div": "rdiv", "add": "add", "mul": "mul"}


@dataclass(frozen=True)
class Operands:
    """An operation on two operands, at least one of which depends on the input.

    Attributes:
        op: "add", "sub", "mul", "div", "pow", "maximum" or "minimum".
        first: the value that depends on the input.
        second: another one, or None.
        number: the other operand, if it is a number.
        static: the other operand, if it is a tensor that doesn't depend on the input.
        swapped: whether the other operand comes first.
    """

    op: str
    first: fx.Node
    second: fx.Node | None
    number: float | None
    static: Static | None
    swapped: bool

    @classmethod
    def of(cls, node: fx.Node, shapes: dict[str, Shape]) -> Self | None:
        """Read a call; None if it is another one, or has further arguments."""
        op = BINARY.get(name_of(node.target).rstrip("_"))
        given = [*node.args, *(node.kwargs[k] for k in ("other", "exponent") if k in node.kwargs)]
        if op is None or len(given) != 2 or set(node.kwargs) - {"other", "exponent"}:
            return None
        statics = [static_of(value) for value in given]
        values = [isinstance(v, fx.Node) and s is None for v, s in zip(given, statics, strict=True)]
        if not any(values):
            return None
        swapped = not values[0]
        first, other = given[::-1] if swapped else given
        static = statics[0] if swapped else statics[1]
        if static is not None and static.is_number:
            other, static = static.value.item(), None
        number = other if isinstance(other, int | float) else None
        if number is None and not isinstance(other, fx.Node):
            return None
        assert isinstance(first, fx.Node)
        second = other if isinstance(other, fx.Node) and static is None else None
        return cls(op, first, second, number, static, swapped)

    def with_number(self) -> list[Step]:
        """Steps of an operation with a number."""
        op = REVERSED.get(self.op) if self.swapped else self.op
        assert self.number is not None
        if self.op in ("maximum", "minimum"):
            low = self.number if self.op == "maximum" else None
            return [("clamp", {"min": low, "max": None if low is not None else self.number})]
        if op is None or isinstance(self.number, bool):
            raise UnclearError("a number to the power of a value is not supported")
        return [(f"{op}_number", {"value": self.number})]

    def with_static(self, axis: int | None, channels: int, shape: Shape) -> list[Step] | Layer:
        """Steps of an operation with a tensor that forward makes, or a parameter per channel.

        Arguments:
            axis: axis of the channels of the value; None for a raw input.
            channels: their number.
            shape: shape of the value.
        """
        assert self.static is not None
        static, sign = self.static, self.op
        value = static.value.detach()
        if value.dim() > len(shape) or sign not in ("add", "sub", "mul", "div"):
            raise UnclearError("it broadcasts a value to more axes, or isn't a sum or product")
        if value.dim() == len(shape) and len(value) != 1:
            value = self._one_row(value)
        before: list[Step] = []
        if sign == "div":
            if self.swapped:
                raise UnclearError("it divides a tensor by a value")
            value, sign = 1 / value, "mul"
        elif sign == "sub":
            before = [("mul_number", {"value": -1})] if self.swapped else []
            value, sign = (value if self.swapped else -value), "add"
        static = changed(static, value)
        aligned = value.reshape(*[1] * (len(shape) - value.dim()), *value.shape)
        if not static.learned and (axis is None or aligned.shape[axis] == 1):
            _check_broadcast(aligned.shape, shape)
            if aligned.numel() > MOST_NUMBERS:
                return [*before, (f"{sign}_tensor", {"value": encoded(aligned), "axis": axis})]
            attrs = {"value": aligned.tolist(), "axis": axis}
            return [*before, (f"{sign}_constant", attrs)]
        if not static.learned:
            raise UnclearError(
                "it joins a value with constants per channel, which channels of later tasks lack; "
                "make them a parameter"
            )
        if axis is None:
            wide = [i for i, n in enumerate(aligned.shape) if n > 1]
            if len(wide) > 1:
                raise UnclearError(
                    "it joins the network's input with a parameter over several axes"
                )
            axis = wide[0] if wide else len(shape) - 1
            channels = shape[axis]
        _check_broadcast(aligned.shape, shape)
        if channels != shape[axis]:
            raise UnclearError("it joins flattened images with a parameter; apply it to the images")
        layer = per_channel(
            "scale" if sign == "mul" else "shift", static, axis, len(shape), channels
        )
        layer.before = before
        return layer

    @staticmethod
    def _one_row(value: Tensor) -> Tensor:
        """Return the first of equal rows: a tensor that was expanded to the batch."""
        if bool((value == value[:1]).all()):
            return value[:1]
        raise UnclearError(
            "it joins a value with a tensor that differs among the examples of a batch"
        )

    def merged(self, values: list[Value], shapes: list[Shape]) -> list[Step]:
        """Steps of an operation on two values that depend on the input.

        Raises:
            UnclearError: one is broadcast over the channels of the other.
        """
        if self.op == "pow":
            raise UnclearError("a power of one value by another is not supported")
        a, b = shapes
        axes = [v.axis - v.dims for v in values if v.axis is not None]
        if not axes:
            return [(self.op, {})]
        axis = axes[0]
        sizes = [s[axis] if len(s) >= -axis else 1 for s in shapes]
        if sizes[0] == sizes[1]:
            return [(self.op, {})]
        wide = values[sizes.index(max(sizes))]
        if min(sizes) > 1 or wide.axis is None or wide.axis - wide.dims != axis:
            raise UnclearError(
                f"it joins values of shape {list(a)} and {list(b)}; broadcasting over channels "
                "can't be pruned"
            )
        return [(self.op, {"broadcast": True})]


def _check_broadcast(small: Shape | torch.Size, large: Shape) -> None:
    if any(m not in (1, n) for m, n in zip(small, large, strict=True)):
        raise UnclearError(f"it broadcasts a value of shape {list(large)} to {list(small)}")
