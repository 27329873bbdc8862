"""Training through a captured step, with a stand-in for CUDA graphs: the same numbers."""

import gc
import math
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from clnp.data.batches import batches, count, placed, resident
from clnp.network.model import Model
from clnp.training import fit as train
from clnp.training.fit import Fit, FitSettings
from clnp.training.resident import TOGETHER, Resident
from clnp.training.stacked_fit import StackedFit
from tests.clnp.cases import blobs, convert, mlp, random_keep
from tests.clnp.replays import Replays

CPU = torch.device("cpu")


def in_second_task() -> Model:
    torch.manual_seed(0)
    model = convert(mlp([30, 20], dropout=0.2))
    generator = torch.Generator().manual_seed(0)
    model.begin_task(generator=generator)
    model.consolidate(random_keep(model, generator))
    model.begin_task(generator=generator)
    return model


def settings_of(model: Model, epochs: int = 3, batch: int = 32, **more: Any) -> FitSettings:
    l1 = dict.fromkeys(model.layer_names, 1e-4)
    return FitSettings(epochs, 0.01, batch, l1, "step", **more)


# 240 examples: 7 batches and a smaller one; one batch; 30 batches, 8 in a graph; one that is joined
@pytest.mark.parametrize("batch", [32, 300, 8, 239])
@pytest.mark.parametrize("cache", [False, True])
def test_a_captured_step_trains_as_the_step_does(cache: bool, batch: int) -> None:
    """Bit for bit, for what is trained, the optimizer's state, the random numbers and history."""
    task, fits, backend = blobs(0, rows=720), [], Replays()
    for captured in (False, True):
        model = in_second_task()
        settings = settings_of(model, batch=batch, cache=cache)
        fit = Fit(model, task.train, task.validation, settings, 7)
        assert bool(fit.cache) == cache
        fit.backend = backend if captured else None
        fit.run()
        fits.append(fit)
    full = count(task.train) // batch
    assert backend.captured == (0 if full <= 1 else 2 if full >= 2 * TOGETHER else 1)
    assert backend.replayed <= 3 * full / (3 if full >= 2 * TOGETHER else 1)
    plain, other = fits
    for got, expected in zip(other.moving, plain.moving, strict=True):
        assert torch.equal(got, expected)
    states = (fit.snapshot().optimizer for fit in fits)
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))
    assert plain.state.history == other.state.history


def test_batches_on_the_device_are_those_of_the_loader() -> None:
    """The same examples in the same order, the same layout, and rows where they are wanted."""
    x, y = torch.randn(71, 3, 4, 5), torch.randint(10, (71,))
    for size in (10, 35, 71, 100):
        seen: list[tuple[Tensor, ...]] = []

        def step(*batch: Tensor, seen: Any = seen) -> tuple[Tensor, Tensor]:
            seen.append(batch)
            return torch.ones(()), torch.ones((), dtype=torch.int64)

        resident = Resident((x, y), size, rows=True)
        made = list(resident.epoch(torch.Generator().manual_seed(3), step, None))
        wanted = list(batches((x, y), size, CPU, torch.Generator().manual_seed(3)))
        assert [n for n, *_ in made] == [len(labels) for _, labels in wanted]
        for (got, labels, rows), (inputs, expected) in zip(seen, wanted, strict=True):
            assert torch.equal(got, inputs)
            assert got.stride() == inputs.stride()
            assert torch.equal(labels, expected)
            assert torch.equal(x[rows], got)
        assert float(resident.sums[0]) == 71
        assert int(resident.sums[1]) == len(wanted)


def test_images_in_channels_last_need_no_copy() -> None:
    """What `resident` keeps on a GPU gives batches in the format of convolutions."""
    x = placed(torch.randn(20, 3, 4, 5), CPU)
    batch = x[torch.tensor([4, 2, 9])]
    assert placed(batch, CPU).data_ptr() == batch.data_ptr()


@pytest.mark.parametrize("points", [0, 2])
def test_a_finished_fit_keeps_no_graph(points: int) -> None:
    """Graph, resident data and cache are freed with the fit, without the collector of cycles."""
    model, task, backend = in_second_task(), blobs(0), Replays()
    settings = settings_of(model, 4)
    fit: Any
    if points:
        several = [replace(settings, lr=0.01 * (p + 1)) for p in range(points)]
        fit = StackedFit(model, task.train, task.validation, several, 7)
    else:
        fit = Fit(model, task.train, task.validation, settings, 7)
    fit.backend = backend
    graphs: list[weakref.ref[Any]] = []

    def after_epoch(*_: Any) -> None:
        assert fit._graph is not None
        graphs.append(weakref.ref(fit._graph))

    gc.disable()
    try:
        fit.run_all(after_epoch) if isinstance(fit, StackedFit) else fit.run(after_epoch)
        assert backend.replayed > 0
        assert backend.closed == 1
        assert all(graph() is None for graph in graphs)
        assert fit._resident is None
        assert all(parameter.grad is None for parameter in fit.parameters)
        alive, fit = weakref.ref(fit), None
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("points", [0, 3])
def test_a_captured_step_has_one_launch_of_the_optimizer(
    points: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many rates there are, and though every layer is a group of its own."""
    model, task = in_second_task(), blobs(0)
    settings = settings_of(model)
    fit: Fit
    if points:
        several = [replace(settings, lr=0.01 * (p + 1)) for p in range(points)]
        fit = StackedFit(model, task.train, task.validation, several, 7)
    else:
        fit = Fit(model, task.train, task.validation, settings, 7)
    fit.backend, calls = Replays(), []
    step_alike = type(fit.optimizer)._step_alike
    monkeypatch.setattr(
        type(fit.optimizer),
        "_step_alike",
        lambda *args, **options: calls.append(0) or step_alike(*args, **options),
    )
    fit._trained(0)
    steps = math.ceil(count(task.train) / settings.batch_size)
    assert len(fit.optimizer.param_groups) > len(calls) / steps == 1


def test_data_stay_where_they_are_on_a_cpu() -> None:
    split = blobs(0).train
    assert resident(split, torch.device("cpu")) is split
    assert train.Fit.capturable
