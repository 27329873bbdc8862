"""Grid points trained together do what each does alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clnp
from clnp.data import PermutedDigits
from clnp.network.model import Model
from clnp.training.fit import Fit, FitSettings, FitState, trainable
from clnp.training.stacked_fit import StackedFit, StackedNetwork, stackable
from clnp_kernels.stacked import stacked_linear
from tests.clnp.cases import Functional, InputResidual, Residual, mlp

NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: mlp([20, 16]),
    "no bias": lambda: mlp([20, 16], bias=False),
    "dropout": lambda: mlp([20, 16], dropout=0.3),
    "functional": Functional,
    "residual": Residual,
}


def in_second_task(net: nn.Module, head: str) -> Model:
    """A converted network in float64 whose first task has claimed some channels."""
    torch.manual_seed(0)
    model = clnp.convert(net, torch.zeros(1, 12)).double()
    model.set_head(head)
    model.begin_task()
    keep = {g.name: torch.arange(0, model.free(g), 3) for g in model.groups.prunable}
    model.consolidate(keep)
    model.begin_task(generator=torch.Generator().manual_seed(1))
    return model.train()


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-11 * b.abs().max())


@pytest.mark.parametrize("head", ["single", "multi"])
@pytest.mark.parametrize("name", NETS)
def test_every_point_is_a_network_of_its_own(name: str, head: str) -> None:
    model = in_second_task(NETS[name](), head)
    assert stackable(model)
    stacked = StackedNetwork(model, 3)
    parameters = trainable(model)
    for stack in stacked.stacks:
        with torch.no_grad():
            stack.add_(torch.randn_like(stack))
    x, y = torch.randn(7, 12, dtype=torch.float64), torch.arange(7) % 3
    torch.manual_seed(5)
    logits = stacked(x)
    sum(F.cross_entropy(part, y) for part in logits).backward()
    for p in range(3):
        with torch.no_grad():
            for parameter, stack in zip(parameters, stacked.stacks, strict=True):
                parameter.copy_(stack[p])
                parameter.grad = None
        torch.manual_seed(5)  # the same dropout
        alone = model.net(x)
        assert close(logits[p], alone)
        F.cross_entropy(alone, y).backward()
        for parameter, stack in zip(parameters, stacked.stacks, strict=True):
            assert parameter.grad is not None
            assert stack.grad is not None
            assert close(stack.grad[p], parameter.grad)


def test_networks_that_cannot_be_stacked() -> None:
    assert not stackable(in_second_task(InputResidual(), "multi"))
    norm = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    assert not stackable(in_second_task(norm, "multi"))


@pytest.mark.parametrize("shared", [0, 4, 9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_stacked_linear(shared: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, own = torch.randn(6, shared), torch.randn(3, 6, 9 - shared, requires_grad=True)
    weight, bias = torch.randn(3, 5, 9, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    whole = torch.cat([x.expand(3, -1, -1), own], dim=2).double()
    wanted = whole @ weight.double().mT + bias.double()[:, None]
    grad = torch.randn_like(wanted)
    inputs = [own, weight, bias]
    expected = torch.autograd.grad(wanted, inputs, grad, allow_unused=True)
    if dtype == torch.float64:
        args, tolerance = [t.double() for t in (x, *inputs)], 1e-6
        y = stacked_linear(*args)
    else:
        tolerance = 0.03
        with torch.autocast("cpu", dtype):
            y = stacked_linear(x, *inputs)
    assert y.dtype == dtype
    assert (y - wanted).abs().max() <= tolerance * wanted.abs().max()
    got = torch.autograd.grad(y, inputs, grad.to(dtype))
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.float32
        if b is not None and b.numel():
            assert (a - b).abs().max() <= tolerance * b.abs().max()


def test_shapes_that_do_not_fit() -> None:
    weight = torch.zeros(2, 5, 9)
    with pytest.raises(ValueError, match=r"own.shape: expected \[2, 6, 5\], got \[2, 6, 4\]"):
        stacked_linear(torch.zeros(6, 4), torch.zeros(2, 6, 4), weight, None)
    with pytest.raises(ValueError, match=r"bias.shape"):
        stacked_linear(torch.zeros(6, 4), torch.zeros(2, 6, 5), weight, torch.zeros(5))


POINTS = [(1e-2, 0.0), (1e-2, 1e-3), (3e-3, 1e-3)]  # lr, alpha


def settings_of(model: Model, epochs: int) -> list[FitSettings]:
    names = model.layer_names
    return [
        FitSettings(epochs, lr, 16, dict.fromkeys(names, alpha), "step") for lr, alpha in POINTS
    ]


def data(rows: int = 50) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, 12, dtype=torch.float64, generator=generator)
    return x, torch.arange(rows) % 3


def test_a_point_ends_where_its_own_fit_ends() -> None:
    settings = settings_of(in_second_task(mlp([20, 16], dropout=0.3), "multi"), 5)
    model = in_second_task(mlp([20, 16], dropout=0.3), "multi")
    split = data()
    fit = StackedFit(model, split, split, settings, 7)
    states = fit.run_all(lambda states, snapshot: None)
    for p, own in enumerate(settings):
        alone = Fit(in_second_task(mlp([20, 16], dropout=0.3), "multi"), split, split, own, 7)
        state = alone.run()
        for mine, parameter in zip(fit.views[p], alone.parameters, strict=True):
            assert close(mine.detach(), parameter.detach())
        assert [row["lr"] for row in states[p].history] == [row["lr"] for row in state.history]
        for mine, wanted in zip(states[p].history, state.history, strict=True):
            assert mine["loss"] == pytest.approx(wanted["loss"], rel=1e-10)
            assert mine["validation_metric"] == wanted["validation_metric"]
            assert mine["train_metric"] == wanted["train_metric"]


def test_goes_on_from_saved_states_bit_for_bit() -> None:
    split, saved = data(), []
    model = in_second_task(mlp([20, 16], dropout=0.3), "single")
    settings = settings_of(model, 4)
    whole = StackedFit(model, split, split, settings, 7)

    def keep(states: list[FitState], snapshot: Callable[[int], FitState]) -> None:
        if states[0].epoch == 2:
            saved.extend(snapshot(p) for p in range(len(states)))

    whole.run_all(keep)
    again = StackedFit(model, split, split, settings, 7)
    again.resume_all(saved)
    states = again.run_all(lambda states, snapshot: None)
    assert [state.history for state in states] == [state.history for state in whole.states]
    for a, b in zip(again.moving, whole.moving, strict=True):
        assert torch.equal(a, b)


def test_learner_with_stacked_grid_points() -> None:
    reports = {}
    for stack in ("on", "off"):
        net = clnp.models.mlp(64, 40, 2, 10, seed=0)
        learner = clnp.Learner(
            clnp.convert(net, torch.zeros(1, 64)),
            head="single",
            margin=0.02,
            epochs=3,
            batch_size=64,
            stack=stack,
            grid={"l1": [1e-4, 1e-3], "lr": [1e-3, 5e-3]},
        )
        reports[stack] = [learner.learn(task) for task in PermutedDigits(tasks=2)]
        assert all(verdict.identical for verdict in learner.verify())
    for on, off in zip(reports["on"], reports["off"], strict=True):
        assert [(row["lr"], row["l1"]) for row in on.grid] == [
            (row["lr"], row["l1"]) for row in off.grid
        ]
        for mine, wanted in zip(on.grid, off.grid, strict=True):
            assert mine["validation"] == pytest.approx(wanted["validation"], abs=0.01)


def test_a_point_that_diverges_ends_the_task() -> None:
    model = in_second_task(mlp([20, 16]), "multi")
    first, *others = settings_of(model, 3)
    split = data()
    fit = StackedFit(model, split, split, [replace(first, lr=1e200), *others], 7)
    with pytest.raises(clnp.TrainingError, match="of a grid point among"):
        fit.run_all(lambda states, snapshot: None)
