"""Effect of single settings of `clnp.Learner` on accuracy and capacity.

    python -m benchmarks.settings

learns five tasks of permuted digits (8 x 8 pixels, part of the package) with an MLP of two hidden
layers, one head, one thread. A sweep changes one setting of `BASE` and leaves the others. Results
go to benchmarks/results/settings/runs.csv, one row per sweep, value and seed; rows that the file
has are not computed again. `python -m benchmarks.pages` writes the tables of the documentation.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import clnp
from benchmarks import machine
from benchmarks.record import appending, rows_in
from clnp.metrics import average_accuracy

RESULTS = Path(__file__).parent / "results" / "settings" / "runs.csv"
TASKS = 5
BASE: dict[str, Any] = {
    "width": 400,
    "epochs": 20,
    "lr": 2e-3,
    "batch_size": 64,
    "margin": 0.01,
    "l1": 1e-4,
    "growth": 40,
    "first_growth": 80,
    "sparsifier": "activity",
    "fine_tune": None,
}
FREE = {"growth": None, "first_growth": None}  # a task may train all free channels
# sweep -> (value as a reader sees it, changes of BASE)
SWEEPS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "margin": [(f"{m:g}", {"margin": m}) for m in (0.002, 0.005, 0.01, 0.02, 0.05)],
    "margin-without-growth": [
        (f"{m:g}", {"margin": m, **FREE}) for m in (0.002, 0.005, 0.01, 0.02, 0.05)
    ],
    "l1": [(f"{a:g}", {"l1": a}) for a in (0.0, 1e-5, 1e-4, 3e-4, 1e-3)],
    "growth": [
        *((f"{n}", {"growth": n, "first_growth": 2 * n}) for n in (10, 20, 40, 80)),
        ("None", FREE),
    ],
    "epochs": [(f"{n}", {"epochs": n}) for n in (5, 10, 20, 40)],
    "width": [(f"{n}", {"width": n}) for n in (100, 200, 400, 800)],
    "fine_tune": [
        ("None", {}),
        ("5 epochs", {"fine_tune": {"epochs": 5, "lr": 1e-3}}),
        ("10 epochs", {"fine_tune": {"epochs": 10, "lr": 1e-3}}),
        ("margin 0.02, 10 epochs", {"margin": 0.02, "fine_tune": {"epochs": 10, "lr": 1e-3}}),
    ],
    "sparsifier": [(s, {"sparsifier": s}) for s in ("activity", "contribution")],
}
COLUMNS = ("sweep", "value", "seed", "tasks", "acc", "lowest", "used_fc1", "used_fc2", "seconds")


def run(changes: dict[str, Any], seed: int) -> dict[str, Any]:
    """Learn the tasks with `BASE` and some changes.

    Returns:
        the columns from "tasks" to "seconds". A task that finds no free channel ends the run;
        accuracies are the mean and the lowest over the tasks that were learned.
    """
    settings = {**BASE, **changes}
    net = clnp.models.mlp(64, settings.pop("width"), 2, 10, seed=seed)
    model = clnp.convert(net, torch.zeros(1, 64), verbose=False)
    learner = clnp.Learner(model, head="single", seed=seed, infer_tasks=False, **settings)
    begin = time.monotonic()
    for task in clnp.data.PermutedDigits(tasks=TASKS, seed=seed):
        try:
            learner.learn(task)
        except clnp.CapacityError:
            break
    capacity = learner.reports[-1].capacity
    return {
        "tasks": len(learner.reports),
        "acc": round(float(average_accuracy(learner.accuracy_matrix)), 5),
        "lowest": round(float(learner.accuracy_matrix[-1].min()), 5),
        **{f"used_{g}": round(c["used"] / c["size"], 5) for g, c in capacity.items()},
        "seconds": round(time.monotonic() - begin, 2),
    }


def read(path: Path = RESULTS) -> list[dict[str, str]]:
    """Rows of the CSV file; none without the file."""
    return rows_in(path)


def sweep(names: Sequence[str], seeds: int, path: Path = RESULTS) -> None:
    """Compute and append the rows that the file does not have."""
    known = {(row["sweep"], row["value"], int(row["seed"])) for row in read(path)}
    with appending(path, COLUMNS, machine.brief_facts()) as append:
        for name in names:
            for value, changes in SWEEPS[name]:
                for seed in range(seeds):
                    if (name, value, seed) not in known:
                        append({"sweep": name, "value": value, "seed": seed, **run(changes, seed)})


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.settings", description=__doc__)
    made.add_argument("--sweeps", nargs="+", choices=[*SWEEPS], default=[*SWEEPS])
    made.add_argument("--seeds", type=int, default=3)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(1)
    with warnings.catch_warnings():  # the warnings are what the tables show
        warnings.simplefilter("ignore", clnp.MarginWarning)
        warnings.simplefilter("ignore", clnp.CapacityWarning)
        sweep(options.sweeps, options.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
