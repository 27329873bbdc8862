"""The ranks of `torch.distributed`."""

from __future__ import annotations

import torch.distributed as dist

from ..errors import ConfigError
from .ranks import ALONE, Ranks


def world() -> Ranks:
    """All processes of `torch.distributed`.

    Raises:
        ConfigError: there is no process group.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(
            "distributed=True: torch.distributed has no process group; start the script with "
            "torchrun and call torch.distributed.init_process_group() first"
        )
    return Ranks(dist.group.WORLD) if dist.get_world_size() > 1 else ALONE
