"""Kernels for networks of which a part is frozen: an active (frozen) part and a free part.

The package takes tensors and returns tensors; tasks and continual learning are no part of it.

- `clnp_kernels.ops`: the operators, with autograd, checked arguments and documentation
- `clnp_kernels.nn`: modules built on them
- `clnp_kernels.optim`: optimizers with a coupled L1 term
- `clnp_kernels.info`: the implementation of each operator, with the reason (`python -m
  clnp_kernels.info`)

Importing the package is cheap: the parts are imported on first use.
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"
__all__ = ["info", "nn", "ops", "optim"]


def __getattr__(name: str) -> ModuleType:
    """Import a part of the package on first use."""
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}"
    )


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
