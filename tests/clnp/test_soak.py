"""Many tasks in one process: until capacity is gone, in steady memory and time.

Only with CLNP_LONG_TESTS=1; `pytest -s` prints the figures.
"""

from __future__ import annotations

import gc
import os
import statistics
from pathlib import Path

import pytest
import torch

import clnp
from clnp.errors import CapacityError

WIDTH = 400
LEAST, MOST = 25, 60  # tasks that have to fit, and that never do
# The last tasks may take this much more than early ones: each tests one more earlier task, whose
# network is kept, and part of a smaller network's work.
MORE_MEMORY = 48 << 20
MORE_TIME = 1.25
EARLY, LATE = slice(2, 8), slice(-6, None)  # the first two tasks warm up


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
    settings = {"margin": 0.01, "l1": 1e-4, "lr": 2e-3, "epochs": 8, "batch_size": 64}
    learner = clnp.Learner(model, head="single", **settings)
    tasks = clnp.data.PermutedDigits(tasks=MOST)
    memory, seconds = [], []
    for task in tasks:
        if model.is_full:
            break
        report = learner.learn(task)
        memory.append(resident())
        seconds.append(report.seconds["fit"])
        used = [f"{c['used']}/{c['size']}" for c in report.capacity.values()]
        print(
            f"{report.name}: test {report.test:.3f}, used {' '.join(used)}, fit "
            f"{seconds[-1]:.2f} s, resident {memory[-1] >> 20} MiB"
        )
    learned = len(learner.reports)
    assert learned >= LEAST
    assert all(verdict.identical for verdict in learner.verify())
    assert len(learner.verify()) == learned
    early, late = statistics.median(memory[EARLY]), statistics.median(memory[LATE])
    assert late - early < MORE_MEMORY
    assert statistics.median(seconds[LATE]) < MORE_TIME * statistics.median(seconds[EARLY])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CapacityError, match=r"expand\(\).*wider network.*head='multi'"):
        learner.learn(tasks[learned])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert len(learner.reports) == learned
