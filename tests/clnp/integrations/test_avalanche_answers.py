"""Networks and losses of the Avalanche strategy in evaluation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("avalanche", reason="avalanche-lib is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # what Avalanche itself warns of

from avalanche.benchmarks import benchmark_from_datasets  # noqa: E402
from avalanche.benchmarks.scenarios.supervised import class_incremental_benchmark  # noqa: E402
from avalanche.benchmarks.utils import as_classification_dataset  # noqa: E402
from avalanche.core import SupervisedPlugin  # noqa: E402

import clnp  # noqa: E402
from clnp.errors import ConfigError, DataError  # noqa: E402
from clnp.integrations.avalanche import CLNP  # noqa: E402
from tests.clnp.integrations.avalanche_cases import (  # noqa: E402
    Labelled,
    metric,
    permuted_digits,
    split_digits,
    strategy,
)


def examples(experience: Any) -> tuple[Tensor, Tensor]:
    """Return all examples of an experience, x [N, 64] and y [N]."""
    x = torch.stack([item[0] for item in experience.dataset])
    return x, torch.tensor([int(item[1]) for item in experience.dataset])


def unlabelled_digits() -> Any:
    """A class-incremental benchmark whose data sets have no task labels at all."""
    task = clnp.data.PermutedDigits(tasks=1)[0]
    train, test = (
        as_classification_dataset(Labelled(*task.tensors(split))) for split in ("train", "test")
    )
    return class_incremental_benchmark(
        {"train": train, "test": test}, num_experiences=5, class_order=list(range(10))
    )


@pytest.mark.parametrize(
    ("stream", "head", "rule"),
    [
        (lambda: split_digits(task_labels=False), "multi", "entropy"),
        (unlabelled_digits, "multi", "energy"),
        (lambda: permuted_digits(task_labels=False), "single", "entropy"),
    ],
    ids=["split", "no labels at all", "permuted"],
)
def test_without_task_labels_the_task_is_inferred(
    stream: Callable[[], Any], head: str, rule: str
) -> None:
    bench, learner = stream(), strategy(head, rule=rule, train_epochs=2)
    learned = [sorted(e.classes_in_this_experience) for e in bench.train_stream]
    for experience in bench.train_stream:
        learner.train(experience)
    results = learner.eval(bench.test_stream)
    assert metric(results, "Task_Inferred_Stream") == [1.0]
    accuracies = []
    for experience in bench.test_stream:
        x, y = examples(experience)
        task, place = learner.model.predict(x, rule)
        found = torch.tensor(
            [learned[t][p] for t, p in zip(task.tolist(), place.tolist(), strict=True)]
        )
        accuracy = float((found == y).double().mean())
        accuracies.append(accuracy)
    assert metric(results, "Top1_Acc_Exp") == pytest.approx(accuracies)
    # Being told the task would be worth something: an oracle.
    assert sum(accuracies) < sum(by_experience(learner, bench))


def by_experience(learner: CLNP, bench: Any) -> list[float]:
    """Evaluate with the experience's index as the task."""
    own = []
    for k, experience in enumerate(bench.test_stream):
        x, y = examples(experience)
        classes = torch.tensor(sorted(bench.train_stream[k].classes_in_this_experience))
        own.append(float((classes[learner.model(x, task=k).argmax(-1)] == y).double().mean()))
    return own


def test_a_minibatch_of_several_tasks_is_answered_by_each() -> None:
    bench, learner = split_digits(task_labels=True), strategy(train_epochs=1)
    learner.train(bench.train_stream[:3])
    parts = [bench.test_stream[k].dataset for k in (2, 0, 1)]
    mixed = benchmark_from_datasets(test=[parts[0].concat(parts[1]).concat(parts[2])])
    outputs: list[Tensor] = []

    class Watch(SupervisedPlugin):
        def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
            assert len(strategy.mb_task_id.unique()) == 3
            outputs.append(strategy.mb_output)

    learner.plugins.append(Watch())
    learner.eval_mb_size = 10**6
    results = learner.eval(mixed.test_stream)
    assert metric(results, "Task_Inferred_Stream") == [0.0]
    start = 0
    for k in (2, 0, 1):
        x, _ = examples(bench.test_stream[k])
        own = sorted(bench.test_stream[k].classes_in_this_experience)
        logits = outputs[0][start : start + len(x)][:, own]
        assert torch.equal(logits, learner.model(x, task=k))
        start += len(x)


