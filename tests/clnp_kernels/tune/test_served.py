"""From the check in processes of its own to calls that kernels serve, on an interpreted GPU."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="triton is not installed")

CODE = """
import os
os.environ["TRITON_INTERPRET"] = "1"
import torch
from clnp_kernels import _register, chooser, info, ops
from clnp_kernels.tune import first_use
from tests.clnp_kernels.tune.conftest import CARD
chooser.absent["cuda"] = "the CUDA library is not built"
wanted = ("masked_linear_relu_grad", "channel_activity")
jobs = [job for job in first_use.jobs_of_check()
        if job["operator"] in wanted and job["alignment"] in (1, 16) and job["dtype"] == "float32"]
assert len(jobs) == 4
first_use.jobs_of_check = lambda: jobs
said = []
table = first_use.qualify(card=CARD, say=said.append)
grad, y = torch.randn(5, 7), torch.randn(5, 7)
serve = _register._cuda_server("masked_linear_relu_grad")
import sys
assert "triton" not in sys.modules
plain = serve(grad, y, 3, True)
assert "triton" not in sys.modules
with chooser.captured():
    ours = serve(grad, y, 3, True)
print("triton" in sys.modules)
torch.testing.assert_close(plain, ours)
print(table.digest)
print(info.implementations()["channel_activity", "cuda"])
print(*said, sep="\\n")
"""


def run(**environment: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()


def test_checked_then_served_and_not_checked_again() -> None:
    first = run()
    assert first[0] == "True"
    assert "Triton" in first[2]
    assert "checked on this card" in first[2]
    assert first[3:] == [
        "checking 4 kernels on Interpreter 100, once per version of driver, torch and triton: 10 "
        "to 20 seconds (CLNP_TUNE=off skips it)",
        "4 kernels passed",
    ]
    assert run()[:4] == [*first[:3], ""]  # nothing is said, for nothing is checked


def test_a_wrong_kernel_never_serves() -> None:
    faults = dict.fromkeys(("masked_linear_relu_grad", "channel_activity"), "wrong")
    found = run(CLNP_TEST_FAULTS=json.dumps(faults))
    assert found[0] == "False"
    assert "PyTorch on slices" in found[2]
    assert "failed: triton" in found[2]
    assert "0 kernels passed, 4 failed" in found[-1]
