"""Ranks of the default process group of `torch.distributed`."""

from __future__ import annotations

import torch.distributed as dist

from ..errors import ConfigError
from .ranks import ALONE, Ranks


def world() -> Ranks:
    """Return all processes of the default process group.

    Raises:
        ConfigError: `torch.distributed` is not initialized.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(
            "distributed=True: expected a process group of torch.distributed, got none; start the "
            "script with torchrun and call torch.distributed.init_process_group() first"
        )
    return Ranks(dist.group.WORLD) if dist.get_world_size() > 1 else ALONE
