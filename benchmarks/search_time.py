"""Time of the threshold search against that of training, on three convolutional networks.

    python -m benchmarks.search_time --data-root DIR

Each network learns two tasks with the default settings, on one thread. Times of a run are taken one
after the other in one process, so their ratio hardly depends on what else the machine does. Rows go
to benchmarks/results/search_time.csv, one per network and task.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import clnp
from benchmarks import machine
from benchmarks.defaults import PAIRS, colours, parts, planes, small_cnn
from benchmarks.record import appending
from clnp.data import Task
from clnp.data.cifar import read_cifar
from clnp.data.streams import read_mnist

RESULTS = Path(__file__).parent / "results" / "search_time.csv"
COLUMNS = ("network", "task", "channels", "fit", "fine_tune", "search", "share", "networks")
SIZES, TASKS = (2000, 400), 2


def cases(root: Path) -> dict[str, tuple[Callable[[], list[Task]], Callable[[], nn.Module]]]:
    """Network -> its tasks and itself."""
    sizes = [SIZES] * TASKS

    def mnist() -> list[Task]:
        return list(parts(read_mnist(root / "mnist"), PAIRS[:TASKS], sizes, 0, planes))

    def cifar() -> list[Task]:
        return list(parts(read_cifar(root, "cifar10"), [(0, 1), (2, 3)], sizes, 0, colours))

    def built(name: str, scale: float) -> Callable[[], nn.Module]:
        return lambda: clnp.models.make(name, 2, (3, 32, 32), scale=scale, seed=0)

    return {
        "two convolutions, MNIST": (mnist, lambda: small_cnn(0)),
        "narrow, CIFAR-10": (cifar, built("narrow", 1.0)),
        "resnet18_small x 0.25, CIFAR-10": (cifar, built("resnet18_small", 0.25)),
    }


class _Networks(clnp.callbacks.Callback):
    """Counts the networks that a search evaluates."""

    def __init__(self) -> None:
        self.seen = 0

    def on_search(self, learner: Any, done: int, total: int) -> None:
        """Remember the count."""
        self.seen = done


def rows(root: Path) -> Iterator[dict[str, Any]]:
    """A row for every network and task."""
    for name, (make, net) in cases(root).items():
        tasks, counter = make(), _Networks()
        model = clnp.convert(net(), tasks[0].train[0][:2], verbose=False)
        learner = clnp.Learner(
            model, tasks_expected=5, callbacks=[counter], infer_tasks=False, progress_bar=False
        )
        for task in tasks:
            report = learner.learn(task)
            seconds = report.seconds
            training = seconds["fit"] + seconds["fine_tune"]
            yield {
                "network": name,
                "task": report.task,
                "channels": sum(report.in_training.values()),
                **{k: round(seconds[k], 2) for k in ("fit", "fine_tune", "search")},
                "share": round(seconds["search"] / training, 3),
                "networks": counter.seen,
            }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.search_time", description=__doc__)
    made.add_argument("--data-root", type=Path, required=True, metavar="DIR")
    made.add_argument("--out", type=Path, default=RESULTS)
    options = made.parse_args(arguments)
    torch.set_num_threads(1)
    with (
        appending(options.out, COLUMNS, machine.brief_facts()) as append,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", clnp.MarginWarning)
        for row in rows(options.data_root):
            append(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
