"""The reference is timed only where it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import against, gpu_suite, machine, run, served
from benchmarks.reproduce import __main__ as reproduce
from clnp_kernels import _register


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the library was not built."""
    monkeypatch.setitem(_register._reasons, "cpu", "not built here")
    monkeypatch.delenv("CLNP_REFERENCE", raising=False)


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it is loaded."""
    monkeypatch.setitem(_register._reasons, "cpu", "")
    monkeypatch.delenv("CLNP_REFERENCE", raising=False)


@pytest.mark.usefixtures("absent")
@pytest.mark.parametrize("program", ["run", "reproduce", "gpu_suite"])
def test_an_absent_library_is_a_refusal(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_suite.torch.cuda, "is_available", lambda: True)
    mains = {
        "run": lambda: run.main(["--size", "tiny", "--out", str(tmp_path / "out")]),
        "reproduce": lambda: reproduce.main(["table1", "--quick", "--out", str(tmp_path / "out")]),
        "gpu_suite": lambda: gpu_suite.main(["C", "--out", str(tmp_path / "out")]),
    }
    with pytest.raises(SystemExit, match=r"not built here.*`make build`.*--reference"):
        mains[program]()
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("absent")
def test_the_reference_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    served.require(reference=True)
    assert served.implementation("cpu") == machine.facts("cpu")["implementation"] == "reference"
    monkeypatch.setenv("CLNP_REFERENCE", "1")
    served.require()
    assert served.refusal() == ""


@pytest.mark.usefixtures("present")
def test_a_loaded_library_is_never_called_the_reference() -> None:
    served.require()
    assert served.implementation("cpu") == "C++"
    with pytest.raises(SystemExit, match=r"the compiled library is loaded; .*CLNP_REFERENCE=1"):
        served.require(reference=True)


def test_a_revision_without_its_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of a revision says of itself whether the reference serves there."""
    monkeypatch.delenv("CLNP_REFERENCE", raising=False)
    code = "import clnp_kernels.ops; "
    code += "clnp_kernels._register._reasons['cpu'] = 'not built here'; "
    monkeypatch.setattr(against, "SERVE", code + against.SERVE)
    with pytest.raises(SystemExit, match=r"not built here"):
        against.Side(against.ROOT)
    against.Side(against.ROOT, reference=True).close()
