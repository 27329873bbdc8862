"""Qualification of the GPU kernels before a first task, alike on all ranks and workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from clnp_kernels import chooser
from clnp_kernels.errors import MissingImplementationError
from clnp_kernels.tune import first_use
from clnp_kernels.tune.table import Table

from ..errors import ConfigError
from .ranks import Ranks

Kernels = dict[str, Any]  # a table of `clnp_kernels.tune`, as JSON


def qualify(device: torch.device, ranks: Ranks, wanted: str = "") -> Kernels:
    """Check the kernels on a GPU unless this was done before; see `first_use.qualify`.

    The first rank checks, and the others follow its table. GPUs or versions that differ between the
    ranks take PyTorch's operators, for their results have to be alike.

    Arguments:
        device: of the network.
        ranks: who shares the work.
        wanted: digest of the table that a saved run took its steps with.

    Returns:
        {"digest": of the table, and its "entries"}; a digest of "torch" where PyTorch's operators
        serve, of "" on a CPU. The same on all ranks.

    Raises:
        TrainingError: ranks follow different tables.
        ConfigError: no kernel can serve though CLNP_TUNE=require or CLNP_STRICT=1 demands it; a
            variable of the environment is no good.
    """
    if device.type != "cuda":
        return {"digest": ""}
    if ranks.size > 1:
        different = _different([*map(dict, ranks.gather(first_use.facts_of(device)))])
        if different:
            with _config_errors():
                first_use.leave(device, f"the GPUs of the processes differ: {different}")
            return {"digest": chooser.TORCH}
    with ranks.together("checking the kernels"):
        table = _checked(device, wanted) if ranks.main else None
    made = ranks.from_first(table.to_json() if table else {"digest": chooser.TORCH})
    follow(device, made)
    ranks.agree("the table of the kernels", first_use.digest_of(device))
    return made


def _checked(device: torch.device, wanted: str) -> Table | None:
    with _config_errors():
        return first_use.qualify(device, wanted=wanted)


@contextmanager
def _config_errors() -> Iterator[None]:
    """Make errors of the settings in the environment those of this package."""
    try:
        yield
    except (MissingImplementationError, ValueError) as error:
        raise ConfigError(str(error)) from error


def follow(device: torch.device, kernels: Kernels) -> None:
    """Follow the table that another process of this run made."""
    if device.type == "cuda" and first_use.digest_of(device) != kernels["digest"]:
        first_use.adopt(device, kernels)


def _different(facts: list[dict[str, Any]]) -> str:
    """The facts in which a rank differs from the first one, or ''."""
    found = [first_use.differences(facts[0], other) for other in facts[1:]]
    return next(filter(None, found), "")
