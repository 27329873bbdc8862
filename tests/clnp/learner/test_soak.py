"""Many tasks in one process: until capacity is gone, in steady memory and work.

Only with CLNP_LONG_TESTS=1; `pytest -s` prints the figures.
"""

from __future__ import annotations

import gc
import os
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import clnp
from clnp.errors import CapacityError

WIDTH, GROWTH = 800, 12  # channels of a layer, and how many of them a later task may claim
LEAST, MOST = 25, 90  # tasks that have to fit, and that never do
# The last tasks may take this much more than early ones: each tests one more earlier task, whose
# network is kept.
MORE_MEMORY = 64 << 20
MORE_WORK = 1.25
EARLY, LATE = slice(2, 8), slice(-6, None)  # the first two tasks warm up


class Count(TorchDispatchMode):
    """Counts operators and the values that they return."""

    work = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, (list, tuple)) else [result]
        self.work += 1 + sum(r.numel() for r in results if isinstance(r, torch.Tensor))
        return result


class Work:
    """Cost of the last epoch of each task; unlike seconds the same on a busy machine."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_task_begin(self, *_: object) -> None:
        self.epochs: list[int] = []
        self.mode = Count()
        self.mode.__enter__()

    def on_epoch_end(self, *_: object) -> None:
        self.epochs.append(self.mode.work)

    def on_task_end(self, *_: object) -> None:
        self.mode.__exit__(None, None, None)
        self.counts.append(self.epochs[-1] - self.epochs[-2])


def resident() -> int:
    """Bytes of this process in memory, without what Python can give back."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif("CLNP_LONG_TESTS" not in os.environ, reason="takes minutes: CLNP_LONG_TESTS=1")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_until_it_is_full() -> None:
    torch.manual_seed(0)
    net = clnp.models.mlp(64, WIDTH, 2, 10, seed=0)
    model = clnp.convert(net, torch.zeros(1, 64), verbose=False)
    settings = {"margin": 0.02, "l1": 1e-4, "lr": 2e-3, "epochs": 5, "batch_size": 64}
    work = Work()
    learner = clnp.Learner(model, head="single", growth=GROWTH, callbacks=[work], **settings)
    tasks = clnp.data.PermutedDigits(tasks=MOST)
    memory = []
    for task in tasks:
        if model.is_full:
            break
        report = learner.learn(task)
        memory.append(resident())
        used = [f"{c['used']}/{c['size']}" for c in report.capacity.values()]
        print(
            f"{report.name}: test {report.test:.3f}, used {' '.join(used)}, "
            f"{work.counts[-1]:.3g} values an epoch, resident {memory[-1] >> 20} MiB"
        )
    learned = len(learner.reports)
    assert learned >= LEAST
    assert all(verdict.identical for verdict in learner.verify())
    assert len(learner.verify()) == learned
    early, late = (int(statistics.median(memory[part])) for part in (EARLY, LATE))
    assert late - early < MORE_MEMORY
    first, last = (statistics.median(work.counts[part]) for part in (EARLY, LATE))
    print(f"{learned} tasks: {early >> 20} -> {late >> 20} MiB, {first:.3g} -> {last:.3g} values")
    assert last < MORE_WORK * first
    state = {name: value.clone() for name, value in model.state_dict().items()}
    learner.callbacks.clear()
    with pytest.raises(CapacityError, match=r"expand\(\).*wider network.*head='multi'"):
        learner.learn(tasks[learned])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert len(learner.reports) == learned
