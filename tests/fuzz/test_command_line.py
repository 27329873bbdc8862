"""The command line with random words, and run folders whose JSON was changed at random: it is done,
or one line says why not; never a traceback.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from clnp.cli import compare, experiment, pages
from clnp.cli.options import OPTIONS, PLACES
from clnp.cli.prepare import try_out
from clnp.cli.run_folder import Run, RunFolder
from clnp.plots.svg import Picture
from tests.clnp.commands import clnp, finished_run
from tests.fuzz.mutations import mutated

LONG = bool(os.environ.get("CLNP_LONG_TESTS"))
FUZZ = settings(
    max_examples=1000 if LONG else 10,
    deadline=None,
    derandomize=not LONG,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
WORDS = ("", "x", "-", "0", "1", "nan", "a b", "ä", "mlp", "narrow", "l1=1e-4,1e-3", "c=0.1", "=")
INTEGERS = ("0", "-1", "1", "3", "16", "10000000", "1" * 40, "1.5", "many", "")
NUMBERS = ("0", "-1", "0.1", "0.5", "1e-4", "1e9", "nan", "inf", "many", "")


@st.composite
def option(draw: st.DrawFn) -> list[str]:
    """An option of an experiment and what may follow it."""
    every = {**PLACES["folder"], **PLACES["seeds"]}
    for group in OPTIONS.values():
        every |= group
    # Where to is up to the test.
    name = draw(st.sampled_from(sorted(name for name in every if name != "out")))
    keywords = every[name].keywords
    flag = f"--{draw(st.sampled_from(name.split()))}"
    if "action" in keywords:
        return [draw(st.sampled_from((flag, f"--no-{flag[2:]}")))]
    if "choices" in keywords:
        return [flag, draw(st.sampled_from((*keywords["choices"], "other")))]
    values = {int: INTEGERS, float: NUMBERS}.get(keywords.get("type"), WORDS)
    if "nargs" in keywords or ("type" in keywords and keywords["type"] not in (int, float)):
        values = (*WORDS, *NUMBERS, "1e-4,1e-3,1e-2", "lr=1e-3", "l1=1e-4:1e-4", "si.c=1", "c=[")
    return [flag, draw(st.sampled_from(values))]


STREAMS = ("permuted-digits", "permuted-mnist", "split-cifar", "folder", "arrays", "x", "")


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands go as far as the first step of training: data, network and learner are made."""

    def one(run: Run, *_: Any, **__: Any) -> bool:
        try_out(run)
        return True

    def every(folder: RunFolder, plan: Any, *_: Any, **__: Any) -> bool:
        return all(map(one, plan.values()))

    monkeypatch.setattr(experiment, "carry_out", one)
    monkeypatch.setattr(compare, "carry_out", every)


def assert_said(code: int, error: str) -> None:
    assert code in (0, 2), error
    assert "bug" not in error
    assert "Traceback" not in error
    if code == 2:
        assert error.startswith("clnp: error: ")
        assert len(error.splitlines()) == 1


@pytest.mark.usefixtures("tried")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # No data, so that nothing is downloaded.
    fixed = ["--data-root", str(tmp_path), "--out", str(tmp_path / "run")]

    @given(
        st.sampled_from(("run", "run", "compare")),
        st.sampled_from(STREAMS),
        st.lists(option(), max_size=4),
    )
    @FUZZ
    def asked(command: str, stream: str, options: list[list[str]]) -> None:
        words = [word for words in options for word in words]
        code, _, error = clnp(capsys, command, stream, *words, *fixed)
        assert_said(code, error)

    asked()


NO_PICTURE = Picture("", 1, 1, "")


@pytest.fixture
def quick_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without pictures, which take a second each."""
    if not LONG:
        monkeypatch.setattr(pages, "picture", lambda *_: NO_PICTURE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.usefixtures("tried", "quick_pages")
@pytest.mark.parametrize("name", ["config.json", "metrics.json", "environment.json"])
def test_any_json(
    name: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    data = json.loads((run / name).read_text())
    commands = [("report", run), ("verify", run), ("run", "--resume", "--out", run)]

    @given(mutated(data), st.sampled_from(commands))
    @FUZZ
    def asked(data: Any, words: tuple[Any, ...]) -> None:
        (run / name).write_text(json.dumps(data))
        code, _, error = clnp(capsys, *words)
        # Other threads may round otherwise, which a certificate notices.
        if not (words[0] == "verify" and code == 1):
            assert_said(code, error)

    asked()


@pytest.mark.usefixtures("quick_pages")
@pytest.mark.parametrize("name", ["timing.csv", "cost.csv"])
def test_any_table(
    name: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    rows = list(csv.reader((run / name).read_text().splitlines()))
    cells = st.sampled_from(("", "x", "nan", "inf", "-1", "1e400", '"', "\n"))

    @given(st.integers(0, len(rows) - 1), st.integers(0, len(rows[0]) - 1), cells)
    @FUZZ
    def asked(row: int, column: int, cell: str) -> None:
        changed = [list(line) for line in rows]
        changed[row][column] = cell
        (run / name).write_text("\n".join(",".join(line) for line in changed))
        code, _, error = clnp(capsys, "report", run)
        assert_said(code, error)

    asked()
