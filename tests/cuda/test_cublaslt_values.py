"""The products by cuBLASLt: on a GPU, or with a fake library on the CPU (by test_emulated.py)."""

import ctypes
import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clnp_kernels import cublaslt, cuda_kernels, ops  # noqa: F401  (registers the operators)
from clnp_kernels.reference import masked_linear as reference
from clnp_kernels.slices import masked_linear as slices
from tests.cuda import fake
from tests.oracles import assert_accurate

EMULATED = os.environ.get("CLNP_EMULATED", "")
if EMULATED:
    torch.ops.load_library(EMULATED)
    FAKE = str(fake.build())
    torch.ops.clnp_kernels_cuda.cublaslt_load(FAKE)
elif not (torch.cuda.is_available() and cuda_kernels.available() and not cublaslt.load()):
    pytest.skip("needs a GPU, the CUDA library and cuBLASLt", allow_module_level=True)
DEVICE = "cpu" if EMULATED else "cuda"
DTYPES = cublaslt.DTYPES
only_emulated = pytest.mark.skipif(not EMULATED, reason="needs the fake library")


@pytest.fixture(autouse=True)
def _nan_memory(nan_memory: None) -> None:
    return None


@pytest.fixture
def left_to_slices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls that went to PyTorch's operators."""
    calls: list[str] = []

    def note(name: str) -> Any:
        function = getattr(slices, name)
        return lambda *args: (calls.append(name), function(*args))[1]

    for part in ("fwd", "dgrad", "wgrad"):
        monkeypatch.setattr(slices, f"masked_linear_{part}", note(f"masked_linear_{part}"))
    return calls


class Case:
    """Arguments of the three products, of whole layers or views into larger memory."""

    def __init__(self, sizes: tuple[int, ...], dtype: torch.dtype, bias: bool, seed: int) -> None:
        rows, active_in, inputs, active_out, outputs = sizes
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

        free_out = outputs - active_out
        self.x, self.grad = randn(rows, inputs), randn(rows, free_out)
        self.weights = randn(active_out, active_in), randn(free_out, inputs)
        self.biases = (randn(active_out), randn(free_out)) if bias else (None, None)
        self.active_in, self.bias = active_in, bias

    def check(self, activation: str) -> None:
        """Compare the three products with PyTorch's at the same dtype, and with float64."""
        forward = (self.x, *self.weights, *self.biases, activation, True)
        y, sums = cublaslt.masked_linear_fwd(*forward)
        want = reference.masked_linear_fwd(*forward)[0]
        assert_accurate(y, want, reference.masked_linear_fwd(*wide(forward))[0])
        torch.testing.assert_close(sums.double(), y.double().abs().sum(0), rtol=1e-5, atol=0)
        for name, args in (
            ("masked_linear_dgrad", (self.grad, self.weights[1], self.active_in)),
            ("masked_linear_wgrad", (self.grad, self.x, self.bias)),
        ):
            function: Any = getattr(reference, name)
            found = listed(getattr(cublaslt, name)(*args))
            theirs, exact = listed(function(*args)), listed(function(*wide(args)))
            for ours, their, true in zip(found, theirs, exact, strict=True):
                assert_accurate(ours, their, true)
            assert "dgrad" not in name or not found[0][:, : self.active_in].any()


def wide(args: Any) -> list[Any]:
    return [a.double() if isinstance(a, Tensor) else a for a in args]


