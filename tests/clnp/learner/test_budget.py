"""Budgets divide a network among its tasks."""

import warnings
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import clnp
from clnp.errors import CapacityWarning, ConfigError
from clnp.learner.budget import budgets, granularity_on, share, warn_of_capacity
from tests.clnp.cases import Residual, blobs, convert, mlp

QUICK: dict[str, Any] = {"epochs": 3, "lr": 0.01, "batch_size": 32, "margin": 0.0}


@given(st.integers(2, 40))
def test_every_task_finds_its_part(tasks: int) -> None:
    """Even where all tasks take everything that they are allowed."""
    free, taken = Fraction(1), []
    for k in range(tasks):
        taken.append(share(k, tasks) * free)
        free -= taken[-1]
    assert taken[0] == min(Fraction(2, tasks + 1), Fraction(1, 2))
    assert min(taken[1:]) == max(taken[1:]) >= Fraction(1, tasks + 1)
    assert free == 0


@given(st.integers(0, 40))
def test_without_a_number_no_task_gets_more_than_half(learned: int) -> None:
    assert 0 < share(learned, None) <= Fraction(1, 2)


@pytest.mark.parametrize("head", ["single", "multi"])
@pytest.mark.parametrize("net", [lambda: mlp([40, 30]), Residual], ids=["mlp", "residual"])
def test_no_task_fills_the_network_by_default(net: Any, head: str) -> None:
    torch.manual_seed(0)
    lt = clnp.Learner(convert(net()), head=head, tasks_expected=3, **QUICK)
    for k in range(3):
        report = lt.learn(blobs(k))
        if k == 0:
            assert all(n <= lt.model.sizes[group] / 2 for group, n in report.in_training.items())
            assert all(row["used"] <= row["size"] / 2 for row in report.capacity.values())
        if k < 2:
            assert all(row["free"] > 0 for row in report.capacity.values())
    assert all(verdict.identical for verdict in lt.verify())


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [(None, [13, 10]), (1, None), (2, [20, 15]), (3, [20, 15]), (5, [13, 10])],
)
def test_budgets_of_the_first_task(tasks: int | None, expected: list[int] | None) -> None:
    found = budgets(convert(mlp([40, 30])), tasks_expected=tasks)
    assert found == ({} if expected is None else dict(zip(("0", "2"), expected, strict=True)))


@pytest.mark.parametrize(
    ("device", "value", "found"),
    [("cpu", None, 1), ("cuda", None, 8), ("cuda:1", None, 8), ("cuda", 1, 1), ("cpu", 16, 16)],
)
def test_granularity_of_a_device(device: str, value: int | None, found: int) -> None:
    """Kernels load 16 bytes at once on a GPU; a number that is given holds everywhere."""
    assert granularity_on(torch.device(device), value) == found


def test_budgets_are_multiples_of_the_granularity() -> None:
    assert budgets(convert(mlp([40, 30])), granularity=8) == {"0": 8, "2": 8}
    assert budgets(convert(mlp([40, 12])), granularity=16) == {"0": 16, "2": 12}


@pytest.mark.parametrize("value", [0, -1, 2.5, "5", True])
def test_a_wrong_number_of_tasks_is_refused(value: Any) -> None:
    model = convert(mlp([8]))
    for call in (
        lambda: clnp.Learner(model, tasks_expected=value),
        lambda: budgets(model, tasks_expected=value),
        lambda: clnp.begin_task(model, tasks_expected=value),
    ):
        with pytest.raises(ConfigError, match=r"^tasks_expected: expected"):
            call()


def test_the_own_loop_has_the_same_budgets() -> None:
    model = convert(mlp([40, 30]))
    clnp.begin_task(model, tasks_expected=5)
    assert (model.free("0"), model.free("2")) == (13, 10)
    model.cancel_task()
    clnp.begin_task(model, most_new=None)
    assert (model.free("0"), model.free("2")) == (40, 30)


def test_a_group_is_named_once_when_nearly_full_and_once_when_full() -> None:
    def row(used: int) -> dict[str, int]:
        return {"size": 10, "used": used}

    warned: set[str] = set()
    steps = [
        ({"a": row(8), "b": row(5)}, None),
        ({"a": row(9), "b": row(5)}, r"^1 group of channels nearly full: 'a' 9 of 10 used"),
        ({"a": row(9), "b": row(6)}, None),
        ({"a": row(10), "b": row(10)}, r"^2 groups of channels full: 'a' 10 of 10, 'b' 10 of 10"),
        ({"a": row(10), "b": row(10)}, None),
    ]
    for capacity, message in steps:
        if message is None:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warn_of_capacity(capacity, warned, 1)
        else:
            with pytest.warns(CapacityWarning, match=message):
                warn_of_capacity(capacity, warned, 1)


def test_the_last_task_may_fill_the_network_in_silence() -> None:
    for expected in (1, 2):
        settings = {**QUICK, "tasks_expected": expected, "first_growth": None}
        lt = clnp.Learner(convert(mlp([1, 1])), **settings)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            lt.learn(blobs(0))
        full = [w for w in seen if issubclass(w.category, CapacityWarning)]
        assert bool(full) == (expected == 2)
