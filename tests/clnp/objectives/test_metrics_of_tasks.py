"""Metrics and losses of tasks against their definitions in numpy and torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clnp.errors import ConfigError, DataError
from clnp.objectives import (
    F1,
    L1,
    MSE,
    R2,
    Accuracy,
    BinaryCrossEntropy,
    CrossEntropy,
    ExactMatch,
    Huber,
    LabelAccuracy,
    Loss,
    LossFunction,
    MeanAbsoluteError,
    MeanAveragePrecision,
    MeanIoU,
    MeanSquaredError,
    Metric,
    MetricFunction,
    Objective,
    RootMeanSquaredError,
)
from clnp.objectives.objective import described, loss_of, metric_of, objective_of
from clnp.objectives.shown import Shown, common

SEEDS = st.integers(0, 10_000)
SIZES = st.integers(1, 40)
CHEAP = settings(max_examples=40, deadline=None)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def in_pieces(metric: Metric, outputs: Tensor, y: Tensor, size: int) -> float:
    """The metric of batches of some size."""
    parts = zip(outputs.split(size), y.split(size), strict=True)
    return float(metric.value(metric.joined([metric.sums(*part) for part in parts])))


def confusion(outputs: Tensor, y: Tensor) -> np.ndarray:
    table = np.zeros((outputs.shape[1],) * 2)
    for told, label in zip(outputs.argmax(1).tolist(), y.tolist(), strict=True):
        table[label, told] += 1
    return table


@given(SEEDS, SIZES, st.integers(1, 9))
@CHEAP
def test_metrics_of_classes_are_those_of_the_confusion_matrix(seed: int, n: int, size: int) -> None:
    outputs = drawn(seed, n, 4)
    y = torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(seed))
    table = confusion(outputs, y)
    hits, labels, answers = np.diag(table), table.sum(1), table.sum(0)
    own = labels > 0
    wanted = {
        Accuracy(): hits.sum() / n,
        metric_of("balanced accuracy"): np.mean(hits[own] / labels[own]),
        MeanIoU(): np.mean(hits[own] / (labels + answers - hits)[own]),
        F1(): np.mean(2 * hits[own] / (labels + answers)[own]),
    }
    for metric, value in wanted.items():
        assert in_pieces(metric, outputs, y, size) == pytest.approx(value, abs=1e-12)


@given(SEEDS, SIZES, st.integers(1, 9))
@CHEAP
def test_metrics_of_labels(seed: int, n: int, size: int) -> None:
    outputs, y = drawn(seed, n, 3), (drawn(seed + 1, n, 3) > 0.3).float()
    told, labels = (outputs > 0).numpy(), y.numpy() > 0.5
    hits = (told & labels).sum(0)
    total = told.sum(0) + labels.sum(0)
    own = labels.sum(0) > 0
    wanted: dict[Metric, Any] = {
        LabelAccuracy(): (told == labels).mean(),
        ExactMatch(): (told == labels).all(1).mean(),
        F1(): np.mean(2 * hits[own] / total[own]) if own.any() else 0.0,
    }
    for metric, value in wanted.items():
        assert in_pieces(metric, outputs, y, size) == pytest.approx(value, abs=1e-12)


def average_precision(outputs: np.ndarray, labels: np.ndarray) -> float:
    """The sum over all thresholds of precision times the gain in recall."""
    before = value = 0.0
    for threshold in sorted(set(outputs.tolist()), reverse=True):
        told = outputs >= threshold
        recall = (told & labels).sum() / labels.sum()
        value += (recall - before) * (told & labels).sum() / told.sum()
        before = recall
    return value


@given(SEEDS, SIZES, st.booleans())
@CHEAP
def test_mean_average_precision(seed: int, n: int, ties: bool) -> None:
    outputs, y = drawn(seed, n, 3), (drawn(seed + 1, n, 3) > 0).float()
    outputs = outputs.round() if ties else outputs
    pairs = [(outputs[:, k].numpy(), y[:, k].numpy() > 0.5) for k in range(3)]
    found = [average_precision(*pair) for pair in pairs if pair[1].any()]
    wanted = np.mean(found) if found else 0.0
    assert float(MeanAveragePrecision().of(outputs, y)) == pytest.approx(wanted, abs=1e-9)


@given(SEEDS, st.integers(2, 40), st.integers(1, 9), st.sampled_from([0.0, 1e5]))
@CHEAP
def test_metrics_of_numbers(seed: int, n: int, size: int, far: float) -> None:
    """R2 keeps its digits where the mean is large compared with the spread."""
    y = drawn(seed, n, 2).double() + far
    outputs = y + 0.5 * drawn(seed + 1, n, 2).double()
    errors = (outputs - y).numpy()
    around = ((y - y.mean(0)).numpy() ** 2).sum(0)
    wanted: dict[Metric, Any] = {
        MeanSquaredError(): (errors**2).mean(),
        RootMeanSquaredError(): math.sqrt((errors**2).mean()),
        MeanAbsoluteError(): np.abs(errors).mean(),
        R2(): np.mean(1 - (errors**2).sum(0) / around),
    }
    for metric, value in wanted.items():
        assert in_pieces(metric, outputs, y, size) == pytest.approx(value, rel=1e-7)


def test_r2_of_a_constant_column() -> None:
    y = torch.ones(5, 2)
    assert R2().of(y, y) == 1
    assert R2().of(y + torch.tensor([0.0, 1.0]), y) == 0.5


LOSSES: dict[str, tuple[Loss, Any]] = {
    "plain": (CrossEntropy(), F.cross_entropy),
    "smooth": (
        CrossEntropy(label_smoothing=0.2),
        lambda o, y: F.cross_entropy(o, y, label_smoothing=0.2),
    ),
    "weighted": (
        CrossEntropy(weight=(1.0, 0.5, 4.0), label_smoothing=0.1),
        lambda o, y: F.cross_entropy(o, y, o.new_tensor([1.0, 0.5, 4.0]), label_smoothing=0.1),
    ),
    "ignoring": (CrossEntropy(ignore_index=1), lambda o, y: F.cross_entropy(o, y, ignore_index=1)),
    "both": (
        CrossEntropy(weight=[1.0, 0.5, 4.0], ignore_index=1),
        lambda o, y: F.cross_entropy(o, y, o.new_tensor([1.0, 0.5, 4.0]), ignore_index=1),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(7,), (4, 5), (3, 4, 2)], ids=["example", "token", "pixel"])
def test_cross_entropy_of_examples_tokens_and_pixels(name: str, shape: tuple[int, ...]) -> None:
    loss, wanted = LOSSES[name]
    last = drawn(0, *shape, 3)
    y = torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(1))
    outputs = last.movedim(-1, 1) if len(shape) == 3 else last
    value = wanted(last.flatten(0, -2), y.flatten())
    torch.testing.assert_close(loss.mean(outputs, y), value)
    # Shares of a batch add up to its mean.
    parts = [loss.total(o, own) for o, own in zip(outputs.split(2), y.split(2), strict=True)]
    total, weight = (sum(part[i] for part in parts) for i in (0, 1))
    torch.testing.assert_close(total / weight, value)


def test_a_batch_of_which_nothing_counts_has_no_loss() -> None:
    outputs = drawn(0, 4, 3).requires_grad_()
    loss = CrossEntropy(ignore_index=2).mean(outputs, torch.full((4,), 2))
    loss.backward()
    assert loss == 0
    assert outputs.grad is not None
    assert not outputs.grad.any()


NUMBERS: dict[Loss, Any] = {
    MSE(): F.mse_loss,
    L1(): F.l1_loss,
    Huber(0.5): lambda o, y: F.huber_loss(o, y, delta=0.5),
}


@pytest.mark.parametrize("loss", NUMBERS, ids=lambda loss: loss.name)
@pytest.mark.parametrize(
    ("outputs", "y"), [((6, 2), (6, 2)), ((6, 1), (6,)), ((2, 1, 3, 3), (2, 3, 3))]
)
def test_losses_of_numbers(loss: Loss, outputs: Any, y: Any) -> None:
    a, b = drawn(0, *outputs), drawn(1, *y)
    torch.testing.assert_close(loss.mean(a, b), NUMBERS[loss](a.reshape(b.shape), b))


def test_binary_cross_entropy() -> None:
    outputs, y = drawn(0, 6, 2), (drawn(1, 6, 2) > 0).float()
    weight = torch.tensor([2.0, 0.5])
    wanted = F.binary_cross_entropy_with_logits(outputs, y, pos_weight=weight)
    torch.testing.assert_close(BinaryCrossEntropy((2.0, 0.5)).mean(outputs, y), wanted)


@pytest.mark.parametrize(
    ("loss", "outputs", "y"),
    [
        ("mse", (4, 3), (4, 2)),
        ("mse", (4, 2), (4,)),
        ("bce", (4, 3), (4, 2)),
        ("cross_entropy", (4, 3), (4, 2)),
        ("cross_entropy", (4, 3, 8, 8), (4, 8, 7)),
    ],
)
def test_outputs_that_do_not_fit_the_targets(loss: str, outputs: Any, y: Any) -> None:
    target = torch.zeros(y, dtype=torch.int64 if loss == "cross_entropy" else torch.float32)
    with pytest.raises(DataError, match=r"^outputs: expected .*, got \[4, "):
        loss_of(loss).mean(torch.zeros(outputs), target)


def own_loss(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs - y).abs().flatten(1).mean(1)


def own_metric(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs - y).abs().max()


@pytest.mark.parametrize(
    "found",
    [
        *(CrossEntropy((1, 2), 0.1, -1), BinaryCrossEntropy([1, 2]), Huber(2), MSE()),
        *(MeanAbsoluteError(unit="mm"), Accuracy(), CrossEntropy("balanced")),
    ],
    ids=str,
)
def test_a_description_makes_the_same(found: Any) -> None:
    make = loss_of if isinstance(found, Loss) else metric_of
    assert make(described(found)) == found


def test_functions_are_described_by_name() -> None:
    here = "tests.clnp.objectives.test_metrics_of_tasks"
    assert described(LossFunction(own_loss)) == f"{here}.own_loss"
    metric = MetricFunction(own_metric, higher_is_better=False, unit="mm", title="worst")
    assert described(metric)["name"] == f"{here}.own_metric"
    assert (metric.name, Shown.of(metric).title) == ("worst", "worst (mm)")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: loss_of("hinge"), "^loss: expected one of .*bce.*, got 'hinge'$"),
        (lambda: metric_of(3), "^metric: expected one of .*, got 3$"),
        (lambda: loss_of({"name": "mse", "delta": 1}), "^mse: expected options out of"),
        (lambda: Huber(0), "^huber delta: expected a number above 0, got 0$"),
        (lambda: CrossEntropy((0, 0)), "^cross_entropy weight: expected a number above 0"),
        (lambda: CrossEntropy("even"), "^cross_entropy weight: expected .* got 'even'$"),
        (lambda: CrossEntropy(label_smoothing=1), r"label_smoothing: expected .* \[0, 1\), got 1"),
        (lambda: CrossEntropy(ignore_index=0.5), "ignore_index: expected an int, got 0.5"),
        (lambda: BinaryCrossEntropy((-1.0,)), "^bce pos_weight: expected numbers >= 0"),
        (lambda: CrossEntropy((1, 2)).check(3), "^cross_entropy weight: .* 3 outputs, got 2$"),
        (lambda: objective_of("mse", "accuracy"), "^metric: expected one of .*R2.* 'mse'.*acc"),
        (lambda: objective_of("bce", "mean IoU"), "^metric: expected one of .*F1.*mean IoU'$"),
    ],
)
def test_bad_objectives_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("returned", "message"),
    [(1.0, "got float"), (torch.zeros(3, 2), r"got \[3, 2\]"), (torch.zeros(2), r"got \[2\]")],
)
def test_a_loss_function_that_gives_no_loss(returned: Any, message: str) -> None:
    loss = LossFunction(lambda outputs, y: returned)
    with pytest.raises(ConfigError, match=rf"^loss .*: expected a tensor, .*{message}$"):
        loss.mean(torch.zeros(3, 1), torch.zeros(3))


@given(SEEDS, st.integers(1, 20))
@CHEAP
def test_what_is_summed_in_training_is_the_metric(seed: int, n: int) -> None:
    outputs, numbers = drawn(seed, n, 3), drawn(seed + 1, n, 3)
    classes = numbers.argmax(1)
    for objective, y in (
        (Objective(), classes),
        (objective_of("bce", "label accuracy"), (numbers > 0).float()),
        (objective_of("bce", "exact match"), (numbers > 0).float()),
        (objective_of("mse", "MAE"), numbers),
        (objective_of("mse", "MSE"), numbers),
    ):
        mean = float(objective.running(outputs, y)) / n
        assert mean == pytest.approx(float(objective.metric.of(*objective.rows(outputs, y))))
    assert math.isnan(float(objective_of("mse", "R2").running(outputs, numbers)))
    ignoring = Objective(CrossEntropy(ignore_index=0))
    rows = ignoring.rows(outputs, classes)
    wanted = float(ignoring.metric.of(*rows))
    assert float(ignoring.running(outputs, classes)) / n == pytest.approx(wanted)


def test_how_numbers_are_written() -> None:
    accuracy, error = Shown(), Shown("MAE", "mm", False)
    assert (accuracy.text(0.98432), error.text(1.25), Shown("R2", "").text(0.87131)) == (
        *("98.43 %", "1.25 mm", "0.8713"),
    )
    assert accuracy.number(math.nan) == "\N{EN DASH}"
    same = [{"metric": "accuracy"}, {}]
    assert common(same) == accuracy
    assert common([*same, {"metric": "R2", "unit": ""}]) is None
