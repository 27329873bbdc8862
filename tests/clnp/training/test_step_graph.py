"""Whole-step capture: bookkeeping and fallback with a backend that replays by calling."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clnp.data.batches import fits
from clnp.training import step_graph
from clnp.training.step_graph import StepGraph, rates_on_device, resident_batches, set_rate
from clnp_kernels.nn import MaskedLinear
from clnp_kernels.optim import SGDL1, AdamL1

CPU = torch.device("cpu")


class Replays:
    """Captures by remembering the step; a replay calls it and overwrites the outputs."""

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.ran, self.captured = fails, 0, 0

    def run(self, step: step_graph.Step, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.ran += 1
        return step(*inputs)

    def capture(
        self, step: step_graph.Step, inputs: tuple[Tensor, ...]
    ) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")
        self.captured += 1
        outputs = (torch.zeros(()), torch.zeros((), dtype=torch.int64))

        def replay() -> None:
            for static, now in zip(outputs, step(*inputs), strict=True):
                static.copy_(now)

        return replay, outputs


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


def test_rates() -> None:
    _, optimizer, _ = setting()
    set_rate(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.5
    rates_on_device(optimizer, CPU)
    rate = optimizer.param_groups[0]["lr"]
    set_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == 0.25


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
