"""The metrics against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clnp import metrics as d
from clnp.errors import DataError

NAN = math.nan
R = [[0.9, NAN, NAN], [0.7, 0.8, NAN], [0.75, 0.6, 1.0]]


def test_by_hand():
    assert d.average_accuracy(R) == pytest.approx((0.75 + 0.6 + 1.0) / 3, abs=1e-15)
    assert d.backward_transfer(R) == pytest.approx(((0.75 - 0.9) + (0.6 - 0.8)) / 2, abs=1e-15)
    assert d.forgetting(R) == pytest.approx([0.15, 0.2], abs=1e-15)
    assert d.mean_forgetting(R) == pytest.approx(0.175, abs=1e-15)
    assert d.mean_accuracies(R) == pytest.approx([0.9, 0.75, 2.35 / 3], abs=1e-15)


def test_capacity_as_text():
    capacity = {
        "conv1": {"size": 8, "used": 6, "new": 2, "reused": 3, "free": 2},
        "a long name": {"size": 0, "used": 0, "new": 0, "reused": 0, "free": 0},
    }
    head, first, second = (line.split("  ") for line in d.capacity_text(capacity).splitlines())
    assert [cell.strip() for cell in head if cell] == ["group", "size", "reused", "new", "free"]
    assert [cell.strip() for cell in first if cell] == [
        *("conv1", "8", "3 (37.5%)", "2 (25.0%)", "2 (25.0%)")
    ]
    assert [cell.strip() for cell in second if cell] == ["a long name", "0", *["0 (0.0%)"] * 3]
    assert len({len(line) for line in d.capacity_text(capacity).splitlines()}) == 1


def test_forgetting_takes_the_best_after_learning_only():
    full = [[0.5, 0.9, 0.1], [0.8, 0.6, 0.1], [0.7, 0.6, 0.9]]
    assert d.forgetting(full) == pytest.approx([0.1, 0.0], abs=1e-15)


def test_nothing_forgotten_is_exactly_zero():
    rng = np.random.default_rng(0)
    row = rng.random(10)
    matrix = np.where(np.tri(10, dtype=bool), row, NAN)
    assert d.backward_transfer(matrix) == 0.0
    assert d.mean_forgetting(matrix) == 0.0


def test_one_task():
    assert d.summary([[0.5]]) == {"acc": 0.5, "bwt": None, "forgetting": None}
    assert len(d.forgetting([[0.5]])) == 0


@pytest.mark.parametrize(
    "bad",
    [[], [[]], [[0.5, 0.5]], [[1.5]], [[-0.1]], [[NAN]], [[0.5, NAN], [NAN, 0.5]], [["a"]], 0.5],
)
def test_bad_matrix(bad):
    with pytest.raises(DataError, match=r"^R: "):
        d.accuracy_matrix(bad)


CAPACITIES = [
    {"0": {"size": 20, "used": 5, "new": 5, "reused": 0, "free": 15}},
    {"0": {"size": 20, "used": 8, "new": 3, "reused": 4, "free": 12}},
]
REUSE = [{"0": []}, {"0": [4]}]


def test_capacity():
    rows = d.capacity_table(CAPACITIES)
    last = {"size": 20, "used": 8, "new": 3, "reused": 4, "free": 12}
    assert rows[1] == {"task": 1, "group": "0", **last}
    shares = d.capacity_shares(CAPACITIES, "0")
    assert shares["idle"] == pytest.approx([0, 0.05])
    assert sum(shares.values()) == pytest.approx([1, 1], abs=1e-15)


def test_reuse_matrix():
    assert d.reuse_matrix(CAPACITIES, REUSE, "0").tolist() == [[5, 0], [4, 3]]
    with pytest.raises(DataError, match="expected 1 entries, got 0"):
        d.reuse_matrix(CAPACITIES, [{"0": []}, {"0": []}], "0")


def test_mean_std():
    assert d.mean_std([1.0, 3.0, None]) == {"mean": 2.0, "std": pytest.approx(math.sqrt(2)), "n": 2}
    assert d.mean_std([1.0]) == {"mean": 1.0, "std": None, "n": 1}
    assert d.mean_std([None]) == {"mean": None, "std": None, "n": 0}
