"""Launches of a training step are counted, and do not grow."""

import csv
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from benchmarks import launches
from benchmarks.cases import Case
from benchmarks.state import make_state


def committed() -> list[dict[str, str]]:
    with launches.RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def some() -> Iterator[dict[str, str]]:
    for row in committed():
        chosen = ("fp32", "resnet18"), ("bf16", "mlp"), ("fp32", "narrow")
        if row["fraction"] == "0.5" and (row["dtype"], row["network"]) in chosen:
            yield row


@pytest.mark.parametrize(
    "row", [row for row in some() if row["kernels"] != "dense"], ids=lambda r: "-".join(r.values())
)
def test_a_step_has_no_more_launches_than_are_committed(row: dict[str, str]) -> None:
    """Another torch may take other operators apart: there the count is of no use."""
    if torch.__version__.split("+")[0] != row["torch"].split("+")[0]:
        pytest.skip(f"counted with torch {row['torch']}")
    name = row["network"]
    case = Case(name, launches.NETWORKS[name], launches.BATCH, float(row["fraction"]), row["dtype"])
    state = make_state(case)
    assert launches.of_fit(state, row["kernels"], captured=False) <= float(row["eager"])
    if name == "mlp":
        assert launches.of_fit(state, row["kernels"], captured=True) <= float(row["captured"])


def test_captured_steps_leave_less_than_one_launch_to_the_host() -> None:
    rows = [row for row in committed() if row["captured"]]
    assert rows
    assert all(float(row["captured"]) <= 1 / 8 for row in rows)


def test_what_counts() -> None:
    """Views and empty tensors launch nothing, everything that writes does."""
    x = torch.ones(4, 6)
    with launches.Launches() as counted:
        y = x.view(6, 4).t()[1:].detach()
        torch.empty(3)
        assert counted.count == 0
        y = y + 1
        y.relu_()
        nn.functional.linear(y, torch.ones(5, 6), torch.ones(5))
        float(y.sum())
    assert counted.count == 6, counted.by
