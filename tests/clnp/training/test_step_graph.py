"""Whole-step capture: bookkeeping and fallback with a backend that replays by calling."""

import contextlib
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clnp.data.batches import fits
from clnp.training import step_graph
from clnp.training.step_graph import (
    StepGraph,
    rates_on_device,
    resident_batches,
    set_rate,
    share_rate,
)
from clnp_kernels import chooser
from clnp_kernels.nn import MaskedLinear
from clnp_kernels.optim import SGDL1, AdamL1, _common
from tests.clnp.replays import Replays

CPU = torch.device("cpu")


def setting(kind: type = AdamL1) -> tuple[torch.nn.Module, torch.optim.Optimizer, step_graph.Step]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        MaskedLinear(6, 8, active_in=2, active_out=3, activation="relu"), torch.nn.Linear(8, 3)
    )
    options = {"momentum": 0.9} if kind is SGDL1 else {}
    optimizer = kind(net.parameters(), lr=0.1, l1=1e-3, **options)

    def step(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        optimizer.zero_grad(set_to_none=True)
        logits = net(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()
        return loss.detach(), (logits.detach().argmax(-1) == y).sum()

    return net, optimizer, step


def data(count: int = 70) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 6, generator=generator)
    return x, torch.randint(3, (count,), generator=generator)


def fit(graph: StepGraph, optimizer: torch.optim.Optimizer) -> list[float]:
    losses = []
    for epoch, lr in enumerate((0.1, 0.02)):
        set_rate(optimizer, lr)
        for x, y in resident_batches(*data(), 16, epoch):
            losses.append(float(graph(x, y)[0]))
    return losses


@pytest.mark.parametrize("kind", [AdamL1, SGDL1])
def test_every_call_is_one_step(kind: type) -> None:
    """4 batches of 16 and one of 6 an epoch: 3 to warm up, then replays; schedules reach them."""
    net, optimizer, step = setting(kind)
    backend = Replays()
    graph = StepGraph(step, optimizer, CPU, backend)
    captured = fit(graph, optimizer)
    assert backend.captured == 1
    assert graph.replays == 2 * 4 - step_graph.WARM_UP
    assert backend.ran == step_graph.WARM_UP + 2
    other, plain, its_step = setting(kind)
    eager = StepGraph(its_step, plain, CPU)
    assert fit(eager, plain) == pytest.approx(captured, rel=1e-5)
    assert eager.replays == 0
    assert "cpu" in eager.reason
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("fails", [False, True])
def test_several_steps_are_one_launch(fails: bool) -> None:
    """The same numbers bit for bit as one by one, whatever is left over."""
    runs = []
    for together in (1, 4):
        net, optimizer, step = setting()
        x, y = data(16)
        backend = Replays(fails)
        graph = StepGraph(
            lambda step=step, x=x, y=y: step(x, y),
            optimizer,
            CPU,
            backend,
            lambda _: None,
            together,
        )
        counts = [list(graph.steps(n)) for n in (9, 6)]
        assert list(map(sum, counts)) == [9, 6]
        runs.append([p.detach().clone() for p in net.parameters()])
        if not fails and together == 4:
            assert counts == [[1, 1, 1, 4, 1, 1], [4, 1, 1]]
            assert (backend.captured, backend.replayed, graph.replays) == (2, 6, 12)
        graph.close()
        assert backend.closed == 1
        assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_another_step_runs_with_the_kernels_of_the_graph() -> None:
    _, optimizer, step = setting()
    modes = []
    graph = StepGraph(step, optimizer, CPU, Replays())
    graph.once(lambda: (modes.append(bool(chooser._captured)),))  # type: ignore[func-returns-value]
    assert modes == [True]


def test_inputs_are_copied() -> None:
    """A graph reads its own inputs, whatever the caller does with a batch afterwards."""
    _, optimizer, step = setting()
    graph = StepGraph(step, optimizer, CPU, Replays())
    x, y = data(16)
    for _ in range(step_graph.WARM_UP + 1):
        graph(x, y)
    first = graph(x.clone(), y)[0].clone()
    x.fill_(float("nan"))
    assert graph(data(16)[0], y)[0].isfinite()
    assert first.isfinite()


def test_falls_back_with_one_message() -> None:
    net, optimizer, step = setting()
    backend = Replays(fails=True)
    with pytest.warns(RuntimeWarning, match="not permitted when stream is capturing") as seen:
        losses = fit(graph := StepGraph(step, optimizer, CPU, backend), optimizer)
    assert [str(w.message) for w in seen].count(str(seen[0].message)) == 1
    assert graph.replays == 0
    assert graph.reason == "RuntimeError: operation not permitted when stream is capturing"
    other, plain, its_step = setting()
    assert fit(StepGraph(its_step, plain, CPU), plain) == pytest.approx(losses, rel=1e-5)
    messages: list[str] = []
    net, optimizer, step = setting()
    fit(StepGraph(step, optimizer, CPU, Replays(True), messages.append), optimizer)
    assert len(messages) == 1
    assert net is not other


def test_a_step_that_waits_is_never_captured() -> None:
    """The last step of the warm-up finds that out, and is one step like all others."""
    _, optimizer, step = setting()
    backend, messages = Replays(), list[str]()
    backend.waits = "called a synchronizing CUDA operation"
    graph = StepGraph(step, optimizer, CPU, backend, messages.append)
    losses = fit(graph, optimizer)
    assert backend.captured == graph.replays == 0
    assert messages == [graph.reason] == ["called a synchronizing CUDA operation"]
    _, plain, its_step = setting()
    assert fit(StepGraph(its_step, plain, CPU), plain) == pytest.approx(losses, rel=1e-5)


def test_the_cause_of_a_failed_capture_is_shown() -> None:
    """Not the error that its end raises in turn."""
    _, optimizer, step = setting()

    class Fails(Replays):
        def capture(self, *_: object) -> Any:
            try:
                raise ValueError("the user's error\nand more")
            finally:
                raise RuntimeError("capture was invalidated")

    messages: list[str] = []
    fit(StepGraph(step, optimizer, CPU, Fails(), messages.append), optimizer)
    assert messages == ["ValueError: the user's error"]


def test_warm_up_and_capture_have_the_same_inputs() -> None:
    """Kernels are compiled for the alignment of addresses: none may be compiled in a capture."""
    _, optimizer, step = setting()
    places: list[int] = []

    def seen(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        places.append(x.data_ptr())
        return step(x, y)

    graph = StepGraph(seen, optimizer, CPU, Replays())
    x, y = data(16)
    for i in range(step_graph.WARM_UP + 2):
        graph(torch.cat([x.new_zeros(i, 6), x])[i:], y)
    assert len(set(places)) == 1


def test_all_steps_choose_kernels_as_captured_ones() -> None:
    """Warm-up, odd batches and steps after a fallback: a resumed run takes the same kernels."""
    for backend in (Replays(), Replays(fails=True)):
        _, optimizer, step = setting()
        modes: set[bool] = set()

        def seen(x: Tensor, y: Tensor, step: Any = step, modes: Any = modes) -> tuple[Tensor, ...]:
            modes.add(bool(chooser._captured))
            return step(x, y)

        fit(StepGraph(seen, optimizer, CPU, backend, lambda _: None), optimizer)
        assert modes == {True}
        assert not chooser._captured


class NoGraph:
    """`torch.cuda` without a device: remembers how a capture was asked for."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.mode = self.empty = 0

    def capture(self, graph: object, **options: Any) -> Any:
        self.asked = options
        return contextlib.nullcontext()

    def set_mode(self, mode: Any) -> None:
        self.mode = mode

    def emptied(self) -> None:
        self.empty += 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[NoGraph]:
    stand_in = NoGraph()
    stream = SimpleNamespace(wait_stream=lambda _: None)
    names = {
        "graph": stand_in.capture,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None, pool=lambda: "its pool"),
        "Stream": lambda _: SimpleNamespace(wait_stream=lambda _: None),
        "current_stream": lambda _: stream,
        "stream": lambda _: contextlib.nullcontext(),
        "synchronize": lambda _: None,
        "empty_cache": stand_in.emptied,
        "get_sync_debug_mode": lambda: stand_in.mode,
        "set_sync_debug_mode": stand_in.set_mode,
    }
    for name, value in names.items():
        monkeypatch.setattr(torch.cuda, name, value)
    step_graph._side_stream.cache_clear()
    yield stand_in
    step_graph._side_stream.cache_clear()


def test_other_threads_do_not_end_a_capture(cuda: NoGraph) -> None:
    step_graph.CudaGraphs(CPU).capture(lambda: (), ())
    assert cuda.asked["capture_error_mode"] == "thread_local"


def test_captures_share_a_stream_and_their_memory(cuda: NoGraph) -> None:
    """Memory of one stream serves no other, so every task has the same; it is freed at the end."""
    backends = [step_graph.CudaGraphs(CPU) for _ in range(2)]
    assert backends[0].stream is backends[1].stream
    pools = []
    for _ in range(2):
        backends[0].capture(lambda: (), ())
        pools.append(cuda.asked["pool"])
    assert pools == [None, "its pool"]
    backends[0].close()
    assert (cuda.empty, backends[0].pool) == (1, None)


def test_the_rehearsal_finds_what_waits(cuda: NoGraph) -> None:
    """Once, without losing other warnings, and with the mode set back."""

    def step(waits: bool) -> tuple[Tensor, ...]:
        assert cuda.mode == "warn"
        if waits:
            warnings.warn(f"{step_graph.WAITS} (Triggered internally)", stacklevel=1)
        warnings.warn("another one", stacklevel=1)
        return ()

    backend = step_graph.CudaGraphs(CPU)
    for waits in (False, True):
        with pytest.warns(UserWarning, match="another one") as seen:
            reason = backend.rehearse(lambda waits=waits: step(waits), ())[1]
        assert reason.startswith(step_graph.WAITS) == waits
        assert len(seen) == 1
        assert cuda.mode == 0


def test_rates() -> None:
    _, optimizer, _ = setting()
    set_rate(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.5
    rates_on_device(optimizer, CPU)
    rate = optimizer.param_groups[0]["lr"]
    set_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == 0.25


def test_groups_with_one_rate_are_one_launch() -> None:
    net, _, _ = setting()
    optimizer = AdamL1([{"params": [p]} for p in net.parameters()], lr=0.5)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    share_rate(optimizer.param_groups, CPU)
    set_rate(optimizer, 0.25)
    assert {float(group["lr"]) for group in optimizer.param_groups} == {0.25}
    assert len(list(_common._trained(optimizer))) == 1
    rates_on_device(optimizer, CPU)
    assert len({id(group["lr"]) for group in optimizer.param_groups}) == 1


def test_batches_hold_everything_once() -> None:
    x, y = torch.arange(70)[:, None], torch.arange(70)
    batches = list(resident_batches(x, y, 16, 3))
    assert [len(b[1]) for b in batches] == [16, 16, 16, 16, 6]
    assert torch.equal(torch.cat([b[1] for b in batches]).sort()[0], y)
    assert all(torch.equal(a[:, 0], b) for a, b in batches)
    again, other = (list(resident_batches(x, y, 16, seed)) for seed in (3, 4))
    assert torch.equal(again[0][1], batches[0][1])
    assert not torch.equal(other[0][1], batches[0][1])
    assert fits(CPU, x, y)
