"""CLNP and the methods that isolate tasks, on the protocols that their papers share.

    python -m benchmarks.protocols permuted-mnist superclass --data-root DIR

permuted-mnist  ten tasks of permuted MNIST, one head each, MLP with two hidden layers of 100
superclass      the 20 superclasses of CIFAR-100, five classes each, LeNet

All methods have the same epochs, batches and images. The rate is the one of a few with the best
mean validation accuracy over the first three tasks, learned for that with another seed. Memory is
that of the weights that some task reads and of all masks, as a share of the dense network's weights
in 32 bits; output layers, biases and norms are left out for all. Rows go to
benchmarks/results/protocols/runs.csv, one per protocol, method and seed; rows that the file has are
not computed again.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import clnp
import clnp.methods
from benchmarks import machine
from benchmarks.record import appending, rows_in
from clnp.data import Task
from clnp.methods.hat import HAT
from clnp.methods.isolation import Isolation

RESULTS = Path(__file__).parent / "results" / "protocols" / "runs.csv"
COLUMNS = (
    *("protocol", "method", "seed", "lr", "acc", "worst", "own", "class_incremental"),
    *("memory", "flops", "seconds", "tasks", "epochs"),
)
BITS = 32  # of a weight
CHOSEN_ON, FIRST = 100, 3  # seed and tasks that the rate is chosen on


@dataclass(frozen=True)
class Protocol:
    """Data, network and budget.

    Attributes:
        stream: (folder of the data, seed) -> tasks.
        net: seed -> dense network.
        settings: of all methods.
    """

    stream: Callable[[Path, int], Sequence[Task]]
    net: Callable[[int], nn.Module]
    settings: dict[str, Any]


def lenet(seed: int) -> nn.Module:
    """LeNet with 20 and 50 filters of 5 x 5, hidden layers of 800 and 500, for five classes."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(3, 20, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 50, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(50 * 64, 800), nn.ReLU(), nn.Linear(800, 500), nn.ReLU()),
        nn.Linear(500, 5),
    )


PROTOCOLS: dict[str, Protocol] = {
    "permuted-mnist": Protocol(
        lambda root, seed: clnp.data.PermutedMNIST(root / "mnist", 10, seed),
        lambda seed: clnp.models.mlp(784, 100, 2, 10, seed=seed),
        {"epochs": 5, "batch_size": 64},
    ),
    "superclass": Protocol(
        lambda root, seed: clnp.data.SuperclassCIFAR100(root, 20, seed),
        lenet,
        {"epochs": 20, "batch_size": 64},
    ),
}
ADAM, SGD = (5e-4, 1e-3, 2e-3), (0.02, 0.05, 0.1)
# method -> (name in `clnp.methods`, its options, rates to choose from)
METHODS: dict[str, tuple[str, dict[str, Any], tuple[float, ...]]] = {
    "clnp": ("clnp", {}, ADAM),
    "clnp, tasks unknown": ("clnp", {"tasks_expected": None}, ADAM),
    "packnet": ("packnet", {}, ADAM),
    "wsn, half": ("wsn", {"keep": 0.5}, ADAM),
    "wsn, a tenth": ("wsn", {"keep": 0.1}, ADAM),
    "supsup": ("supsup", {"keep": 0.5}, (1e-3, 2e-3, 5e-3)),
    "hat": ("hat", {}, SGD),
    "scratch": ("scratch", {}, ADAM),
}


def learner_of(protocol: Protocol, method: str, lr: float, seed: int, tasks: int) -> Any:
    """A new learner."""
    name, options, _ = METHODS[method]
    common = {**protocol.settings, "lr": lr, "seed": seed, "head": "multi", "progress_bar": False}
    net = protocol.net(seed)
    example = torch.zeros(2, *_shape(net))
    if name == "clnp":
        model = clnp.convert(net, example, verbose=False)
        return clnp.Learner(model, **{**common, "tasks_expected": tasks, **options})
    if name == "packnet":
        options = {"tasks": tasks, **options}
    return clnp.methods.make(name, net, example, **common, **options)


