"""Every operator on a GPU, by every implementation that has it, against float64 on the CPU.

Without a GPU they are skipped; `python -m benchmarks.gpu_suite test --dry-run` rehearses them on
the CPU, with Triton's interpreter (CLNP_REHEARSE=1 and the plugin tests.gpu_on_cpu).
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clnp.training.step_graph import StepGraph, rates_on_device, set_rate
from clnp_kernels import chooser, cuda_kernels, nn, ops, optim
from tests import oracles
from tests.clnp_kernels.ops import conv_cases
from tests.oracles import assert_accurate

REHEARSED = os.environ.get("CLNP_REHEARSE") == "1"
if not REHEARSED and not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)
DEVICE = torch.device("cpu" if REHEARSED else "cuda")
NARROW = (torch.float32, torch.bfloat16, torch.float16)
LARGE = {"large": (512, 784, 1216, 640, 1360), "unaligned": (513, 7, 1994, 3, 999)}
BLOCKS = {"aligned": [16, 48, 72], "odd": [5, 12, 31, 43], "nothing frozen": [40]}
if not REHEARSED:
    BLOCKS |= {"large": [256, 512, 1024], "large odd": [257, 510, 1021]}
EDGES = ("even", "odd", "no rows", "nothing frozen", "everything frozen", "no outputs")
SHAPES = {name: oracles.SHAPES[name] for name in EDGES} | ({} if REHEARSED else LARGE)
CONVS = ("odd", "pointwise", "depthwise", "nothing frozen", "everything frozen", "no images")
LARGE_CONVS = {
    "large": conv_cases.Case(32, (64, 64), (48, 80), (16, 16), (3, 3), padding=(1, 1)),
    "large strided": conv_cases.Case(8, (33, 31), (17, 64), (29, 31), (3, 3), (2, 2), (1, 1)),
    "large depthwise": conv_cases.Case(8, (64, 64), (64, 64), (28, 28), padding=(1, 1),
                                       depthwise=True),
}  # fmt: skip
CONV_CASES = {name: conv_cases.CASES[name] for name in CONVS} | ({} if REHEARSED else LARGE_CONVS)


@pytest.fixture(params=["torch", "triton", "triton-persistent", "cuda", "cublaslt"], autouse=True)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each implementation in turn, where an operator has it; others are left to the table."""
    if request.param == "cuda" and (REHEARSED or not cuda_kernels.available()):
        pytest.skip("needs the CUDA library and a GPU")
    if request.param in chooser.absent:
        pytest.skip(chooser.absent[request.param])
    if request.param == "cublaslt" and REHEARSED:
        pytest.skip("needs a GPU")
    with chooser.prefer(request.param):
        yield request.param


def on_device(tensors: Any) -> list[Any]:
    return [None if t is None else t.detach().to(DEVICE) for t in tensors]


def leaves(tensors: Any) -> list[Any]:
    """x, active weight, free weight, active bias, free bias: those that learn, and x, as leaves."""
    found = [None if t is None else t.detach().clone() for t in tensors]
    for i in (0, 2, 4):
        if found[i] is not None:
            found[i].requires_grad_()
    return found


def gradients(y: Tensor, grad: Tensor, tensors: list[Any], active: int) -> list[Tensor]:
    """Gradients of x, of which those of the first inputs count as zero, free weight and bias."""
    wanted = [tensors[i] for i in (0, 2, 4) if tensors[i] is not None]
    found = torch.autograd.grad(y, wanted, grad.to(y), allow_unused=True)
    grads = [torch.zeros_like(w) if f is None else f for f, w in zip(found, wanted, strict=True)]
    grads[0] = torch.cat([torch.zeros_like(grads[0][:, :active]), grads[0][:, active:]], 1)
    return grads


def skip_unless(name: str, implementation: str) -> None:
    if implementation not in chooser.OFFERS[name]:
        pytest.skip(f"{name} has no such implementation")


