"""The Triton kernels of partial_layer_norm against float64, as test_values.py."""

import os
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU or TRITON_INTERPRET=1", allow_module_level=True)

from clnp_kernels.reference import partial_layer_norm as reference  # noqa: E402
from clnp_kernels.triton_kernels import partial_layer_norm as kernels  # noqa: E402
from tests.clnp_kernels.ops.test_partial_layer_norm import SHAPES, Arguments, random_arguments  # noqa: E402

# triton 3.6's interpreter with numpy 1.25 to 2.3
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0")
DEVICE = "cpu" if INTERPRETED else "cuda"
# float32 for all shapes, narrower dtypes for one; many rows take the interpreter long, and a test
# of its own has them
PAIRS = [(name, torch.float32) for name in SHAPES if not (INTERPRETED and name == "many rows")]
PAIRS += [("odd", dtype) for dtype in (torch.bfloat16, torch.float16)]
both = pytest.mark.parametrize("rms", [False, True], ids=["layer", "rms"])


@pytest.fixture(autouse=True)
def _nan_memory(nan_memory: None) -> None:
    return None


def given(shape: str, dtype: torch.dtype, generator: torch.Generator, affine: bool) -> Arguments:
    x, ends, *vectors = random_arguments(shape, dtype, generator, affine)
    return Arguments(x.to(DEVICE), ends, *(v if v is None else v.to(DEVICE) for v in vectors))


def close(ours: Tensor, exact: Tensor) -> None:
    """Within a few roundings of the dtype, all elements together."""
    assert ours.shape == exact.shape
    bound = 8 * torch.finfo(ours.dtype).eps * float(exact.double().norm())
    assert float((ours.double() - exact.double()).norm()) <= bound


@both
@pytest.mark.parametrize(("shape", "dtype"), PAIRS)
def test_values(shape: str, dtype: torch.dtype, rms: bool, generator: torch.Generator) -> None:
    for affine, skip in ((True, False), (False, True)):
        arguments = given(shape, dtype, generator, affine)
        options: tuple[Any, ...] = (1e-3, rms, skip, True)
        found = kernels.partial_layer_norm_fwd(*arguments, *options)
        wide = arguments._replace(x=arguments.x.double())
        exact = reference.partial_layer_norm_fwd(*wide, *options)
        for i in (0, 2, 3):
            close(found[i], exact[i])
        sums = found[0].double().abs().sum(0)
        torch.testing.assert_close(found[1].double(), sums, rtol=1e-5, atol=1e-30)
        assert {t.dtype for t in found[1:]} == {torch.float32}
        free = arguments.boundaries[-1] - arguments.split
        grad = torch.randn(len(arguments.x), free, generator=generator).to(arguments.x)
        rest = (*found[2:], arguments.free_weight, rms, affine)
        got = kernels.partial_layer_norm_bwd(grad, arguments.x, *rest)
        want = reference.partial_layer_norm_bwd(grad.double(), wide.x, *rest)
        assert not got[0][:, : arguments.split].any()
        for ours, true in zip(got, want, strict=True):
            close(ours, true)


@both
def test_prefixes_have_the_same_bits(rms: bool, generator: torch.Generator) -> None:
    for shape in ("odd", "two blocks"):  # of which all prefixes have the unit of the whole
        arguments = given(shape, torch.float32, generator, affine=True)
        options = (1e-3, rms, False, False)
        wide = kernels.partial_layer_norm_fwd(*arguments, *options)[0]
        for blocks in range(1, len(arguments.boundaries)):
            narrow = arguments.prefix(blocks, frozen=False)
            y = kernels.partial_layer_norm_fwd(*narrow, *options)[0]
            assert torch.equal(y, wide[:, : narrow.boundaries[-1]])


def test_no_block_reads_a_later_one(generator: torch.Generator) -> None:
    arguments = given("odd", torch.float32, generator, affine=True)
    options = (1e-3, False, False, False)
    before = kernels.partial_layer_norm_fwd(*arguments, *options)[0]
    x = arguments.x.clone()
    x[:, 12:] = float("nan")
    after = kernels.partial_layer_norm_fwd(*arguments._replace(x=x), *options)[0]
    assert torch.equal(after[:, :12], before[:, :12])
    assert after[:, 12:].isnan().all()


def test_far_from_zero_and_strided(generator: torch.Generator) -> None:
    """The variance survives a mean that is 10000 times as large as the deviation."""
    x = (torch.randn(200, 9, generator=generator) + 1e4).to(DEVICE).t()
    _, _, mean, rstd = kernels.partial_layer_norm_fwd(
        x, [70, 200], None, None, None, None, 1e-9, False, False, False
    )
    exact = x.double()
    torch.testing.assert_close(mean.double(), exact.mean(1), rtol=1e-6, atol=0)
    var = exact.var(1, correction=0)
    torch.testing.assert_close(rstd.double(), var.rsqrt(), rtol=1e-3, atol=0)


def test_many_rows_are_added_in_stripes(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More rows than the stripes have at one tile each, and a last one that is short."""
    if INTERPRETED:
        monkeypatch.setattr(kernels, "STRIPES", 3)
    rows = kernels.SUM_ROWS * kernels.STRIPES + 5
    x, grad = (torch.randn(rows, 3, generator=generator).to(DEVICE) for _ in range(2))
    mean, rstd = torch.randn(rows, generator=generator).to(DEVICE), torch.ones(rows, device=DEVICE)
    rest = (mean, rstd, None, False, True)
    got = kernels.partial_layer_norm_bwd(grad, x, *rest)
    want = reference.partial_layer_norm_bwd(grad.double(), x.double(), *rest)
    for ours, true in zip(got, want, strict=True):
        close(ours, true)
