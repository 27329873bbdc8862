"""Taking one task's network out."""

from __future__ import annotations

import copy

from torch import fx

from clnp.model import Model


def extract(model: Model, task: int) -> fx.GraphModule:
    """The network of one learned task as a plain, narrow torch module.

    It holds `torch.nn.Linear` and activation modules only, under the names that they had in the
    original network, with contiguous copies of the task's weights; it needs no `clnp` to run, train
    further, compile or export, and later tasks do not change it. `torch.export.save` (or `clnp
    export`) writes it to a file.

    Arguments:
        model: a converted network.
        task: index of a learned task, from 0.

    Returns:
        a `torch.fx.GraphModule` in evaluation mode; x [B, ...] -> logits [B, C].

    Raises:
        ConfigError: no such task.
    """
    narrow = copy.deepcopy(model.subnetwork(task, fresh=True))
    return narrow.requires_grad_(True)
