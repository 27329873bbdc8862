"""Suite "memory": bytes that training holds, by the fraction of frozen channels.

Every contender makes one step; its tensors are counted: weights and buffers, gradients, optimizer,
and what else it keeps (masks, copies). On a GPU the peak of a step as well; on a CPU by how much
the process grew at most ("peak"; it holds the libraries' working memory too).
"""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.cases import ALL_FRACTIONS, Case, Size
from benchmarks.checks import check_steps
from benchmarks.contenders import CONTENDERS
from benchmarks.harness import forks
from benchmarks.record import OURS, Row, Table
from benchmarks.state import make_state
from benchmarks.step import columns

MIB = 1 << 20
NAMES = ("eager-masked", "dense", "slices", "ours")
TRAINING = "gradients + optimizer"
# Of the dense network's gradients and optimizer, what may come on top of the share 1 - a.
SLACK = 0.05


def run(
    tables: Mapping[str, Table],
    size: Size,
    device: str,
    networks: Sequence[str] = (),
    fractions: Sequence[float] = (),
) -> None:
    """Measures; arguments as of `benchmarks.step.run`."""
    fractions = fractions or (ALL_FRACTIONS if size.scale == 1 else size.fractions)
    for dtype, table in tables.items():
        for network in networks or size.networks:
            for fraction in fractions:
                case = size.case(network, fraction, dtype, device)
                check_steps(case, NAMES, dtypes=dict.fromkeys(["fp32", dtype]))
                table.add(rows(case))


def rows(case: Case) -> list[Row]:
    """Memory of each contender, one row for each kind of tensor."""
    held = {name: measure(case, name) for name in NAMES}
    found = []
    for name, values in held.items():
        for quantity, mib in values.items():
            own = held[OURS][quantity]
            row = {"suite": "memory", **columns(case), "contender": name, "quantity": quantity}
            row |= {"unit": "MiB", "median": mib, "samples": 1, "ratio": mib / own if own else ""}
            if quantity == TRAINING:
                row["bound"] = 1 / (1 - case.fraction + SLACK)
            found.append(row)
    return found


def measure(case: Case, name: str) -> dict[str, float]:
    """MiB of a contender after a step, in a process of its own."""
    context = forks()
    ours, theirs = context.Pipe()
    process = context.Process(target=_count, args=(case, name, theirs))
    process.start()
    theirs.close()
    try:
        answer: dict[str, float] = ours.recv()
    except EOFError:
        raise RuntimeError(f"{name}, {case}: its process ended; its message is above") from None
    finally:
        process.join()
    return answer


def _count(case: Case, name: str, pipe: Connection) -> None:
    state = make_state(case)
    contender = CONTENDERS[name](state)
    before = _peak(case.device, reset=True)
    contender.step()
    held = contender.held_bytes()
    found = {quantity: count / MIB for quantity, count in held.items()}
    found[TRAINING] = (held["gradients"] + held["optimizer"]) / MIB
    found["total"] = sum(held.values()) / MIB
    found["peak"] = _peak(case.device) - before
    pipe.send(found)


def _peak(device: str, reset: bool = False) -> float:
    """MiB at most until now, of the device or the process."""
    if torch.device(device).type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device) / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def within_bound(table: Sequence[Mapping[str, Any]]) -> bool:
    """True if ours holds at most (1 - a) of dense, and 5 % of it, in gradients and optimizer."""
    found = [r for r in table if r["quantity"] == TRAINING and r["contender"] == "dense"]
    return all(float(row["ratio"]) >= float(row["bound"]) for row in found)
