"""The Triton kernels of masked_conv2d and partial_batch_norm against float64, as test_values.py."""

import mmap
import os
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU or TRITON_INTERPRET=1", allow_module_level=True)

from clnp_kernels.reference import masked_conv2d as reference  # noqa: E402
from clnp_kernels.reference import partial_batch_norm as norm_reference  # noqa: E402
from clnp_kernels.triton_kernels import masked_conv2d as kernels  # noqa: E402
from clnp_kernels.triton_kernels import partial_batch_norm as kernels_norm  # noqa: E402
from tests.clnp_kernels.ops import conv_cases  # noqa: E402
from tests.clnp_kernels.ops.conv_cases import FORMATS, Arguments, Case, random_arguments  # noqa: E402
from tests.oracles import assert_accurate  # noqa: E402

# triton 3.6's interpreter with numpy 1.25 to 2.3
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0")
DEVICE = "cpu" if INTERPRETED else "cuda"
# PyTorch's deterministic mode, in which new tensors start as NaN, wants this of cuBLAS
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# every class of a stride, several tiles of each kind, no tap for some pixels
CASES = conv_cases.CASES | {
    "strides": Case(2, (3, 4), (2, 5), (11, 7), (3, 3), (3, 2), (1, 0), (1, 1)),
    "stride and dilation": Case(1, (2, 3), (4, 2), (13, 10), (3, 2), (2, 4), (2, 1), (2, 2)),
    "kernel below stride": Case(2, (1, 2), (2, 1), (7, 7), (1, 2), (3, 3)),
    "padded point": Case(2, (2, 3), (3, 2), (4, 3), (1, 1), (1, 1), (1, 1)),
    "several tiles": Case(3, (17, 25), (18, 20), (5, 4), (2, 2)),
}
# float32 for all cases, narrower dtypes where they could matter
PAIRS = [(name, torch.float32) for name in CASES]
PAIRS += [(name, dtype) for name in ("odd", "depthwise", "pointwise", "strides")
          for dtype in (torch.bfloat16, torch.float16)]  # fmt: skip


@pytest.fixture(autouse=True)
def _nan_memory(nan_memory: None) -> None:
    return None


def given(name: str, dtype: torch.dtype, generator: torch.Generator, lies: str) -> Arguments:
    found = random_arguments(CASES[name], dtype, True, lies, generator)
    return Arguments(*(None if t is None else t.to(DEVICE) for t in found))


def geometry(case: Case) -> tuple[Any, ...]:
    return (*(list(pair) for pair in (case.stride, case.padding, case.dilation)), case.depthwise)


def format_of(case: Case) -> str:
    """Planes for one case in three, channels_last for the others."""
    return "planes" if sum(case.outputs) % 3 == 0 else "channels_last"


