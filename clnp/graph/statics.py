"""Tensors that forward computes without its input: parameters, buffers, constants, and results."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from .calls import FRESH, RANDOM, Call, name_of


@dataclass(frozen=True)
class Static:
    """A tensor that does not depend on the input.

    Attributes:
        value: the tensor.
        name: qualified name, if it is a parameter or buffer itself.
        learned: names of the parameters that it is computed from.
        random: whether random numbers took part.
        keep: (q, divided) if it is bits that are one with probability q, maybe divided by q.
    """

    value: Tensor
    name: str = ""
    learned: frozenset[str] = frozenset()
    random: bool = False
    keep: tuple[float, bool] | None = None

    @property
    def is_number(self) -> bool:
        """Return whether it is a single number that no task could learn."""
        return self.value.numel() == 1 and not self.learned and not self.random

    def copied(self) -> Static:
        """Return a description of the present numbers; a parameter stays itself."""
        return self if self.name else replace(self, value=self.value.detach().clone())


def result_of(call: Call, func: object, value: Tensor, given: Iterable[Static]) -> Static:
    """Describe the result of an operation on statics.

    Arguments:
        call: the operation.
        func: its function, for its name.
        value: the result.
        given: descriptions of its tensor arguments.
    """
    name, given = name_of(func), list(given)
    sources = [] if name in FRESH else given
    learned = frozenset(key for static in sources for key in static.learned)
    random = name in RANDOM or any(static.random for static in sources)
    keep = None
    if name == "bernoulli_" and len(call.args) > 1 and isinstance(call.args[1], float | int):
        keep = float(call.args[1]), False
    elif name in ("div", "div_") and given and given[0].keep and len(call.args) > 1:
        q, divided = given[0].keep
        keep = (q, True) if not divided and call.args[1] == q else None
    return Static(value, "", learned, random, keep)
