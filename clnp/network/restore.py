"""A network from what a file says of it; every tensor is checked before memory is taken for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .model import Model
from .shapes import EXTRA

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
}


def dtype_name(dtype: torch.dtype) -> str:
    """The name by which files know a dtype: "float32"."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: Any) -> torch.dtype:
    """The inverse of `dtype_name`. Raises CheckpointError for another name."""
    if not isinstance(name, str) or name not in DTYPES:
        raise CheckpointError(f"dtype: got {name!r}, expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


@torch.inference_mode(False)
def restored(
    structure: Mapping[str, Any], dtype: torch.dtype, state: Mapping[str, Tensor]
) -> Model:
    """The network of `Model.structure`, with the tensors of its state dict.

    The layers are made without memory first, because the sizes in a structure are numbers that
    anybody can write. They get memory once the tensors, which are there, have been found to fit.

    Raises:
        CheckpointError: the structure is no network, or the tensors do not fit it.
    """
    with torch.device("meta"):
        model = Model.from_structure(structure).to(dtype)
    extra = {EXTRA: model.get_extra_state()}
    shapes = {name: value.to("meta") for name, value in state.items()}
    try:
        model.load_state_dict({**shapes, **extra})
    except RuntimeError as error:
        raise CheckpointError(f"the tensors do not fit the network: {error}") from error
    for name, wanted in model.state_dict().items():
        if name != EXTRA and state[name].dtype != wanted.dtype:
            raise CheckpointError(f"{name}: is {state[name].dtype}, expected {wanted.dtype}")
    model.to_empty(device="cpu")
    model.load_state_dict({**state, **extra})
    return model
