"""The CUDA C++ kernels: on a GPU, or emulated on the CPU (test_emulated.py runs this file so).

CLNP_EMULATED names the library of tests/cuda/emulator, in which the threads of a block take turns.
"""

import os
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from clnp_kernels import cuda_kernels, ops
from clnp_kernels.reference import adam_l1 as adam_reference
from clnp_kernels.reference import sgd_l1 as sgd_reference
from tests.oracles import DTYPES, assert_accurate, joined

EMULATED = os.environ.get("CLNP_EMULATED", "")
if EMULATED:
    torch.ops.load_library(EMULATED)
elif not (torch.cuda.is_available() and cuda_kernels.available()):
    pytest.skip("needs a GPU and the CUDA library", allow_module_level=True)
DEVICE = "cpu" if EMULATED else "cuda"
# nothing, one, odd, more than one block and a tail, a matrix, images
SHAPES = [(0,), (1,), (37,), (8195 if EMULATED else 70001,), (30, 7), (2, 3, 4, 5)]
NUMBERS = (0.9, 0.99, 1e-8, 0.1)  # beta1, beta2, eps, weight decay


@pytest.fixture(autouse=True)
def _nan_memory(nan_memory: None) -> None:
    return None


def randoms(dtype: torch.dtype, generator: torch.Generator) -> list[Tensor]:
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    return [tensor.to(DEVICE, dtype) for tensor in tensors]


