"""Metrics that a margin is held on: accuracy, balanced accuracy, a function of the user's."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import clnp
from clnp.data import Task
from clnp.data.batches import batches
from clnp.errors import ConfigError, DataError, TrainingError
from clnp.learner.settings import Settings
from clnp.objectives.names import name_of
from clnp.objectives.objective import objective_of
from clnp.training.validation import Validation
from tests.clnp import own_metrics
from tests.clnp.cases import blobs, convert, mlp
from tests.clnp.learner import distributed_cases
from tests.clnp.parallel.ranks import together

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {
    "head": "multi",
    "epochs": 4,
    "lr": 0.01,
    "batch_size": 32,
    "l1": 1e-4,
    "margin": 0.04,
}


def learner(**given: Any) -> clnp.Learner:
    torch.manual_seed(0)
    return clnp.Learner(convert(mlp([24, 16])), **{**QUICK, **given})


def same(one: clnp.Learner, other: clnp.Learner) -> bool:
    mine, theirs = one.model.state_dict(), other.model.state_dict()
    return mine.keys() == theirs.keys() and all(
        torch.equal(mine[k], theirs[k]) for k in mine if isinstance(mine[k], Tensor)
    )


def recall(lt: clnp.Learner, task: Task, label: int) -> float:
    x, y = task.test
    hits = lt.model(x, task=0).argmax(1) == y
    return float(hits[y == label].double().mean())


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40),
    st.integers(1, 7),
)
@settings(max_examples=100, deadline=None)
def test_balanced_accuracy_is_the_mean_recall_of_the_classes_that_occur(
    pairs: list[tuple[int, int]], size: int
) -> None:
    told, y = (torch.tensor(part) for part in zip(*pairs, strict=True))
    split = torch.eye(5)[told], y
    recalls = []
    for label in sorted(set(y.tolist())):
        own = [t == label for t, wanted in pairs if wanted == label]
        recalls.append(Fraction(sum(own), len(own)))
    validation = Validation(split, objective_of(None, "balanced accuracy"), CPU)
    wanted = sum(recalls) / len(recalls)
    assert validation(nn.Identity()) == wanted
    assert validation.of(nn.Identity(), batches(split, size, CPU)) == wanted


@given(st.lists(st.integers(0, 1), min_size=1, max_size=30), st.floats(0, 0.9))
@settings(max_examples=100, deadline=None)
def test_accuracy_is_exact_and_its_floor_a_number_of_examples(
    hits: list[int], margin: float
) -> None:
    split = torch.eye(2)[torch.tensor(hits)], torch.ones(len(hits), dtype=torch.int64)
    validation = Validation(split, objective_of(None, "accuracy"), CPU)
    value = validation(nn.Identity())
    assert value == Fraction(sum(hits), len(hits))
    floor = validation.floor(value, margin)
    assert (floor * len(hits)).denominator == 1
    assert max(0, value - margin - 1e-9) <= floor < max(0, value - margin) + Fraction(1, len(hits))


@pytest.mark.parametrize("metric", ["accuracy", "balanced accuracy", own_metrics.share_right])
def test_an_output_that_is_nan_is_an_error(metric: Any) -> None:
    split = torch.tensor([[1.0, math.nan], [0.0, 1.0]]), torch.tensor([0, 1])
    with pytest.raises(TrainingError, match=r"^evaluation: expected numbers .*, got NaN; look for"):
        Validation(split, objective_of(None, metric), CPU)(nn.Identity())


def test_a_label_that_the_head_has_no_output_for_is_an_error() -> None:
    split = TensorDataset(torch.eye(3), torch.tensor([0, 1, 3]))
    with pytest.raises(DataError, match=r"^validation: expected labels from 0 to 2, .*, got 3$"):
        Validation(split, objective_of(None, "balanced accuracy"), CPU)(nn.Identity())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_balanced_accuracy_keeps_a_rare_class(seed: int) -> None:
    task = own_metrics.rare(seed)
    recalls = {}
    for metric in ("accuracy", "balanced accuracy"):
        lt = learner(epochs=15, margin=0.02, metric=metric, fine_tune=None)
        report = lt.learn(task)
        assert report.metric == metric
        assert report.validation >= report.best_validation - 0.02 - 1e-9
        recalls[metric] = recall(lt, task, 1)
    assert recalls["balanced accuracy"] >= max(0.5, recalls["accuracy"])


@pytest.mark.parametrize("search", ["joint", "global"])
def test_a_function_that_counts_as_accuracy_does_learns_the_same(search: str) -> None:
    more: dict[str, Any] = {
        "search": search,
        "grid": {"l1": [1e-4, 1e-3]},
        "fine_tune": {"epochs": 2, "lr": 1e-3, "rounds": 2},
    }
    one, other = learner(**more), learner(**more, metric=own_metrics.share_right)
    for k in range(2):
        a, b = one.learn(blobs(k)), other.learn(blobs(k))
        assert (a.metric, b.metric) == ("accuracy", "tests.clnp.own_metrics.share_right")
        for name in ("best_validation", "validation_before", "validation", "grid", "capacity"):
            assert getattr(a, name) == getattr(b, name)
    assert same(one, other)


def test_a_metric_may_be_negative_and_its_margin_large() -> None:
    lt = learner(metric=own_metrics.log_likelihood, margin=1.5, grid={"l1": [1e-4, 1e-2]})
    report = lt.learn(blobs(0))
    assert report.validation < 0
    assert report.validation >= report.best_validation - 1.5 - 1e-6
    assert report.best_validation == max(row["validation"] for row in report.grid)
    x, y = blobs(0).validation
    assert own_metrics.log_likelihood(lt.model(x, task=0), y) == pytest.approx(report.validation)


@pytest.mark.parametrize("metric", ["accuracy", "balanced accuracy", own_metrics.least_recall])
def test_candidates_are_within_the_margin_of_the_best_value(metric: Any) -> None:
    lt = learner(metric=metric, margin=0.1, grid={"l1": [1e-4, 1e-2, 0.1], "lr": [0.01, 1e-4]})
    report = lt.learn(own_metrics.rare(0, every=4))
    best = max(row["validation"] for row in report.grid)
    assert best == report.best_validation
    assert {row["candidate"] for row in report.grid} == {True, False}
    for row in report.grid:
        assert row["candidate"] == (row["validation"] >= best - 0.1 - 1e-9)
        assert (row["kept"] >= 0) == row["candidate"]


def failing(logits: Tensor, labels: Tensor) -> float:
    raise RuntimeError("no such metric")


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        (failing, "RuntimeError: no such metric"),
        (lambda logits, labels: math.nan, "got nan"),
        (lambda logits, labels: -math.inf, "got -inf"),
        (lambda logits, labels: "0.9", "got '0.9'"),
        (lambda logits, labels: logits, "expected a number"),
        (lambda logits: 1.0, "expected a number, got TypeError"),
    ],
)
def test_a_function_that_gives_no_number_is_refused_before_training(metric: Any, told: str) -> None:
    lt, epochs = learner(metric=metric), []

    class Epochs(clnp.callbacks.Callback):
        def on_epoch_end(self, *args: Any) -> None:
            epochs.append(args)

    lt.callbacks.append(Epochs())
    with pytest.raises(
        ConfigError, match=r"^metric .*outputs \[80, 3\] and targets \[80\]: .*" + told
    ):
        lt.learn(blobs(0))
    assert not epochs
    assert not lt.reports


@pytest.mark.parametrize("metric", ["precision", "R3", 3, ["accuracy"]])
def test_what_is_no_metric_is_refused(metric: Any) -> None:
    with pytest.raises(ConfigError, match=r"^metric: .*balanced accuracy.*function"):
        Settings(metric=metric)


def test_a_margin_is_a_fraction_of_an_accuracy_and_any_number_of_a_function() -> None:
    assert Settings(metric=own_metrics.log_likelihood, margin=3).margin == 3
    for metric in ("accuracy", "balanced accuracy"):
        for margin in (1, -0.1, math.nan, True, "0.1"):
            with pytest.raises(
                ConfigError,
                match=rf"^margin: expected a fraction in \[0, 1\) of {metric}, got {margin!r}$",
            ):
                Settings(metric=metric, margin=margin)
    for margin in (-0.1, math.nan, math.inf, True, "0.1"):
        with pytest.raises(
            ConfigError, match=rf"^margin: expected a number >= 0 .*, got {margin!r}$"
        ):
            Settings(metric=own_metrics.log_likelihood, margin=margin)
    lt = learner(metric="balanced accuracy")
    with pytest.raises(
        ConfigError, match=r"^margin: expected a fraction in \[0, 1\) of .*, got 1\.5$"
    ):
        lt.adopt(blobs(0), margin=1.5)


@pytest.mark.parametrize("metric", ["accuracy", "balanced accuracy", own_metrics.share_right])
@pytest.mark.parametrize("rows", [3, 240])
def test_margins_of_nothing_and_of_everything(metric: Any, rows: int) -> None:
    """Three rows give a validation split of one example."""
    validation = blobs(0, rows=rows).validation
    task = Task("few", blobs(0).train, validation, blobs(0).test, classes=3)
    kept = learner(metric=metric, margin=0).learn(task)
    assert kept.validation >= kept.best_validation - 1e-9
    least = learner(metric=metric, margin=0.9999).learn(task)
    assert [row["used"] for row in least.capacity.values()] == [1, 1] or rows == 3
    assert least.validation >= 0


@pytest.mark.parametrize("metric", ["accuracy", "balanced accuracy", own_metrics.share_right])
def test_a_validation_split_of_one_class(metric: Any) -> None:
    x, y = blobs(0).validation
    task = Task("one class", blobs(0).train, (x[y == 2], y[y == 2]), blobs(0).test, classes=3)
    report = learner(metric=metric).learn(task)
    assert report.validation >= report.best_validation - 0.04 - 1e-9


def test_a_file_holds_the_name_of_a_function_and_needs_the_function_again(tmp_path: Path) -> None:
    whole = learner(metric=own_metrics.least_recall)
    cut = learner(metric=own_metrics.least_recall, checkpoint_dir=tmp_path)
    whole.learn(blobs(0))
    cut.learn(blobs(0))
    assert name_of(own_metrics.least_recall) == "tests.clnp.own_metrics.least_recall"
    expected = r"^metric: expected 'tests\.clnp\.own_metrics\.least_recall', .*, got "
    with pytest.raises(ConfigError, match=expected + r"nothing; .*load\(path, metric=function\)"):
        clnp.Learner.load(tmp_path)
    for other in (own_metrics.share_right, "accuracy", lambda logits, labels: 1.0):
        with pytest.raises(ConfigError, match=expected):
            clnp.Learner.load(tmp_path, metric=other)
    again = clnp.Learner.load(
        tmp_path, [blobs(0)], checkpoint_dir=tmp_path, metric=own_metrics.least_recall
    )
    assert again.settings == whole.settings
    whole.learn(blobs(1))
    assert again.learn(blobs(1)).metric == "tests.clnp.own_metrics.least_recall"
    assert same(whole, again)


def test_a_named_metric_is_in_the_file(tmp_path: Path) -> None:
    lt = learner(metric="balanced accuracy")
    lt.learn(blobs(0))
    lt.save(tmp_path / "learner")
    assert clnp.Learner.load(tmp_path / "learner").settings.metric == "balanced accuracy"
    again = clnp.Learner.load(tmp_path / "learner", metric="balanced accuracy")
    assert again.settings == lt.settings
    with pytest.raises(
        ConfigError, match=r"^metric: expected 'balanced accuracy', .*, got 'accuracy'; "
    ):
        clnp.Learner.load(tmp_path / "learner", metric="accuracy")


class Interrupted(clnp.callbacks.Callback):
    """Ends the process, as it were, after three epochs."""

    def __init__(self) -> None:
        self.epochs = 0

    def on_epoch_end(self, *_: Any) -> None:
        self.epochs += 1
        if self.epochs == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("metric", ["balanced accuracy", own_metrics.least_recall])
def test_a_task_goes_on_in_the_middle(metric: Any, tmp_path: Path) -> None:
    more: dict[str, Any] = {"metric": metric, "grid": {"lr": [0.01, 0.02]}, "epochs": 2}
    cut = learner(**more, checkpoint_dir=tmp_path, callbacks=[Interrupted()])
    with pytest.raises(KeyboardInterrupt):
        cut.learn(blobs(0))
    again, whole = learner(**more, checkpoint_dir=tmp_path), learner(**more)
    assert again.learn(blobs(0)).grid == whole.learn(blobs(0)).grid
    assert same(again, whole)


def test_workers_measure_as_one_process_does(two: clnp.Workers) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for metric in ("balanced accuracy", own_metrics.least_recall):
            more: dict[str, Any] = {"metric": metric, "grid": {"l1": [1e-4, 1e-3]}}
            one, other = learner(**more), learner(**more, workers=two)
            assert one.learn(blobs(0)).grid == other.learn(blobs(0)).grid
            assert same(one, other)
    finally:
        torch.set_num_threads(threads)


def test_a_function_that_workers_can_not_get_is_refused_at_once() -> None:
    expected = r"^metric: expected a function at the top of a module, .* 2 workers, got .*<lambda> "
    with pytest.raises(ConfigError, match=expected + ".*workers=1"):
        learner(metric=lambda logits, labels: 1.0, workers=2)


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)
@pytest.mark.parametrize("metric", ["balanced accuracy", own_metrics.least_recall])
def test_ranks_measure_as_one_process_does(metric: Any) -> None:
    more = {"metric": metric, "fine_tune": {"epochs": 1, "lr": 1e-3}}
    alone = distributed_cases.learned("mlp", 1, None, more)
    for result in together(distributed_cases.learned, "mlp", 1, None, more):
        assert result["structure"] == alone["structure"]
        for own, wanted in zip(result["reports"], alone["reports"], strict=True):
            for name in ("validation", "validation_before", "capacity", "metric", "fine_tuned"):
                assert own[name] == wanted[name]
