"""The Triton kernels against float64: on a GPU, or on the CPU in Triton's interpreter.

The interpreter is chosen by TRITON_INTERPRET=1 before triton is imported; test_interpreter.py runs
this file so.
"""

import mmap
import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clnp_kernels import chooser, ops  # noqa: F401  (registers the operators)
from clnp_kernels._planes import as_planes
from tests import oracles
from tests.oracles import Arguments, assert_accurate

pytest.importorskip("triton", reason="triton is not installed")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU or TRITON_INTERPRET=1", allow_module_level=True)

from clnp_kernels.triton_kernels import channel_activity as activity_kernels  # noqa: E402
from clnp_kernels.triton_kernels import masked_linear as kernels  # noqa: E402

# triton 3.6's interpreter with numpy 1.25 to 2.3
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0")
DEVICE = "cpu" if INTERPRETED else "cuda"
# PyTorch's deterministic mode, in which new tensors start as NaN, wants this of cuBLAS
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The interpreter takes a second for a product of 100 x 200 x 200: there, several tiles are enough.
SLOW = ("wide", "tall") if INTERPRETED else ()
SHAPES = {name: sizes for name, sizes in oracles.SHAPES.items() if name not in SLOW}
SHAPES["several tiles"] = (33, 70, 59, 17, 21)
# float32 for all shapes, narrower dtypes where they could matter
ROUNDED = ("odd", "several tiles") if INTERPRETED else (*SHAPES,)
PAIRS = [(name, t) for t in DTYPES for name in (SHAPES if t == torch.float32 else ROUNDED)]


@pytest.fixture(autouse=True)
def _nan_memory(nan_memory: None) -> None:
    return None


def arguments_of(
    shape: str, dtype: torch.dtype, bias: bool, generator: torch.Generator
) -> Arguments:
    """Fresh random arguments on the device."""
    rows, active_in, free_in, active_out, free_out = SHAPES[shape]

    def randn(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator).to(DEVICE, dtype)

    biases = (randn(active_out), randn(free_out)) if bias else (None, None)
    inputs = active_in + free_in
    return Arguments(
        randn(rows, inputs), randn(active_out, active_in), randn(free_out, inputs), *biases
    )


def forward(arguments: Arguments, activation: str = "none", activity: bool = False) -> Any:
    y, sums = kernels.masked_linear_fwd(*arguments, activation, activity)
    return (y, sums) if activity else y


@pytest.mark.parametrize(("activation", "bias"), [("relu", True), ("none", False)])
@pytest.mark.parametrize(("shape", "dtype"), PAIRS)
def test_forward(
    shape: str, dtype: torch.dtype, activation: str, bias: bool, generator: torch.Generator
) -> None:
    arguments = arguments_of(shape, dtype, bias, generator)
    exact = oracles.masked_linear(arguments.to(torch.float64), activation)
    y, sums = forward(arguments, activation, True)
    assert_accurate(y, oracles.masked_linear(arguments, activation), exact)
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums.double(), y.double().abs().sum(0), rtol=1e-5, atol=0)
    assert torch.equal(y, forward(arguments, activation))
    assert torch.equal(sums, forward(arguments, activation, True)[1])