@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("shape", SHAPES)
def test_masked_linear(
    shape: str, dtype: torch.dtype, activation: str, implementation: str, generator: torch.Generator
) -> None:
    skip_unless("masked_linear_fwd", implementation)
    rows, active_in, free_in, active_out, free_out = SHAPES[shape]
    sizes = [(rows, active_in + free_in), (active_out, active_in), (free_out, active_in + free_in)]
    sizes += [(active_out,), (free_out,)]
    tensors = [torch.randn(s, generator=generator).to(dtype) for s in sizes]
    grad = torch.randn(rows, active_out + free_out, generator=generator).to(dtype)
    runs = []
    for kind in (None, dtype, torch.float64):
        own = leaves(on_device(tensors)) if kind is not torch.float64 else leaves(
            t.double() for t in tensors)  # fmt: skip
        if kind is None:
            y, _ = ops.masked_linear(*own, activation=activation, activity=True)
        else:
            y = oracles.masked_linear(oracles.Arguments(*own), activation)
        runs.append([y, *gradients(y, grad, own, active_in)])
    for ours, theirs, exact in zip(*runs, strict=True):
        assert_accurate(ours.detach().cpu(), theirs.detach().cpu(), exact.detach())


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", CONV_CASES)
def test_masked_conv2d(
    name: str, dtype: torch.dtype, implementation: str, generator: torch.Generator
) -> None:
    skip_unless("masked_conv2d_fwd", implementation)
    case = CONV_CASES[name]
    if REHEARSED and dtype != torch.float32 and name != "odd":
        pytest.skip("one case is enough in the interpreter")
    tensors = conv_cases.random_arguments(case, dtype, True, "channels_last", generator)
    runs, grad = [], None
    for kind in (None, dtype, torch.float64):
        own = leaves(t.double() for t in tensors) if kind is torch.float64 else leaves(
            on_device(tensors))  # fmt: skip
        if kind is None:
            y, _ = ops.masked_conv2d(*own, **case.geometry, activation="relu", activity=True)
            grad = torch.randn(y.shape, generator=generator).to(dtype)
        else:
            y = conv_cases.masked_conv2d(conv_cases.Arguments(*own), case, "relu")
        assert grad is not None
        runs.append([y, *gradients(y, grad, own, case.inputs[0])])
    for ours, theirs, exact in zip(*runs, strict=True):
        assert_accurate(ours.detach().cpu(), theirs.detach().cpu(), exact.detach())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", NARROW)
def test_partial_batch_norm(
    dtype: torch.dtype, layout: torch.memory_format, training: bool, implementation: str,
    generator: torch.Generator,
) -> None:  # fmt: skip
    skip_unless("partial_batch_norm_fwd", implementation)
    shape, active = ((4, 9, 5, 6), 4) if REHEARSED else ((32, 200, 16, 16), 70)
    x = (torch.randn(shape, generator=generator) * 2 + 1).to(dtype).contiguous(memory_format=layout)
    grad = torch.randn(shape, generator=generator).to(dtype)
    sizes = (active, active, *(shape[1] - active,) * 2)
    statistics = [torch.rand(n, generator=generator) + 0.5 for n in sizes]
    affine = [torch.rand(sizes[i], generator=generator) for i in (0, 2, 0, 2)]
    results = []
    for device, kind in ((DEVICE, dtype), (torch.device("cpu"), torch.float64)):
        own = x.to(device, kind).requires_grad_()
        wide = torch.float64 if kind == torch.float64 else torch.float32
        vectors = [v.to(device, wide, copy=True) for v in (*statistics, *affine)]
        for i in (5, 7):
            vectors[i].requires_grad_()
        with chooser.prefer("torch" if kind == torch.float64 else implementation):
            y = ops.partial_batch_norm(own, *vectors, training=training, activation="relu")
            assert isinstance(y, Tensor)
            found = torch.autograd.grad(y, [own, vectors[5], vectors[7]], grad.to(y))
        results.append([y, *found, vectors[2], vectors[3]])
    for ours, exact in zip(*results, strict=True):
        error = float((ours.detach().cpu().double() - exact.detach()).norm())
        assert error <= 16 * torch.finfo(dtype).eps * float(exact.detach().norm())


@pytest.mark.parametrize("rms", [False, True], ids=["layer", "rms"])
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_partial_layer_norm(
    blocks: str, dtype: torch.dtype, rms: bool, implementation: str, generator: torch.Generator
) -> None:
    skip_unless("partial_layer_norm_fwd", implementation)
    ends, rows = BLOCKS[blocks], 9 if REHEARSED else 300
    split = ends[-2] if len(ends) > 1 else 0
    x = (torch.randn(rows, ends[-1], generator=generator) * 2 + 1).to(dtype)
    grad = torch.randn(x.shape, generator=generator).to(dtype)
    sizes = (split, ends[-1] - split) * 2
    vectors = [torch.rand(n, generator=generator) + 0.5 for n in sizes]
    results = []
    for device, kind in ((DEVICE, dtype), (torch.device("cpu"), torch.float64)):
        own = x.to(device, kind).requires_grad_()
        wide = torch.float64 if kind == torch.float64 else torch.float32
        given = [v.to(device, wide, copy=True) for v in vectors]
        for i in (1, 3):
            given[i].requires_grad_()
        with chooser.prefer("torch" if kind == torch.float64 else implementation):
            y = ops.partial_layer_norm(own, ends, *given, rms=rms)
            assert isinstance(y, Tensor)
            found = torch.autograd.grad(y, [own, given[1], given[3]], grad.to(y))
        results.append([y, *found])
    for ours, exact in zip(*results, strict=True):
        error = float((ours.detach().cpu().double() - exact.detach()).norm())
        assert error <= 16 * torch.finfo(dtype).eps * float(exact.detach().norm())


