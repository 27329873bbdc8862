"""The operators' own tests, with what serves on a GPU by default (PyTorch's operators on slices)
in place of the C++ library.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clnp_kernels.ops import again

ROOT = Path(__file__).parents[3]
FILES = (
    "masked_linear",
    "masked_conv2d",
    "partial_batch_norm",
    "partial_layer_norm",
    "channel_activity",
    "adam_l1",
    "sgd_l1",
)
# A long column is summed one by one on the CPU; the fused step and the one for odd strides round
# differently; PyTorch's layer norm loses digits far from zero; a bias is added to a rounded
# convolution, as PyTorch does on GPUs but not on the CPU.
LEFT_OUT = (
    "not (test_channel_activity and shape4) and not (test_adam_l1 and test_strides)"
    " and not test_far_from_zero and not (test_masked_conv2d and test_autocast)"
)


@pytest.mark.skipif("CLNP_REFERENCE" in os.environ, reason="the reference is being tested")
def test_slices_pass_the_same_tests() -> None:
    ours = {key: value for key, value in os.environ.items() if not key.startswith("CLNP_")}
    environment = {**ours, "CLNP_GPU": "torch", "OMP_NUM_THREADS": "1"}
    files = [f"tests/clnp_kernels/ops/test_{name}.py" for name in FILES]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-p", "tests.gpu_on_cpu", "-k", f"{LEFT_OUT} and {again.SELECTED}", *files]
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    result = subprocess.run(command, check=False, **options)
    assert result.returncode == 0, result.stdout[-3000:]
