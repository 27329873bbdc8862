"""Networks from files; tensors are checked before memory is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .model import Model
from .shapes import EXTRA


@torch.inference_mode(False)
def restored(
    structure: Mapping[str, Any], dtype: torch.dtype, state: Mapping[str, Tensor]
) -> Model:
    """Build the network of a `Model.structure` and load its state dict.

    The layers are made on the meta device first, because a file may contain any sizes. Memory is
    allocated after the tensors were found to fit.

    Raises:
        CheckpointError: the structure isn't a network, or the tensors don't fit it.
    """
    with torch.device("meta"):
        model = Model.from_structure(structure).to(dtype)
    extra = {EXTRA: model.get_extra_state()}
    shapes = {name: value.to("meta") for name, value in state.items()}
    try:
        model.load_state_dict({**shapes, **extra})
    except RuntimeError as error:
        raise CheckpointError(f"tensors: expected those of the network: {error}") from error
    for name, expected in model.state_dict().items():
        if name != EXTRA and state[name].dtype != expected.dtype:
            raise CheckpointError(f"{name}: expected {expected.dtype}, got {state[name].dtype}")
    model.to_empty(device="cpu")
    model.load_state_dict({**state, **extra})
    return model
