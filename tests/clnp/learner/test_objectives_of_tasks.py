"""Streams of other tasks than one class per example: learned, saved, resumed, shared, reported."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

import clnp
from clnp import methods
from clnp.data import Task
from clnp.data.task import task_data
from clnp.errors import ChanceWarning, ConfigError, DataError, MarginWarning
from clnp.learner.numbers import numbers_of
from clnp.learner.settings import Settings, without_removed
from clnp.objectives import CrossEntropy, MetricFunction, Objective
from clnp.objectives.objective import objective_of
from clnp.training.validation import Validation
from tests.clnp.cases import convert, mlp
from tests.clnp.parallel.ranks import together

Pair = tuple[Tensor, Tensor]
QUICK: dict[str, Any] = {"epochs": 4, "lr": 0.01, "batch_size": 32, "l1": 1e-4, "margin": 0.1}
KINDS = ("numbers", "labels", "weighted")


def pair(kind: str, seed: int, n: int = 160) -> Pair:
    draw = torch.Generator().manual_seed(seed)
    x, mix = torch.randn(n, 12, generator=draw), torch.randn(12, 3, generator=draw)
    hidden = x @ mix / 3
    targets = {"numbers": hidden.tanh(), "labels": hidden > 0.3, "weighted": hidden.argmax(1)}
    return x, targets[kind]


def task(kind: str, k: int, **more: Any) -> Task:
    loss = {"numbers": "mse", "labels": "bce", "weighted": CrossEntropy(weight="balanced")}[kind]
    x, y = pair(kind, k, 320)
    splits = [(x[a:b], y[a:b]) for a, b in ((0, 160), (160, 240), (240, 320))]
    return Task(f"{kind} {k}", *splits, **{"loss": loss, **more})


def learner(**given: Any) -> clnp.Learner:
    torch.manual_seed(0)
    return clnp.Learner(convert(mlp([24, 16])), **{**QUICK, **given})


def state(found: clnp.Learner) -> dict[str, Tensor]:
    return {k: v for k, v in found.model.state_dict().items() if isinstance(v, Tensor)}


def same(one: clnp.Learner, other: clnp.Learner) -> bool:
    a, b = state(one), state(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_of_three_tasks_does_not_move_earlier_ones(kind: str) -> None:
    lt, outputs = learner(), []
    for k in range(3):
        report = lt.learn(task(kind, k))
        x = task(kind, k).test[0]
        outputs.append(lt.model(x, task=k))
        assert report.validation >= report.best_validation - 0.1 - 1e-9
        assert (
            report.metric
            == {"numbers": "R2", "labels": "mean average precision", "weighted": "accuracy"}[kind]
        )
    for k, before in enumerate(outputs):
        assert torch.equal(lt.model(task(kind, k).test[0], task=k), before)
    assert all(verdict.identical for verdict in lt.verify())
    assert (np.diag(lt.accuracy_matrix) == lt.accuracy_matrix[-1]).all()


def test_the_margin_of_an_error_is_in_its_units() -> None:
    lt = learner(margin=0.5, metric="MAE")
    report = lt.learn(task("numbers", 0))
    assert not report.higher_is_better
    assert report.best_validation <= report.validation <= report.best_validation + 0.5
    x, y = task("numbers", 0).validation
    assert float((lt.model(x, task=0) - y).abs().mean()) == pytest.approx(report.validation)
    x, y = task("numbers", 0).test
    error = float((lt.model(x, task=0) - y).abs().mean())
    assert lt.accuracy_matrix[0, 0] == pytest.approx(error)
    # A wide margin lets pruning go further than a narrow one.
    narrow = learner(margin=0.0, metric="MAE").learn(task("numbers", 0))
    assert sum(c["used"] for c in narrow.capacity.values()) >= sum(
        c["used"] for c in report.capacity.values()
    )


def worst(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs - y).abs().max()


def squared(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs - y).square().mean(1)


def test_a_function_as_loss_that_is_mse_learns_the_same() -> None:
    own, named = learner(), learner()
    own.learn(task("numbers", 0, loss=squared))
    named.learn(task("numbers", 0))
    a, b = (
        own.model(task("numbers", 0).test[0], task=0),
        named.model(task("numbers", 0).test[0], task=0),
    )
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_functions_have_to_be_given_again(tmp_path: Path) -> None:
    metric = MetricFunction(worst, higher_is_better=False)
    lt = learner(metric=metric, margin=1.0, checkpoint_dir=tmp_path)
    given = task("numbers", 0, loss=squared)
    lt.learn(given)
    name = rf"{__name__}.worst".replace(".", r"\.")
    with pytest.raises(ConfigError, match=rf"^metric: .*{name}.*load\(path, metric=function\)"):
        clnp.Learner.load(tmp_path)
    again = clnp.Learner.load(tmp_path, [given], metric=metric)
    assert repr(again.reports[0].to_json()) == repr(lt.reports[0].to_json())
    with pytest.raises(DataError, match="loss mse instead of"):
        clnp.Learner.load(tmp_path, [task("numbers", 0)], metric=metric)
    wide = learner(metric=metric, margin=1.0)
    wide.learn(given)
    assert again.learn(task("numbers", 1)).row == wide.learn(task("numbers", 1)).row


def test_tasks_of_different_metrics_have_no_mean(tmp_path: Path) -> None:
    lt = learner()
    for k, kind in enumerate(KINDS):
        lt.learn(task(kind, k))
    lt.learn(task("numbers", 3, metric="MSE"), margin=3.0)
    metrics, _, _ = numbers_of(lt)
    assert (metrics["acc"], metrics["bwt"], metrics["forgetting"]) == (None, None, None)
    assert all(map(math.isnan, metrics["mean_accuracies"]))
    groups = metrics["by_metric"]
    assert {name: group["tasks"] for name, group in groups.items()} == {
        **{"R2": [0], "mean average precision": [1], "accuracy": [2], "MSE": [3]}
    }
    assert groups["R2"]["acc"] == lt.accuracy_matrix[-1, 0]
    assert groups["R2"]["bwt"] == 0
    page = lt.report(tmp_path / "report.html").read_text()
    assert "accuracy (%), MSE" in page
    assert "mean accuracy of 1 task" in page


class Interrupted(clnp.callbacks.Callback):
    """Ends the process, as it were, after three epochs."""

    def __init__(self) -> None:
        self.epochs = 0

    def on_epoch_end(self, *_: Any) -> None:
        self.epochs += 1
        if self.epochs == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_goes_on_in_the_middle(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = learner(checkpoint_dir=tmp_path, callbacks=[Interrupted()])
    with pytest.raises(KeyboardInterrupt):
        cut.learn(task(kind, 0))
    again, whole = learner(checkpoint_dir=tmp_path), learner()
    again.learn(task(kind, 0))
    whole.learn(task(kind, 0))
    assert same(again, whole)


@pytest.mark.parametrize("kind", ["numbers", "weighted"])
def test_stacked_points_learn_as_each_alone(kind: str) -> None:
    grid: dict[str, Any] = {"grid": {"lr": [0.01, 0.003]}}
    one, other = learner(**grid, stack="on"), learner(**grid, stack="off")
    a, b = one.learn(task(kind, 0)), other.learn(task(kind, 0))
    for row, wanted in zip(a.grid, b.grid, strict=True):
        assert row["validation"] == pytest.approx(wanted["validation"], abs=0.02)


def test_workers_learn_as_one_process_does(two: clnp.Workers) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        grid: dict[str, Any] = {"grid": {"l1": [1e-4, 1e-3]}}
        one, other = learner(**grid), learner(**grid, workers=two)
        given = task("numbers", 0, loss=squared, metric=MetricFunction(worst, False))
        assert one.learn(given, margin=1).grid == other.learn(given, margin=1).grid
        assert same(one, other)
        local = task("numbers", 1, loss=lambda outputs, y: squared(outputs, y))
        with pytest.raises(ConfigError, match=r"^loss: expected a function at the top of a module"):
            other.learn(local)
    finally:
        torch.set_num_threads(threads)


def shared(kind: str) -> list[float]:
    """Metrics of a task, learned by all ranks of this process."""
    lt = learner(distributed=dist.is_initialized())
    report = lt.learn(task(kind, 0))
    return [report.validation_before, *(row["loss"] for row in report.history)]


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)
@pytest.mark.parametrize("kind", ["numbers", "weighted"])
def test_ranks_learn_as_one_process_does(kind: str) -> None:
    alone = shared(kind)
    for found in together(shared, kind):
        assert found == pytest.approx(alone, abs=2e-2)


class Rows(Dataset[Any]):
    """Items of a pair of tensors, as numpy arrays and plain numbers."""

    def __init__(self, given: Pair) -> None:
        self.given = given

    def __len__(self) -> int:
        return len(self.given[1])

    def __getitem__(self, i: int) -> Any:
        y = self.given[1][i]
        return self.given[0][i].numpy(), y.numpy() if y.dim() else y.item()


@pytest.mark.parametrize("kind", KINDS)
def test_a_dataset_learns_as_its_tensors_do(kind: str) -> None:
    plain = task(kind, 0)
    lazy = dataclasses.replace(
        plain, **{split: Rows(plain.tensors(split)) for split in ("train", "validation", "test")}
    )
    assert task_data(plain).differences(task_data(lazy)) == []
    one, other = learner(), learner()
    one.learn(plain)
    other.learn(lazy)
    assert same(one, other)


X = torch.randn(6, 12)


@pytest.mark.parametrize(
    ("y", "more", "message"),
    [
        (torch.randn(6), {}, r'train y: expected integer labels .*Task\(\.\.\., loss="mse"\)'),
        (torch.zeros(6, 3).long(), {}, r"train y: expected class labels \[B\].*loss="),
        (torch.arange(6), {"loss": "mse"}, r"train y: expected numbers .*int64; .*y\.float\(\)"),
        (torch.full((6,), math.nan), {"loss": "mse"}, "train y: expected finite numbers, got nan"),
        (torch.randn(6, 2), {"loss": "bce"}, r"train y: expected labels 0 or 1, got .* \[0, 0\]"),
        (torch.randn(6), {"loss": "cross_entropy"}, r"train y: expected class labels \(int64\)"),
        (-torch.ones(6).long(), {"loss": "cross_entropy"}, r"got -1 at .*ignore_index=\.\.\."),
        (torch.randn(6, 2, 2), {"loss": "mse"}, "expected outputs=, the outputs of the network"),
        (torch.randn(6, 2), {"loss": "mse", "outputs": 3}, "outputs: expected 2, the columns"),
        (torch.randn(6, 2), {"loss": "mse", "classes": 2}, "classes: expected None for loss 'mse'"),
        (torch.randn(5), {"loss": "mse"}, "train: expected as many labels as samples"),
        (torch.tensor(0.0), {"loss": "mse"}, r"train y: expected targets \[B, \.\.\.\]"),
    ],
)
def test_targets_that_are_not_those_of_the_loss(y: Tensor, more: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Task("t", (X, y), (X, y), (X, y), **more)


def test_splits_with_other_targets() -> None:
    with pytest.raises(DataError, match=r"validation: expected targets \[2\] as in the train"):
        Task("t", (X, torch.randn(6, 2)), (X, torch.randn(6, 3)), (X, torch.randn(6, 2)), loss="l1")


@pytest.mark.parametrize(
    ("given", "more", "error", "message"),
    [
        ("numbers", {"metric": "accuracy"}, ConfigError, "^metric: expected one of .*R2"),
        ("numbers", {"loss": "hinge"}, ConfigError, "^loss: expected one of"),
        ("weighted", {"metric": "R2"}, ConfigError, "^metric: expected one of .*accuracy"),
    ],
)
def test_objectives_that_do_not_fit_a_task(given: str, more: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        task(given, 0, **more)


@pytest.mark.parametrize(
    ("settings", "given", "error", "message"),
    [
        ({"loss": "mse"}, {"loss": None}, ConfigError, r"loss: .*Task\(\.\.\., loss=\.\.\.\)$"),
        ({"head": "single"}, {"classes": 2}, DataError, "expected labels from 0 to 1|classes"),
        ({}, {"loss": CrossEntropy((1.0, 1.0))}, ConfigError, "one number for each of 3 outputs"),
        ({"margin": 0.5}, {"margin": 1.5}, ConfigError, r"fraction in \[0, 1\) of accuracy"),
    ],
)
def test_learners_that_do_not_fit_a_task(
    settings: Any, given: Any, error: Any, message: str
) -> None:
    lt = learner(**settings)
    margin = given.pop("margin", None)
    with pytest.raises(error, match=message):
        lt.learn(task("weighted", 0, **given), margin=margin)
    assert not lt.reports


def test_a_single_head_has_as_many_outputs_as_every_task() -> None:
    lt = learner(head="single")
    lt.learn(task("numbers", 0))
    x, y = pair("numbers", 1)
    with pytest.raises(DataError, match=r"expected 3 outputs, as the single head has, got .* 2"):
        lt.learn(Task("two", *[(x, y[:, :2])] * 3, loss="mse"))


def test_prediction_is_for_one_class_per_example() -> None:
    lt = learner()
    lt.learn(task("numbers", 0))
    assert lt.reports[0].inferred == {}
    with pytest.raises(ConfigError, match=r"^predict\(\): .*'numbers 0'.*model\(x, task=0\)"):
        lt.predict(X)
    lt.learn(task("weighted", 1))
    assert len(lt.predict(X, task=1).label) == 6
    with pytest.raises(ConfigError, match=r"^predict\(\): "):
        lt.predict(X, task=0)


@pytest.mark.parametrize("metric", ["R2", "MSE", "MAE"])
def test_numbers_no_better_than_their_mean_are_named(metric: str) -> None:
    x, y = torch.randn(200, 12), torch.randn(200, 3)
    noise = Task("noise", *[(x, y)] * 3, loss="mse", metric=metric)
    lt = learner(epochs=1, lr=1e-5)
    with pytest.warns(ChanceWarning, match=rf"'noise': {metric} .* no better than chance"):
        lt.learn(noise, margin=10.0)


def test_a_margin_that_is_finer_than_a_split_of_numbers() -> None:
    few = dataclasses.replace(task("numbers", 0), validation=pair("numbers", 0, 12))
    with pytest.warns(MarginWarning, match="margin=0.001 is finer than 12 .* of their R2 is about"):
        learner().learn(few, margin=0.001)


@pytest.mark.parametrize(
    ("loss", "metric", "make", "wanted"),
    [
        ("mse", "R2", torch.randn, 0.0),
        ("mse", "MSE", torch.randn, None),
        ("bce", "label accuracy", lambda n, k: torch.rand(n, k) < 0.2, None),
        ("bce", "mean average precision", lambda n, k: torch.rand(n, k) < 0.2, None),
    ],
)
def test_chance_is_what_a_constant_answer_gets(
    loss: str, metric: str, make: Any, wanted: float | None
) -> None:
    y = make(400, 2)
    validation = Validation(
        (X.new_zeros(400, 1), y), objective_of(loss, metric), torch.device("cpu")
    )
    y = y.double()
    constants = {
        "R2": 0.0,
        "MSE": float((y - y.mean(0)).square().mean()),
        "label accuracy": float(torch.maximum(y.mean(0), 1 - y.mean(0)).mean()),
        "mean average precision": float(y.mean()),
    }
    assert validation.chance == pytest.approx(constants[metric], abs=1e-6)


def test_pixels_and_tokens_are_measured_without_those_that_do_not_count() -> None:
    objective = Objective(CrossEntropy(ignore_index=9))
    y = torch.randint(0, 3, (5, 4, 4))
    y[:, 0] = 9
    outputs = F.one_hot(y.clamp(max=2), 3).movedim(-1, 1).float()
    outputs[0, :, 1:] = outputs[0, :, 1:].roll(1, 0)  # one of five pictures is wrong
    for objective_metric, wanted in (("accuracy", 0.8), ("balanced accuracy", None)):
        found = dataclasses.replace(objective, metric=objective_of(None, objective_metric).metric)
        validation = Validation((outputs, y), found, torch.device("cpu"))
        value = float(validation(torch.nn.Identity()))
        assert validation.labels == int((y != 9).sum()) == 60
        if wanted is not None:
            assert value == wanted


@pytest.mark.parametrize("name", ["finetune", "joint", "si", "packnet", "er", "derpp"])
@pytest.mark.parametrize("kind", ["numbers", "labels"])
def test_other_methods_take_the_loss(name: str, kind: str) -> None:
    net = clnp.models.mlp(12, 16, 2, 3, seed=0)
    lt = methods.make(name, net, torch.zeros(1, 12), epochs=1, batch_size=32)
    for k in range(2):
        report = lt.learn(task(kind, k))
    assert report.metric == ("R2" if kind == "numbers" else "mean average precision")
    assert math.isfinite(report.test)


@pytest.mark.parametrize("name", ["ewc", "sparcl", "esacl", "esacl-co2l"])
def test_methods_that_can_not_take_a_loss_refuse_it(name: str) -> None:
    net = clnp.models.mlp(12, 16, 2, 3, seed=0)
    lt = methods.make(name, net, torch.zeros(1, 12), epochs=1, batch_size=32)
    with pytest.raises(ConfigError, match=rf"^loss: expected .*{name!r}.*another method"):
        lt.learn(task("numbers", 0))
    if name.startswith("esacl"):
        with pytest.raises(ConfigError, match="cross_entropy without options"):
            lt.learn(task("weighted", 0))


def test_replay_refuses_to_mix_losses() -> None:
    net = clnp.models.mlp(12, 16, 2, 3, seed=0)
    lt = methods.make("er", net, torch.zeros(1, 12), epochs=1, batch_size=32)
    lt.learn(task("numbers", 0))
    with pytest.raises(ConfigError, match="batches of several tasks"):
        lt.learn(task("labels", 1))


@pytest.mark.parametrize("metric", ["R2", "mae"])
def test_prune_in_a_loop_of_ones_own(metric: str) -> None:
    (x, y), model = pair("numbers", 0), convert(mlp([24, 16]))
    model.begin_task(3)
    pruning = clnp.prune(model, (x, y), (x, y), metric=metric, margin=0.2)
    value = objective_of("mse", metric).metric.of(model(x), y)
    assert pruning.validation == pytest.approx(float(value), rel=1e-4)


def test_settings_of_older_files_get_their_present_names() -> None:
    lt = learner(metric="balanced accuracy")
    data = json.loads(json.dumps(lt.settings.to_json()))
    kept = {k: v for k, v in data.items() if k not in ("metric", "loss")}
    old = {**kept, "score": data["metric"]}

    assert Settings(**without_removed(old)).metric == "balanced accuracy"
