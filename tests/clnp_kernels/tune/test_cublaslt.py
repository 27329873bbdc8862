"""A cuBLASLt that computes wrong numbers is found before it serves. The library is a fake."""

from pathlib import Path

import pytest
import torch

from clnp_kernels.tune.calls import call_of
from clnp_kernels.tune.cases import Layer, Maker
from clnp_kernels.tune.table import Check, Table
from tests.clnp_kernels.tune.test_check import answers
from tests.cuda import fake

PRODUCTS = ("masked_linear_fwd", "masked_linear_dgrad", "masked_linear_wgrad")
# fault of the library -> operators whose check sees it
FAULTS = {"": set(), "relu": {"masked_linear_fwd"}, "sums": {"masked_linear_wgrad"}}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_wrong_epilogue_never_serves(
    fault: str, emulator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLNP_EMULATED", str(emulator))
    monkeypatch.setenv("CLNP_TEST_CUBLASLT", str(fake.build()))
    monkeypatch.setenv(fake.FAULT, fault)
    jobs = [
        {"kind": "check", "operator": operator, "implementation": "cublaslt"}
        | {"dtype": "float32", "alignment": 8}
        for operator in PRODUCTS
    ]
    found = answers(jobs)
    failed = {name for name, text in found.items() if text != "reason: "}
    assert failed == FAULTS[fault]
    checks = [
        Check(name, "cublaslt", "float32", 8, text.removeprefix("reason: "))
        for name, text in found.items()
    ]
    table, layer = Table("e", checks), Layer(4096, 2056, 2056, 2056, 2056)
    for operator in PRODUCTS:
        made = Maker(layer, torch.float32, "meta").arguments(operator)
        call = call_of(operator, made, "graph")
        assert call.alignment == 8
        assert table.failed(call, "cublaslt") == (operator in failed)
        default = operator == "masked_linear_fwd" and operator not in failed
        assert table.choose(call).implementation == ("cublaslt" if default else "torch")