@pytest.mark.parametrize(("shape", "dtype"), PAIRS)
def test_gradients(shape: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    """relu_grad exactly; the others by the rule, from a slice of columns."""
    x, active, free, _, _ = arguments_of(shape, dtype, False, generator)
    active_out, active_in = active.shape
    grad_y = torch.randn(x.shape[0], active_out + free.shape[0], generator=generator).to(x)
    y = torch.randn(grad_y.shape, generator=generator).to(x).relu()
    grad_z, grad_bias = kernels.masked_linear_relu_grad(grad_y, y, active_out, True)
    kept = torch.where(y > 0, grad_y, torch.zeros_like(grad_y))[:, active_out:]
    assert torch.equal(grad_z, kept)
    assert_accurate(grad_bias, kept.sum(0), kept.double().sum(0))
    part = grad_y[:, active_out:]
    grad_x = kernels.masked_linear_dgrad(part, free, active_in)
    assert not grad_x[:, :active_in].any()
    inner = free[:, active_in:]
    assert_accurate(grad_x[:, active_in:], part @ inner, part.double() @ inner.double())
    grad_weight, grad_bias = kernels.masked_linear_wgrad(part, x, True)
    assert_accurate(grad_weight, part.t() @ x, part.double().t() @ x.double())
    assert_accurate(grad_bias, part.sum(0), part.double().sum(0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_in_parts(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """The gradient of a weight where there are few tiles and many rows: the last part is short."""
    grad, x = (torch.randn(200, n, generator=generator).to(DEVICE, dtype) for n in (9, 20))
    monkeypatch.setattr(kernels, "parts_of", lambda *_: 3)
    weight, bias = kernels.masked_linear_wgrad(grad, x, True)
    assert_accurate(weight, grad.t() @ x, grad.double().t() @ x.double())
    assert_accurate(bias, grad.sum(0), grad.double().sum(0))
    for ours, again in zip(kernels.masked_linear_wgrad(grad, x, True), (weight, bias), strict=True):
        assert torch.equal(ours, again)


def test_without_bias_gradient(generator: torch.Generator) -> None:
    x = torch.randn(9, 20, generator=generator).to(DEVICE)
    grad_z, empty = kernels.masked_linear_relu_grad(x, x, 3, False)
    assert torch.equal(grad_z, x[:, 3:].relu())
    assert empty.shape == (0,)
    grad_weight, empty = kernels.masked_linear_wgrad(grad_z, x, False)
    torch.testing.assert_close(grad_weight, grad_z.t() @ x)
    assert empty.shape == (0,)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides(dtype: torch.dtype, generator: torch.Generator) -> None:
    arguments = arguments_of("odd", dtype, True, generator)
    tensors = [t for t in arguments if t is not None]
    want, grad = forward(arguments, "relu"), arguments.x[:, :9]
    active_in = arguments.active_weight.shape[1]
    grad_x = kernels.masked_linear_dgrad(grad, arguments.free_weight, active_in)
    grad_weight = kernels.masked_linear_wgrad(grad, arguments.x, True)[0]
    transposed = [t.t().contiguous().t() if t.ndim == 2 else t for t in tensors]
    spread = [torch.stack([t, t], -1)[..., 0] for t in tensors]
    wider = [F.pad(t, (2, 3))[..., 2:-3] for t in tensors]
    for strided in (transposed, spread, wider):
        same = Arguments(*strided)
        assert torch.equal(forward(same, "relu"), want)
        grad = same.x[:, :9]
        got = kernels.masked_linear_dgrad(grad, same.free_weight, active_in)
        assert torch.equal(got, grad_x)
        assert torch.equal(kernels.masked_linear_wgrad(grad, same.x, True)[0], grad_weight)
        zeros = torch.zeros_like(grad)
        assert not kernels.masked_linear_relu_grad(grad, zeros, 2, True)[0].any()
    row = arguments.x[:1]
    expanded = forward(arguments._replace(x=row.expand(4, -1)))
    assert torch.equal(expanded, forward(arguments._replace(x=row.repeat(4, 1))))


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")
def test_no_interference(generator: torch.Generator) -> None:
    arguments = arguments_of("odd", torch.float32, True, generator)
    before = forward(arguments, "relu")
    active_out, active_in = arguments.active_weight.shape
    for poison in (float("nan"), float("inf")):
        x = arguments.x.clone()
        x[:, active_in:] = poison
        free = torch.full_like(arguments.free_weight, poison)
        after = forward(arguments._replace(x=x, free_weight=free), "relu")
        assert torch.equal(after[:, :active_out], before[:, :active_out])


def test_relu_keeps_nan() -> None:
    x = torch.tensor([[float("nan")], [-1.0], [2.0]], device=DEVICE)
    y = forward(Arguments(x, x[:0, :0], x[2:], None, None), "relu")
    assert y[0].isnan().all()
    assert y[1:].flatten().tolist() == [0.0, 4.0]
    grad_z, _ = kernels.masked_linear_relu_grad(torch.ones_like(y), y, 0, True)
    assert grad_z.flatten().tolist() == [1.0, 0.0, 1.0]


ACTIVITIES = [(7,), (5, 3), (2, 3, 4, 5), (300, 140), (3, 600, 11), (0, 4), (4, 0), (2, 0, 3)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ACTIVITIES)
def test_channel_activity(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> None:
    x = torch.randn(shape, generator=generator).to(DEVICE, dtype)
    layouts = [x, x.movedim(0, -1).contiguous().movedim(-1, 0), torch.stack([x, x], -1)[..., 0]]
    if len(shape) == 4:
        layouts.append(x.contiguous(memory_format=torch.channels_last))
    for dim in range(len(shape)):
        exact = x.movedim(dim, 0).unsqueeze(-1).flatten(1).double().abs().sum(1)
        for layout in layouts:
            sums = activity_kernels.channel_activity(layout, dim)
            assert sums.dtype == torch.float32
            torch.testing.assert_close(sums.double(), exact, rtol=1e-5, atol=0)


def test_activity_makes_no_copy_of_usual_layouts() -> None:
    x = torch.zeros(2, 3, 4, 5)
    for layout in (x, x.contiguous(memory_format=torch.channels_last), x[:, 1:], x[:, :, 1:3]):
        planes = as_planes(layout, 1)
        assert planes.untyped_storage().data_ptr() == layout.untyped_storage().data_ptr()


@pytest.mark.skipif(not INTERPRETED, reason="takes memory that only a CPU hands out untouched")
def test_offsets_beyond_32_bits(generator: torch.Generator) -> None:
    """Rows 2^31 elements apart, in memory that is never touched in between."""
    stride = 2**31 + 16
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    with mmap.mmap(-1, 2 * (stride + 64), flags=flags) as memory:
        far = torch.frombuffer(memory, dtype=torch.float16).as_strided((2, 20), (stride, 1))
        far.copy_(torch.randn(2, 20, generator=generator))
        near, active, free = far.clone(), far[:, :5].clone(), torch.ones(3, 20).half()
        plain = Arguments(near, active, free, None, None)
        for x, weight in ((far, free), (near, far)):
            got = forward(plain._replace(x=x, free_weight=weight))
            assert torch.equal(got, forward(plain._replace(free_weight=weight.clone())))
        want = kernels.masked_linear_wgrad(near, near, True)
        for ours, theirs in zip(kernels.masked_linear_wgrad(far, far, True), want, strict=True):
            assert torch.equal(ours, theirs)
        gradients = [kernels.masked_linear_relu_grad(t, t, 0, True)[1] for t in (far, near)]
        assert torch.equal(*gradients)
        gradients = [kernels.masked_linear_dgrad(t[:, :2], t, 5) for t in (far, near)]
        assert torch.equal(*gradients)
        for dim in (0, 1):
            sums = [activity_kernels.channel_activity(t, dim) for t in (far, near)]
            assert torch.equal(*sums)
        del far, x, weight


@pytest.mark.skipif(chooser.preference() != "triton", reason="needs CLNP_GPU=triton")
def test_dispatcher_calls_them(generator: torch.Generator) -> None:
    x, active, free, active_bias, free_bias = arguments_of("odd", torch.float32, True, generator)
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    grad = x[:, :9]
    calls: dict[str, tuple[Any, ...]] = {
        "masked_linear_fwd": (x, active, free, active_bias, free_bias, "relu", True),
        "masked_linear_relu_grad": (grad, grad, 3, True),
        "masked_linear_dgrad": (grad, free, active.shape[1]),
        "masked_linear_wgrad": (grad, x, True),
        "channel_activity": (x, 1),
    }
    for name, args in calls.items():
        module = activity_kernels if name == "channel_activity" else kernels
        got = getattr(torch.ops.clnp_kernels, name).default.redispatch(key, *args)
        want = getattr(module, name)(*args)
        for ours, theirs in zip(_tuple(got), _tuple(want), strict=True):
            assert torch.equal(ours, theirs)


def _tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
