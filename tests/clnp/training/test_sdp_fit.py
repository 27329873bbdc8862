"""Structured SDP on masked networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import clnp
from clnp.errors import ConfigError
from clnp.methods.esacl import SDPSettings, StructuredFit, channel_scores
from clnp.network.model import Model
from clnp.training.evaluation import accuracy
from clnp.training.fit import Fit, FitSettings, FitState
from clnp.training.polytope import in_channel_polytope
from clnp.training.sdp_fit import hidden_weights
from tests.clnp.cases import Residual, blobs, convert, mlp

CPU = torch.device("cpu")


def begun(head: str = "single") -> Model:
    torch.manual_seed(0)
    model = convert(mlp([40, 30]), head=head)
    model.begin_task(3)
    return model


def settings(model: Model, epochs: int = 8) -> FitSettings:
    return FitSettings(epochs, 0.01, 16, dict.fromkeys(model.layer_names, 0.0), "step")


def fit(model: Model, epochs: int = 8, seed: int = 0) -> StructuredFit:
    task = blobs(0)
    return StructuredFit(model, task.train, task.validation, settings(model, epochs), seed)


def test_weights_stay_in_their_channel_polytopes() -> None:
    model = begun()
    run = fit(model)
    assert run.wolfe is not None
    taus = [float(run.wolfe.state[w]["tau"]) for w in hidden_weights(model)]
    run.run()
    for w, tau in zip(hidden_weights(model), taus, strict=True):
        assert in_channel_polytope(w.detach(), max(1, round(SDPSettings().k * len(w))), tau)
    assert run.state.history[-1]["validation_metric"] > 0.9


def test_weight_gathers_in_few_channels() -> None:
    """More of the squared norm is in the largest fifth of the rows than after Adam's steps."""
    largest = []
    for kind in (Fit, StructuredFit):
        model, task = begun(), blobs(0)
        kind(model, task.train, task.validation, settings(model, 20), 0).run()
        energy = [v.square().sort(descending=True).values for v in channel_scores(model).values()]
        largest.append([float(e[: len(e) // 5].sum() / e.sum()) for e in energy])
    for plain, sparse in zip(*largest, strict=True):
        assert sparse > 1.3 * plain


def test_resumes_bit_by_bit() -> None:
    whole = begun()
    fit(whole, 6).run()
    saved: list[FitState] = []
    fit(begun(), 6).run(lambda state, snapshot: saved.append(snapshot()))
    again = begun()
    run = fit(again, 6)
    run.resume(saved[2])
    run.run()
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("head", ["single", "multi"])
def test_three_tasks_by_structured_sdp(head: str) -> None:
    torch.manual_seed(0)
    model = convert(mlp([60, 40]), head=head)
    logits: list[Tensor] = []
    for k in range(3):
        task = blobs(k)
        model.begin_task(3)
        StructuredFit(model, task.train, task.validation, settings(model, 12), 0).run()
        clnp.prune(model, task.train, task.validation, margin=0.02, sparsifier="sdp")
        clnp.consolidate(model)
        assert accuracy(model.subnetwork(k), task.test, CPU) > 0.9
        for j, before in enumerate(logits):
            assert torch.equal(model(blobs(j).test[0], task=j), before)
        logits.append(model(task.test[0], task=k))
        scores = channel_scores(model)
        assert all(len(v) == model.sizes[g] for g, v in scores.items())
    assert all(model.free(g) > 0 for g in model.groups.prunable)


def test_scores_are_norms() -> None:
    model = begun("multi")
    model.consolidate({"0": torch.arange(5), "2": torch.arange(4)})
    model.begin_task(3)
    scores = channel_scores(model)
    second, head = model.layer_weight("2").detach(), model.head.free_weight.detach()
    torch.testing.assert_close(scores["2"][4:], second.double().norm(dim=1))
    torch.testing.assert_close(scores["2"][:4], head[:, :4].double().norm(dim=0))
    torch.testing.assert_close(scores["0"][:5], second[:, :5].double().norm(dim=0))


def test_channels_shared_by_several_layers() -> None:
    torch.manual_seed(0)
    model = convert(Residual(), head="multi")
    model.begin_task(3)
    stem, outer = (model.layer_weight(n).detach().double() for n in ("stem", "outer"))
    wanted = (stem.square().sum(1) + outer.square().sum(1)).sqrt()
    torch.testing.assert_close(channel_scores(model)["stem"], wanted)


@pytest.mark.parametrize("bad", [{"rho": -1.0}, {"lr": 0.0}, {"k": 2.0}, {"momentum": 1.0}])
def test_bad_settings(bad: dict[str, float]) -> None:
    ((name, value),) = bad.items()
    with pytest.raises(ConfigError, match=f"^sdp {name}: expected a number .*, got {value}$"):
        SDPSettings(**bad)
