"""The GPU suite's bookkeeping, and a rehearsal of one stage on the CPU."""

import csv
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_suite
from tests.clnp_kernels.ops.test_register import python


def test_rows_are_not_made_twice(tmp_path: Path) -> None:
    stage = gpu_suite.Stage("ops", tmp_path, True, 100)
    assert stage.open("a")
    stage.add("a", ms=1.5)
    again = gpu_suite.Stage("ops", tmp_path, True, 100)
    assert not again.open("a")
    assert again.open("b")
    assert again.rows() == [{"key": "a", "ms": "1.5"}]
    late = gpu_suite.Stage("ops", tmp_path, True, -1)
    assert not late.open("a")
    with pytest.raises(gpu_suite.TimeUpError):
        late.open("b")


def test_commands_become_rows(tmp_path: Path) -> None:
    stage = gpu_suite.Stage("test", tmp_path, True, 100)
    assert stage.run("good", ["echo", "words"])
    assert not stage.run("bad", ["false"])
    rows = {row["key"]: row for row in stage.rows()}
    assert (rows["good"]["status"], rows["good"]["last"]) == ("0", "words")
    assert rows["bad"]["status"] == "1"
    assert "words" in (tmp_path / "test.log").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_needs_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_suite.main(["ops", "--out", str(tmp_path)]) == 2
    assert "--dry-run" in capsys.readouterr().err


def test_rehearsal(tmp_path: Path) -> None:
    """The stage "tune" in a process of its own, and a second call that does nothing."""
    pytest.importorskip("triton")
    code = (
        "import sys; from benchmarks import gpu_suite\n"
        f"words = ['tune', '--dry-run', '--out', {str(tmp_path)!r}]\n"
        "print(gpu_suite.main(words)); print(gpu_suite.main(words))"
    )
    result = python(code, OMP_NUM_THREADS="1")
    if "only 0-dimensional arrays" in result.stdout:
        pytest.skip("this triton's interpreter does not work with this numpy")
    assert result.stdout.strip().endswith("0"), result.stdout + result.stderr
    assert "tune is done" in result.stdout
    with (tmp_path / "tune.csv").open(newline="") as file:
        ops = {row["op"] for row in csv.DictReader(file)}
    assert len(ops) == 6
