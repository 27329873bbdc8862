"""When the Triton kernels serve, and what happens when they can't. Needs no triton and no GPU."""

from importlib.util import find_spec

import pytest

from tests.ops.test_register import python

# An operator's implementation for CUDA, called on tensors of the CPU.
CALL = """
import sys, warnings
import torch
from clnp_kernels import _register, info, ops
key = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
x = torch.ones(3, 4, dtype=torch.float64)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for _ in range(2):
        y = torch.ops.clnp_kernels.channel_activity.default.redispatch(key, x, 1)
print(y.tolist(), len(seen), info.implementations()["channel_activity", "cuda"], seen[0].message)
assert "triton" not in sys.modules
"""


def test_off_unless_asked_for() -> None:
    code = (
        "import torch; from clnp_kernels import info\n"
        "print(info.implementations()['channel_activity', 'cuda'])\n"
        "has = torch._C._dispatch_has_kernel_for_dispatch_key\n"
        "print(has('clnp_kernels::channel_activity', 'CUDA'))"
    )
    result = python(code)
    assert "('reference'" in result.stdout, result.stderr
    assert "False" in result.stdout
    assert "CLNP_TRITON=1" in result.stdout
    assert "CLNP_REFERENCE is set" in python(code, CLNP_TRITON="1", CLNP_REFERENCE="1").stdout


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_what_they_do_not_take_is_served_by_the_reference() -> None:
    result = python(CALL, CLNP_TRITON="1")
    assert result.stdout.startswith("[3.0, 3.0, 3.0, 3.0] 1 ('Triton', 'experimental')"), result
    assert "the Triton kernels have no torch.float64" in result.stdout
    result = python(CALL, CLNP_TRITON="1", CLNP_STRICT="1")
    assert "MissingImplementationError" in result.stderr


def test_triton_not_installed() -> None:
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'triton' else find(name, *rest)\n"
        "from clnp_kernels import info; print(info.describe())"
    )
    result = python(code, CLNP_TRITON="1")
    assert "triton is not installed" in result.stdout, result.stderr
