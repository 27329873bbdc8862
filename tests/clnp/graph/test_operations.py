"""The table of operations: refusals show it, and every row can be built again."""

import pytest
import torch

from clnp.graph.operations import OPS, WITH_WEIGHTS, documented
from clnp.graph.reasons import HELP
from clnp.graph.recognised import BINARY, CALLS, MODULES, UNARY


def test_refusals_name_the_kinds() -> None:
    assert all(kind in HELP for kind in documented())


@pytest.mark.parametrize("name", OPS)
def test_rows_are_complete(name: str) -> None:
    op = OPS[name]
    assert op.role == "input" or (op.make or op.function) is not None
    if op.role in WITH_WEIGHTS:
        assert op.make is not None


def test_every_recognised_name_has_a_row() -> None:
    assert {*UNARY.values(), *CALLS, *(op for op, _ in MODULES.values())} <= set(OPS)
    assert set(BINARY.values()) - {"pow"} <= set(OPS)


@pytest.mark.parametrize("name", [n for n, op in OPS.items() if op.kind == "maths"])
def test_maths_are_elementwise(name: str) -> None:
    x = torch.rand(3, 4) + 0.5
    function = OPS[name].function
    assert function is not None
    assert torch.equal(function(x)[:, :2], function(x[:, :2].clone()))
