"""CLNP as an Avalanche strategy: benchmarks with and without task labels, metrics, plugins."""

from typing import Any

import pytest
import torch
from torch import nn

from clnp.errors import CapacityError, ConfigError, DataError
from clnp_kernels.optim import AdamL1

pytest.importorskip("avalanche", reason="avalanche-lib is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # what Avalanche itself warns of

from avalanche.benchmarks import split_online_stream  # noqa: E402
from avalanche.core import SupervisedPlugin  # noqa: E402
from avalanche.evaluation.metrics import accuracy_metrics  # noqa: E402
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin, LRSchedulerPlugin  # noqa: E402

from clnp.integrations.avalanche import ABSENT, CLNP  # noqa: E402
from tests.clnp.integrations.avalanche_cases import (  # noqa: E402
    metric,
    network,
    permuted_digits,
    split_digits,
    strategy,
)


@pytest.mark.parametrize(
    ("stream", "head", "told"),
    [
        (lambda: split_digits(task_labels=True), "multi", "stream"),
        (lambda: split_digits(task_labels=False), "multi", "experience"),
        (
            lambda: split_digits(task_labels=True, class_ids_from_zero_in_each_exp=True),
            "multi",
            "stream",
        ),
        (lambda: permuted_digits(task_labels=True), "multi", "stream"),
        (lambda: permuted_digits(task_labels=False), "single", "experience"),
    ],
    ids=["split", "split by experience", "split from zero", "permuted", "permuted by experience"],
)
def test_benchmarks_are_learned_without_forgetting(stream: Any, head: str, told: str) -> None:
    bench, learner = stream(), strategy(head, task_labels=told)
    rows = []
    for experience in bench.train_stream:
        learner.train(experience)
        results = learner.eval(bench.test_stream)
        rows.append(metric(results, "Top1_Acc_Exp"))
        assert all(value == 0.0 for value in metric(results, "ExperienceForgetting"))
        assert metric(results, "StreamForgetting") == [0.0]
        assert metric(results, "Task_Inferred_Stream") == [0.0]
    learned = len(bench.train_stream)
    assert len(learner.model.tasks) == learned
    assert len(rows[-1]) == learned
    assert min(rows[-1]) > 0.75
    for k, row in enumerate(rows):
        assert row[: k + 1] == [rows[j][j] for j in range(k + 1)]
    assert all(v.identical for v in learner.certificate.verify(learner.model))
    assert len(learner.certificate) == learned


def test_classes_of_other_experiences_are_absent() -> None:
    bench, learner = split_digits(task_labels=True), strategy(train_epochs=1)
    outputs: list[torch.Tensor] = []

    class Watch(SupervisedPlugin):
        def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
            outputs.append(strategy.mb_output)

    learner.plugins.append(Watch())
    learner.train(bench.train_stream[:2])
    for k in range(2):
        outputs.clear()
        learner.eval(bench.test_stream[k])
        own = sorted(bench.test_stream[k].classes_in_this_experience)
        logits = torch.cat(outputs)
        others = [c for c in range(logits.shape[1]) if c not in own]
        assert (logits[:, others] == ABSENT).all()
        x = torch.stack([item[0] for item in bench.test_stream[k].dataset])
        assert torch.equal(logits[:, own], learner.model(x, task=k))


def test_plugins_that_follow_the_optimizer_or_put_weights_back() -> None:
    bench, model = permuted_digits(task_labels=True, experiences=2), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rates: list[float] = []

    class Watch(SupervisedPlugin):
        def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
            rates.append(strategy.optimizer.param_groups[0]["lr"])

    learner = CLNP(
        model=model,
        optimizer=optimizer,
        train_mb_size=64,
        eval_mb_size=500,
        train_epochs=4,
        eval_every=1,
        evaluator=EvaluationPlugin(accuracy_metrics(epoch=True, experience=True, stream=True)),
        plugins=[
            LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)),
            EarlyStoppingPlugin(patience=3, val_stream_name="test_stream", verbose=False),
            Watch(),
        ],
    )
    for k, experience in enumerate(bench.train_stream):
        learner.train(experience, eval_streams=[bench.test_stream[k]])
    assert learner.optimizer is optimizer
    assert rates[:4] == pytest.approx([0.1, 0.1, 0.01, 0.01])
    results = learner.eval(bench.test_stream)
    assert min(metric(results, "Top1_Acc_Exp")) > 0.6
    assert all(v.identical for v in learner.certificate.verify(model))


def test_what_does_not_fit_is_refused() -> None:
    model = network()
    other = AdamL1(network().parameters())
    with pytest.raises(ConfigError, match="exactly the model's parameters"):
        CLNP(model=model, optimizer=other)
    optimizer = AdamL1(model.parameters())
    with pytest.raises(ConfigError, match=r"result of clnp\.convert, got Linear"):
        CLNP(model=nn.Linear(2, 2), optimizer=optimizer)
    for name in ("margin", "validation"):
        with pytest.raises(ConfigError, match=f"^{name}.*1.5"):
            CLNP(model=model, optimizer=optimizer, **{name: 1.5})
    bench = split_digits(task_labels=True)
    online = split_online_stream(bench.train_stream, experience_size=50)
    learner = strategy(train_epochs=1)
    with pytest.raises(
        DataError, match="expected a whole one, got a part split for online learning"
    ):
        learner.train(next(iter(online)))


def test_a_full_single_head_says_so() -> None:
    bench = permuted_digits(
        task_labels=False, experiences=4
    )  # each takes at least one of 3 channels
    learner = strategy("single", width=3, train_epochs=1, margin=0.0)
    with pytest.raises(CapacityError, match="got none of 3"):
        learner.train(bench.train_stream)
    assert all(v.identical for v in learner.certificate.verify(learner.model))
