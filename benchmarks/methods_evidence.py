"""Evidence on the other methods, measured on this machine: one CSV per question.

    python -m benchmarks.methods_evidence pruning ids structured [--data digits|mnist] [--quick]

pruning     one-shot pruning after SDP against magnitude pruning of a plainly trained network
ids         training on half the examples, selected by IDS, by one of its stages, or at random
structured  channels kept by structured SDP against L1 and the activity criterion

Accuracies and counted operations do not depend on what else the machine does; no times are written.
"""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import clnp
from benchmarks import machine
from clnp import data, methods, models
from clnp.cli.environment import environment
from clnp.cli.once import OnceParser
from clnp.cli.run_folder import write_json
from clnp.data import Stream, Task
from clnp.data.batches import count
from clnp.methods.esacl import SDPSettings, StructuredFit, channel_scores, prune_to
from clnp.objectives import Objective
from clnp.pruning.activity import measure_activity
from clnp.pruning.search import ThresholdSearch
from clnp.training.evaluation import accuracy
from clnp.training.fit import Fit, FitSettings
from clnp.training.validation import Validation

CPU = torch.device("cpu")
RESULTS = Path(__file__).parent / "results" / "methods"
SPARSITIES = (0.0, 0.75, 0.9, 0.95)
Row = dict[str, Any]


class Setting:
    """One data set, network and budget.

    Attributes:
        name: "digits" or "mnist".
        epochs, width, batch: budget; hidden channels of both layers; batch size.
        examples: training examples of a task that are used; None: all.
    """

    def __init__(self, name: str, quick: bool, root: str | None, examples: int | None) -> None:
        self.name, self.root, self.examples = name, root, examples
        self.width = 200 if name == "digits" else 400
        self.epochs = 3 if quick else 20 if name == "digits" else 10
        self.batch = 64

    def stream(self, tasks: int, seed: int) -> Stream:
        """The permuted tasks."""
        if self.name == "digits":
            return data.PermutedDigits(tasks, seed)
        return data.PermutedMNIST(self.root, tasks, seed)

    def task(self, seed: int) -> Task:
        """The first task of a stream, with as many training examples as are used."""
        task = self.stream(1, seed)[0]
        tensors = task.tensors("train")
        if self.examples is None or tensors is None:
            return task
        x, y = tensors
        few = (x[: self.examples], y[: self.examples])
        return Task(task.name, few, task.validation, task.test, task.classes)

    def learner(self, name: str, seed: int, **options: Any) -> methods.MethodLearner:
        """A fresh learner with this budget."""
        inputs = 64 if self.name == "digits" else 784
        net = models.mlp(inputs, self.width, 2, 10, seed=seed)
        shared = {"head": "single", "epochs": self.epochs, "batch_size": self.batch, "seed": seed}
        return methods.make(name, net, torch.zeros(1, inputs), **{**shared, **options})


def pruned_accuracy(net: nn.Module, task: Task, sparsity: float, scope: str) -> float:
    """Test accuracy of a copy whose smallest weights are zero."""
    net = copy.deepcopy(net)
    prune_to([p.data for p in net.parameters() if p.dim() > 1], sparsity, scope)
    return accuracy(net, task.test, CPU)


def pruning(setting: Setting, seeds: int) -> Iterator[Row]:
    """Contender x seed x scope x sparsity: test accuracy after pruning once, no retraining."""
    plain = {"schedule": "step"}
    sgd = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9}
    sdp = {"lr": 1e-3, "keep": 1.0, "sparsity": 0.0}
    twice = 2 * setting.epochs
    contenders: dict[str, tuple[str, dict[str, Any]]] = {
        "adam": ("finetune", {**plain, "lr": 1e-3}),
        "adam, twice the epochs": ("finetune", {**plain, "lr": 1e-3, "epochs": twice}),
        "sgd": ("finetune", {**plain, **sgd}),
        "sgd, twice the epochs": ("finetune", {**plain, **sgd, "epochs": twice}),
        "sdp": ("esacl", sdp),
        "sdp without perturbation": ("esacl", {**sdp, "rho": 0.0}),
    }
    for label, (name, options) in contenders.items():
        for seed in range(seeds):
            task, learner = setting.task(seed), setting.learner(name, seed, **options)
            learner.learn(task)
            for scope in ("global", "layer"):
                for sparsity in SPARSITIES:
                    yield {
                        "contender": label,
                        "seed": seed,
                        "scope": scope,
                        "sparsity": sparsity,
                        "accuracy": pruned_accuracy(learner.net, task, sparsity, scope),
                        "flops": learner.cost[0]["flops"],
                    }


