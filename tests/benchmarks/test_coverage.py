"""Coverage of models: the results hold no wrong conversion, and the checks would see one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import clnp
from benchmarks import coverage


def test_no_model_is_converted_wrong() -> None:
    rows = coverage.read_results().values()
    verdicts = {"converted", "refused", "too slow", "error", coverage.TO_DO}
    assert {row["verdict"] for row in rows} <= verdicts


def test_distance_sees_another_function() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    model = clnp.convert(net, x, verbose=False)
    assert coverage.distance(net, model, x) <= coverage.TOLERANCE
    with torch.no_grad():
        net[0].weight[0] += 1e-6
    assert coverage.distance(net, model, x) > coverage.TOLERANCE


def test_three_tasks_see_a_changed_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    def converted() -> clnp.Model:
        net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        return clnp.convert(net.eval(), torch.zeros(2, 4), verbose=False)

    x = torch.randn(3, 4)
    assert coverage.three_tasks(converted(), x)
    begin = clnp.Model.begin_task

    def spoiled(model: clnp.Model, *args: object, **kwargs: object) -> None:
        if model.tasks:
            model.masked["0"].active_weight[0] += 1
        begin(model, *args, **kwargs)

    monkeypatch.setattr(clnp.Model, "begin_task", spoiled)
    assert not coverage.three_tasks(converted(), x)


def test_a_model_that_fails_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> nn.Module:
        raise OSError(f"no {name}")

    monkeypatch.setattr(coverage, "build", fails)
    assert coverage.in_a_process("x") == {"verdict": "error", "reason": "OSError: no x"}
