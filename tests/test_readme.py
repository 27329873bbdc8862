"""What the README and the documentation show runs.

Blocks of a page run in order, in one empty folder: Python in one namespace, and the `clnp` lines of
shell blocks after `<!-- run -->`. `<!-- needs: lightning -->` before a Python block leaves it out
where that package is not installed.
"""

import importlib.util
import re
import shlex
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.clnp.commands import run_clnp

pytestmark = pytest.mark.filterwarnings("error::clnp.errors.MarginWarning")
ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
MARKED = re.compile(r"(?:<!-- (run|needs: [\w, ]+) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)


class Block(NamedTuple):
    mark: str
    language: str
    code: str


def blocks(file: Path, language: str) -> list[Block]:
    found = [Block(*parts) for parts in MARKED.findall(file.read_text())]
    return [block for block in found if block.language == language]


def commands(code: str) -> list[str]:
    """The `clnp` lines of a shell block."""
    lines = code.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("clnp ")]


def run_page(file: Path) -> dict[str, Any]:
    """Runs the blocks of a page; the names that its Python blocks leave."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for mark, language, code in MARKED.findall(file.read_text()):
        needed = re.findall(r"\w+", mark.removeprefix("needs:")) if "needs" in mark else []
        if language == "python" and all(map(importlib.util.find_spec, needed)):
            with warnings.catch_warnings():
                if needed:  # other packages' warnings are not ours to mend
                    warnings.simplefilter("ignore")
                exec(compile(code, file.name, "exec"), names)
        elif language == "sh" and mark == "run":
            for line in commands(code):
                assert run_clnp(*shlex.split(line, comments=True)[1:]) == 0, line
    return names


def test_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_page(README)
    assert (tmp_path / "learner.safetensors").is_file()
    assert names["learner"].accuracy_matrix[-1].min() > 0.9
    assert "digits-1" in capsys.readouterr().out


@pytest.mark.parametrize("file", DOCS, ids=lambda file: file.name)
def test_the_documentation_runs(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(file)


@pytest.mark.parametrize("file", [README, *DOCS], ids=lambda file: file.name)
def test_commands_exist(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option that a `clnp` line of a file uses is known to the command line."""
    from clnp.cli import main

    lines = [line for block in blocks(file, "sh") for line in commands(block.code)]
    assert lines or file != README
    for line in lines:
        command, options = line.split()[1], re.findall(r" (--[a-z-]+)", line.split("#")[0])
        if command.startswith("-"):
            continue
        assert main([command, "--help"]) == 0
        help_text = capsys.readouterr().out
        assert all(option in help_text for option in options), line