@pytest.mark.parametrize(("name", "dtype"), PAIRS)
def test_forward(name: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    case, lies = CASES[name], format_of(CASES[name])
    arguments = given(name, dtype, generator, lies)
    exact, theirs = arguments.to(torch.float64), arguments
    options = geometry(case)
    y, sums = kernels.masked_conv2d_fwd(*arguments, *options, "relu", True)
    want = conv_cases.masked_conv2d(exact, case, "relu")
    assert_accurate(y, conv_cases.masked_conv2d(theirs, case, "relu"), want)
    if arguments.x.numel():
        assert y.is_contiguous(memory_format=FORMATS[lies])
    assert sums.dtype == torch.float32
    real = y.double().abs().sum((0, 2, 3))
    torch.testing.assert_close(sums.double(), real, rtol=1e-5, atol=1e-30)
    plain = (*arguments[:3], None, None)
    y, sums = kernels.masked_conv2d_fwd(*plain, *options, "none", False)
    assert sums.numel() == 0
    want = conv_cases.masked_conv2d(Arguments(*plain).to(torch.float64), case)
    assert_accurate(y, conv_cases.masked_conv2d(Arguments(*plain), case), want)


@pytest.mark.parametrize(("name", "dtype"), PAIRS)
def test_gradients(name: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    case, lies = CASES[name], format_of(CASES[name])
    x, active, free, _, _ = given(name, dtype, generator, lies)
    options, split = geometry(case), len(active)
    size = reference.output_size(x, case.kernel, *options[:3])
    shape = (len(x), split + len(free), *size)
    grad = torch.randn(shape, generator=generator).to(DEVICE, dtype)
    grad = grad.contiguous(memory_format=FORMATS[lies])
    y = torch.randn(shape, generator=generator).to(grad).relu()
    y = y.contiguous(memory_format=FORMATS[lies])
    ours = kernels.masked_conv2d_relu_grad(grad, y, split, True)
    kept = reference.masked_conv2d_relu_grad(grad.double(), y.double(), split, True)
    assert torch.equal(ours[0].double(), kept[0])
    torchs = reference.masked_conv2d_relu_grad(grad, y, split, True)
    assert_accurate(ours[1], torchs[1], kept[1])
    part = grad[:, split:]
    frozen = active.shape[0 if case.depthwise else 1]
    got = kernels.masked_conv2d_dgrad(part, x, free, frozen, *options)
    wide = (t.double() for t in (part, x, free))
    exact = reference.masked_conv2d_dgrad(*wide, frozen, *options)
    theirs = reference.masked_conv2d_dgrad(part, x, free, frozen, *options)
    assert_accurate(got, theirs, exact)
    if x.numel():
        assert got.is_contiguous(memory_format=FORMATS[lies])
    assert not got[:, :frozen].any()
    kernel = list(case.kernel)
    got_weight, got_bias = kernels.masked_conv2d_wgrad(part, x, kernel, *options, True)
    exact_w = reference.masked_conv2d_wgrad(part.double(), x.double(), kernel, *options, True)
    torchs_w = reference.masked_conv2d_wgrad(part, x, kernel, *options, True)
    assert_accurate(got_weight, torchs_w[0], exact_w[0])
    assert_accurate(got_bias, torchs_w[1], exact_w[1])
    assert kernels.masked_conv2d_wgrad(part, x, kernel, *options, False)[1].shape == (0,)


def test_parts_of_the_pixels(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    """A sum over pixels that is cut into parts is the same sum."""
    monkeypatch.setattr(kernels, "PART", 16)
    monkeypatch.setattr(kernels, "WAVES", 100)
    case = Case(4, (2, 3), (3, 2), (9, 8), (2, 3))
    x, _, free, _, _ = random_arguments(case, torch.float32, False, "channels_last", generator)
    x, free = x.to(DEVICE), free.to(DEVICE)
    options = geometry(case)
    size = reference.output_size(x, case.kernel, *options[:3])
    grad = torch.randn(4, 2, *size, generator=generator).to(x)
    got = kernels.masked_conv2d_wgrad(grad, x, list(case.kernel), *options, False)[0]
    wide = (grad.double(), x.double(), list(case.kernel))
    exact = reference.masked_conv2d_wgrad(*wide, *options, False)[0]
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")
def test_no_interference(generator: torch.Generator) -> None:
    case = CASES["odd"]
    arguments = given("odd", torch.float32, generator, "channels_last")
    before = kernels.masked_conv2d_fwd(*arguments, *geometry(case), "relu", False)[0]
    active_out, active_in = arguments.active_weight.shape[:2]
    x = arguments.x.clone()
    x[:, active_in:] = float("nan")
    free = torch.full_like(arguments.free_weight, float("inf"))
    poisoned = arguments._replace(x=x, free_weight=free)
    after = kernels.masked_conv2d_fwd(*poisoned, *geometry(case), "relu", False)[0]
    assert torch.equal(after[:, :active_out], before[:, :active_out])


def test_slices_of_images(generator: torch.Generator) -> None:
    """Slices of channels of wider images, without a copy, and spread ones, with one."""
    case = CASES["strides"]
    arguments = given("strides", torch.float32, generator, "channels_last")
    want = kernels.masked_conv2d_fwd(*arguments, *geometry(case), "none", False)[0]
    x = arguments.x
    wide = torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last)
    spread = torch.stack([x, x], -1)[..., 0]
    for same in (wide[:, : x.shape[1]], spread, x.flip(0).flip(0)):
        got = kernels.masked_conv2d_fwd(same, *arguments[1:], *geometry(case), "none", False)[0]
        assert torch.equal(got, want)


@pytest.mark.skipif(not INTERPRETED, reason="takes memory that only a CPU hands out untouched")
@pytest.mark.parametrize("depthwise", [False, True])
def test_offsets_beyond_32_bits(depthwise: bool, generator: torch.Generator) -> None:
    """Images that lie 2^31 elements apart, in memory that is never touched in between."""
    stride = 2**31 + 16
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    with mmap.mmap(-1, 2 * (stride + 64), flags=flags) as memory:
        flat = torch.frombuffer(memory, dtype=torch.float16)
        far = flat.as_strided((2, 4, 3, 2), (stride, 1, 8, 4))
        far.copy_(torch.randn(2, 4, 3, 2, generator=generator))
        near = far.clone(memory_format=torch.channels_last)
        weight = torch.randn(4, 1 if depthwise else 4, 2, 2, generator=generator).half()
        active = weight[:0, :0] if not depthwise else weight[:0]
        geometry_ = ([1, 1], [1, 1], [1, 1], depthwise)
        results = []
        for x in (far, near):
            point, options = ([1, 1], [0, 0], [1, 1], depthwise), (*geometry_, "none", False)
            y = kernels.masked_conv2d_fwd(x, active, weight, None, None, *options)[0]
            dgrad = kernels.masked_conv2d_dgrad(x, y, weight, 0, *point)
            wgrad = kernels.masked_conv2d_wgrad(x, near, [1, 1], *point, False)[0]
            results.append((y, dgrad, wgrad))
        for ours, want in zip(*results, strict=True):
            assert torch.equal(ours, want)
        del far, flat, x, results


NORMS: dict[str, tuple[int, int, int, tuple[int, int]]] = {  # B, Ca, Cf, (H, W)
    "even": (4, 8, 8, (4, 4)),
    "odd": (3, 3, 6, (5, 7)),
    "several blocks": (70, 5, 130, (3, 1)),
    "nothing frozen": (5, 0, 4, (3, 3)),
    "everything frozen": (5, 4, 0, (3, 3)),
    "no images": (0, 2, 3, (3, 3)),
    "no channels": (2, 0, 0, (3, 3)),
}


def close(ours: Tensor, exact: Tensor) -> None:
    """Within a few roundings of the dtype, all elements together."""
    assert ours.shape == exact.shape
    bound = 8 * torch.finfo(ours.dtype).eps * float(exact.double().norm())
    assert float((ours.double() - exact.double()).norm()) <= bound


@pytest.mark.parametrize("lies", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NORMS)
def test_batch_norm(name: str, dtype: torch.dtype, lies: str, generator: torch.Generator) -> None:
    batch, active, free, size = NORMS[name]
    if dtype != torch.float32 and name not in ("odd", "even"):
        pytest.skip("one case of each kind is enough")
    x = torch.randn(batch, active + free, *size, generator=generator) * 2 + 30
    x = x.to(DEVICE, dtype).contiguous(memory_format=FORMATS[lies])
    grad = torch.randn(x.shape, generator=generator).to(x)

    def vector(count: int) -> Tensor:
        return (torch.rand(count, generator=generator) + 0.5).to(DEVICE)

    statistics = [vector(n) for n in (active, active, free, free)]
    affine = [vector(n) for n in (active, free, active, free)]
    for training, act, own in ((True, "relu", affine), (False, "none", [None] * 4)):
        if training and x.numel() == 0 and name == "no images":
            continue  # the mean of nothing is asked for
        options = (training, 1e-3, act, True)
        y, sums, mean, var = kernels_norm.partial_batch_norm_fwd(x, *statistics, *own, *options)
        # what one number more in float32 does: the offset is rounded before it is added
        want = norm_reference.partial_batch_norm_fwd(x.double(), *statistics, *own, *options)
        if dtype == torch.float32:
            torch.testing.assert_close(y.double(), want[0], rtol=1e-5, atol=1e-5)
        else:
            close(y, want[0])
        assert y.is_contiguous(memory_format=FORMATS[lies]) or not x.numel()
        real = y.double().abs().sum((0, 2, 3))
        torch.testing.assert_close(sums.double(), real, rtol=1e-5, atol=1e-30)
        torch.testing.assert_close(mean.double(), want[2], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(var.double(), want[3], rtol=1e-5, atol=1e-6)
        used = (mean, var) if training else tuple(statistics[2:])
        rest = (*used, own[1], training, 1e-3)
        out = y if act == "relu" else None
        got = kernels_norm.partial_batch_norm_bwd(grad, x, out, *rest)
        wide = None if out is None else out.double()
        exact = norm_reference.partial_batch_norm_bwd(grad.double(), x.double(), wide, *rest)
        assert not got[0][:, :active].any()
        for ours, real_one in zip(got, exact, strict=True):
            close(ours, real_one)


def test_batch_norm_of_far_values(generator: torch.Generator) -> None:
    """The variance survives a mean that is 10000 times as large as the deviation."""
    x = (torch.randn(64, 3, 4, 4, generator=generator) + 1e4).to(DEVICE)
    ones = [torch.ones(n, device=DEVICE) for n in (0, 0, 3, 3)]
    result = kernels_norm.partial_batch_norm_fwd(x, *ones, None, None, None, None, True, 0.0,
                                                 "none", False)  # fmt: skip
    exact = x.double().var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(result[3].double(), exact, rtol=1e-3, atol=0)


def test_no_channel_reads_another(generator: torch.Generator) -> None:
    x = torch.randn(4, 6, 3, 3, generator=generator).to(DEVICE)
    vectors = [torch.rand(n, generator=generator).to(DEVICE) + 0.5 for n in (2, 2, 4, 4)]
    rest = (*vectors, None, None, None, None, True, 1e-3, "none", False)
    before = kernels_norm.partial_batch_norm_fwd(x, *rest)[0]
    poisoned = x.clone()
    poisoned[:, 2:4] = float("nan")
    after = kernels_norm.partial_batch_norm_fwd(poisoned, *rest)[0]
    for channels in (slice(0, 2), slice(4, 6)):
        assert torch.equal(after[:, channels], before[:, channels])
    assert after[:, 2:4].isnan().all()
