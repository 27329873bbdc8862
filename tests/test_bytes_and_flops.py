"""The count of work and traffic is the committed one and leaves nothing unexplained."""

import csv

from benchmarks import bytes_and_flops
from benchmarks.bytes_and_flops import NETWORKS, NORMS, RESULTS, layers_of, rows, unexplained


def test_committed_table() -> None:
    with RESULTS.open(newline="") as file:
        committed = list(csv.DictReader(file))
    now = [{key: str(value) for key, value in row.items()} for row in rows()]
    assert committed == now


def test_nothing_is_unexplained() -> None:
    table = rows()
    assert unexplained(table) == []
    assert {row["network"] for row in table} == {*NETWORKS, *NORMS}
    table[0]["moved / least"], table[0]["reason"] = 1.6, ""
    assert unexplained(table) == table[:1]


def test_multiply_adds_of_the_mlp() -> None:
    """At fraction a a hidden layer does 1 - a(1-a), 1 - a and (1-a)^2 of the dense work."""
    make, shape = NETWORKS["784-2000-2000-10"]
    for fraction in (0.0, 0.5, 0.75):
        layer = layers_of(make(), shape, fraction)[1]
        found = {count.op: count.flop for count in bytes_and_flops.counts(layer)}
        dense = 2 * 256 * 2000 * 2000
        assert found["masked_linear_fwd"] == dense * (1 - fraction * (1 - fraction))
        assert found["masked_linear_wgrad"] == dense * (1 - fraction)
        assert found["masked_linear_dgrad"] == dense * (1 - fraction) ** 2
