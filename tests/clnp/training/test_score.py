"""Scores that a margin is held on: accuracy, balanced accuracy, a function of the user's."""

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
from clnp.training.score import Validation, name_of
from tests.clnp import scores
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
    validation = Validation(split, "balanced accuracy", CPU)
    wanted = sum(recalls) / len(recalls)
    assert validation(nn.Identity()) == wanted
    assert validation.of(nn.Identity(), batches(split, size, CPU)) == wanted


@given(st.lists(st.integers(0, 1), min_size=1, max_size=30), st.floats(0, 0.9))
@settings(max_examples=100, deadline=None)
def test_accuracy_is_exact_and_its_floor_a_number_of_examples(
    hits: list[int], margin: float
) -> None:
    split = torch.eye(2)[torch.tensor(hits)], torch.ones(len(hits), dtype=torch.int64)
    validation = Validation(split, "accuracy", CPU)
    value = validation(nn.Identity())
    assert value == Fraction(sum(hits), len(hits))
    floor = validation.floor(value, margin)
    assert (floor * len(hits)).denominator == 1
    assert max(0, value - margin - 1e-9) <= floor < max(0, value - margin) + Fraction(1, len(hits))


@pytest.mark.parametrize("score", ["accuracy", "balanced accuracy", scores.share_right])
def test_an_output_that_is_nan_is_an_error(score: Any) -> None:
    split = torch.tensor([[1.0, math.nan], [0.0, 1.0]]), torch.tensor([0, 1])
    with pytest.raises(TrainingError, match=r"^evaluation: expected numbers .*, got NaN; look for"):
        Validation(split, score, CPU)(nn.Identity())


def test_a_label_that_the_head_has_no_output_for_is_an_error() -> None:
    split = TensorDataset(torch.eye(3), torch.tensor([0, 1, 3]))
    with pytest.raises(DataError, match=r"^validation: expected labels from 0 to 2, .*, got 3$"):
        Validation(split, "balanced accuracy", CPU)(nn.Identity())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_balanced_accuracy_keeps_a_rare_class(seed: int) -> None:
    task = scores.rare(seed)
    recalls = {}
    for score in ("accuracy", "balanced accuracy"):
        lt = learner(epochs=15, margin=0.02, score=score)
        report = lt.learn(task)
        assert report.score == score
        assert report.validation >= report.best_validation - 0.02 - 1e-9
        recalls[score] = recall(lt, task, 1)
    assert recalls["balanced accuracy"] >= max(0.5, recalls["accuracy"])


@pytest.mark.parametrize("search", ["joint", "global"])
def test_a_function_that_counts_as_accuracy_does_learns_the_same(search: str) -> None:
    more: dict[str, Any] = {
        "search": search,
        "grid": {"l1": [1e-4, 1e-3]},
        "fine_tune": {"epochs": 2, "lr": 1e-3, "rounds": 2},
    }
    one, other = learner(**more), learner(**more, score=scores.share_right)
    for k in range(2):
        a, b = one.learn(blobs(k)), other.learn(blobs(k))
        assert (a.score, b.score) == ("accuracy", "tests.clnp.scores.share_right")
        for name in ("best_validation", "validation_before", "validation", "grid", "capacity"):
            assert getattr(a, name) == getattr(b, name)
    assert same(one, other)


def test_a_score_may_be_negative_and_its_margin_large() -> None:
    lt = learner(score=scores.log_likelihood, margin=1.5, grid={"l1": [1e-4, 1e-2]})
    report = lt.learn(blobs(0))
    assert report.validation < 0
    assert report.validation >= report.best_validation - 1.5 - 1e-6
    assert report.best_validation == max(row["validation"] for row in report.grid)
    x, y = blobs(0).validation
    assert scores.log_likelihood(lt.model(x, task=0), y) == pytest.approx(report.validation)


