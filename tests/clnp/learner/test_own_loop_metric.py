"""`prune` on a metric of one's own: other targets than class labels, in tensors and data sets."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

import clnp
from clnp.errors import ConfigError, DataError
from clnp.learner.budget import budgets
from clnp.network.model import Model
from tests.clnp.cases import blobs, convert, mlp

Split = tuple[Tensor, Tensor]


class Rows(Dataset[Any]):
    """Pairs that a data set makes when asked."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split[1])

    def __getitem__(self, index: int) -> Any:
        x, y = self.split
        return x[index], y[index]


def regression() -> tuple[Split, Split]:
    """Two outputs of twelve inputs, nearly linear."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 12, generator=generator)
    y = torch.stack([x[:, 0] - x[:, 1].relu(), 0.5 * x[:, 2]], dim=1)
    return (x[:120], y[:120]), (x[120:], y[120:])


def several_labels() -> tuple[Split, Split]:
    """Two labels for each example, which may both hold."""
    (x, y), (v, w) = regression()
    return (x, (y > 0).float()), (v, (w > 0).float())


def negative_error(outputs: Tensor, y: Tensor) -> Tensor:
    return -F.mse_loss(outputs, y)


def share_right(outputs: Tensor, y: Tensor) -> float:
    return float(((outputs > 0) == (y > 0)).double().mean())


CASES: dict[str, Any] = {
    "regression": (regression, F.mse_loss, negative_error),
    "several labels": (several_labels, F.binary_cross_entropy_with_logits, share_right),
}


def trained(split: Split, loss: Any) -> Model:
    torch.manual_seed(0)
    model = convert(mlp([40, 30], classes=2))
    clnp.begin_task(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = split
    for _ in range(150):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("name", CASES)
def test_the_margin_is_held_on_the_metric(name: str) -> None:
    make, loss, metric = CASES[name]
    train, validation = make()
    x, y = validation
    kept = []
    for margin in (0.0, 0.02, 0.5):
        model = trained(train, loss).eval()
        before = float(metric(model(x).detach(), y))
        pruning = clnp.prune(model, train, validation, margin=margin, metric=metric)
        after = float(metric(model(x).detach(), y))
        assert after >= before - margin - 1e-6
        assert pruning.validation == pytest.approx(after, abs=1e-5)
        kept.append(pruning.kept)
        clnp.consolidate(model)
        assert float(metric(model(x, task=0), y)) == pytest.approx(after, abs=1e-5)
    assert kept[0] >= kept[1] >= kept[2]
    assert kept[2] < kept[0]


@pytest.mark.parametrize("name", CASES)
def test_data_sets_give_what_tensors_give(name: str) -> None:
    make, loss, metric = CASES[name]
    found = []
    for wrap in (tuple, Rows):
        train, validation = make()
        model = trained(train, loss)
        found.append(
            clnp.prune(model, wrap(train), wrap(validation), margin=0.05, metric=metric)  # type: ignore[arg-type]
        )
    assert found[0].validation == found[1].validation
    for group, keep in found[0].keep.items():
        assert torch.equal(keep, found[1].keep[group])


def test_accuracy_as_a_function_keeps_what_accuracy_keeps() -> None:
    task, found = blobs(0), []
    for metric in ("accuracy", lambda outputs, y: (outputs.argmax(-1) == y).double().mean()):
        torch.manual_seed(0)
        model = convert(mlp([24]))
        clnp.begin_task(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        x, y = task.tensors("train")  # type: ignore[misc]
        for _ in range(40):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        found.append(clnp.prune(model, task.train, task.validation, margin=0.05, metric=metric))
    assert found[0].validation == pytest.approx(found[1].validation)
    assert all(torch.equal(keep, found[1].keep[group]) for group, keep in found[0].keep.items())


@pytest.mark.parametrize(
    ("validation", "metric", "error", "message"),
    [
        (regression()[1], lambda outputs, y: outputs, ConfigError, "metric .*expected a number"),
        (regression()[1], lambda outputs: 1.0, ConfigError, "metric .*TypeError"),
        (regression()[1], lambda outputs, y: torch.nan, ConfigError, "expected a finite number"),
        (
            (regression()[1][0], torch.zeros(3)),
            negative_error,
            DataError,
            r"^validation: expected targets \[N, \.\.\.\], one for each .*, got \[3\]",
        ),
        (
            (regression()[1][0], [[1], [1, 2]]),
            negative_error,
            DataError,
            "^validation: expected targets that make one tensor, got ",
        ),
    ],
    ids=["no number", "one argument", "NaN", "few targets", "ragged targets"],
)
def test_what_does_not_fit_is_refused(
    validation: Any, metric: Any, error: type[Exception], message: str
) -> None:
    train, _ = regression()
    model = trained(train, F.mse_loss)
    with pytest.raises(error, match=message):
        clnp.prune(model, train, validation, metric=metric)
    assert model.free("0") == budgets(convert(mlp([40, 30])))["0"]
