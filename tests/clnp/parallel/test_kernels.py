"""The table of the GPU kernels is the same on all ranks, in workers and in resumed runs."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import clnp
from clnp.errors import ConfigError
from clnp.learner import learner as learner_module
from clnp.parallel import kernels
from clnp.parallel.ranks import ALONE
from clnp_kernels.errors import MissingImplementationError
from clnp_kernels.tune import first_use
from tests.clnp.parallel import kernel_cases as cases
from tests.clnp.parallel.ranks import together

GLOO = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)


def test_a_cpu_needs_no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_use, "qualify", None)
    assert kernels.qualify(torch.device("cpu"), ALONE) == {"digest": ""}
    kernels.follow(torch.device("cpu"), {"digest": "0123"})


@GLOO
def test_the_first_rank_checks_and_tells_the_others() -> None:
    first, second = together(cases.qualified, ["A 100"] * 2)
    assert first["checked"] > 0
    assert second["checked"] == 0
    assert first["digest"] == second["digest"] != "torch"
    assert first["passed"] == second["passed"] != []


@GLOO
def test_different_gpus_take_pytorch() -> None:
    for result in together(cases.qualified, ["A 100", "B 200"]):
        assert result == {"digest": "torch", "checked": 0, "passed": []}


@pytest.fixture
def qualified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Digests that learners asked for; each learner follows the table "first"."""
    wanted: list[str] = []

    def qualify(device: torch.device, ranks: Any, digest: str) -> kernels.Kernels:
        wanted.append(digest)
        return {"digest": digest or "first"}

    monkeypatch.setattr(learner_module.kernels, "qualify", qualify)
    return wanted


class StoppedError(Exception):
    pass


def learner(folder: Path, **more: Any) -> clnp.Learner:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 12), torch.nn.ReLU(), torch.nn.Linear(12, 10))
    model = clnp.convert(net, torch.zeros(1, 64))
    return clnp.Learner(model, epochs=2, checkpoint_dir=folder, **more)


def test_a_learner_qualifies_before_it_trains(qualified: list[str], tmp_path: Path) -> None:
    tasks = clnp.data.PermutedDigits(tasks=2)

    class First:
        def on_task_begin(self, *_: Any) -> None:
            assert len(qualified) == 1
            raise StoppedError

    with pytest.raises(StoppedError):
        learner(tmp_path, callbacks=[First()]).learn(tasks[0])


def test_the_digest_is_saved_and_asked_for_again(qualified: list[str], tmp_path: Path) -> None:
    tasks = clnp.data.PermutedDigits(tasks=3)
    one = learner(tmp_path)
    one.learn(tasks[0])
    again = clnp.Learner.load(tmp_path, checkpoint_dir=tmp_path)
    again.learn(tasks[1])
    assert qualified == ["", "first"]


def test_progress_of_other_kernels_is_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task killed in the middle goes on with the same kernels, or from its start."""
    digests = iter(["one", "one", "two"])
    monkeypatch.setattr(learner_module.kernels, "qualify", lambda *_: {"digest": next(digests)})
    task = clnp.data.PermutedDigits(tasks=1)[0]

    class Seen:
        def __init__(self, stop: bool) -> None:
            self.stop, self.epochs, self.resumed = stop, 0, 0

        def on_resume(self, learner: Any, epochs: list[Any]) -> None:
            self.resumed = len(epochs)

        def on_epoch_end(self, learner: Any, epoch: Any) -> None:
            self.epochs += 1

        def on_search(self, *_: Any) -> None:
            if self.stop:
                raise StoppedError

    found = []
    for stop in (True, True, False):
        seen = Seen(stop)
        with contextlib.suppress(StoppedError):
            learner(tmp_path, callbacks=[seen]).learn(task)
        found.append((seen.resumed, seen.epochs))
    assert found == [(0, 2), (2, 0), (0, 2)]


def test_what_is_demanded_and_missing_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line on the command line, and no traceback."""

    def refuse(*_: Any, **__: Any) -> None:
        raise MissingImplementationError("CLNP_TUNE=require: no kernel can serve")

    monkeypatch.setattr(first_use, "qualify", refuse)
    with pytest.raises(ConfigError, match="CLNP_TUNE=require: no kernel can serve"):
        kernels.qualify(cases.DEVICE, ALONE)
