"""Qualification on ranks, run in processes that `torch.distributed` joins; no GPU is touched."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
import torch
import torch.distributed as dist

from clnp.parallel import kernels
from clnp.parallel.ranks import world
from clnp_kernels import chooser, ops  # noqa: F401  (registers the operators)
from clnp_kernels.tune import environment, first_use
from clnp_kernels.tune.environment import Card

CARD = Card("cuda:0", "Pretended 100", 90, 4, 1 << 12)
DEVICE = torch.device("cuda:0")


def qualified(names: list[str], wanted: str = "") -> dict[str, Any]:
    """Table that a rank follows, and number of its checks; `names` are of the ranks' GPUs."""
    checked: list[Any] = []

    def run(card: Card, jobs: Any, seconds: float, workers: int) -> Any:
        checked.extend(jobs)
        # Only one of the two was wrong here; the other ranks could not know.
        return ((job, {"reason": "two runs differ" if i % 2 else ""}) for i, job in enumerate(jobs))

    name = names[dist.get_rank()]
    card = Card("cuda:0", name, *list(vars(CARD).values())[2:])
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("CLNP_CACHE_DIR", folder)  # of this rank alone
        patch.setattr(chooser, "absent", {})
        patch.setattr(first_use, "run", run)
        patch.setattr(environment, "card_of", lambda device: card)
        found = kernels.qualify(DEVICE, world(), wanted)
        again = kernels.qualify(DEVICE, world(), found["digest"])
        assert again["digest"] == found["digest"] == first_use.digest_of(DEVICE)
        table = chooser.table_of(0)
    passed = [c.name for c in table.checks.values() if not c.reason] if table else []
    return {"digest": found["digest"], "checked": len(checked), "passed": passed}
