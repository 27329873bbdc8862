"""What the README shows runs."""

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


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


def test_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Every option that a `clnp` line of the README uses is known to the command line."""
    from clnp.cli import main

    lines = [line for code in blocks("sh") for line in code.splitlines() if line.startswith("clnp")]
    assert lines
    for line in lines:
        command, options = line.split()[1], re.findall(r" (--[a-z-]+)", line.split("#")[0])
        assert main([command, "--help"]) == 0
        help_text = capsys.readouterr().out
        assert all(option in help_text for option in options), line