def listed(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("boundary", ["nothing", "some", "all"])
def test_boundaries(boundary: str, dtype: torch.dtype, left_to_slices: list[str]) -> None:
    """Boundaries at 0, within and at the end; nothing is left to PyTorch where it is aligned."""
    active_in, active_out = {"nothing": (0, 0), "some": (16, 8), "all": (40, 24)}[boundary]
    for activation, bias in (("relu", True), ("none", True), ("relu", False), ("none", False)):
        Case((9, active_in, 40, active_out, 24), dtype, bias, 1).check(activation)
    # With no free output or input there is no product for the gradients.
    gradients = {"masked_linear_dgrad", "masked_linear_wgrad"}
    assert set(left_to_slices) == (gradients if boundary == "all" else set())


SIZE = st.integers(1, 33)


@settings(max_examples=60, deadline=None)
@given(
    rows=SIZE, inputs=SIZE, outputs=SIZE, parts=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    unit=st.sampled_from([1, 4, 8]), dtype=st.sampled_from(DTYPES), bias=st.booleans(),
    relu=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_sizes(
    rows: int, inputs: int, outputs: int, parts: tuple[float, float], unit: int,
    dtype: torch.dtype, bias: bool, relu: bool, seed: int,
) -> None:  # fmt: skip
    """Aligned sizes by the library, others by PyTorch's operators, with the right numbers."""
    active_in, active_out = (
        round(n * part) for n, part in zip((inputs, outputs), parts, strict=True)
    )
    sizes = (rows, *(n * unit for n in (active_in, inputs, active_out, outputs)))
    Case(sizes, dtype, bias, seed).check("relu" if relu else "none")


@pytest.mark.parametrize("dtype", DTYPES)
def test_unaligned_calls_are_left_to_slices(dtype: torch.dtype, left_to_slices: list[str]) -> None:
    """Rows or pointers at other than multiples of 16 bytes."""
    unit = 16 // dtype.itemsize
    Case((5, unit - 1, 5 * unit, unit, 3 * unit), dtype, True, 2).check("relu")
    assert set(left_to_slices) == {"masked_linear_fwd", "masked_linear_dgrad"}
    left_to_slices.clear()
    shifted = torch.randn(6, 4 * unit + 1).to(DEVICE, dtype)[:, 1:]
    grad = torch.randn(6, 2 * unit).to(DEVICE, dtype)
    weight, _ = cublaslt.masked_linear_wgrad(grad, shifted, False)
    assert left_to_slices == ["masked_linear_wgrad"]
    exact = grad.double().t() @ shifted.double()
    assert_accurate(weight, reference.masked_linear_wgrad(grad, shifted, False)[0], exact)


@pytest.mark.parametrize("layout", ["columns", "wider rows"])
def test_strided_operands(layout: str, left_to_slices: list[str]) -> None:
    """Views whose columns, or rows within wider ones, are runs of memory."""
    case = Case((8, 8, 32, 8, 24), torch.float32, True, 3)
    if layout == "columns":
        case.x, case.grad = (t.t().contiguous().t() for t in (case.x, case.grad))
    else:
        case.x, case.grad = (torch.cat([t, t], 1)[:, : t.shape[1]] for t in (case.x, case.grad))
    case.check("relu")
    assert not left_to_slices


def product(prepare: bool, rows: int = 4) -> tuple[bool, Tensor]:
    out = torch.zeros(rows, 8)
    args = (torch.ones(rows, 12), torch.ones(8, 12).t(), out, None, False, None, False, prepare)
    return torch.ops.clnp_kernels_cuda.cublaslt_product(*args), out


@only_emulated
def test_nothing_new_is_prepared_within_a_capture() -> None:
    """An algorithm is looked for once for each problem, and never within a capture."""
    library = ctypes.CDLL(FAKE)
    torch.ops.clnp_kernels_cuda.cublaslt_load(FAKE)  # forgets
    before = library.fake_heuristics()
    done, out = product(prepare=False)
    assert not done
    assert not out.any()
    assert library.fake_heuristics() == before
    for prepare in (True, False, True):
        done, out = product(prepare)
        assert done
        assert (out == 12).all()
    assert library.fake_heuristics() == before + 1
    assert product(prepare=False, rows=5)[0] is False
    assert library.fake_descriptors() == 0


@only_emulated
def test_a_library_without_an_algorithm(
    left_to_slices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's operators serve, and it is not asked again."""
    monkeypatch.setenv(fake.FAULT, "none")
    torch.ops.clnp_kernels_cuda.cublaslt_load(FAKE)
    library = ctypes.CDLL(FAKE)
    before = library.fake_heuristics()
    for _ in range(2):
        Case((4, 8, 16, 8, 16), torch.float32, True, 4).check("relu")
    assert set(left_to_slices) == {f"masked_linear_{part}" for part in ("fwd", "dgrad", "wgrad")}
    assert library.fake_heuristics() == before + 3
    monkeypatch.delenv(fake.FAULT)
    torch.ops.clnp_kernels_cuda.cublaslt_load(FAKE)


@only_emulated
@pytest.mark.parametrize("fault", ["relu", "bias", "sums", "stride"])
def test_each_fault_of_the_fake_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that these tests would see it in ours."""
    monkeypatch.setenv(fake.FAULT, fault)
    with pytest.raises(AssertionError):
        Case((9, 16, 40, 8, 24), torch.float32, True, 5).check("relu")


@only_emulated
def test_libraries_that_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, a file without the functions, an old version: each with its reason."""
    load = torch.ops.clnp_kernels_cuda.cublaslt_load
    with pytest.raises(RuntimeError, match="no_such_library"):
        load("no_such_library.so")
    with pytest.raises(RuntimeError, match="has no cublasLt"):
        load(EMULATED)
    monkeypatch.setenv(fake.FAULT, "old")
    with pytest.raises(RuntimeError, match="version 110400, older than 120000"):
        load(FAKE)


@only_emulated
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"right": torch.ones(11, 8)}, "right.shape: expected 12"),
        ({"out": torch.ones(4, 9)}, "out.shape: expected 8"),
        ({"left": torch.ones(4, 12).double()}, "dtype and device of out"),
        ({"bias": torch.ones(4)}, r"expected \[8\]"),
        ({"bias": torch.ones(16)[::2]}, "a run of memory"),
        ({"bias": torch.ones(8), "sums": torch.ones(4)}, "None with a bias"),
        ({"relu": True, "sums": torch.ones(4)}, "None with a bias or a ReLU"),
    ],
)
def test_arguments(change: dict[str, Any], match: str) -> None:
    arguments = {"left": torch.ones(4, 12), "right": torch.ones(12, 8), "out": torch.ones(4, 8)}
    arguments |= {"bias": None, "relu": False, "sums": None, "tf32": False, "prepare": True}
    with pytest.raises(RuntimeError, match=match):
        torch.ops.clnp_kernels_cuda.cublaslt_product(*{**arguments, **change}.values())


@pytest.mark.skipif(bool(EMULATED), reason="needs a GPU")
@pytest.mark.parametrize("known", [False, True])
def test_captured(known: bool, left_to_slices: list[str]) -> None:
    """A graph holds the product if it was prepared before, else PyTorch's operators."""
    case = Case((64 + known, 16, 64, 16, 48), torch.bfloat16, True, 6)
    arguments = (case.x, *case.weights, *case.biases, "relu", False)
    plain = (cublaslt if known else slices).masked_linear_fwd(*arguments)[0]
    left_to_slices.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = cublaslt.masked_linear_fwd(*arguments)[0]
    graph.replay()
    assert bool(left_to_slices) is not known
    torch.testing.assert_close(y, plain)
