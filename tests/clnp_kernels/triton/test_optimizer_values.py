"""The optimizers in Triton against float64: on a GPU, or on the CPU in Triton's interpreter."""

import mmap
from typing import Any

import pytest
import torch
from torch import Tensor

from clnp_kernels import optim  # noqa: F401  (registers the operators)
from clnp_kernels.reference import adam_l1 as adam_reference
from clnp_kernels.reference import sgd_l1 as sgd_reference
from tests.clnp_kernels.triton.test_values import DEVICE, DTYPES, INTERPRETED
from tests.oracles import assert_accurate, joined

pytest.importorskip("triton", reason="triton is not installed")
from clnp_kernels.triton_kernels import _optimizers as tables
from clnp_kernels.triton_kernels import adam_l1, sgd_l1

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0")
# nothing, one, odd, more than one program and a tail, a matrix, images
SHAPES = [(0,), (1,), (37,), (2 * tables.CHUNK + 3,), (30, 7), (2, 3, 4, 5)]
NUMBERS = (0.9, 0.99, 1e-8, 0.1)  # beta1, beta2, eps, weight decay
Function = Any


@pytest.fixture(autouse=True)
def _nan_memory(nan_memory: None) -> None:
    return None


@pytest.fixture(autouse=True)
def _short_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter every column of a table takes its time."""
    if INTERPRETED:
        monkeypatch.setattr(tables, "TENSORS", 4)


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

    def step(self, function: Function, grads: list[Tensor], *rest: Any) -> None:
        grads = [g.to(p.dtype) for g, p in zip(grads, self.params, strict=True)]
        function(self.params, grads, self.firsts, self.seconds, self.steps, *rest)

    def state(self) -> list[Tensor]:
        return [*self.params, *self.firsts, *self.seconds]


def options(count: int, lr: Tensor | list[Tensor], l1: float = 0.05, *rest: Any) -> tuple[Any, ...]:
    rates = lr if isinstance(lr, list) else [lr] * count
    return rates, [l1] * count, *NUMBERS, *(rest or (False, None, None))


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_adam(dtype: torch.dtype, maximize: bool, generator: torch.Generator) -> None:
    """Three steps, scaled, with rates of two groups and of both dtypes."""
    params, rest = randoms(dtype, generator), (maximize, number(4.0), number(0.0))
    ours, theirs, exact = Adam(params), Adam(params), Adam(params, torch.float64)
    one, two = [number(1e-2)] * 3 + [number(3e-3)] * 3, number(2e-2, torch.float64)
    for lr in (one, two, [two, *one[1:]]):
        grads, given = randoms(dtype, generator), options(len(params), lr, 0.05, *rest)
        ours.step(adam_l1.adam_l1, grads, *given)
        theirs.step(adam_reference.adam_l1, grads, *given)
        exact.step(adam_reference.adam_l1, grads, *given)
    assert [float(step) for step in ours.steps] == [3.0] * len(params)
    for part in ("params", "firsts", "seconds"):
        assert_accurate(*(joined(getattr(run, part)) for run in (ours, theirs, exact)))


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sgd(
    dtype: torch.dtype, momentum: float, nesterov: bool, generator: torch.Generator
) -> None:
    if nesterov and not momentum:
        pytest.skip("Nesterov needs momentum")
    params = randoms(dtype, generator)
    runs: list[tuple[Function, torch.dtype]] = [(sgd_l1.sgd_l1, dtype)]
    runs += [(sgd_reference.sgd_l1, dtype), (sgd_reference.sgd_l1, torch.float64)]
    sets = [[p.to(t, copy=True) for p in params] for _, t in runs]
    # the first step does not read what is in the buffers
    buffers = [[torch.full_like(p, float("nan")) for p in each] for each in sets]
    rates = [number(0.1)] * 3 + [number(0.02)] * 3
    for step in range(3):
        grads = randoms(dtype, generator)
        for (function, t), own, buffer in zip(runs, sets, buffers, strict=True):
            kept, first = (buffer if momentum else []), [step == 0] * len(own)
            function(own, [g.to(t) for g in grads], kept, first, rates, [0.05] * len(own),
                     momentum, 0.0 if nesterov else 0.2, nesterov, 0.1, step == 1, number(2.0),
                     None)  # fmt: skip
    assert_accurate(*(joined(each) for each in sets))
    if momentum:
        assert_accurate(*(joined(each) for each in buffers))


def test_l1_shrinks(generator: torch.Generator) -> None:
    """Without a gradient the penalty moves weights towards zero, and leaves zeros alone."""
    params = [torch.tensor([2.0, -2.0, 0.0], device=DEVICE)]
    zeros = [torch.zeros_like(params[0])]
    sgd_l1.sgd_l1(params, zeros, [], [False], [number(0.1)], [0.5], 0.0, 0.0, False, 0.0, True,
                  None, None)  # fmt: skip
    torch.testing.assert_close(params[0].cpu(), torch.tensor([1.95, -1.95, 0.0]))
    run = Adam(params)
    run.step(adam_l1.adam_l1, zeros, [number(0.1)], [0.5], 0.9, 0.99, 1e-8, 0.0, False, None, None)
    torch.testing.assert_close(run.params[0].cpu(), torch.tensor([1.85, -1.85, 0.0]))


def test_found_inf_changes_nothing(generator: torch.Generator) -> None:
    params = randoms(torch.float32, generator)
    run, count = Adam(params), len(params)
    run.step(adam_l1.adam_l1, params, *options(count, number(0.1)))
    before = [t.clone() for t in (*run.state(), *run.steps)]
    skipped = (False, number(2.0), number(1.0))
    run.step(adam_l1.adam_l1, params, *options(count, number(0.1), 0.1, *skipped))
    for now, old in zip((*run.state(), *run.steps), before, strict=True):
        assert torch.equal(now, old)
    buffers = [torch.ones_like(p) for p in params]
    before = [t.clone() for t in (*run.params, *buffers)]
    sgd_l1.sgd_l1(run.params, params, buffers, [False] * count, [number(0.1)] * count,
                  [0.1] * count, 0.9, 0.0, False, 0.0, *skipped)  # fmt: skip
    for now, old in zip((*run.params, *buffers), before, strict=True):
        assert torch.equal(now, old)


def test_many_tensors_of_several_dtypes(generator: torch.Generator) -> None:
    """More than one launch writes into the table; each has its own rate, alpha and step."""
    count = 2 * tables.TENSORS + 5
    kinds = [DTYPES[0] if i % 9 else DTYPES[1] for i in range(count)]
    params = [torch.randn(i % 7, generator=generator).to(DEVICE, t) for i, t in enumerate(kinds)]
    grads = [torch.randn(p.shape, generator=generator).to(p) for p in params]
    rates, alphas = ([number(0.1 + i / 1000) for i in range(count)],
                     [i / 1000 for i in range(count)])  # fmt: skip
    ours, theirs = Adam(params), Adam(params)
    for run, function in ((ours, adam_l1.adam_l1), (theirs, adam_reference.adam_l1)):
        run.steps = [torch.tensor(float(i), device=DEVICE) for i in range(count)]
        run.step(function, grads, rates, alphas, *NUMBERS, False, None, None)
    for our, their in zip(ours.state(), theirs.state(), strict=True):
        tolerance = 1e-6 if our.dtype == torch.float32 else 1e-2
        torch.testing.assert_close(our, their, rtol=tolerance, atol=tolerance / 10)
    assert torch.equal(torch.stack(ours.steps), torch.stack(theirs.steps))


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_strides(dtype: torch.dtype, generator: torch.Generator) -> None:
    """Transposed, spread, unaligned and channels_last: the same numbers."""
    x, grad = (torch.randn(2, 3, 6, 4, generator=generator).to(DEVICE, dtype) for _ in range(2))
    given = options(1, number(0.1))
    plain = Adam([x])
    plain.step(adam_l1.adam_l1, [grad], *given)
    last = x.contiguous(memory_format=torch.channels_last)
    unaligned = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    spread = torch.stack([grad, grad], -1)[..., 0]
    for param, own in ((last, grad), (x.mT.contiguous().mT, spread), (unaligned, grad)):
        run = Adam([x])
        run.params, run.firsts = [param], [torch.zeros_like(param)]
        run.step(adam_l1.adam_l1, [own], *given)
        for ours, want in zip(run.state(), plain.state(), strict=True):
            assert torch.equal(ours, want)


def test_rates_on_the_host(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    """A rate that is a number travels as one."""
    params = randoms(torch.float32, generator)
    read, given = Adam(params), Adam(params)
    read.step(adam_l1.adam_l1, params, *options(len(params), number(0.1)))
    host = {"HOST": True, "DOUBLE": False}
    monkeypatch.setattr(tables, "rates_of", lambda rates, _: (list(rates), host))
    given.step(adam_l1.adam_l1, params, *options(len(params), torch.tensor(0.1)))
    for ours, want in zip(given.state(), read.state(), strict=True):
        assert torch.equal(ours, want)


@pytest.mark.skipif(not INTERPRETED, reason="takes memory that only a CPU hands out untouched")
def test_offsets_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last program of a tensor of more than 2^31 elements, whose others are never touched."""
    count = 2**31 + 2 * tables.CHUNK
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    with mmap.mmap(-1, 2 * count, flags=flags) as memory:
        far = torch.frombuffer(memory, dtype=torch.float16)
        far[-4:] = torch.tensor([1.0, -2.0, 3.0, 0.0])
        launch = tables._launch.launch

        def last_one(kernel: Any, programs: tuple[int, ...], like: Tensor, given: Any) -> None:
            if kernel is not sgd_l1.sgd_kernel:
                launch(kernel, programs, like, given)
                return
            assert programs == (count // tables.CHUNK,)
            shift = programs[0] - 1  # as if the table began with the last program
            own = torch.frombuffer(memory, dtype=torch.float16)
            table = given["table"]
            table[0, 0] -= shift
            launch(kernel, (1,), own, given)

        monkeypatch.setattr(tables._launch, "launch", last_one)
        sgd_l1.sgd_l1([far], [far], [], [False], [number(0.5)], [0.0], 0.0, 0.0, False, 0.0, False,
                      None, None)  # fmt: skip
        assert far[-4:].tolist() == [0.5, -1.0, 1.5, 0.0]
        del far