@pytest.mark.parametrize("score", ["accuracy", "balanced accuracy", scores.least_recall])
def test_candidates_are_within_the_margin_of_the_best_score(score: Any) -> None:
    lt = learner(score=score, margin=0.1, grid={"l1": [1e-4, 1e-2, 0.1], "lr": [0.01, 1e-4]})
    report = lt.learn(scores.rare(0, every=4))
    best = max(row["validation"] for row in report.grid)
    assert best == report.best_validation
    assert {row["candidate"] for row in report.grid} == {True, False}
    for row in report.grid:
        assert row["candidate"] == (row["validation"] >= best - 0.1 - 1e-9)
        assert (row["kept"] >= 0) == row["candidate"]


def failing(logits: Tensor, labels: Tensor) -> float:
    raise RuntimeError("no such metric")


@pytest.mark.parametrize(
    ("score", "told"),
    [
        (failing, "RuntimeError: no such metric"),
        (lambda logits, labels: math.nan, "got nan"),
        (lambda logits, labels: -math.inf, "got -inf"),
        (lambda logits, labels: "0.9", "got '0.9'"),
        (lambda logits, labels: logits, "expected a number"),
        (lambda logits: 1.0, "expected a number, got TypeError"),
    ],
)
def test_a_function_that_gives_no_number_is_refused_before_training(score: Any, told: str) -> None:
    lt, epochs = learner(score=score), []

    class Epochs(clnp.callbacks.Callback):
        def on_epoch_end(self, *args: Any) -> None:
            epochs.append(args)

    lt.callbacks.append(Epochs())
    with pytest.raises(
        ConfigError, match=r"^score .*logits \[80, 3\] and labels \[80\]: .*" + told
    ):
        lt.learn(blobs(0))
    assert not epochs
    assert not lt.reports


@pytest.mark.parametrize("score", ["f1", "Accuracy", None, 3, ["accuracy"]])
def test_what_is_no_score_is_refused(score: Any) -> None:
    with pytest.raises(ConfigError, match=r"^score: .*balanced accuracy.*function"):
        Settings(score=score)


def test_a_margin_is_a_fraction_of_an_accuracy_and_any_number_of_a_function() -> None:
    assert Settings(score=scores.log_likelihood, margin=3).margin == 3
    for score in ("accuracy", "balanced accuracy"):
        for margin in (1, -0.1, math.nan, True, "0.1"):
            with pytest.raises(
                ConfigError, match=rf"^margin: expected a fraction in \[0, 1\), got {margin!r}$"
            ):
                Settings(score=score, margin=margin)
    for margin in (-0.1, math.nan, math.inf, True, "0.1"):
        with pytest.raises(
            ConfigError, match=rf"^margin: expected a number >= 0 .*, got {margin!r}$"
        ):
            Settings(score=scores.log_likelihood, margin=margin)
    lt = learner(score="balanced accuracy")
    with pytest.raises(ConfigError, match=r"^margin: expected a fraction in \[0, 1\), got 1\.5$"):
        lt.adopt(blobs(0), margin=1.5)


@pytest.mark.parametrize("score", ["accuracy", "balanced accuracy", scores.share_right])
@pytest.mark.parametrize("rows", [3, 240])
def test_margins_of_nothing_and_of_everything(score: Any, rows: int) -> None:
    """Three rows give a validation split of one example."""
    validation = blobs(0, rows=rows).validation
    task = Task("few", blobs(0).train, validation, blobs(0).test, classes=3)
    kept = learner(score=score, margin=0).learn(task)
    assert kept.validation >= kept.best_validation - 1e-9
    least = learner(score=score, margin=0.9999).learn(task)
    assert [row["used"] for row in least.capacity.values()] == [1, 1] or rows == 3
    assert least.validation >= 0


@pytest.mark.parametrize("score", ["accuracy", "balanced accuracy", scores.share_right])
def test_a_validation_split_of_one_class(score: Any) -> None:
    x, y = blobs(0).validation
    task = Task("one class", blobs(0).train, (x[y == 2], y[y == 2]), blobs(0).test, classes=3)
    report = learner(score=score).learn(task)
    assert report.validation >= report.best_validation - 0.04 - 1e-9