@pytest.mark.parametrize("dtype", NARROW)
def test_channel_activity(
    dtype: torch.dtype, implementation: str, generator: torch.Generator
) -> None:
    skip_unless("channel_activity", implementation)
    shapes = [(7, 5), (3, 4, 5, 6)] if REHEARSED else [(4096, 1001), (64, 96, 28, 28), (3, 7, 9)]
    for shape in shapes:
        x = torch.randn(shape, generator=generator).to(DEVICE, dtype)
        for dim in range(x.ndim):
            exact = x.double().abs().sum([d for d in range(x.ndim) if d != dim])
            sums = ops.channel_activity(x, dim).double()
            torch.testing.assert_close(sums, exact, rtol=1e-5, atol=0)


@pytest.mark.skipif(REHEARSED, reason="needs the memory of a GPU")
def test_more_than_32_bits_of_elements(implementation: str) -> None:
    skip_unless("channel_activity", implementation)
    x = torch.ones(2**24 + 3, 129, dtype=torch.bfloat16, device=DEVICE)
    assert x.numel() > 2**31
    x[-1] = 2.0
    sums = ops.channel_activity(x, 1)
    torch.testing.assert_close(sums, torch.full_like(sums, 2.0**24 + 4), rtol=1e-4, atol=0)


def network(dtype: torch.dtype = torch.float32) -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        nn.MaskedLinear(20, 30, active_in=7, active_out=11, activation="relu"),
        nn.MaskedLinear(30, 5, active_in=11, active_out=2),
    ).to(DEVICE, dtype)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_training(kind: str, implementation: str, generator: torch.Generator) -> None:
    """Five steps of a network with an optimizer are those of the CPU, scaled gradients too."""
    x, grads = torch.randn(40, 20, generator=generator), []
    options = {"adam": (optim.AdamL1, {"lr": 0.01, "l1": 1e-3}),
               "sgd": (optim.SGDL1, {"lr": 0.1, "l1": 1e-3, "momentum": 0.9})}  # fmt: skip
    for device in (DEVICE, torch.device("cpu")):
        net = network().to(device)
        make, numbers = options[kind]
        optimizer = make(net.parameters(), **numbers)
        inputs = x.to(device)
        for _ in range(5):
            optimizer.zero_grad()
            (net(inputs) - inputs[:, :5]).square().mean().backward()
            optimizer.step()
        grads.append([p.detach().cpu() for p in net.parameters()])
    for ours, want in zip(*grads, strict=True):
        torch.testing.assert_close(ours, want, rtol=1e-3, atol=1e-4)


def test_compiles_without_graph_breaks(implementation: str) -> None:
    net = network()
    x = torch.randn(8, 20, device=DEVICE)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), net(x))
    compiled(x).sum().backward()


@pytest.mark.skipif(REHEARSED, reason="needs a GPU")
@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_captured_step(kind: str, implementation: str, generator: torch.Generator) -> None:
    """Replayed steps are the steps that run at once, under a schedule."""
    x = torch.randn(64, 20, generator=generator).to(DEVICE)
    y = torch.randint(5, (64,), generator=generator).to(DEVICE)
    results = []
    for captured in (True, False):
        net = network()
        make = optim.AdamL1 if kind == "adam" else optim.SGDL1
        numbers = {"l1": 1e-3} if kind == "adam" else {"l1": 1e-3, "momentum": 0.9}
        optimizer = make(net.parameters(), lr=0.01, **numbers)
        rates_on_device(optimizer, DEVICE)

        def step(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            optimizer.zero_grad(set_to_none=True)  # noqa: B023
            loss = F.cross_entropy(net(x), y)  # noqa: B023
            loss.backward()
            optimizer.step()  # noqa: B023
            return (loss.detach(),)

        messages: list[str] = []
        graph = StepGraph(step, optimizer, DEVICE, on_fallback=messages.append)
        for i in range(12):
            set_rate(optimizer, 0.01 / (i + 1))
            loss = (graph(x, y) if captured else step(x, y))[0]
        assert messages == []
        assert graph.replays == (9 if captured else 0)
        results.append([*net.parameters(), loss])
    for ours, want in zip(*results, strict=True):
        torch.testing.assert_close(ours, want, rtol=1e-5, atol=1e-6)