def ids(setting: Setting, seeds: int) -> Iterator[Row]:
    """Contender x seed: accuracy and examples seen, the first epoch on all examples included."""
    # So that one epoch on all and the rest on this share make half of the examples.
    half = (0.5 * setting.epochs - 1) / (setting.epochs - 1)
    contenders: dict[str, dict[str, Any]] = {
        "all": {"keep": 1.0},
        "ids": {"keep": half},
        "sse alone": {"keep": half, "support": half},
        "ere alone": {"keep": half, "support": 1.0},
        "random": {"keep": half, "selection": "random"},
    }
    for label, options in contenders.items():
        for seed in range(seeds):
            task = setting.task(seed)
            learner = setting.learner("esacl", seed, lr=1e-3, sparsity=0.0, **options)
            learner.learn(task)
            yield {
                "contender": label,
                "seed": seed,
                "share": learner.cost[0]["examples"] / (setting.epochs * count(task.train)),
                "accuracy": learner.reports[0].test,
                "pruned": pruned_accuracy(learner.net, task, 0.9, "global"),
                "flops": learner.cost[0]["flops"],
            }


def structured(setting: Setting, seeds: int) -> Iterator[Row]:
    """Contender x seed: channels kept on one task by CLNP's search, and the accuracy with them.

    The search may give up `margin` of validation accuracy below that of the contender itself.
    """
    margin = 0.005
    contenders: dict[str, tuple[float, dict[str, Any]]] = {
        f"l1 {l1:g}": (l1, {}) for l1 in (0.0, 1e-5, 1e-4, 3e-4)
    }
    contenders |= {f"sdp k={k:g}": (0.0, {"k": k}) for k in (0.05, 0.1, 0.2)}
    for label, (l1, sdp) in contenders.items():
        for seed in range(seeds):
            task = setting.task(seed)
            yield {
                "contender": label,
                "seed": seed,
                **_channels(setting, task, seed, l1, sdp, margin),
            }


def _channels(
    setting: Setting, task: Task, seed: int, l1: float, sdp: dict[str, Any], margin: float
) -> Row:
    inputs = task.sample_shape[0]
    net = models.mlp(inputs, 2 * setting.width, 2, 10, seed=seed)
    model = clnp.convert(net, torch.zeros(1, inputs), verbose=False)
    model.set_head("single")
    model.begin_task(10)
    alphas = dict.fromkeys(model.layer_names, l1)
    how = FitSettings(setting.epochs, 1e-3, setting.batch, alphas, "step")
    parts = (model, task.train, task.validation, how, seed)
    fit = StructuredFit(*parts, sdp=SDPSettings(**sdp)) if sdp else Fit(*parts)
    fit.run()
    model.eval()
    validation = Validation(task.validation, Objective(), CPU)
    floor = validation.floor(fit.state.history[-1]["validation_metric"], margin)
    row: Row = {"before": accuracy(model.net, task.test, CPU)}
    scores: dict[str, Callable[[], Any]] = {
        "activity": lambda: measure_activity(model, task.train, CPU),
        "norm": lambda: channel_scores(model),
    }
    for criterion, score in scores.items():
        found = ThresholdSearch(model, score(), validation, floor).joint()
        first, second = (len(kept) for kept in found.keep.values())
        row |= {
            f"accuracy_{criterion}": accuracy(model.pruned_network(found.keep), task.test, CPU),
            f"layer_1_{criterion}": first,
            f"layer_2_{criterion}": second,
        }
    return row


QUESTIONS = {"pruning": pruning, "ids": ids, "structured": structured}


def parser() -> OnceParser:
    """The command line."""
    made = OnceParser(description=(__doc__ or "").split("\n")[0])
    made.add_argument("questions", nargs="+", choices=list(QUESTIONS))
    made.add_argument("--data", choices=("digits", "mnist"), default="digits")
    made.add_argument("--data-root", help="folder of the MNIST files")
    made.add_argument("--examples", type=int, help="training examples of a task")
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--epochs", type=int)
    made.add_argument("--width", type=int)
    made.add_argument("--quick", action="store_true", help="three epochs, to see that it runs")
    made.add_argument("--out", type=Path, default=RESULTS)
    return made


def main() -> None:
    """Answers the questions that are asked and writes a CSV file for each."""
    args = parser().parse_args()
    for question in args.questions:
        setting = Setting(args.data, args.quick, args.data_root, args.examples)
        setting.epochs = args.epochs or setting.epochs
        setting.width = args.width or setting.width
        rows = []
        for row in QUESTIONS[question](setting, args.seeds):
            rows.append(row)
            print(*(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()))
        write(args.out / f"{question}-{args.data}", setting, rows)


def write(path: Path, setting: Setting, rows: list[Row]) -> None:
    """Writes the CSV file of a question and, beside it, a JSON file of its settings; `path` has no
    ending.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    settings = {name: value for name, value in vars(setting).items() if name != "root"}
    about = {
        "seeds": sorted({row["seed"] for row in rows}),
        "settings": settings,
        "environment": environment(),
        "revision": machine.revision(),
    }
    write_json(path.with_suffix(".json"), about)


if __name__ == "__main__":
    main()
