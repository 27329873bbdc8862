"""The code of README.md and docs/ runs.

A page has an empty folder of its own. Each Python block runs alone, in a fresh namespace; a `clnp`
line runs if `<!-- run -->` stands before its shell block. The first line of a Python block may be
`# needs: lightning` (skipped without that package), `# needs: torchrun` (skipped always; likewise a
GPU, a network connection) or `# needs: a file of its own` (runs as a script, with
CLNP_LONG_TESTS=1). A block that begins with the name of a file, as `# unet.py`, is that file.
"""

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.clnp.commands import run_clnp

pytestmark = pytest.mark.filterwarnings("error::clnp.errors.MarginWarning")
ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- run -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
FILE = re.compile(r"# (\w+\.py)\n")
NEEDS = re.compile(r"# needs: (.+)\n")
ABSENT = {"a GPU", "a network connection", "torchrun"}
SCRIPT = "a file of its own"


class Block(NamedTuple):
    run: str
    language: str
    code: str

    @property
    def needs(self) -> str:
        found = NEEDS.match(self.code)
        return found[1] if found else ""


def blocks(page: Path) -> list[Block]:
    return [Block(*parts) for parts in BLOCK.findall(page.read_text())]


def commands(code: str) -> list[str]:
    """The `clnp` lines of a shell block."""
    lines = code.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("clnp ")]


def run_python(code: str, needed: str, name: str) -> None:
    """Run a block alone, if what it needs is there."""
    if needed == SCRIPT:
        if os.environ.get("CLNP_LONG_TESTS"):  # its processes take a while to start
            Path("block.py").write_text(code)
            subprocess.run([sys.executable, "block.py"], check=True)
    elif not needed or (needed not in ABSENT and importlib.util.find_spec(needed)):
        with warnings.catch_warnings():
            if needed:  # other packages' warnings are not ours to mend
                warnings.simplefilter("ignore")
            exec(compile(code, name, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, block in enumerate(blocks(page)):
        if block.language == "python" and (named := FILE.match(block.code)):
            (tmp_path / named[1]).write_text(block.code)
        elif block.language == "python":
            run_python(block.code, block.needs, f"{page.name}, block {number}")
        elif block.language == "sh" and block.run:
            for line in commands(block.code):
                assert run_clnp(*shlex.split(line, comments=True)[1:]) == 0, line


def test_the_readme_runs_and_leaves_most_channels_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in blocks(README) if block.language == "python")
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(block.code, README.name, "exec"), names)
    learner = names["learner"]
    assert learner.accuracy_matrix[-1].min() > 0.9
    shares = [count["free"] / count["size"] for count in learner.reports[-1].capacity.values()]
    assert min(shares) > 2 / 3
    assert (tmp_path / "learner.safetensors").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_is_python(page: Path) -> None:
    """Skipped blocks too; and no other language name hides a Python block from the test."""
    for block in blocks(page):
        assert block.language in {"python", "sh", "text"}
        if block.language == "python":
            ast.parse(block.code)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option that a `clnp` line of a page uses is known to the command line."""
    from clnp.cli import main

    lines = [
        line for block in blocks(page) if block.language == "sh" for line in commands(block.code)
    ]
    assert lines or page != README
    for line in lines:
        command, options = line.split()[1], re.findall(r" (--[a-z-]+)", line.split("#")[0])
        if command.startswith("-"):
            continue
        assert main([command, "--help"]) == 0
        help_text = capsys.readouterr().out
        assert all(option in help_text for option in options), line
