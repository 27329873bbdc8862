"""A store of its own for each test, no variables of ours, and a card that is none."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clnp_kernels import _register, chooser, ops  # noqa: F401  (registers the operators)
from clnp_kernels.tune import first_use
from clnp_kernels.tune.environment import Card
from tests.cuda.emulated import COMPILER, build

CARD = Card("cpu", "Interpreter 100", 90, 4, 1 << 12, "tests.clnp_kernels.tune.card")


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in os.environ:
        if name.startswith("CLNP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CLNP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(chooser, "absent", {})
    monkeypatch.setattr(_register, "_warned", set())
    first_use.forget()
    yield
    first_use.forget()


@pytest.fixture
def said() -> list[str]:
    """What was said."""
    return []


Verdict = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Checks that pass at once, without a process; the jobs that were done."""
    return answered(monkeypatch, lambda job: {"reason": ""})


def answered(monkeypatch: pytest.MonkeyPatch, verdict: Verdict) -> list[dict[str, Any]]:
    """Let checks be answered by a function; returns the jobs, as they are done."""
    done: list[dict[str, Any]] = []

    def run(card: Card, jobs: Any, seconds: float, workers: int) -> Iterator[Any]:
        for job in jobs:
            done.append(job)
            yield job, verdict(job)

    monkeypatch.setattr(first_use, "run", run)
    return done


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CUDA C++ library, compiled for the CPU."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    return build(tmp_path_factory.mktemp("emulator"))
