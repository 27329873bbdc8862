"""What serves on CUDA, and what happens when it can't. Needs no triton and no GPU."""

from importlib.util import find_spec

import pytest
import torch

from clnp_kernels import _register, chooser, ops  # noqa: F401  (registers the operators)
from clnp_kernels.tune.calls import OPERATORS
from clnp_kernels.tune.table import DEFAULTS
from tests.clnp_kernels.ops.test_register import python

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


def test_chosen_by_the_table() -> None:
    """PyTorch's operators until the kernels are checked on the GPU, and a word on why."""
    code = (
        "from clnp_kernels import info\n"
        "table = info.implementations()\n"
        "print({table[name, device] for name, device in table if device == 'cuda'})\n"
    )
    result = python(code)
    assert "PyTorch on slices" in result.stdout, result.stderr
    assert "not checked on this GPU yet" in result.stdout
    assert "Triton" not in result.stdout
    asked = python(code, CLNP_GPU="ours").stdout
    assert "Triton" in asked
    assert "CLNP_REFERENCE is set" in python(code, CLNP_GPU="ours", CLNP_REFERENCE="1").stdout


def test_unknown_preference() -> None:
    result = python("from clnp_kernels import info; info.describe()", CLNP_GPU="cutlass")
    wanted = f"CLNP_GPU: expected one of {', '.join(chooser.PREFERENCES)}, got 'cutlass'"
    assert wanted in result.stderr
    with pytest.raises(ValueError, match="one of torch"), chooser.prefer("cublas"):
        pass


def test_offers_and_descriptions_fit_the_operators() -> None:
    assert set(chooser.OFFERS) == set(_register.OPS)
    chosen = {name for name, offers in chooser.OFFERS.items() if len(offers) > 1}
    assert set(OPERATORS) == chosen
    assert set(DEFAULTS) <= chosen
    for name, defaults in DEFAULTS.items():
        for default in defaults:
            assert set(default.implementations) & set(chooser.OFFERS[name])


@pytest.mark.parametrize("preferred", ["cublaslt", "triton-persistent"])
def test_products_are_preferred_by_name(preferred: str) -> None:
    """Operators that are no products, or not theirs, keep what they had."""
    x, weight = torch.ones(10, 16), torch.ones(16, 16)
    forward = (x, weight[:8], weight, None, None, "none", False)
    with chooser.prefer(preferred):
        assert chooser.choose("masked_linear_fwd", forward)[0] == preferred
        assert chooser.choose("masked_linear_relu_grad", (x, x, 8, True))[0] == "torch"
        found = chooser.choose("masked_linear_wgrad", (x, x, True))[0]
        assert found == ("cublaslt" if preferred == "cublaslt" else "torch")


def test_a_triton_without_descriptors() -> None:
    """Everything else is there, with the reason for what is not."""
    code = (
        "from importlib import metadata; version = metadata.version\n"
        "metadata.version = lambda name: '3.3.1' if name == 'triton' else version(name)\n"
        "from clnp_kernels import chooser, ops; print(chooser.absent)"
    )
    result = python(code)
    assert "'triton-persistent': 'triton 3.3.1 is too old" in result.stdout, result.stderr
    assert "'triton':" not in result.stdout


def test_cublaslt_in_info() -> None:
    """Its state has a row of its own, with the reason."""
    code = (
        "import torch; torch.version.cuda = '99.0'\n"
        "from clnp_kernels import info; print(info.versions()['cublaslt'])"
    )
    text = python(code).stdout
    assert "libcublasLt.so.99" in text or "the CUDA library is not built" in text


def test_preferences_nest() -> None:
    grad, x = torch.ones(10, 9), torch.ones(10, 11)
    with chooser.prefer("ours"):
        assert chooser.choose("masked_linear_wgrad", (grad, x, True))[0] == "triton"
        assert chooser.choose("adam_l1", ([x],))[0] == "cuda"
        with chooser.prefer("triton"):
            assert chooser.choose("adam_l1", ([x],))[0] == "triton"


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_what_they_do_not_take_goes_to_torch() -> None:
    result = python(CALL, CLNP_GPU="triton")
    assert result.stdout.startswith("[3.0, 3.0, 3.0, 3.0] 1 ('Triton"), result
    assert "the Triton kernels have no torch.float64" in result.stdout
    result = python(CALL, CLNP_GPU="triton", CLNP_STRICT="1")
    assert "MissingImplementationError" in result.stderr


def test_triton_not_installed() -> None:
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'triton' else find(name, *rest)\n"
        "from clnp_kernels import info; print(info.describe())"
    )
    result = python(code, CLNP_GPU="triton")
    assert "triton is not installed" in result.stdout, result.stderr


def test_library_not_built() -> None:
    code = (
        "from clnp_kernels import _register\n"
        "_register.LIBRARIES['cuda'] = ('CUDA', 'CUDA', '_cuda_missing*.so')\n"
        "from clnp_kernels import info; print(info.describe())"
    )
    result = python(code, CLNP_GPU="cuda")
    assert "the CUDA library is not built" in result.stdout, result.stderr
