"""Kernels for networks of which a part is frozen: an active (frozen) part and a free part.

This package has never heard of a task or of continual learning: it takes tensors and returns
tensors.

- ``clnp_kernels.ops``: the operators, with autograd, checked arguments and documentation
- ``clnp_kernels.nn``: modules built on them
- ``clnp_kernels.optim``: optimizers with a coupled L1 term
- ``clnp_kernels.info``: which implementation serves which operator, and why (``python -m
  clnp_kernels.info``)

Importing the package is cheap: the parts are imported when they are first touched.
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"
__all__ = ["info", "nn", "ops", "optim"]


def __getattr__(name: str) -> ModuleType:
    """Import the parts of the package when they are first asked for."""
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}"
    )


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