def test_a_file_holds_the_name_of_a_function_and_needs_the_function_again(tmp_path: Path) -> None:
    whole = learner(score=scores.least_recall)
    cut = learner(score=scores.least_recall, checkpoint_dir=tmp_path)
    whole.learn(blobs(0))
    cut.learn(blobs(0))
    assert name_of(scores.least_recall) == "tests.clnp.scores.least_recall"
    expected = r"^score: expected 'tests\.clnp\.scores\.least_recall', .*, got "
    with pytest.raises(ConfigError, match=expected + r"nothing; .*load\(path, score=function\)"):
        clnp.Learner.load(tmp_path)
    for other in (scores.share_right, "accuracy", lambda logits, labels: 1.0):
        with pytest.raises(ConfigError, match=expected):
            clnp.Learner.load(tmp_path, score=other)
    again = clnp.Learner.load(
        tmp_path, [blobs(0)], checkpoint_dir=tmp_path, score=scores.least_recall
    )
    assert again.settings == whole.settings
    whole.learn(blobs(1))
    assert again.learn(blobs(1)).score == "tests.clnp.scores.least_recall"
    assert same(whole, again)


def test_a_named_score_is_in_the_file(tmp_path: Path) -> None:
    lt = learner(score="balanced accuracy")
    lt.learn(blobs(0))
    lt.save(tmp_path / "learner")
    assert clnp.Learner.load(tmp_path / "learner").settings.score == "balanced accuracy"
    again = clnp.Learner.load(tmp_path / "learner", score="balanced accuracy")
    assert again.settings == lt.settings
    with pytest.raises(
        ConfigError, match=r"^score: expected 'balanced accuracy', .*, got 'accuracy'; "
    ):
        clnp.Learner.load(tmp_path / "learner", score="accuracy")


class Interrupted(clnp.callbacks.Callback):
    """Ends the process, as it were, after three epochs."""

    def __init__(self) -> None:
        self.epochs = 0

    def on_epoch_end(self, *_: Any) -> None:
        self.epochs += 1
        if self.epochs == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("score", ["balanced accuracy", scores.least_recall])
def test_a_task_goes_on_in_the_middle(score: Any, tmp_path: Path) -> None:
    more: dict[str, Any] = {"score": score, "grid": {"lr": [0.01, 0.02]}, "epochs": 2}
    cut = learner(**more, checkpoint_dir=tmp_path, callbacks=[Interrupted()])
    with pytest.raises(KeyboardInterrupt):
        cut.learn(blobs(0))
    again, whole = learner(**more, checkpoint_dir=tmp_path), learner(**more)
    assert again.learn(blobs(0)).grid == whole.learn(blobs(0)).grid
    assert same(again, whole)


def test_workers_score_as_one_process_does(two: clnp.Workers) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for score in ("balanced accuracy", scores.least_recall):
            more: dict[str, Any] = {"score": score, "grid": {"l1": [1e-4, 1e-3]}}
            one, other = learner(**more), learner(**more, workers=two)
            assert one.learn(blobs(0)).grid == other.learn(blobs(0)).grid
            assert same(one, other)
    finally:
        torch.set_num_threads(threads)


def test_a_function_that_workers_can_not_get_is_refused_at_once() -> None:
    expected = r"^score: expected a function at the top of a module, .* 2 workers, got .*<lambda> "
    with pytest.raises(ConfigError, match=expected + ".*workers=1"):
        learner(score=lambda logits, labels: 1.0, workers=2)


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)
@pytest.mark.parametrize("score", ["balanced accuracy", scores.least_recall])
def test_ranks_score_as_one_process_does(score: Any) -> None:
    more = {"score": score, "fine_tune": {"epochs": 1, "lr": 1e-3}}
    alone = distributed_cases.learned("mlp", 1, None, more)
    for result in together(distributed_cases.learned, "mlp", 1, None, more):
        assert result["structure"] == alone["structure"]
        for own, wanted in zip(result["reports"], alone["reports"], strict=True):
            for name in ("validation", "validation_before", "capacity", "score", "fine_tuned"):
                assert own[name] == wanted[name]
