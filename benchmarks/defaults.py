"""Default settings of `clnp.Learner`, compared with alternatives over several data sets and
networks.

    python -m benchmarks.defaults --data-root DIR

Every stream is learned with one head per task and a seed that draws weights, data and batches. Each
row changes some settings; gaps are to a plain network per task with the same epochs, rate and
batches (`clnp.methods`, "scratch"). All rows of a stream have the same epochs. Rows go to
benchmarks/results/defaults/runs.csv, one per stream, choice and seed; rows that the file has are
not computed again. Choices are compared by validation scores, so that test accuracy stays a test.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import clnp
import clnp.methods
from benchmarks import machine
from benchmarks.record import appending, rows_in
from clnp.data.cifar import read_cifar
from clnp.data.streams import read_mnist

RESULTS = Path(__file__).parent / "results" / "defaults" / "runs.csv"
# choice -> settings that differ from the defaults
CHOICES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "channels by activity": {"sparsifier": "activity"},
    "no fine-tuning": {"fine_tune": None},
    "no fine-tuning, channels by activity": {"fine_tune": None, "sparsifier": "activity"},
    "rate 1e-3": {"lr": 1e-3},
    "no limits": {"growth": None, "first_growth": None},
    "tasks unknown": {"tasks_expected": None},
    **{f"margin {m:g}": {"margin": m} for m in (0.005, 0.01, 0.02)},
    **{f"l1 {a:g}": {"l1": a} for a in (1e-5, 1e-4)},
}
COLUMNS = (
    *("stream", "choice", "seed", "validation", "validation_gap", "acc", "gap", "worst_gap"),
    *("gaps", "first_most", "used_most", "used_mean"),
)
Task = clnp.data.Task
Net = Callable[[int], nn.Module]


def small_cnn(seed: int) -> nn.Module:
    """Two convolutions with batch norm for 28 x 28 images, two outputs."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 2)),
    )


def parts(
    halves: dict[str, tuple[np.ndarray, np.ndarray]],
    classes: Sequence[Sequence[int]],
    sizes: Sequence[tuple[int, int]],
    seed: int,
    form: Callable[[np.ndarray], Tensor],
) -> Iterator[Task]:
    """One task for each list of classes.

    Arguments:
        halves: "train" and "test" -> images [N, ...] uint8 and labels [N].
        classes: labels of each task.
        sizes: numbers of training and of validation images of each task, out of the "train" half.
        seed: draws the images.
        form: images -> inputs of the network.
    """
    draw = np.random.default_rng(seed)
    for k, (wanted, (train, validation)) in enumerate(zip(classes, sizes, strict=True)):
        found = {}
        for half, (images, labels) in halves.items():
            rows = draw.permutation(np.flatnonzero(np.isin(labels, wanted)))
            rows = rows[: train + validation if half == "train" else 2000]
            y = torch.tensor([list(wanted).index(int(label)) for label in labels[rows]])
            found[half] = (form(images[rows]), y)
        x, y = found["train"]
        yield Task(
            f"part-{k}",
            (x[:train], y[:train]),
            (x[train:], y[train:]),
            found["test"],
            classes=len(wanted),
        )


def flat(images: np.ndarray) -> Tensor:
    """Pixels in [0, 1] as vectors."""
    return torch.from_numpy(images).float() / 255


def planes(images: np.ndarray) -> Tensor:
    """Grey images in [0, 1] with one channel."""
    return torch.from_numpy(images.reshape(-1, 1, 28, 28)).float() / 255


def colours(images: np.ndarray) -> Tensor:
    """Colour images, centred."""
    return torch.from_numpy(images).float().div(255).sub(0.47).div(0.25)


PAIRS = [(2 * k, 2 * k + 1) for k in range(5)]


def streams(
    root: Path, seed: int
) -> dict[str, tuple[Callable[[], list[Task]], Net, dict[str, Any]]]:
    """Stream -> its tasks, its network and the settings of all its rows."""

    def mnist(sizes: tuple[int, int], form: Callable[[np.ndarray], Tensor]) -> list[Task]:
        return list(parts(read_mnist(root / "mnist"), PAIRS, [sizes] * 5, seed, form))

    def cifar() -> list[Task]:
        classes, sizes = [(0, 1, 2), (3, 4, 5, 6, 7), (8, 9)], [(600, 150), (1000, 250), (420, 105)]
        return list(parts(read_cifar(root, "cifar10"), classes, sizes, seed, colours))

    def mlp(inputs: int, classes: int) -> Net:
        return lambda seed: clnp.models.mlp(inputs, 100, 2, classes, seed=seed)

    def resnet(seed: int) -> nn.Module:
        return clnp.models.make("resnet18_small", 3, (3, 32, 32), scale=0.25, seed=seed)

    return {
        "digits, MLP": (
            lambda: list(clnp.data.PermutedDigits(tasks=5, seed=seed)),
            mlp(64, 10),
            {"epochs": 20, "batch_size": 64},
        ),
        "MNIST pairs, MLP": (lambda: mnist((5000, 1000), flat), mlp(784, 2), {"batch_size": 64}),
        "MNIST pairs of 300, MLP": (
            lambda: mnist((300, 60), flat),
            mlp(784, 2),
            {"epochs": 20, "batch_size": 32},
        ),
        "MNIST pairs of 1000, CNN": (
            lambda: mnist((1000, 200), planes),
            small_cnn,
            {"batch_size": 64},
        ),
        "CIFAR-10 in 3, ResNet": (cifar, resnet, {"epochs": 15, "batch_size": 32}),
    }


