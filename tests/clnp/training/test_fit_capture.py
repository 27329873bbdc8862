"""Training through a captured step, with a stand-in for CUDA graphs: the same numbers."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from clnp.data.batches import resident
from clnp.network.model import Model
from clnp.training import fit as train
from clnp.training.fit import Fit, FitSettings
from clnp.training.step_graph import StepGraph
from tests.clnp.cases import blobs, convert, mlp, random_keep


class Replays:
    """Records a step by remembering it: a replay runs it on the recorded inputs again."""

    def run(self, step: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Any:
        return step(*inputs)

    def rehearse(self, step: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Any:
        return step(*inputs), ""

    def capture(self, step: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Any:
        outputs = torch.zeros(()), torch.zeros((), dtype=torch.int64)

        def replay() -> None:
            for output, value in zip(outputs, step(*inputs), strict=True):
                output.copy_(value)

        return replay, outputs


def in_second_task() -> Model:
    torch.manual_seed(0)
    model = convert(mlp([30, 20], dropout=0.2))
    generator = torch.Generator().manual_seed(0)
    model.begin_task(generator=generator)
    model.consolidate(random_keep(model, generator))
    model.begin_task(generator=generator)
    return model


@pytest.mark.parametrize("cache", [False, True])
def test_a_captured_step_trains_as_the_step_does(
    cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = blobs(0)
    fits = []
    for captured in (False, True):
        model = in_second_task()
        l1 = dict.fromkeys(model.layer_names, 1e-4)
        fit = Fit(
            model, task.train, task.validation, FitSettings(3, 0.01, 32, l1, "step", cache=cache), 7
        )
        assert bool(fit.cache) == cache
        if captured:
            graph = StepGraph(fit._step, fit.optimizer, fit.device, backend=Replays())
            monkeypatch.setattr(fit, "_step", graph)
        fit.run()
        fits.append(fit)
    assert graph.replays > 0
    plain, captured_fit = fits
    for got, expected in zip(captured_fit.moving, plain.moving, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(plain.state.history, captured_fit.state.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_a_finished_fit_keeps_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graph, resident data and cache are freed with the fit, without the collector of cycles."""
    model, task = in_second_task(), blobs(0)
    l1 = dict.fromkeys(model.layer_names, 1e-4)
    fit = Fit(model, task.train, task.validation, FitSettings(2, 0.01, 32, l1), 7)
    graphs: list[weakref.ref[Any]] = []

    def steps(generator: torch.Generator) -> Any:
        if fit._graph is None:
            fit._graph = StepGraph(fit._step, fit.optimizer, fit.device, backend=Replays())
            graphs.append(weakref.ref(fit._graph))
        for x, y in fit._batches(generator):
            yield len(y), *fit._graph(x, y)

    monkeypatch.setattr(fit, "_steps", steps)
    gc.disable()
    try:
        fit.run()
        assert len(graphs) == 1
        assert graphs[0]() is None
        other = Fit(model, task.train, task.validation, FitSettings(1, 0.01, 32, l1), 7)
        other.run()
        alive = weakref.ref(other)
        del other
        assert alive() is None
    finally:
        gc.enable()


def test_data_stay_where_they_are_on_a_cpu() -> None:
    split = blobs(0).train
    assert resident(split, torch.device("cpu")) is split
    assert train.Fit.capturable
