"""Runs the tests of values, and training through the operators, in Triton's interpreter."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

ROOT = Path(__file__).parents[3]


def python(*command: str) -> subprocess.CompletedProcess[str]:
    """Run Python so that the Triton kernels are interpreted and asked for."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("CLNP_")}
    environment = {**ours, "TRITON_INTERPRET": "1", "CLNP_GPU": "triton", "OMP_NUM_THREADS": "1"}
    command = (sys.executable, *command)
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    return subprocess.run(command, timeout=600, check=False, **options)


def run(*command: str) -> str:
    """The output of `python`, which must succeed."""
    result = python(*command)
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    return result.stdout


@pytest.fixture(scope="module", autouse=True)
def _interpreter_works() -> None:
    """The interpreter of triton 3.6 can't run any loop with numpy 2.4; others must."""
    if version("triton") < (3, 7) and version("numpy") >= (2, 4):
        pytest.skip("this triton's interpreter does not work with this numpy")
    run("-m", "tests.clnp_kernels.triton.loop")


def version(package: str) -> tuple[int, int]:
    """Major and minor version of an installed package."""
    major, minor = metadata.version(package).split(".")[:2]
    return int(major), int(minor)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is that run")
@pytest.mark.parametrize(
    "name", ["values", "conv_values", "optimizer_values", "layer_norm_values", "persistent_values"]
)
def test_values(name: str) -> None:
    run(
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        f"tests/clnp_kernels/triton/test_{name}.py",
    )


# The Triton kernels in place of the C++ library, on the CPU: a network of two layers learns.
TRAINING = """
import sys
from clnp_kernels import _register
_register.LIBRARIES["cpu"] = ("CPU", "C++", "_cpu_missing*.so")
import torch
from clnp_kernels import nn, ops
calls = []
def count(name, serve):
    return lambda *args: (calls.append(name), serve(*args))[1]
names = [name for name in _register.OPS if name.startswith("masked_linear")]
for name in names:
    _register._library.impl(name, count(name, _register._cuda_server(name)), "CPU")
assert "triton" not in sys.modules

def losses(dtype):
    generator = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(
        nn.MaskedLinear(20, 30, active_in=7, active_out=11, activation="relu"),
        nn.MaskedLinear(30, 5, active_in=11, active_out=2),
    ).to(dtype)
    for tensor in net.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / 4)
    x = torch.randn(40, 20, generator=generator).to(dtype)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        loss = (net(x) - x[:, :5]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()

triton = list(losses(torch.float32))
assert "triton" in sys.modules
assert set(calls) >= set(names), calls
import warnings
warnings.simplefilter("ignore")
torch.testing.assert_close(triton, list(losses(torch.float64)), rtol=1e-5, atol=0)
assert triton[2] < triton[0]
print("learned")
"""


def test_training() -> None:
    assert run("-c", TRAINING).strip() == "learned"
