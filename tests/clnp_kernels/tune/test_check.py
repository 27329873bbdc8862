"""The check on kernels that are wrong, crash or hang, in processes with an interpreted GPU."""

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from clnp_kernels.tune import check, supervise
from clnp_kernels.tune.calls import OPERATORS
from clnp_kernels.tune.environment import Card
from clnp_kernels.tune.supervise import Worker, run
from tests.clnp_kernels.tune.conftest import CARD

pytest.importorskip("triton", reason="triton is not installed")
NAMES = {operator: "cuda" if operator.endswith("_l1") else "triton" for operator in OPERATORS}


def job(operator: str, dtype: str = "float32", alignment: int = 1) -> dict[str, Any]:
    return {
        "kind": "check",
        "operator": operator,
        "implementation": NAMES[operator],
        "dtype": dtype,
        "alignment": alignment,
    }


def answers(jobs: list[dict[str, Any]], seconds: float = 120, **more: Any) -> dict[str, str]:
    """Operator -> what its check says."""
    found = {}
    with closing(run(CARD, jobs, seconds, **more)) as done:
        for one, answer in done:
            assert len(answer) == 1
            found[one["operator"]] = "".join(f"{kind}: {text}" for kind, text in answer.items())
    return found


@pytest.mark.parametrize("fault", ["", "wrong"])
def test_wrong_numbers_of_every_operator(
    fault: str, emulator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One wrong element of any operator is found, and nothing in kernels as they are."""
    monkeypatch.setenv("CLNP_EMULATED", str(emulator))
    monkeypatch.setenv("CLNP_TEST_FAULTS", json.dumps(dict.fromkeys(OPERATORS, fault or None)))
    found = answers([job(operator) for operator in OPERATORS])
    assert set(found) == set(OPERATORS)
    for operator, text in found.items():
        if not fault:
            assert text == "reason: ", operator
        else:
            assert "wrong numbers" in text or "the activity is not the sum" in text, operator


def test_each_failure_is_that_operators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash, an error and the end of memory; the operators between them pass."""
    linear = [operator for operator in OPERATORS if operator.startswith("masked_linear")]
    faults = {
        "masked_linear_fwd": "crash",
        "masked_conv2d_relu_grad": "raise",
        "partial_batch_norm_bwd": "memory",
        "partial_batch_norm_fwd": "random",
        "masked_linear_wgrad": "unwritten",
    }
    order = [*linear, *(name for name in faults if name not in linear), "channel_activity"]
    monkeypatch.setenv("CLNP_TEST_FAULTS", json.dumps(faults))
    monkeypatch.setenv("CLNP_TEST_LEAST", "1")
    found = answers([job(operator) for operator in order])
    assert found["masked_linear_fwd"] == "error: crashed (SIGSEGV)"
    assert found["masked_conv2d_relu_grad"] == "error: RuntimeError: no compiler was found"
    assert found["partial_batch_norm_bwd"].startswith("memory: OutOfMemoryError")
    assert "two runs differ" in found["partial_batch_norm_fwd"]
    assert "not finite or were not written" in found["masked_linear_wgrad"]
    passed = ("masked_linear_dgrad", "masked_linear_relu_grad", "channel_activity")
    assert {found[operator] for operator in passed} == {"reason: "}


def test_a_kernel_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLNP_TEST_FAULTS", json.dumps({"channel_activity": "hang"}))
    found = answers([job("channel_activity")], seconds=2)
    assert found["channel_activity"] == "error: no answer within 2 seconds"


def test_a_process_that_does_not_start_is_no_verdict() -> None:
    """Nothing is known of the kernels then; the process is not tried again and again."""
    worker = Worker(Card("cpu", "none", 90, 1, 1, "tests.no_such_module"))
    for _ in range(2):
        answer = worker.answer(job("adam_l1"), 10)
        assert "ended with code 1: ModuleNotFoundError" in answer["skipped"]
    worker.stop()


def test_closing_kills_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C does in the middle of a check."""
    monkeypatch.setenv("CLNP_TEST_FAULTS", json.dumps({"masked_linear_fwd": "hang"}))
    crew: list[Worker] = []

    class Seen(Worker):
        def __init__(self, card: Card) -> None:
            super().__init__(card)
            crew.append(self)

    monkeypatch.setattr(supervise, "Worker", Seen)
    jobs = [job("channel_activity"), job("masked_linear_fwd")]
    with closing(run(CARD, jobs, 600)) as done:
        assert next(done)[1] == {"reason": ""}
        process = crew[0].process
        assert process is not None
        time.sleep(0.5)  # the second job is in work, and hangs
    assert process.poll() is not None
    assert crew[0].process is None


def test_the_rule() -> None:
    """At most twice PyTorch's error and a rounding; shapes, dtypes and NaN."""
    exact = [torch.linspace(1, 2, 100, dtype=torch.float64)]
    theirs = [exact[0].float() + 1e-4]
    assert check.wrong([exact[0].float() + 1.9e-4], theirs, exact) == ""
    assert "wrong numbers" in check.wrong([exact[0].float() + 2.1e-4], theirs, exact)
    assert "not torch.float32 [100]" in check.wrong([exact[0]], theirs, exact)
    assert "not torch.float32 [100]" in check.wrong([theirs[0][:99]], theirs, exact)
    assert "0 results instead of 1" in check.wrong([], theirs, exact)
    spoilt = theirs[0].clone()
    spoilt[3] = float("nan")
    assert "not finite" in check.wrong([spoilt], theirs, exact)


def test_equal_takes_nan_for_itself() -> None:
    nan = torch.tensor([1.0, float("nan")])
    assert check.equal([nan], [nan.clone()])
    assert not check.equal([nan], [torch.tensor([1.0, 2.0])])
    assert not check.equal([nan], [nan[:1]])
