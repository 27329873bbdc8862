"""Running the command line inside the tests' process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clnp import cli
from clnp.plots import figures


def tiny(**changes: object) -> list[str]:
    """Options of a run of two tiny tasks, some of them changed."""
    values = {"tasks": 2, "epochs": 2, "width": 24, "threads": 1, **changes}
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


TINY = tiny()


def run_clnp(*words: object) -> int:
    """The exit code of `clnp WORDS`; torch's threads are put back.

    Plots are drawn small, which is quicker; test_plots looks at them in full.
    """
    threads = torch.get_num_threads()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(figures, "DPI", 20)
            return cli.main([str(word) for word in words])
    finally:
        torch.set_num_threads(threads)


def clnp(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `clnp WORDS`."""
    code = run_clnp(*words)
    out, err = capsys.readouterr()
    return code, out, err


def finished_run(parent: Path) -> Path:
    """The folder of a finished run of two tiny tasks."""
    assert run_clnp("run", "--out", parent / "digits", *TINY) == 0
    return parent / "digits"
