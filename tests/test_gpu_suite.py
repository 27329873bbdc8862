"""The GPU suite on the CPU: bookkeeping, time, what becomes of results, and a rehearsal of all."""

import csv
import json
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_cases, gpu_results, gpu_stages, gpu_suite
from benchmarks.gpu_stage import Stage, TimeUpError
from clnp_kernels.tune.environment import Card
from clnp_kernels.tune.stored import shipped
from tests.clnp_kernels.ops.test_register import python


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_rows_are_not_made_twice(tmp_path: Path) -> None:
    stage = Stage("step", tmp_path, True, 100)
    assert stage.missing("a")
    stage.add("a", ms=1.5)
    again = Stage("step", tmp_path, True, 100)
    assert not again.missing("a")
    assert again.missing("b")
    assert again.rows() == {"a": {"key": "a", "ms": "1.5"}}


def test_time_is_looked_at_before_every_row(tmp_path: Path) -> None:
    clock = Clock()
    stage = Stage("step", tmp_path, True, 10, clock)
    stage.add("a", ms=1)
    clock.now = 9.9
    assert stage.missing("b")
    clock.now = 10.0
    assert not stage.missing("a")
    with pytest.raises(TimeUpError):
        stage.missing("b")


def test_commands_become_rows(tmp_path: Path) -> None:
    stage = Stage("test", tmp_path, True, 100)
    assert stage.run("good", ["echo", "words"])
    assert not stage.run("bad", ["false"])
    rows = stage.rows()
    assert (rows["good"]["status"], rows["good"]["last"]) == ("0", "words")
    assert rows["bad"]["status"] == "1"
    assert "words" in (tmp_path / "test.log").read_text()


def test_a_row_that_ran_out_of_time_is_tried_again(tmp_path: Path) -> None:
    """It is interrupted, so that it can keep what it has, and its output is kept."""
    code = (
        "import time\n"
        "print('begun', flush=True)\n"
        "try: time.sleep(60)\n"
        "except KeyboardInterrupt: print('kept')"
    )
    stage = Stage("tune", tmp_path, True, 6)
    assert not stage.run("slow", [sys.executable, "-c", code])
    row = stage.rows()["slow"]
    assert (row["status"], row["last"]) == ("time up", "kept")
    again = Stage("tune", tmp_path, True, 100)
    assert again.run("slow", ["true"])
    assert not Stage("tune", tmp_path, True, 100).missing("slow")


@pytest.mark.parametrize("call", gpu_suite.CALLS)
def test_calls_are_made_of_stages(call: str) -> None:
    """Inside ten minutes, half an hour together; the last stage may take all that is left."""
    seconds, shares = gpu_suite.CALLS[call]
    assert set(shares) <= set(gpu_stages.STAGES)
    assert seconds <= 540
    assert [*shares.values()][-1] == 1.0
    assert sum(limit for limit, _ in gpu_suite.CALLS.values()) <= 1600


def test_the_next_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage whose time is up leaves the rest to the next call; what failed is said."""
    made: list[str] = []

    def stage_of(stage: Stage) -> None:
        for key in ("a", "b", "c"):
            if stage.missing(key):
                made.append(key)
                stage.add(key, status="1" if key == "b" and made.count("b") < 2 else "0")
                if made == ["a", "b"]:
                    raise TimeUpError

    monkeypatch.setitem(gpu_suite.CALLS, "A", (100.0, {"check": 1.0}))
    monkeypatch.setitem(gpu_stages.STAGES, "check", stage_of)
    assert gpu_suite.run_call("A", tmp_path, dry=True) == 1
    assert gpu_suite.run_call("A", tmp_path, dry=True) == 0
    assert made == ["a", "b", "b", "c"]
    with tarfile.open(tmp_path / gpu_suite.ARCHIVE) as packed:
        assert sorted(packed.getnames()) == ["check.csv", "check.log"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_needs_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_suite.main(["C", "--out", str(tmp_path)]) == 2
    assert "--dry-run" in capsys.readouterr().err


def test_what_is_measured_is_worth_it() -> None:
    """The kinds of the measurements differ, and steps are made only when they are called for."""
    jobs = gpu_stages.jobs(dry=False)
    assert {job.layer.inputs for job in jobs} >= set(gpu_stages.WIDTHS)
    steps = [*gpu_cases.steps(dry=False)]
    assert len({case.key for case in steps}) == len(steps)
    assert {case.network for case in steps} == set(gpu_cases.NETWORKS)


REHEARSED = """
import sys
from benchmarks import gpu_suite
for call in "ABC":
    print(call, gpu_suite.main([call, "--dry-run", "--out", sys.argv[1]]))
print(gpu_suite.main(["C", "--dry-run", "--out", sys.argv[1]]))
"""


def test_rehearsal(tmp_path: Path) -> None:
    """All three calls on an interpreted GPU, the archive, and the tables that are made of it."""
    pytest.importorskip("triton")
    out = tmp_path / "out"
    code = REHEARSED.replace("sys.argv[1]", repr(str(out)))
    result = python(code, OMP_NUM_THREADS="1", CLNP_TEST_TIMES='{"torch": 1.0, "triton": 0.5}')
    if "only 0-dimensional arrays" in result.stdout:
        pytest.skip("this triton's interpreter does not work with this numpy")
    done = [line for line in result.stdout.splitlines() if line in ("A 0", "B 0", "C 0", "0")]
    assert done == ["A 0", "B 0", "C 0", "0"], result.stdout + result.stderr
    results, tables = tmp_path / "results", tmp_path / "shipped"
    assert gpu_results.publish(out / gpu_suite.ARCHIVE, results, tables) == 0
    (folder,) = results.iterdir()
    assert folder.name == "gpu-Interpreter-100"
    for name, least in (("ops.csv", 2), ("step.csv", 3)):
        with (folder / name).open(newline="") as file:
            assert len([*csv.DictReader(file)]) >= least
    assert [*folder.glob("profile-*.txt")]
    card = Card("cpu", "Another", 90, 4, 1 << 12)
    ((source, measured),) = shipped(card, tables)
    assert source == "for sm 90"
    assert {row.implementation for row in measured} == {"triton"}
    assert all(len(each) == 1 for row in measured for each in row.times.values())


def test_an_archive_without_measurements(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "facts.json").write_text(json.dumps({}))
    file = gpu_suite.archive(tmp_path)
    assert gpu_suite.main(["results", str(file)]) == 2
    assert "call B" in capsys.readouterr().out
