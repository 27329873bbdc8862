"""Benchmarks and strategies for the tests of the Avalanche strategy, which import this after
looking for avalanche.
"""

from typing import Any

import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import clnp
from clnp.integrations.avalanche import CLNP
from clnp.network.model import Model
from clnp_kernels.optim import AdamL1


class Labelled(TensorDataset):
    """Tensors with the attribute that Avalanche looks for."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__(x, y)
        self.targets = y.tolist()


def split_digits(task_labels: bool, experiences: int = 5, **options: Any) -> Any:
    """As SplitMNIST: two classes of the digits in every experience."""
    task = clnp.data.PermutedDigits(tasks=1)[0]
    train, test = (Labelled(*task.tensors(split)) for split in ("train", "test"))
    return nc_benchmark(train, test, experiences, task_labels, seed=0, **options)


def permuted_digits(task_labels: bool, experiences: int = 3, rows: int = 10**6) -> Any:
    """As PermutedMNIST: all classes in every experience, at most `rows` training examples."""
    tasks = clnp.data.PermutedDigits(tasks=experiences)
    train = [Labelled(*(part[:rows] for part in task.tensors("train"))) for task in tasks]
    test = [Labelled(*task.tensors("test")) for task in tasks]
    return nc_benchmark(
        train,
        test,
        experiences,
        task_labels,
        shuffle=False,
        class_ids_from_zero_in_each_exp=True,
        one_dataset_per_exp=True,
    )


def network(head: str = "multi", width: int = 200, norm: bool = False) -> Model:
    """A network of two hidden layers for the digits."""
    torch.manual_seed(0)
    norms = [[nn.BatchNorm1d(width)] if norm else [] for _ in range(2)]
    net = nn.Sequential(
        nn.Linear(64, width),
        *norms[0],
        nn.ReLU(),
        nn.Linear(width, width),
        *norms[1],
        nn.ReLU(),
        nn.Linear(width, 10),
    )
    model = clnp.convert(net, torch.zeros(1, 64), verbose=False)
    model.set_head(head)
    return model


def strategy(head: str = "multi", width: int = 200, norm: bool = False, **options: Any) -> CLNP:
    """A strategy with accuracies, losses and forgetting as metrics."""
    model = network(head, width, norm)
    evaluator = EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True),
        loss_metrics(experience=True),
        forgetting_metrics(experience=True, stream=True),
    )
    settings = {"train_mb_size": 64, "eval_mb_size": 500, "train_epochs": 10, **options}
    optimizer = AdamL1(clnp.parameter_groups(model, 1e-4), lr=5e-3)
    return CLNP(model=model, optimizer=optimizer, evaluator=evaluator, **settings)


def metric(results: dict[str, Any], name: str) -> list[float]:
    """The values whose names begin like this, in the order in which they were measured."""
    return [value for key, value in results.items() if key.startswith(name)]
