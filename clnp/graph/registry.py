"""`register`: how `clnp.convert` learns to read modules that it doesn't know."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from ..errors import ConfigError
from .operations import OPS, Attrs, Op
from .recognised import MODULES

Module = TypeVar("Module", bound=nn.Module)
Equivalent = Callable[[Any], nn.Module]
ROLES = ("elementwise", "spatial")
EQUIVALENTS: dict[type[nn.Module], Equivalent] = {}


def register(
    kind: type[Module],
    *,
    role: str | None = None,
    attrs: Callable[[Module], Attrs] | None = None,
    equivalent: Callable[[Module], nn.Module] | None = None,
) -> None:
    """Teach `clnp.convert` a module class.

    There are two ways. A module without weights that treats every number, or every channel of an
    image, for itself becomes an operation of its own: give `role`. Any other module can be
    replaced by one that computes the same in ways that conversion understands: give `equivalent`.
    Conversion compares the result with the original network in both modes in either case.

    A registered class is needed again to load a saved network that contains it; register it before.

    Arguments:
        kind: the class; only modules of exactly this class are meant.
        role: "elementwise", or "spatial" for images [B, C, H, W] whose channels stay apart.
        attrs: module -> keyword arguments of `kind` that make such a module again, as numbers,
            strings and lists; default: none. For `role`.
        equivalent: module -> a module with the same parameter objects, of supported operations.

    Raises:
        ConfigError: another class, neither or both ways, an unknown role, or a class that PyTorch
            defines.
    """
    if not (inspect.isclass(kind) and issubclass(kind, nn.Module)):
        raise ConfigError(f"kind: expected a subclass of torch.nn.Module, got {kind!r}")
    if kind.__module__.startswith("torch."):
        raise ConfigError(f"kind: expected a class of your own, got {kind.__qualname__} of PyTorch")
    if (role is None) == (equivalent is None):
        raise ConfigError("role, equivalent: expected one of them, got neither or both")
    if equivalent is not None:
        if not callable(equivalent) or attrs is not None:
            raise ConfigError("equivalent: expected a function, without attrs")
        EQUIVALENTS[kind] = equivalent
        return
    if role not in ROLES:
        raise ConfigError(f"role: expected one of {list(ROLES)}, got {role!r}")
    name = f"{kind.__module__}.{kind.__qualname__}"

    def read(module: Module) -> Attrs:
        found = attrs(module) if attrs else {}
        return {"arguments": dict(found)}

    def make(arguments: Attrs) -> nn.Module:
        return kind(**arguments)

    OPS[name] = Op(role, make, attrs=("arguments",))
    MODULES[kind] = name, read


def unregister(kind: type[nn.Module]) -> None:
    """Forget a registered class; a class that isn't registered is no error."""
    EQUIVALENTS.pop(kind, None)
    if f"{kind.__module__}.{kind.__qualname__}" in OPS:
        del OPS[f"{kind.__module__}.{kind.__qualname__}"], MODULES[kind]