def test_an_experience_that_comes_again_is_inferred_among_those_of_its_label() -> None:
    """Task 0 has label 0, tasks 1 and 2 have label 1."""
    bench, learner = permuted_digits(task_labels=True, experiences=2), strategy(train_epochs=1)
    for k in (0, 1, 1):
        learner.train(bench.train_stream[k])
    results = learner.eval(bench.test_stream)
    sizes = [len(e.dataset) for e in bench.test_stream]
    assert metric(results, "Task_Inferred_Stream") == [sizes[1] / sum(sizes)]
    x, y = examples(bench.test_stream[1])
    logits = [learner.model(x, task=k) for k in (1, 2)]
    chosen, label = clnp.network.inference.choose(logits, "entropy")
    assert set(chosen.tolist()) <= {0, 1}
    accuracy = float((label == y).double().mean())
    assert metric(results, "Top1_Acc_Exp/eval_phase/test_stream/Task001") == [
        pytest.approx(accuracy)
    ]


CRITERIA: dict[str, Any] = {
    "plain": nn.CrossEntropyLoss,
    "weights": lambda: nn.CrossEntropyLoss(weight=torch.arange(1.0, 11.0)),
    "smoothing": lambda: nn.CrossEntropyLoss(label_smoothing=0.2),
    "both, summed": lambda: nn.CrossEntropyLoss(
        torch.arange(1.0, 11.0), label_smoothing=0.1, reduction="sum"
    ),
    "margin": lambda: nn.MultiMarginLoss(weight=torch.arange(1.0, 11.0)),
    "function": lambda: F.cross_entropy,
}


@pytest.mark.parametrize("name", CRITERIA)
def test_the_criterion_sees_the_classes_of_the_task(name: str) -> None:
    """Losses are those of the task's own logits, with its share of the class weights."""
    criterion = CRITERIA[name]()
    bench = split_digits(task_labels=True)
    learner = strategy(criterion=criterion, train_epochs=1, eval_mb_size=10**6)
    losses: list[tuple[float, float]] = []

    class Watch(SupervisedPlugin):
        def after_forward(self, strategy: Any, **kwargs: Any) -> None:
            own = sorted(strategy.experience.classes_in_this_experience)
            self.expected = expected(strategy.mb_output[:, own], strategy.mb_y, own)

        def before_backward(self, strategy: Any, **kwargs: Any) -> None:
            losses.append((float(strategy.loss), float(self.expected)))

    def expected(logits: Tensor, y: Tensor, own: list[int]) -> Tensor:
        places = torch.tensor([own.index(int(label)) for label in y])
        twin = CRITERIA[name]()
        if getattr(twin, "weight", None) is not None:
            twin.weight = twin.weight[own]
        return twin(logits, places)

    learner.plugins.append(Watch())
    learner.train(bench.train_stream[:2])
    assert len(losses) > 4
    got, wanted = torch.tensor(losses).T
    torch.testing.assert_close(got, wanted)
    results = learner.eval(bench.test_stream[:2])
    for k in range(2):
        x, y = examples(bench.test_stream[k])
        own = sorted(bench.test_stream[k].classes_in_this_experience)
        value = metric(results, f"Loss_Exp/eval_phase/test_stream/Task00{k}")
        assert value == [pytest.approx(float(expected(learner.model(x, task=k), y, own)), rel=1e-5)]


def test_a_class_that_the_answering_network_lacks_costs_what_it_says() -> None:
    """An experience that was not learned is answered by the latest network, whose classes are
    others.
    """
    learner = strategy(criterion=nn.CrossEntropyLoss(label_smoothing=0.2), train_epochs=1)
    bench = split_digits(task_labels=True)
    learner.train(bench.train_stream[0])
    results = learner.eval(bench.test_stream[:2])
    losses = metric(results, "Loss_Exp")
    assert losses[0] < 10
    assert losses[1] == 1000.0


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (
            nn.CrossEntropyLoss(weight=torch.ones(4)),
            "a class weight for class 9, got weights of 4 classes",
        ),
        (nn.CrossEntropyLoss(reduction="none"), r"got \[2\]; use reduction='mean'"),
        (nn.MSELoss(), r"got (RuntimeError|ValueError)"),
        (lambda outputs, y: 0.5, "got float"),
    ],
    ids=["few weights", "no scalar", "other targets", "no tensor"],
)
def test_a_criterion_that_does_not_fit_is_refused_before_training(
    criterion: Any, message: str
) -> None:
    learner = strategy(criterion=criterion, train_epochs=1)
    with pytest.raises(ConfigError, match=f"criterion: .*{message}"):
        learner.train(permuted_digits(task_labels=True, experiences=1).train_stream)
    assert not learner.model.in_task


def test_examples_of_other_experiences_are_refused_in_training() -> None:
    bench, learner = split_digits(task_labels=True), strategy(train_epochs=1)

    class Replay(SupervisedPlugin):
        def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            strategy.mbatch[1][0] = foreign

    own = bench.train_stream[0].classes_in_this_experience
    foreign = next(c for c in range(10) if c not in own)
    learner.plugins.append(Replay())
    with pytest.raises(
        DataError, match=f"expected classes of this experience, got {foreign}, .*replay"
    ):
        learner.train(bench.train_stream[0])