def learned(tasks: Sequence[Task], net: nn.Module, settings: dict[str, Any]) -> clnp.Learner:
    """A learner of all tasks."""
    model = clnp.convert(net, tasks[0].train[0][:2], verbose=False)
    learner = clnp.Learner(model, infer_tasks=False, progress_bar=False, **settings)
    for task in tasks:
        learner.learn(task)
    return learner


def own_networks(
    tasks: Sequence[Task], net: nn.Module, settings: dict[str, Any]
) -> tuple[list[float], list[float]]:
    """Validation and test accuracy of a plain network of its own for each task."""
    common = {
        key: settings[key] for key in ("epochs", "lr", "batch_size", "seed") if key in settings
    }
    defaults = clnp.Settings()
    for key in ("epochs", "lr", "batch_size"):
        common.setdefault(key, getattr(defaults, key))
    example = tasks[0].train[0][:2]
    plain = clnp.methods.make("scratch", net, example, head="multi", progress_bar=False, **common)
    reports = [plain.learn(task) for task in tasks]
    return [report.validation for report in reports], [report.test for report in reports]


def run(
    root: Path,
    stream: str,
    choice: str,
    seed: int,
    own: dict[tuple[str, int, float], tuple[list[float], list[float]]],
) -> dict[str, Any]:
    """Learn a stream with a choice of settings; the columns from "validation" to "used_mean".

    Arguments:
        own: (stream, seed, rate) -> accuracies of the networks of their own, filled here.
    """
    make, net, common = streams(root, seed)[stream]
    tasks = make()
    common = {**common, "seed": seed, "tasks_expected": len(tasks)}
    settings = {**common, **CHOICES[choice]}
    rate = settings.get("lr", clnp.Settings().lr)
    key = (stream, seed, rate)
    if key not in own:
        own[key] = own_networks(tasks, net(seed), {**common, "lr": rate})
    learner = learned(tasks, net(seed), settings)
    validation = [report.validation for report in learner.reports]
    test = learner.accuracy_matrix[-1].tolist()
    gaps = [mine - theirs for mine, theirs in zip(test, own[key][1], strict=True)]
    capacity = learner.reports[-1].capacity.values()
    first = learner.reports[0].capacity.values()
    return {
        "validation": round(float(np.mean(validation)), 5),
        "validation_gap": round(float(np.mean(validation) - np.mean(own[key][0])), 5),
        "acc": round(float(np.mean(test)), 5),
        "gap": round(float(np.mean(gaps)), 5),
        "worst_gap": round(min(gaps), 5),
        "gaps": " ".join(f"{gap:.4f}" for gap in gaps),
        "first_most": round(max(row["used"] / row["size"] for row in first), 4),
        "used_most": round(max(row["used"] / row["size"] for row in capacity), 4),
        "used_mean": round(float(np.mean([row["used"] / row["size"] for row in capacity])), 4),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.defaults", description=__doc__)
    made.add_argument("--data-root", type=Path, required=True, metavar="DIR")
    made.add_argument("--streams", nargs="+", choices=[*streams(Path(), 0)])
    made.add_argument("--choices", nargs="+", choices=[*CHOICES], default=[*CHOICES])
    made.add_argument("--seeds", type=int, default=2)
    made.add_argument("--out", type=Path, default=RESULTS)
    options = made.parse_args(arguments)
    torch.set_num_threads(1)
    known = {(row["stream"], row["choice"], int(row["seed"])) for row in rows_in(options.out)}
    own: dict[tuple[str, int, float], tuple[list[float], list[float]]] = {}
    with (
        appending(options.out, COLUMNS, machine.brief_facts()) as append,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", clnp.MarginWarning)
        warnings.simplefilter("ignore", clnp.CapacityWarning)
        for seed in range(options.seeds):
            for stream in options.streams or streams(Path(), 0):
                for choice in options.choices:
                    if (stream, choice, seed) not in known:
                        row = {"stream": stream, "choice": choice, "seed": seed}
                        append({**row, **run(options.data_root, stream, choice, seed, own)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
