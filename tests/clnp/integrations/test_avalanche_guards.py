"""Failures in a run of the Avalanche strategy: recovery, or a clear error."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("avalanche", reason="avalanche-lib is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # what Avalanche itself warns of

from avalanche.benchmarks import benchmark_from_datasets  # noqa: E402
from avalanche.benchmarks.utils import AvalancheDataset  # noqa: E402
from avalanche.core import SupervisedPlugin  # noqa: E402

import clnp  # noqa: E402
from clnp.errors import ConfigError, DataError, TrainingError  # noqa: E402
from clnp.integrations.avalanche import CLNP  # noqa: E402
from clnp_kernels.optim import AdamL1  # noqa: E402
from tests.clnp.integrations.avalanche_cases import (  # noqa: E402
    metric,
    network,
    permuted_digits,
    split_digits,
    strategy,
)


class Interrupt(SupervisedPlugin):
    """Raise once, in a given event of a given experience."""

    def __init__(self, event: str, experience: int, error: BaseException) -> None:
        super().__init__()
        self.experience, self.error = experience, error
        setattr(self, event, self._raise)

    def _raise(self, strategy: Any, **kwargs: Any) -> None:
        if self.error is not None and strategy.experience.current_experience == self.experience:
            error, self.error = self.error, None
            raise error


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("event", "error"),
    [
        ("after_training_iteration", KeyboardInterrupt()),
        ("before_training_epoch", RuntimeError("out of memory")),
    ],
)
def test_interrupted_training_goes_on(event: str, error: BaseException, number: int) -> None:
    bench = split_digits(task_labels=True, experiences=2)
    learner = strategy(train_epochs=4, plugins=[Interrupt(event, number, error)])
    with pytest.raises(type(error)):
        learner.train(bench.train_stream)
    assert len(learner.model.tasks) == number
    with pytest.warns(
        UserWarning, match=f"experience {number}: the previous task was begun but not learned"
    ):
        learner.train(bench.train_stream[number:])
    results = learner.eval(bench.test_stream)
    assert len(learner.model.tasks) == 2
    assert min(metric(results, "Top1_Acc_Exp")) > 0.75
    assert all(v.identical for v in learner.certificate.verify(learner.model))


def test_training_that_became_nan_goes_on() -> None:
    bench = split_digits(task_labels=True, experiences=2)
    learner = strategy(train_epochs=4)
    rates = [group["lr"] for group in learner.optimizer.param_groups]
    for group in learner.optimizer.param_groups:
        group["lr"] = 1e38
    with pytest.raises(TrainingError, match="expected finite parameters, got NaN"):
        learner.train(bench.train_stream[0])
    for group, rate in zip(learner.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    with pytest.warns(UserWarning, match="interrupted or failed"):
        learner.train(bench.train_stream[0])
    results = learner.eval(bench.test_stream[0])
    assert min(metric(results, "Top1_Acc_Exp")) > 0.75


@pytest.mark.parametrize("rest", [0, 1, 2])
def test_no_last_minibatch_of_one_reaches_a_batch_norm(rest: int) -> None:
    """Every example is trained on or held out, beside those left over."""
    bench = permuted_digits(task_labels=True, experiences=1, rows=100 + rest)
    learner = strategy(norm=True, train_mb_size=30, train_epochs=1)
    sizes: list[int] = []

    class Watch(SupervisedPlugin):
        def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            sizes.append(len(strategy.mb_x))

    learner.plugins.append(Watch())
    held_out = round(0.1 * (100 + rest))
    learner.train(bench.train_stream)
    assert 1 not in sizes
    assert 100 + rest - held_out - sum(sizes) in (0, 1)
    assert len(learner.model.tasks) == 1


def test_minibatches_of_one_need_a_network_without_batch_norm() -> None:
    bench = permuted_digits(task_labels=True, experiences=1, rows=20)
    learner = strategy(norm=True, train_mb_size=1, train_epochs=1)
    with pytest.raises(ConfigError, match=r"train_mb_size: expected at least 2, .* got 1"):
        learner.train(bench.train_stream)
    learner.train_mb_size = 2
    learner.train(bench.train_stream)
    plain = strategy(train_mb_size=1, train_epochs=1)
    plain.train(bench.train_stream)
    assert len(learner.model.tasks) == len(plain.model.tasks) == 1


def test_a_copied_strategy_goes_on_alike() -> None:
    """As one that avalanche's save_checkpoint saved."""
    bench, learner = split_digits(task_labels=True, experiences=2), strategy(train_epochs=1)
    learner.train(bench.train_stream[0])
    torch.manual_seed(1)
    twin = copy.deepcopy(learner)
    for one in (learner, twin):
        torch.manual_seed(2)
        one.train(bench.train_stream[1])
    x = torch.randn(9, 64)
    for k in range(2):
        assert torch.equal(learner.model(x, task=k), twin.model(x, task=k))
    assert all(v.identical for v in twin.certificate.verify(twin.model))


