"""Loading a state whose boundaries are others: tensors change shapes, not their identity."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import message
from ..reference.masked_conv2d import memory_format


def take_shapes(
    module: nn.Module,
    names: Sequence[str],
    state_dict: Mapping[str, Any],
    prefix: str,
    nonsense: Callable[[Mapping[str, list[int]]], str],
) -> str:
    """Give the tensors ``names`` of ``module`` the shapes that a state has.

    Nothing is changed if the state lacks one of them (``load_state_dict`` says so) or if
    ``nonsense`` finds the shapes wrong.

    Returns:
        What is wrong, or ''.
    """
    names = [name for name in names if getattr(module, name) is not None]
    entries = {name: state_dict.get(prefix + name) for name in names}
    new = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    if len(new) != len(names):
        return ""
    problem = nonsense({name: list(value.shape) for name, value in new.items()})
    if problem:
        return f"{prefix[:-1] or type(module).__name__}: {problem}"
    for name, value in new.items():
        own = getattr(module, name)
        if own.shape != value.shape:
            _reshape(own, value.shape)
    return ""


def _reshape(own: Tensor, shape: torch.Size) -> None:
    """Give a parameter or buffer another shape; it stays the tensor that an optimizer holds."""
    dtype, layout = own.dtype, memory_format(own)
    own.grad = None
    # A graph that is still alive (of the last loss) keeps what autograd knows of the old shape;
    # only with another dtype does it look anew.
    other = torch.float32 if dtype == torch.float64 else torch.float64
    own.data = torch.empty(0, dtype=other, device=own.device)
    own.data = torch.empty(shape, dtype=dtype, device=own.device, memory_format=layout)


def wrong_dimensions(shapes: Mapping[str, list[int]], weight_ndim: int) -> str:
    """What is wrong with the numbers of dimensions of weights and vectors, or ''."""
    for name, shape in shapes.items():
        ndim = weight_ndim if name.endswith("weight") else 1
        if len(shape) != ndim:
            return message(f"{name}.shape", shape, f"{ndim} dimensions")
    return ""
