"""Names and kinds of the operations that a `TorchFunctionMode` sees."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from clnp_kernels.torch_private import is_aten

# Attributes of a tensor that are tensors; other attributes are properties of its type.
VIEWS = ("T", "mT", "H", "mH", "data", "real", "imag")
# Operations that read the numbers of a tensor into Python.
NUMBERS = frozenset(
    (
        *("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__"),
        *("__complex__", "__contains__", "__array__", "equal", "allclose", "is_nonzero"),
    )
)
# Operations whose result takes no number from their input.
FRESH = frozenset(
    (
        *("new_empty", "new_zeros", "new_ones", "new_full", "new_tensor"),
        *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like"),
    )
)
# Operations that take no number from their second argument.
TEMPLATED = frozenset(("to", "type_as", "expand_as", "view_as", "reshape_as"))
RANDOM = frozenset(
    (
        *("bernoulli", "bernoulli_", "uniform_", "normal", "normal_", "rand", "randn", "randint"),
        *("rand_like", "randn_like", "randperm", "multinomial", "random_", "exponential_"),
    )
)
UNRECORDED = frozenset(("requires_grad_", "retain_grad", "register_hook", "_set_grad_enabled"))
REVERSED = {
    "__rsub__": operator.sub,
    "__rdiv__": operator.truediv,
    "__rtruediv__": operator.truediv,
    "__rpow__": operator.pow,
    "__rmatmul__": operator.matmul,
}
ITEMS = {"__getitem__": operator.getitem, "__setitem__": operator.setitem}
NORMS = (F.batch_norm, F.instance_norm)  # they update statistics in place


class RecordError(Exception):
    """A step of forward that a record can't express."""


@dataclass(frozen=True)
class Call:
    """A call as torch.fx writes it.

    Attributes:
        op: "call_function", "call_method" or "call_module".
        target: function, name of the method, or path of the module.
        args, kwargs: arguments, with tensors.
    """

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def name_of(func: Any) -> str:
    """Return the name of an operation."""
    return str(getattr(func, "__name__", func)).split(".")[0]


def call_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Return the call of an operation; None if it only reads a property of a tensor."""
    name = name_of(func)
    if name == "__get__":
        attribute = func.__self__.__name__
        return (
            Call("call_function", getattr, (args[0], attribute), {}) if attribute in VIEWS else None
        )
    if name == "__set__":
        raise RecordError(f"it sets the attribute {func.__self__.__name__!r} of a tensor")
    if name in UNRECORDED:
        return None
    if name in REVERSED:
        return Call("call_function", REVERSED[name], args[::-1], kwargs)
    if name in ITEMS:
        return Call("call_function", ITEMS[name], args, kwargs)
    if getattr(Tensor, name, None) is func or type(func).__name__.endswith("descriptor"):
        return Call("call_method", name, args, kwargs)
    if is_aten(func) and hasattr(Tensor, name):
        return Call("call_method", name, args, kwargs)
    return Call("call_function", func, args, kwargs)


def is_in_place(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether an operation changes its first argument, judged by name and arguments."""
    name = name_of(func)
    if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
        return True
    if "inplace" in kwargs or not inspect.isfunction(func):
        return bool(kwargs.get("inplace", False))
    try:
        names = list(inspect.signature(func).parameters)
    except ValueError:  # some functions of PyTorch have no signature
        return False
    position = names.index("inplace") if "inplace" in names else len(args)
    return len(args) > position and bool(args[position])


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a value, inside of lists, tuples and dictionaries too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from tensors_of(inner)
    elif isinstance(value, dict):
        yield from tensors_of(list(value.values()))
    elif isinstance(value, slice):
        yield from tensors_of([value.start, value.stop, value.step])