def learned() -> clnp.Model:
    model, task = network(), clnp.data.PermutedDigits(tasks=1)[0]
    clnp.begin_task(model)
    clnp.prune(model, task.train, task.validation)
    clnp.consolidate(model)
    return model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": "a"}, "margin: expected a fraction .* got 'a'"),
        ({"margin": True}, "margin: expected a fraction .* got True"),
        ({"validation": 0}, "validation: expected a fraction .* got 0"),
        ({"validation": None}, "validation: expected a fraction .* got None"),
        ({"metric": "f1"}, "score: expected one of .* got 'f1'"),
        ({"search": "best"}, "search: expected one of .* got 'best'"),
        ({"granularity": 0}, "granularity: expected None or an integer >= 1.* got 0"),
        ({"task_labels": True}, "task_labels: expected one of .* got True"),
        ({"rule": "margin"}, "rule: expected one of .* got 'margin'"),
        ({"criterion": 3}, "criterion: expected a function"),
        ({"model": nn.Linear(64, 10)}, r"result of clnp\.convert, got Linear"),
        ({"model": None}, r"result of clnp\.convert, got NoneType"),
        ({"optimizer": None}, "optimizer: expected .*got NoneType"),
        ({"optimizer": AdamL1(network().parameters())}, "exactly the model's parameters"),
    ],
)
def test_settings_are_refused_before_training(options: dict[str, Any], message: str) -> None:
    model = network()
    given = {"model": model, "optimizer": AdamL1(model.parameters()), **options}
    with pytest.raises(ConfigError, match=message):
        CLNP(**given)


def test_a_network_with_tasks_of_unknown_classes_is_refused() -> None:
    model = learned()
    with pytest.raises(
        ConfigError, match="expected no learned tasks, got 1, whose classes and task"
    ):
        CLNP(model=model, optimizer=AdamL1(model.parameters()))


def datasets(y: Any, x: torch.Tensor | None = None) -> Any:
    """Return a benchmark of one experience with the given targets."""
    x = torch.randn(len(y), 64) if x is None else x
    data = AvalancheDataset([torch.utils.data.TensorDataset(x, torch.as_tensor(y))])
    data = data.update_data_attribute("targets", list(y))
    return benchmark_from_datasets(train=[data])


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (lambda: datasets([-1, 0, 1, 0]), "experience 0: expected classes from 0, got -1"),
        (lambda: datasets([[0, 1], [1, 0], [1, 1]]), "one integer class per example"),
        (lambda: datasets([0]), "expected enough examples .* got 1"),
        (
            lambda: datasets([0, 1] * 9, torch.randn(18, 32)),
            r"expected examples of shape \[64\], .* got \[32\]",
        ),
    ],
    ids=["negative", "several labels", "one example", "other inputs"],
)
def test_experiences_that_do_not_fit_are_refused(stream: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        strategy(train_epochs=1).train(stream().train_stream)


def test_more_classes_than_a_single_head_has() -> None:
    with pytest.raises(DataError, match=r"experience 0: expected classes below 10, .* got 12"):
        strategy("single", train_epochs=1).train(datasets([0, 12] * 5).train_stream)
