"""Copies of frozen tensors in autocast's dtype, made once and kept until the tensor changes.

Autocast casts weights anew at every step. Frozen ones are the same at every step, so their copies
are kept beside them: half of their bytes in bfloat16. Moving a boundary, loading a state or
converting a module makes other tensors or writes into them, and both make another copy.
"""

import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from . import torch_private


class _Copy(NamedTuple):
    source: "weakref.ref[Tensor]"
    state: tuple[object, ...]
    cast: Tensor


_copies: dict[int, _Copy] = {}  # by id of the source


def frozen(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in another dtype; the copy of a frozen one is kept for the next call.

    A tensor that requires gradients, or that belongs to a transform or a compiler, is cast as
    `Tensor.to` does. Write into a frozen tensor by its own methods: PyTorch does not note what is
    written through `.data`, for this copy as little as for autograd.

    Arguments:
        tensor: of any shape and device.
        dtype: of the result.
    """
    if torch.compiler.is_compiling():  # first: a compiler can't look at what follows
        return tensor.to(dtype)
    if tensor.dtype == dtype or not tensor.numel() or not _can_be_kept(tensor):
        return tensor.to(dtype)
    state = (torch_private.version(tensor), tensor.data_ptr(), tensor.stride(), dtype)
    key = id(tensor)
    copy = _copies.get(key)
    if copy is None or copy.source() is not tensor or copy.state != state:
        source = weakref.ref(tensor, lambda gone: _forget(key, gone))
        copy = _copies[key] = _Copy(source, state, tensor.detach().to(dtype))
    return copy.cast


def _can_be_kept(tensor: Tensor) -> bool:
    """Return whether PyTorch notes changes of a tensor that nothing but its owner changes."""
    ordinary = type(tensor) is Tensor and not tensor.requires_grad and not tensor.is_inference()
    if torch_private.within_transform():
        return False
    return ordinary and not torch.is_inference_mode_enabled()


def _forget(key: int, gone: "weakref.ref[Tensor]") -> None:
    copy = _copies.get(key)
    if copy is not None and copy.source is gone:
        del _copies[key]
