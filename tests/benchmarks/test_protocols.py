"""The protocols of isolating methods: their memory by hand, and the choice of the rate."""

import argparse
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import clnp
from benchmarks import protocols
from benchmarks.protocols import METHODS, Protocol, memory
from clnp.methods import make
from tests.clnp.cases import blobs, convert, mlp


def learned(method: str, tasks: int = 2, **options: Any) -> Any:
    torch.manual_seed(0)
    net = mlp([20, 10])
    learner = make(method, net, torch.zeros(2, 12), epochs=1, progress_bar=False, **options)
    for k in range(tasks):
        learner.learn(blobs(k))
    return learner


WEIGHTS = 20 * 12 + 10 * 20  # hidden ones


def test_memory_of_clnp_is_what_is_active() -> None:
    learner = clnp.Learner(convert(mlp([20, 10])), epochs=1, progress_bar=False)
    learner.learn(blobs(0))
    a, b = (learner.model.active(name) for name in ("0", "2"))
    assert memory(learner) == (a * 12 + b * a) / WEIGHTS


def test_memory_of_masks_counts_their_bits() -> None:
    lt = learned("packnet", keep=0.25, tasks=2)
    kept = sum(round(0.25 * n) + round(0.25 * (n - round(0.25 * n))) for n in (240, 200))
    assert memory(lt) == pytest.approx((kept * 32 + 2 * WEIGHTS) / (32 * WEIGHTS), abs=0.01)
    lt = learned("wsn", keep=1.0)
    assert memory(lt) == pytest.approx(1 + 2 / 32)
    lt = learned("wsn", keep=0.1)
    assert 0.1 + 2 / 32 <= memory(lt) <= 0.2 + 2 / 32 + 0.01
    assert memory(learned("scratch")) == 2


def test_memory_of_hat_counts_weights_between_used_channels() -> None:
    lt = learned("hat")
    method = lt.method
    with torch.no_grad():
        for name, size in (("0", 20), ("2", 10)):
            method.memory[f"used.{name}"] = (torch.arange(size) < size // 2).float()
    assert memory(lt) == pytest.approx((10 * 12 + 5 * 10 + 2 * 30) / WEIGHTS)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Protocol(
        lambda root, seed: [blobs(seed + k) for k in range(3)],
        lambda seed: mlp([20, 10]),
        {"epochs": 2, "batch_size": 32},
    )
    monkeypatch.setitem(protocols.PROTOCOLS, "small", made)
    monkeypatch.setattr(protocols, "FIRST", 1)


@pytest.mark.usefixtures("small")
def test_the_best_rate_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    name, options, _ = METHODS["scratch"]
    monkeypatch.setitem(METHODS, "scratch", (name, options, (1e-7, 0.02)))
    assert protocols.best_rate(protocols.PROTOCOLS["small"], "scratch", Path()) == 0.02


@pytest.mark.usefixtures("small")
def test_rows_go_on_where_the_file_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(protocols, "best_rate", lambda *args: 0.01)
    options = argparse.Namespace(
        protocols=["small"],
        methods=["clnp", "packnet"],
        seeds=1,
        data_root=tmp_path,
        out=tmp_path / "runs.csv",
    )
    with protocols.appending(options.out, protocols.COLUMNS, {}) as append:
        for row in protocols.rows(options):
            append(row)
    found = protocols.rows_in(options.out)
    assert [row["method"] for row in found] == ["clnp", "packnet"]
    assert all(0 < float(row["memory"]) < 1.1 for row in found)
    assert all(float(row["worst"]) <= float(row["acc"]) <= 1 for row in found)
    assert math.isfinite(float(found[0]["class_incremental"]))
    assert list(protocols.rows(options)) == []
