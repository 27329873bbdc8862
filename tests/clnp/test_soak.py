"""Many tasks in one process: until capacity is gone, in steady memory and time.

Only with CLNP_LONG_TESTS=1; `pytest -s` prints the figures.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from pathlib import Path

import pytest
import torch

import clnp
from clnp.errors import CapacityError

WIDTH, GROWTH = 800, 12  # channels of a layer, and how many of them a later task may claim
LEAST, MOST = 25, 90  # tasks that have to fit, and that never do
# The last tasks may take this much more than early ones: each tests one more earlier task, whose
# network is kept.
MORE_MEMORY = 64 << 20
MORE_TIME = 1.25
EARLY, LATE = slice(2, 8), slice(-6, None)  # the first two tasks warm up


class Clock:
    """Seconds of the processor that the training of each task takes, whatever else runs here."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_task_begin(self, *_: object) -> None:
        self.begun = time.process_time()

    def on_epoch_end(self, *_: object) -> None:
        self.last = time.process_time()

    def on_task_end(self, *_: object) -> None:
        self.seconds.append(self.last - self.begun)


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
    clock = Clock()
    learner = clnp.Learner(model, head="single", growth=GROWTH, callbacks=[clock], **settings)
    tasks = clnp.data.PermutedDigits(tasks=MOST)
    memory = []
    for task in tasks:
        if model.is_full:
            break
        report = learner.learn(task)
        memory.append(resident())
        used = [f"{c['used']}/{c['size']}" for c in report.capacity.values()]
        print(
            f"{report.name}: test {report.test:.3f}, used {' '.join(used)}, trained in "
            f"{clock.seconds[-1]:.2f} s, resident {memory[-1] >> 20} MiB"
        )
    learned = len(learner.reports)
    assert learned >= LEAST
    assert all(verdict.identical for verdict in learner.verify())
    assert len(learner.verify()) == learned
    early, late = (int(statistics.median(memory[part])) for part in (EARLY, LATE))
    assert late - early < MORE_MEMORY
    first, last = (statistics.median(clock.seconds[part]) for part in (EARLY, LATE))
    print(f"{learned} tasks: {early >> 20} -> {late >> 20} MiB, {first:.2f} -> {last:.2f} s")
    assert last < MORE_TIME * first
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CapacityError, match=r"expand\(\).*wider network.*head='multi'"):
        learner.learn(tasks[learned])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert len(learner.reports) == learned