def number(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(value, dtype=dtype, device=DEVICE)


class Adam:
    """Parameters and state; ``step`` by the kernel or by the reference, in any dtype."""

    def __init__(self, params: list[Tensor], dtype: torch.dtype | None = None) -> None:
        self.params = [p.to(dtype or p.dtype, copy=True) for p in params]
        self.firsts = [torch.zeros_like(p) for p in self.params]
        self.seconds = [torch.zeros_like(p) for p in self.params]
        self.steps = [torch.zeros((), device=DEVICE) for _ in params]

    def step(self, function: Any, grads: list[Tensor], lr: Tensor, l1: float, *rest: Any) -> None:
        grads = [g.to(p.dtype) for g, p in zip(grads, self.params, strict=True)]
        state = (self.params, grads, self.firsts, self.seconds, self.steps)
        count = len(grads)
        function(*state, [lr] * count, [l1] * count, *NUMBERS, *(rest or (False, None, None)))

    def state(self) -> list[Tensor]:
        return [*self.params, *self.firsts, *self.seconds]


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_adam(dtype: torch.dtype, maximize: bool, generator: torch.Generator) -> None:
    """Three steps, scaled, with the rate on the device and on the host."""
    params, rest = randoms(dtype, generator), (maximize, number(4.0), number(0.0))
    ours, theirs, exact = Adam(params), Adam(params), Adam(params, torch.float64)
    for lr in (number(1e-2), number(2e-2, torch.float64), torch.tensor(1e-2)):
        grads = randoms(dtype, generator)
        ours.step(cuda_kernels.adam_l1, grads, lr, 0.05, *rest)
        theirs.step(adam_reference.adam_l1, grads, lr, 0.05, *rest)
        exact.step(adam_reference.adam_l1, grads, lr, 0.05, *rest)
    assert [float(step) for step in ours.steps] == [3.0] * len(params)
    for part in ("params", "firsts", "seconds"):
        values = (joined(getattr(run, part)) for run in (ours, theirs, exact))
        assert_accurate(*values)


def test_found_inf_changes_nothing(generator: torch.Generator) -> None:
    params = randoms(torch.float32, generator)
    run = Adam(params)
    run.step(cuda_kernels.adam_l1, params, number(0.1), 0.1)
    before = [t.clone() for t in (*run.state(), *run.steps)]
    run.step(cuda_kernels.adam_l1, params, number(0.1), 0.1, False, number(2.0), number(1.0))
    for now, old in zip((*run.state(), *run.steps), before, strict=True):
        assert torch.equal(now, old)
    buffers = [torch.ones_like(p) for p in params]
    before = [t.clone() for t in (*run.params, *buffers)]
    count = len(params)
    cuda_kernels.sgd_l1(run.params, params, buffers, [False] * count, [number(0.1)] * count,
                        [0.1] * count, 0.9, 0.0, False, 0.0, False, None, number(1.0))  # fmt: skip
    for now, old in zip((*run.params, *buffers), before, strict=True):
        assert torch.equal(now, old)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sgd(
    dtype: torch.dtype, momentum: float, nesterov: bool, generator: torch.Generator
) -> None:
    if nesterov and not momentum:
        pytest.skip("Nesterov needs momentum")
    params = randoms(dtype, generator)
    runs: list[tuple[Any, torch.dtype]] = [(cuda_kernels.sgd_l1, dtype)]
    runs += [(sgd_reference.sgd_l1, dtype), (sgd_reference.sgd_l1, torch.float64)]
    sets = [[p.to(t, copy=True) for p in params] for _, t in runs]
    # the first step does not read what is in the buffers
    buffers = [[torch.full_like(p, float("nan")) for p in each] for each in sets]
    for step in range(3):
        grads = randoms(dtype, generator)
        for (function, t), own, buffer in zip(runs, sets, buffers, strict=True):
            kept, first = (buffer if momentum else []), [step == 0] * len(own)
            function(own, [g.to(t) for g in grads], kept, first, [number(0.1)] * len(own),
                     [0.05] * len(own), momentum, 0.0 if nesterov else 0.2, nesterov, 0.1, False,
                     number(2.0), None)  # fmt: skip
    assert_accurate(*(joined(each) for each in sets))
    if momentum:
        assert_accurate(*(joined(each) for each in buffers))


def test_many_tensors_of_several_dtypes(generator: torch.Generator) -> None:
    """More than one launch takes; each tensor gets its own rate, alpha and step."""
    kinds = [DTYPES[i % 4] for i in range(300)]
    params = [torch.randn(i % 7, generator=generator).to(DEVICE, t) for i, t in enumerate(kinds)]
    grads = [torch.randn(p.shape, generator=generator).to(p) for p in params]
    alphas = [i / 1000 for i in range(300)]
    ours, theirs = Adam(params), Adam(params)
    for run, function in ((ours, cuda_kernels.adam_l1), (theirs, adam_reference.adam_l1)):
        run.steps = [torch.tensor(float(i), device=DEVICE) for i in range(300)]
        state = (run.params, grads, run.firsts, run.seconds, run.steps)
        function(*state, [number(0.1 + i / 1000) for i in range(300)], alphas, *NUMBERS, False,
                 None, None)  # fmt: skip
    for our, their in zip(ours.state(), theirs.state(), strict=True):
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-6}.get(our.dtype, 1e-2)
        torch.testing.assert_close(our, their, rtol=tolerance, atol=tolerance / 10)
    assert [float(step) for step in ours.steps] == [i + 1.0 for i in range(300)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides(dtype: torch.dtype, generator: torch.Generator) -> None:
    """Transposed, spread, expanded, unaligned and channels_last: the same numbers."""
    x, grad = (torch.randn(2, 3, 6, 4, generator=generator).to(DEVICE, dtype) for _ in range(2))
    plain = Adam([x])
    for _ in range(2):
        plain.step(cuda_kernels.adam_l1, [grad], number(0.1), 0.1)
    last = torch.channels_last

    def check(param: Tensor, first: Tensor, grad: Tensor) -> None:
        run = Adam([x])
        run.params, run.firsts = [param], [first]
        for _ in range(2):
            run.step(cuda_kernels.adam_l1, [grad], number(0.1), 0.1)
        for ours, want in zip(run.state(), plain.state(), strict=True):
            assert torch.equal(ours, want)

    channels_last = x.contiguous(memory_format=last)
    check(channels_last, torch.zeros_like(channels_last), grad)
    check(x.mT.contiguous().mT, torch.zeros_like(x), torch.stack([grad, grad], -1)[..., 0])
    unaligned = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    check(unaligned, torch.zeros_like(x), grad)
    ones = Adam([x])
    ones.step(cuda_kernels.adam_l1, [x.new_ones(1, 1, 1, 1).expand_as(x)], number(0.1), 0.1)
    want = Adam([x])
    want.step(cuda_kernels.adam_l1, [torch.ones_like(x)], number(0.1), 0.1)
    assert torch.equal(ones.params[0], want.params[0])


def test_steps_on_the_host(generator: torch.Generator) -> None:
    params = randoms(torch.float32, generator)
    on_gpu, on_host = Adam(params), Adam(params)
    on_host.steps = [torch.zeros(()) for _ in params]
    for run in (on_gpu, on_host):
        run.step(cuda_kernels.adam_l1, params, torch.tensor(0.1), 0.1)
    assert all(float(step) == 1 for step in on_host.steps)
    assert torch.equal(joined(on_host.params), joined(on_gpu.params))


ACTIVITIES = [(7,), (5, 3), (64, 48), (2, 3, 4, 5), (2, 16, 8, 8), (90, 140), (3, 60, 11)]
ACTIVITIES += [(0, 4), (4, 0), (2, 0, 3), (700, 40)]


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
        if EMULATED and shape[dim] > 64 and dim < len(shape) - 1:
            continue  # a block for each channel: slow in the emulator
        exact = x.movedim(dim, 0).unsqueeze(-1).flatten(1).double().abs().sum(1)
        for layout in layouts:
            sums = cuda_kernels.channel_activity(layout, dim)
            assert sums.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            torch.testing.assert_close(sums.double(), exact, rtol=2e-6, atol=0)
            assert torch.equal(sums, cuda_kernels.channel_activity(layout, dim))


BAD: dict[str, Any] = {
    "grads": lambda run: run.params[:1],
    "grads.shape": lambda run: [p[:1] for p in run.params],
    "steps": lambda run: run.steps[:1],
    "lr": lambda run: [number(1.0).repeat(2)] * 2,
    "lr's length": lambda run: [number(1.0)],
    "l1": lambda run: [0.0],
    "found_inf": lambda run: number(0.0, torch.float64),
}


@pytest.mark.parametrize("name", BAD)
def test_direct_calls_are_safe(name: str) -> None:
    """A direct call of the operator raises instead of reading out of bounds."""
    run = Adam([torch.ones(4, device=DEVICE), torch.ones(3, device=DEVICE)])
    arguments = {
        "grads": run.params,
        "steps": run.steps,
        "lr": [number(0.1)] * 2,
        "l1": [0.0, 0.0],
        "found_inf": None,
    }
    argument = re.split(r"\W", name)[0]
    arguments[argument] = BAD[name](run)
    with pytest.raises(RuntimeError, match=argument):
        torch.ops.clnp_kernels_cuda.adam_l1(
            run.params, arguments["grads"], run.firsts, run.seconds, arguments["steps"],
            arguments["lr"], arguments["l1"], *NUMBERS, False, None, arguments["found_inf"],
        )  # fmt: skip


@pytest.mark.skipif(bool(EMULATED), reason="needs a GPU")
def test_optimizer_is_captured(generator: torch.Generator) -> None:
    """A captured step of the operator repeats itself, with the rate of the moment."""
    params = randoms(torch.float32, generator)
    grads, lr = randoms(torch.float32, generator), number(1e-2)
    captured, plain = Adam(params), Adam(params)
    captured.step(cuda_kernels.adam_l1, grads, lr, 0.01)
    plain.step(cuda_kernels.adam_l1, grads, lr, 0.01)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step(cuda_kernels.adam_l1, grads, lr, 0.01)
    for rate in (1e-2, 5e-3):
        lr.fill_(rate)
        graph.replay()
        plain.step(cuda_kernels.adam_l1, grads, number(rate), 0.01)
    for ours, want in zip(captured.state(), plain.state(), strict=True):
        assert torch.equal(ours, want)


def test_public_operators_reach_them(generator: torch.Generator) -> None:
    """By the dispatcher, when they are preferred."""
    if EMULATED:
        pytest.skip("the emulated library is called directly")
    from clnp_kernels import chooser

    x = torch.randn(40, 30, generator=generator).to(DEVICE)
    with chooser.prefer("cuda"):
        assert torch.equal(ops.channel_activity(x, 1), cuda_kernels.channel_activity(x, 1))
