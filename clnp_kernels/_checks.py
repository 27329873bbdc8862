"""Checks of arguments, shared by the public functions. They look at metadata, never at values."""

from collections.abc import Callable, Hashable, Sequence
from functools import wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor, nn

from .errors import message

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ORDINARY = (Tensor, nn.Parameter)
REMEMBERED = 4096  # looks of arguments that one operator remembers: boundaries move, batches differ
Arguments = ParamSpec("Arguments")


def look_of(args: Sequence[Any]) -> Hashable:
    """The metadata of arguments that checks and choices look at; None where they have to look
    again: tensors of a compiler, which have symbols as sizes, and values that can't be a key.
    """
    look = tuple(
        [
            (arg.shape, arg.dtype, arg.device, arg.layout) if type(arg) in ORDINARY else arg
            for arg in args
        ]
    )
    if torch.compiler.is_compiling() or any(isinstance(arg, Tensor) for arg in look):
        return None
    try:
        hash(look)
    except TypeError:
        return None
    return look


def once(check: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Let a check of positional arguments pass over those that look like some that have passed."""
    passed: set[Hashable] = set()

    @wraps(check)
    def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        look = look_of(args)
        if look is None or look not in passed:
            check(*args, **kwargs)
            if len(passed) >= REMEMBERED:
                passed.clear()
            if look is not None and not kwargs:
                passed.add(look)

    return checked


def check_tensor(name: str, value: object, ndim: int | None = None) -> None:
    """Raise unless `value` is a dense floating-point tensor (of `ndim` dimensions)."""
    if not isinstance(value, Tensor):
        raise TypeError(message(name, type(value).__name__, "a torch.Tensor"))
    if value.layout != torch.strided:
        raise TypeError(message(name, value.layout, "a dense tensor", f"call {name}.to_dense()"))
    if value.dtype not in FLOATING:
        wanted = "float32, bfloat16, float16 or float64"
        raise TypeError(message(f"{name}.dtype", value.dtype, wanted, f"convert with {name}.to()"))
    if ndim is not None and value.ndim != ndim:
        raise ValueError(message(f"{name}.shape", tuple(value.shape), f"{ndim} dimensions"))


def check_alike(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless both tensors have one dtype and one device."""
    if value.dtype != other.dtype:
        way_out = "convert one with .to() or use torch.autocast"
        wanted = f"{other.dtype} like {other_name}"
        raise TypeError(message(f"{name}.dtype", value.dtype, wanted, way_out))
    if value.device != other.device:
        wanted = f"{other.device} like {other_name}"
        raise ValueError(message(f"{name}.device", value.device, wanted, "move one with .to()"))


def check_shape(name: str, value: Tensor, wanted: Sequence[int], letters: str) -> None:
    """Raise unless `value.shape` is `wanted`; `letters` names the sizes: `[Of, I]`."""
    if tuple(value.shape) != tuple(wanted):
        text = f"{letters} = {list(wanted)}"
        raise ValueError(message(f"{name}.shape", list(value.shape), text))


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(message(name, repr(value), "one of " + ", ".join(map(repr, choices))))


def check_number(name: str, value: float, low: float = 0.0, below: float = float("inf")) -> None:
    """Raise unless `low <= value < below` (NaN is refused)."""
    if isinstance(value, (str, bytes, list, tuple, dict, Tensor)) or value is None:
        raise TypeError(message(name, repr(value), "a number"))
    if not low <= value < below:
        wanted = f"at least {low}" if below == float("inf") else f"at least {low} and below {below}"
        raise ValueError(message(name, value, f"a finite number, {wanted}"))


def check_count(name: str, value: int, most: int, what: str) -> None:
    """Raise unless `value` is a whole number from 0 to `most`, the number of `what`."""
    # While a compiler traces, sizes are symbols and no int.
    if isinstance(value, (float, str, bytes, list, tuple, dict, Tensor)) or value is None:
        raise TypeError(message(name, repr(value), "a whole number"))
    if not 0 <= value <= most:
        raise ValueError(message(name, value, f"0 to {most}, the {what}"))


def check_list(name: str, value: object) -> None:
    """Raise unless `value` is a list or a tuple."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(message(name, type(value).__name__, "a list"))


def check_scalar(name: str, value: object, like: Tensor) -> None:
    """Raise unless `value` is one floating-point element on the CPU or the device of `like`."""
    check_tensor(name, value)
    assert isinstance(value, Tensor)
    if value.numel() != 1:
        raise ValueError(message(f"{name}.shape", list(value.shape), "one element"))
    if value.device.type not in ("cpu", like.device.type):
        raise ValueError(message(f"{name}.device", value.device, f"{like.device}, as params"))


def check_lists(names: Sequence[str], lists: Sequence[Sequence[Tensor]]) -> None:
    """Raise unless all lists are like the first: length and each shape, dtype and device.

    Gradients that are sparse are refused by name.
    """
    first_name, first = names[0], lists[0]
    for name, tensors in zip(names, lists, strict=True):
        check_list(name, tensors)
    for name, tensors in zip(names, lists, strict=True):
        if len(tensors) != len(first):
            wanted = f"{len(first)}, as many as {first_name}"
            raise ValueError(message(f"len({name})", len(tensors), wanted))
        for i, (tensor, like) in enumerate(zip(tensors, first, strict=True)):
            if name != first_name and _are_alike(tensor, like):
                continue
            check_tensor(f"{name}[{i}]", tensor)
            check_alike(f"{name}[{i}]", tensor, f"{first_name}[{i}]", like)
            check_shape(f"{name}[{i}]", tensor, like.shape, f"shape of {first_name}[{i}]")


def _are_alike(value: object, like: Tensor) -> bool:
    """Return whether a tensor is like a checked one. Fast: a step does this hundreds of times."""
    return (
        isinstance(value, Tensor)
        and value.shape == like.shape
        and value.dtype == like.dtype
        and value.device == like.device
        and value.layout == torch.strided
    )