def _shape(net: nn.Module) -> tuple[int, ...]:
    first = next(m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    return (3, 32, 32) if isinstance(first, nn.Conv2d) else (first.in_features,)


def best_rate(protocol: Protocol, method: str, root: Path) -> float:
    """The rate with the best mean validation accuracy over the first tasks of another seed."""
    stream = protocol.stream(root, CHOSEN_ON)
    found = {}
    for lr in METHODS[method][2]:
        learner = learner_of(protocol, method, lr, CHOSEN_ON, len(stream))
        values = [learner.learn(stream[k]).validation for k in range(FIRST)]
        found[float(np.mean(values))] = lr
    return found[max(found)]


def memory(learner: Any) -> float:
    """Bits of what is kept of all tasks, as a share of those of the dense network's weights."""
    if isinstance(learner, clnp.Learner):
        layers = learner.model.masked_layers.values()
        kept = sum(layer.active_weight.numel() for layer in layers)
        return kept / sum(layer.to_dense().weight.numel() for layer in layers)
    method, tasks = learner.method, len(learner.reports)
    if method.name == "scratch":
        return float(tasks)
    if isinstance(method, HAT):
        return _of_hat(method)
    assert isinstance(method, Isolation)
    weights = method.weights()
    total = sum(p.numel() for p in weights.values())
    read = 0
    for name in weights:
        masks = [method.read(name, k) for k in range(tasks)]
        read += int(torch.stack(masks).any(dim=0).sum())
    # PackNet stores the owner of a weight, the others a bit per task.
    bits = math.ceil(math.log2(tasks + 1)) if method.name == "packnet" else tasks
    return (read * BITS + total * bits) / (total * BITS)


def _of_hat(method: HAT) -> float:
    """Weights between channels that some task uses, by more than half; gates are as many numbers
    as there are channels and tasks.
    """
    used = {name: (gate > 0.5).to(gate) for name, gate in method.used().items()}
    kept = total = 0.0
    for name in method.groups.reads:
        if name == method.groups.head:
            continue
        weight: Tensor = method._module(name).weight  # type: ignore[assignment]
        each = weight[0, 0].numel()
        rows, columns = method._outputs(name, used, 1.0), method._inputs(name, used, 1.0)
        kept += float(rows.sum() * columns.sum()) * each
        total += weight.numel()
    gates = sum(e.numel() for e in method.embeddings.values()) * (method.task + 1)
    return (kept + gates) / total


def run(name: str, method: str, seed: int, root: Path, lr: float) -> dict[str, Any]:
    """Learn a protocol; the columns from "acc" to "epochs"."""
    protocol = PROTOCOLS[name]
    stream = protocol.stream(root, seed)
    learner = learner_of(protocol, method, lr, seed, len(stream))
    begin = time.monotonic()
    sizes = []
    for k in range(len(stream)):
        task = stream[k]
        sizes.append(task.size("train"))
        learner.learn(task)
    last = learner.accuracy_matrix[-1]
    inferred = learner.reports[-1].inferred.get("calibrated", {})
    mean = float(np.mean(inferred["class_incremental"])) if inferred else math.nan
    return {
        "acc": round(float(last.mean()), 5),
        "worst": round(float(last.min()), 5),
        "own": round(float(learner.accuracy_matrix.diagonal().mean()), 5),
        "class_incremental": "" if math.isnan(mean) else round(mean, 5),
        "memory": round(memory(learner), 4),
        "flops": f"{sum(row['flops'] for row in learner.costs(sizes)):.4g}",
        "seconds": round(time.monotonic() - begin, 1),
        "tasks": len(stream),
        "epochs": protocol.settings["epochs"],
    }


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows that the file lacks."""
    known = {(r["protocol"], r["method"], int(r["seed"])): r for r in rows_in(options.out)}
    for name in options.protocols:
        for seed in range(options.seeds):
            for method in options.methods:
                if (name, method, seed) in known:
                    continue
                earlier = [r for key, r in known.items() if key[:2] == (name, method)]
                rate = float(earlier[0]["lr"]) if earlier else None
                rate = rate or best_rate(PROTOCOLS[name], method, options.data_root)
                row = {"protocol": name, "method": method, "seed": seed, "lr": rate}
                row |= run(name, method, seed, options.data_root, rate)
                known[name, method, seed] = {k: str(v) for k, v in row.items()}
                yield row


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.protocols", description=__doc__)
    made.add_argument("protocols", nargs="+", choices=[*PROTOCOLS])
    made.add_argument("--data-root", type=Path, required=True, metavar="DIR")
    made.add_argument("--methods", nargs="+", choices=[*METHODS], default=[*METHODS])
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--out", type=Path, default=RESULTS)
    options = made.parse_args(arguments)
    torch.set_num_threads(1)
    with (
        appending(options.out, COLUMNS, machine.brief_facts()) as append,
        warnings.catch_warnings(),
    ):
        for category in (clnp.MarginWarning, clnp.CapacityWarning):
            warnings.simplefilter("ignore", category)
        for row in rows(options):
            append(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
