"""The persistent product: on a GPU, or in the interpreter (test_interpreter.py runs this file)."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")
pytest.importorskip("triton.tools.tensor_descriptor", reason="triton has no tensor descriptors")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU or TRITON_INTERPRET=1", allow_module_level=True)

from clnp_kernels.triton_kernels import masked_linear, persistent  # noqa: E402
from tests import oracles  # noqa: E402
from tests.oracles import Arguments, assert_accurate  # noqa: E402

DEVICE = "cpu" if INTERPRETED else "cuda"
HALF = (torch.bfloat16, torch.float16)
# B, Ia, I, Oa, O: several tiles, a sum that ends within a tile, and each part empty
SIZES = {
    "several tiles": (70, 72, 200, 24, 72),
    "nothing frozen": (9, 0, 16, 0, 16),
    "everything frozen": (9, 16, 16, 24, 24),
    "no active inputs": (9, 0, 16, 8, 24),
    "no active outputs": (9, 8, 16, 0, 24),
    "odd outputs": (5, 8, 24, 3, 10),
}


@pytest.fixture(autouse=True)
def _nan_memory(nan_memory: None) -> None:
    return None


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls that went to the kernel without descriptors."""
    calls: list[str] = []
    function = masked_linear.masked_linear_fwd

    def note(*args: Any) -> Any:
        calls.append("masked_linear_fwd")
        return function(*args)

    monkeypatch.setattr(masked_linear, "masked_linear_fwd", note)
    return calls


def arguments(sizes: tuple[int, ...], dtype: torch.dtype, bias: bool) -> Arguments:
    rows, active_in, inputs, active_out, outputs = sizes
    generator = torch.Generator().manual_seed(sum(sizes))

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    free_out = outputs - active_out
    biases = (randn(active_out), randn(free_out)) if bias else (None, None)
    weights = randn(active_out, active_in), randn(free_out, inputs)
    return Arguments(randn(rows, inputs), *weights, *biases)


def check(given: Arguments, activation: str) -> None:
    y, sums = persistent.masked_linear_fwd(*given, activation, True)
    exact = oracles.masked_linear(given.to(torch.float64), activation)
    assert_accurate(y, oracles.masked_linear(given, activation), exact)
    torch.testing.assert_close(sums.double(), y.double().abs().sum(0), rtol=1e-5, atol=0)
    again = persistent.masked_linear_fwd(*given, activation, False)
    assert torch.equal(again[0], y)
    assert not again[1].numel()


@pytest.mark.parametrize(("dtype", "activation", "bias"), [
    (torch.bfloat16, "relu", True), (torch.float16, "none", False),
])  # fmt: skip
@pytest.mark.parametrize("size", SIZES)
def test_values(
    size: str, dtype: torch.dtype, activation: str, bias: bool, left: list[str]
) -> None:
    check(arguments(SIZES[size], dtype, bias), activation)
    assert not left


@pytest.fixture
def _restored() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.usefixtures("_restored")
def test_tf32(left: list[str]) -> None:
    """float32 where torch allows TF32; the interpreter multiplies in full."""
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    given = arguments(SIZES["several tiles"], torch.float32, True)
    check(given, "relu")
    assert left, "full float32 has no matrix instruction"
    left.clear()
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    y, _ = persistent.masked_linear_fwd(*given, "relu", False)
    assert not left
    exact = oracles.masked_linear(given.to(torch.float64), "relu")
    assert float((y - exact).norm()) < 2**-9 * float(exact.norm())


def test_free_inputs_do_not_reach_active_outputs() -> None:
    """A NaN beyond the boundary is not multiplied by the zeros of the last tile of the sum."""
    given = arguments(SIZES["several tiles"], torch.bfloat16, True)
    given.x[:, given.active_weight.shape[1] :] = float("nan")
    y, _ = persistent.masked_linear_fwd(*given, "none", False)
    assert y[:, : len(given.active_weight)].isfinite().all()
    assert y[:, len(given.active_weight) :].isnan().all()


@pytest.mark.parametrize("what", ["odd inputs", "shifted memory", "columns", "no rows"])
def test_calls_that_descriptors_cannot_describe(what: str, left: list[str]) -> None:
    rows, active_in, inputs, active_out, outputs = 9, 16, 40, 8, 24
    if what == "odd inputs":
        active_in, inputs = 15, 41
    given = arguments((rows, active_in, inputs, active_out, outputs), torch.bfloat16, True)
    if what == "shifted memory":
        wider = torch.cat([given.x[:, :8], given.x], 1)
        wider[:, 1 : 1 + inputs] = given.x
        given = given._replace(x=wider[:, 1 : 1 + inputs])
    elif what == "columns":
        given = given._replace(x=given.x.t().contiguous().t())
    elif what == "no rows":
        given = given._replace(x=given.x[:0])
    check(given, "relu")
    assert left
