"""Tasks are told apart by a classifier fitted on a few examples of each."""

from pathlib import Path

import pytest
import torch

import clnp
from clnp.errors import ConfigError, DataError
from clnp.network.calibration import calibrated, features
from clnp.network.inference import choose
from clnp.network.model import Model
from tests.clnp.cases import blobs, convert, mlp, some_steps

TASKS = [blobs(k, rows=600) for k in range(3)]


@pytest.fixture(scope="module")
def learner() -> clnp.Learner:
    torch.manual_seed(0)
    made = clnp.Learner(
        convert(mlp([60, 40])),
        epochs=5,
        lr=0.01,
        batch_size=32,
        margin=0.02,
        tasks_expected=3,
        calibration=32,
        progress_bar=False,
    )
    for task in TASKS:
        made.learn(task)
    return made


def right(learner: clnp.Learner, rule: str | None) -> float:
    hits = [learner.predict(t.test[0], rule=rule).task == k for k, t in enumerate(TASKS)]
    return float(torch.cat(hits).double().mean())


def test_calibrated_tasks_are_found(learner: clnp.Learner) -> None:
    assert right(learner, None) > 0.9
    assert right(learner, None) > right(learner, "entropy")
    inferred = learner.reports[-1].inferred
    assert list(inferred) == ["calibrated", "entropy", "energy"]
    mean = sum(inferred["calibrated"]["task"]) / 3
    assert mean == pytest.approx(right(learner, None))


def test_the_fit_is_the_least_of_its_loss(learner: clnp.Learner) -> None:
    """Its gradient vanishes: computed here by the formula of logistic regression."""
    model, batches = learner.model, learner._calibrator.batches
    found = calibrated(model, batches)
    x = torch.cat([features(model.all_tasks(batches[k])) for k in range(3)])
    x = (x - found.mean) / found.scale
    y = torch.repeat_interleave(torch.arange(3), 32)
    p = torch.softmax(x @ found.weight + found.bias, -1)
    p[torch.arange(len(y)), y] -= 1
    gradient = x.T @ p / len(y) + 2 * 1e-2 * found.weight
    assert gradient.abs().max() < 1e-5
    assert (p.sum(0) / len(y)).abs().max() < 1e-5


def test_refusal_keeps_the_given_part_of_its_own(learner: clnp.Learner) -> None:
    own = [learner.predict(t.test[0], refuse=0.1) for t in TASKS]
    part = float(torch.cat([p.task == -1 for p in own]).double().mean())
    assert 0.02 < part < 0.3
    strange = learner.predict(torch.randn(300, 12) * 0.05, refuse=0.1)
    assert float((strange.task == -1).double().mean()) > 2 * part
    refused = strange.task == -1
    assert torch.equal(strange.label == -1, refused)
    assert all(name is None for name in strange.names)
    assert not (learner.predict(torch.randn(9, 12)).task < 0).any()


def test_saved_learners_answer_alike(learner: clnp.Learner, tmp_path: Path) -> None:
    learner.save(tmp_path / "a.safetensors")
    again = clnp.Learner.load(tmp_path / "a.safetensors")
    x = torch.cat([t.test[0] for t in TASKS])
    for a, b in zip(learner.predict(x)[:2], again.predict(x)[:2], strict=True):
        assert torch.equal(a, b)


def test_without_kept_examples_the_surest_head_answers() -> None:
    learner = clnp.Learner(convert(mlp([20])), epochs=1, calibration=0, progress_bar=False)
    learner.learn(TASKS[0])
    learner.learn(TASKS[1])
    x = TASKS[0].test[0]
    assert torch.equal(learner.predict(x).task, learner.model.predict(x, "entropy")[0])
    assert "calibrated" not in learner.reports[-1].inferred
    with pytest.raises(ConfigError, match="refuse: expected kept examples"):
        learner.predict(x, refuse=0.1)
    with pytest.raises(ConfigError, match="refuse: expected a number"):
        learner.predict(x, refuse=1.0)


def test_forgotten_tasks_are_not_found(learner: clnp.Learner, tmp_path: Path) -> None:
    learner.save(tmp_path / "a.safetensors")
    again = clnp.Learner.load(tmp_path / "a.safetensors")
    again.forget(1)
    assert set(again._calibrator.batches) == {0, 2}
    assert set(again.predict(TASKS[1].test[0]).task.tolist()) <= {0, 2}
    assert (again.predict(TASKS[2].test[0]).task == 2).double().mean() > 0.9


def two_tasks() -> Model:
    model = convert(mlp([8]))
    for _ in range(2):
        model.begin_task()
        some_steps(model)
        model.consolidate(keep={"0": torch.arange(3)})
    return model


def test_own_loop() -> None:
    model = two_tasks()
    batches = {k: torch.randn(10, 12) + 3 * k for k in range(2)}
    rule = clnp.calibrated(model, batches)
    found, label = model.predict(batches[1], rule)
    again, _ = choose(model.all_tasks(batches[1]), rule)
    assert torch.equal(found, again)
    assert label.shape == (10,)
    model.begin_task()
    model.consolidate(keep={"0": torch.arange(1)})
    with pytest.raises(ConfigError, match=r"rule: expected one for tasks \[0, 1, 2\], got one for"):
        model.predict(batches[0], rule)


def test_refusals() -> None:
    model = two_tasks()
    with pytest.raises(
        ConfigError, match=r"batches: expected examples of tasks \[0, 1\], got none"
    ):
        clnp.calibrated(model, {0: torch.randn(3, 12)})
    with pytest.raises(DataError, match="x: expected shape"):
        clnp.calibrated(model, {0: torch.randn(3, 12), 1: torch.randn(3, 5)})
    with pytest.raises(ConfigError, match="rule: expected one of"):
        model.predict(torch.randn(3, 12), "surest")
