"""Warnings of margins that are wider than a class or finer than the validation split, and
fine-tuning within them.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

import clnp
from clnp.data import Task
from clnp.errors import MarginWarning
from clnp.objectives.objective import objective_of
from clnp.pruning.margin import warn_of_chance, warn_of_classes, warn_of_noise
from clnp.training.validation import Validation
from tests.clnp import own_metrics
from tests.clnp.cases import blobs, convert, mlp
from tests.clnp.conv_cases import Plan, patterns
from tests.clnp.conv_cases import convert as convert_images

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {
    "head": "multi",
    "epochs": 2,
    "lr": 0.01,
    "batch_size": 32,
    "margin": 0.05,
    "infer_tasks": False,
}
Part = tuple[Tensor, Tensor]


def split(*sizes: int) -> Part:
    """So many examples of classes 0, 1, ..."""
    y = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return torch.zeros(len(y), 1), y


def told(*sizes: int, train: Part | None = None, margin: float, metric: Any) -> list[str]:
    """The warnings for a validation split with such classes."""
    validation = Validation(split(*sizes), objective_of(None, metric), CPU)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_classes("t", train or split(*sizes), validation, margin, 1)
        warn_of_noise("t", validation, margin, 1)
    assert all(w.category is MarginWarning for w in caught)
    return [str(w.message) for w in caught]


@pytest.mark.parametrize(
    ("sizes", "margin", "metric", "lost"),
    [
        ((970, 30), 0.02, "accuracy", "67% of class 1, which has 30 of 1000"),
        ((970, 30), 0.04, "accuracy", "100% of class 1"),
        ((970, 30), 0.015, "accuracy", None),
        ((9700, 300), 0.02, "balanced accuracy", None),
        ((500, 20, 480), 0.2, "balanced accuracy", "60% of class 0"),
        ((970, 30), 0.02, own_metrics.least_recall, None),
        ((5000, 5000), 0.0005, "accuracy", None),
        ((50,) * 1000, 0.0005, "accuracy", None),
        ((1000,), 0.5, "accuracy", None),
    ],
)
def test_a_margin_that_is_wider_than_half_a_class(
    sizes: tuple[int, ...], margin: float, metric: Any, lost: str | None
) -> None:
    found = told(*sizes, margin=margin, metric=metric)
    assert len(found) == (lost is not None)
    if lost is not None:
        assert f"margin={margin:g} lets pruning lose {lost}" in found[0]
        assert ("balanced accuracy" in found[0]) == (metric == "accuracy")


@pytest.mark.parametrize("metric", ["accuracy", "balanced accuracy", own_metrics.least_recall])
def test_a_class_without_validation_examples(metric: Any) -> None:
    found = told(500, 0, 500, train=split(9, 9, 9, 9), margin=0, metric=metric)
    assert len(found) == 1
    assert "classes [1, 3] occur in training but not in validation" in found[0]
    # Classes of the head that no example has are no loss.
    assert told(500, 0, 500, margin=0, metric=metric) == []


@pytest.mark.parametrize(
    ("sizes", "margin", "metric", "noise"),
    [
        ((60, 60), 0.01, "accuracy", "0.03"),
        ((60, 60), 0.0, "accuracy", "0.03"),
        ((60, 60), 0.03, "accuracy", None),
        ((1,), 0.05, "accuracy", "0.30"),
        ((150, 150), 0.0005, "accuracy", None),
        ((5000, 5000), 0.0005, "accuracy", None),
        ((996, 4), 0.01, "balanced accuracy", "0.08"),
        ((996, 4), 0.001, "accuracy", None),
        ((60, 60), 0.0, own_metrics.least_recall, None),
    ],
)
def test_a_margin_that_is_finer_than_the_validation_split(
    sizes: tuple[int, ...], margin: float, metric: Any, noise: str | None
) -> None:
    found = told(*sizes, margin=margin, metric=metric)
    assert len(found) == (noise is not None)
    if noise is not None:
        assert f"margin={margin:g} is finer than {sum(sizes)} validation examples" in found[0]
        assert f"about {noise}" in found[0]


class Items(Dataset[Any]):
    """A data set that does not tell its labels."""

    def __init__(self, part: Part) -> None:
        self.x, self.y = part

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.x[i], int(self.y[i])


def learner(classes: int = 3, **given: Any) -> clnp.Learner:
    torch.manual_seed(0)
    return clnp.Learner(convert(mlp([16, 12], classes=classes)), **{**QUICK, **given})


@pytest.mark.parametrize("read", [False, True], ids=["tensors", "data set"])
def test_a_task_warns_of_its_classes_where_learn_was_called(read: bool) -> None:
    rare = own_metrics.rare(0)
    validation = Items(rare.validation) if read else rare.validation
    lt = learner(margin=0.025)
    for k in range(2):
        task = Task(f"rare {k}", rare.train, validation, rare.test, classes=2)
        with pytest.warns(MarginWarning, match=f"'rare {k}'.*class 1, which has 10 of 300") as seen:
            lt.learn(task)
        assert [w.filename for w in seen if w.category is MarginWarning] == [__file__]
    adopting = learner(classes=2, margin=0.025)
    with pytest.warns(MarginWarning, match="class 1") as seen:
        adopting.adopt(rare)
    assert [w.filename for w in seen if w.category is MarginWarning] == [__file__]


def test_a_learner_warns_of_small_splits_once() -> None:
    lt = learner(margin=0.01)
    with pytest.warns(MarginWarning, match="finer than 80 validation examples"):
        lt.learn(blobs(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", MarginWarning)
        for k in (1, 2):
            lt.learn(blobs(k))


def test_nothing_is_warned_of_where_nothing_is_cut() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", MarginWarning)
        learner(margin=0).adopt(blobs(0), prune=False)


# Fine-tuning

RUIN: dict[str, Any] = {"epochs": 1, "lr": 3.0, "l1": 100.0}


def states(lt: clnp.Learner) -> dict[str, Tensor]:
    return {k: v for k, v in lt.model.state_dict().items() if isinstance(v, Tensor)}


@pytest.mark.parametrize("metric", ["accuracy", "balanced accuracy", own_metrics.log_likelihood])
def test_fine_tuning_that_makes_it_worse_is_taken_back(metric: Any) -> None:
    plain, tuned = (
        learner(epochs=8, metric=metric, fine_tune=None),
        learner(epochs=8, metric=metric, fine_tune=RUIN),
    )
    for k in range(2):
        wanted, got = plain.learn(blobs(k)), tuned.learn(blobs(k))
        assert (wanted.fine_tuned, got.fine_tuned) == ("", "rolled back")
        assert got.validation == wanted.validation
        assert got.row == wanted.row
    assert all(torch.equal(v, states(tuned)[k]) for k, v in states(plain).items())
    assert all(v.identical for v in tuned.verify())


def test_every_round_of_fine_tuning_is_kept_or_taken_back() -> None:
    report = learner(epochs=8, fine_tune={**RUIN, "rounds": 3}).learn(blobs(0))
    outcomes = report.fine_tuned.split(", ")
    assert len(outcomes) == 3
    assert outcomes[0] == "rolled back"
    assert set(outcomes) <= {"kept", "rolled back"}
    assert report.validation >= report.best_validation - 0.05 - 1e-9


def test_running_statistics_are_taken_back_too() -> None:
    both = []
    for tune in (None, RUIN):
        torch.manual_seed(0)
        model = convert_images(Plan(8, ("residual",), True, True, "mean").build())
        lt = clnp.Learner(
            model, **{**QUICK, "epochs": 6, "batch_size": 16, "margin": 0.1}, fine_tune=tune
        )
        both.append((lt, lt.learn(patterns(0))))
    (plain, _), (tuned, report) = both
    assert report.fine_tuned == "rolled back"
    assert all(torch.equal(v, states(tuned)[k]) for k, v in states(plain).items())


def test_fine_tuning_that_helps_is_kept() -> None:
    task = blobs(0, classes=6, rows=720)
    lt, plain = (
        learner(classes=6, epochs=4, margin=0.3, fine_tune=tune)
        for tune in ({"epochs": 5, "lr": 0.01}, None)
    )
    report, without = lt.learn(task), plain.learn(task)
    assert report.fine_tuned == "kept"
    assert report.validation > without.validation
    assert report.capacity == without.capacity


def test_fine_tuning_of_a_head_alone_can_be_taken_back() -> None:
    lt = learner(epochs=8, fine_tune=RUIN)
    lt.adopt(blobs(0), prune=False)
    with pytest.warns(clnp.CapacityWarning):
        report = lt.learn(blobs(1))
    assert report.transfer_only
    assert report.fine_tuned == "rolled back"
    assert report.validation == report.validation_before


@pytest.mark.parametrize(
    ("sizes", "metric", "best", "chance"),
    [
        ((500, 500), "accuracy", 0.51, "50.0 %"),
        ((500, 500), "accuracy", 0.60, None),
        ((970, 30), "accuracy", 0.97, "97.0 %"),
        ((970, 30), "balanced accuracy", 0.97, None),
        ((970, 30), "balanced accuracy", 0.5, "50.0 %"),
        ((100,) * 10, "accuracy", 0.1, "10.0 %"),
        ((100,) * 10, "accuracy", 0.2, None),
        ((100,), "accuracy", 1.0, None),
        ((500, 500), own_metrics.log_likelihood, -1.0, None),
    ],
)
def test_a_task_at_chance_is_named(sizes: Any, metric: Any, best: float, chance: Any) -> None:
    validation = Validation(split(*sizes), objective_of(None, metric), CPU)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_chance("t", validation, best, 1)
    assert [w.category for w in caught] == [clnp.ChanceWarning] * (chance is not None)
    assert all(f"no better than chance ({chance})" in str(w.message) for w in caught)


def test_a_learner_says_where_it_learned_nothing() -> None:
    with pytest.warns(
        clnp.ChanceWarning, match=r"^task 'blobs-0': accuracy .* is no better"
    ) as all_:
        learner(epochs=1, lr=1e-12).learn(blobs(0))
    assert [w.filename for w in all_ if w.category is clnp.ChanceWarning] == [__file__]
