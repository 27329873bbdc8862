"""Prediction without task labels: chosen tasks and accuracies."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import clnp
from clnp import metrics
from clnp.cli.console import not_given
from clnp.cli.report import inferred_line
from clnp.data import Task
from clnp.errors import ConfigError
from clnp.network.inference import MEASURES, RULES, choose
from clnp.network.model import Model
from clnp.training.evaluation import inferred_accuracies
from tests.clnp.cases import blobs, convert, mlp

CPU = torch.device("cpu")
NAN = math.nan
# Inputs 0 and 1 speak for the classes of task 0, inputs 2 and 3 for those of task 1.
FIRST = ([[1, 0, 0, 0], [0, 1, 0, 0], [0.5, 0, 0, 1]], [0, 1, 0])
SECOND = ([[0, 0, 1, 0], [1, 0, 0.5, 0], [2, 2, 0, 0.5], [0, 1, 0.5, 0]], [0, 0, 1, 0])


def split(rows: tuple[list[list[float]], list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(rows[0], dtype=torch.float32), torch.tensor(rows[1])


def by_hand(head: str) -> Model:
    """Task 0's logits are ten times inputs 0 and 1, task 1's ten times inputs 2 and 3."""
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(4))
        net[2].weight.copy_(10 * torch.eye(4)[:2])
    model = clnp.convert(net, torch.zeros(1, 4), verbose=False)
    model.set_head(head)
    model.begin_task(2)
    model.compact({"0": torch.tensor([0, 1])})
    model.consolidate(name="first")
    model.begin_task(2)
    with torch.no_grad():
        model.layer_weight("0").copy_(torch.eye(4)[2:])
        own = model.head.free_weight
        own.copy_(10 * torch.eye(4)[2:, -own.shape[1] :])
    model.consolidate(name="second")
    return model.eval()


@pytest.mark.parametrize("head", ["multi", "single"])
def test_a_network_made_by_hand(head: str) -> None:
    model = by_hand(head)
    x = split(SECOND)[0]
    logits = [10 * x[:, :2], 10 * x[:, 2:]]
    for got, wanted in zip(model.all_tasks(x), logits, strict=True):
        assert torch.equal(got, wanted)
    # Row 2 is full of task 0, but undecided there: energy takes task 0, entropy task 1.
    task, label = model.predict(x, "entropy")
    assert task.tolist() == [1, 0, 1, 0]
    assert label.tolist() == [0, 0, 1, 1]
    task, label = model.predict(x, "energy")
    assert task.tolist() == [1, 0, 0, 0]
    assert label.tolist() == [0, 0, 0, 1]
    got = inferred_accuracies(model, [split(FIRST), split(SECOND)], CPU)
    assert got == {
        "entropy": {
            "task": [2 / 3, 2 / 4],
            "class_incremental": [2 / 3, 2 / 4],
            "domain_incremental": [2 / 3, 3 / 4],
        },
        "energy": {
            "task": [2 / 3, 1 / 4],
            "class_incremental": [2 / 3, 1 / 4],
            "domain_incremental": [2 / 3, 2 / 4],
        },
    }


def test_tests_that_are_not_at_hand_are_nan() -> None:
    got = inferred_accuracies(by_hand("multi"), [None, split(SECOND)], CPU)
    for rule in RULES:
        for measure in MEASURES:
            assert math.isnan(got[rule][measure][0])
            assert got[rule][measure][1] > 0


def test_tasks_of_different_sizes() -> None:
    """Entropy is normalised per task; a label has no meaning across such tasks."""
    certain = torch.tensor([[4.0, 0.0]])
    same_share = torch.tensor([[4.0, 0.0, -90.0, -90.0]])
    task, _ = choose([same_share, certain], "entropy")
    assert task.tolist() == [0]  # the same entropy of log 4 is less than of log 2
    lt = clnp.Learner(convert(mlp([12])), epochs=1)
    lt.learn(blobs(0))
    report = lt.learn(blobs(1, classes=2))
    for rule in RULES:
        assert np.isnan(report.inferred[rule]["domain_incremental"]).all()
        assert not np.isnan(report.inferred[rule]["class_incremental"]).any()
    assert ", label" not in inferred_line("energy", means(report)["energy"])


def means(report: clnp.TaskReport) -> dict[str, dict[str, float | None]]:
    return metrics.inferred_means(report.inferred)


@pytest.mark.parametrize("head", ["multi", "single"])
def test_reports_hold_the_accuracies_of_predict(head: str) -> None:
    tasks = [blobs(k) for k in range(3)]
    lt = clnp.Learner(convert(mlp([40])), head=head, epochs=4, lr=1e-2, batch_size=32, margin=0.05)
    reports = [lt.learn(task) for task in tasks]
    assert all(reports[0].inferred[rule]["task"] == [1.0] for rule in RULES)
    assert reports[0].inferred["energy"]["class_incremental"] == [reports[0].test]
    for rule in RULES:
        last = reports[2].inferred[rule]
        for k, task in enumerate(tasks):
            x, y = task.test
            found, label = lt.model.predict(x, rule)
            assert last["task"][k] == float((found == k).double().mean())
            both = ((found == k) & (label == y)).double().mean()
            assert last["class_incremental"][k] == float(both)
            assert last["domain_incremental"][k] == float((label == y).double().mean())
            assert last["class_incremental"][k] <= min(last["task"][k], lt.accuracy_matrix[2, k])
    restored = clnp.TaskReport(**json.loads(json.dumps(reports[2].to_json())))
    assert restored.inferred == reports[2].inferred
    old = {k: v for k, v in reports[2].to_json().items() if k != "inferred"}
    assert clnp.TaskReport(**old).inferred == {}


def test_it_changes_nothing_else_and_can_be_switched_off() -> None:
    def learned(infer: bool) -> clnp.Learner:
        torch.manual_seed(0)
        lt = clnp.Learner(convert(mlp([24], dropout=0.2)), epochs=2, infer_tasks=infer)
        for k in range(2):
            lt.learn(blobs(k))
        return lt

    on, off = learned(True), learned(False)
    assert [report.inferred for report in off.reports] == [{}, {}]
    for key, value in on.model.state_dict().items():
        assert torch.equal(value, off.model.state_dict()[key])
    np.testing.assert_array_equal(on.accuracy_matrix, off.accuracy_matrix)
    with pytest.raises(ConfigError, match=r"infer_tasks: .*got 1"):
        clnp.Learner(convert(mlp([24])), infer_tasks=1)


def test_a_data_set_as_test_split() -> None:
    class Rows(torch.utils.data.Dataset):
        def __init__(self, rows) -> None:
            self.x, self.targets = rows

        def __len__(self) -> int:
            return len(self.targets)

        def __getitem__(self, i: int):
            return self.x[i], int(self.targets[i])

    task = blobs(0)
    lt = clnp.Learner(convert(mlp([16])), epochs=2)
    report = lt.learn(Task("rows", task.train, task.validation, Rows(task.test), classes=3))
    assert report.inferred["entropy"]["class_incremental"] == [report.test]


def test_what_is_printed() -> None:
    inferred = {
        rule: {"task": [0.9, 0.7], "class_incremental": [0.9, 0.5], "domain_incremental": [1, 0.6]}
        for rule in RULES
    }
    assert not_given(inferred) == "task not given 70.00 %, "
    assert not_given({}) == ""
    line = inferred_line("entropy", metrics.inferred_means(inferred)["entropy"])
    assert line == (
        "task not given, chosen by entropy: task 80.00 %, task and label 70.00 %, label 80.00 %"
    )
    nothing = dict.fromkeys(MEASURES)
    assert inferred_line("energy", nothing) == "task not given, chosen by energy: not measured"
    partly = {"entropy": {"task": [0.5, None, NAN], "class_incremental": [None, None]}}
    assert metrics.inferred_means(partly) == {"entropy": {"task": 0.5, "class_incremental": None}}
