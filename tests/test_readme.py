"""What the README and the documentation show runs."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))


def blocks(language: str, file: Path = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", file.read_text(), re.DOTALL)


def test_python_blocks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks("python")
    assert found
    names: dict[str, Any] = {}
    for code in found:
        exec(compile(code, "README.md", "exec"), names)
    assert (tmp_path / "learner.safetensors").is_file()
    assert names["learner"].accuracy_matrix[-1].min() > 0.9
    assert "digits-1" in capsys.readouterr().out


@pytest.mark.parametrize("file", DOCS, ids=lambda file: file.name)
def test_python_blocks_of_the_documentation_run(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in blocks("python", file):
        exec(compile(code, file.name, "exec"), names)


@pytest.mark.parametrize("file", [README, *DOCS], ids=lambda file: file.name)
def test_commands_exist(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option that a `clnp` line of a file uses is known to the command line."""
    from clnp.cli import main

    code = "\n".join(blocks("sh", file)).replace("\\\n", " ")
    lines = [line for line in code.splitlines() if line.startswith("clnp ")]
    assert lines or file != README
    for line in lines:
        command, options = line.split()[1], re.findall(r" (--[a-z-]+)", line.split("#")[0])
        assert main([command, "--help"]) == 0
        help_text = capsys.readouterr().out
        assert all(option in help_text for option in options), line
