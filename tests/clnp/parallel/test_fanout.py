"""Trials in worker processes: concurrency, events, retries, failures, and no leftover processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import clnp
from clnp.errors import ConfigError, TrialError
from clnp.parallel import processes
from tests.clnp.parallel import trials

ROOT = Path(__file__).parents[3]
LONG = pytest.mark.skipif(
    "CLNP_LONG_TESTS" not in os.environ, reason="CLNP_LONG_TESTS=1: every worker imports torch"
)


def test_results_come_in_order_and_events_by_name(two: clnp.Workers) -> None:
    heard: list[tuple[object, ...]] = []
    results = clnp.fan_out(
        trials.square,
        {f"trial {i}": (i,) for i in range(5)},
        workers=two,
        on_event=lambda *event: heard.append(event),
    )
    assert list(results) == [f"trial {i}" for i in range(5)]
    assert [value for value, _, _ in results.values()] == [0, 1, 4, 9, 16]
    assert sorted(heard) == [(f"trial {i}", "begun", i) for i in range(5)]
    pids = {pid for _, pid, _ in results.values()}
    assert os.getpid() not in pids
    assert len(pids) <= 2
    assert {threads for _, _, threads in results.values()} == {1}


def test_trials_run_at_the_same_time_and_workers_are_kept(
    two: clnp.Workers, tmp_path: Path
) -> None:
    orders = {"a": (tmp_path, "a", "b"), "b": (tmp_path, "b", "a")}
    assert clnp.fan_out(trials.meet, orders, workers=two) == {"a": True, "b": True}
    first = {pid for _, pid, _ in two.run(trials.square, {str(i): (i,) for i in range(4)}).values()}
    again = {pid for _, pid, _ in two.run(trials.square, {str(i): (i,) for i in range(4)}).values()}
    assert len(first | again) <= 2


def test_one_worker_is_this_process() -> None:
    heard: list[tuple[object, ...]] = []
    results = clnp.fan_out(
        trials.square, {"a": (3,)}, workers=1, on_event=lambda *event: heard.append(event)
    )
    assert results == {"a": (9, os.getpid(), torch.get_num_threads())}
    assert heard == [("a", "begun", 3)]
    trials.square(3)
    assert len(heard) == 1


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("raise", "RuntimeError: bad luck"),
        pytest.param("kill", "its process was ended by SIGKILL", marks=LONG),
    ],
)
def test_a_failed_trial_is_tried_again(
    two: clnp.Workers, tmp_path: Path, how: str, why: str
) -> None:
    heard: list[tuple[object, ...]] = []
    for name in ("once", "always"):
        (tmp_path / name).mkdir()
    orders = {"once": (tmp_path / "once", 1, how), "always": (tmp_path / "always", 9, how)}
    with pytest.raises(TrialError, match=f"1 of 2 failed: always: {why}") as caught:
        two.run(trials.fail, orders, lambda *event: heard.append(event))
    assert caught.value.results == {"once": "done"}
    failure = caught.value.failures["always"]
    assert ("bad luck" in failure.traceback) == (how == "raise")
    assert sorted(event[:2] for event in heard) == [("always", "on_retry"), ("once", "on_retry")]
    assert all(str(event[2]).startswith(why) for event in heard)
    assert len(list((tmp_path / "always").iterdir())) == 2


def test_another_worker_takes_over_from_one_that_is_killed(
    two: clnp.Workers, tmp_path: Path
) -> None:
    heard: list[tuple[object, ...]] = []
    orders = {"a": (tmp_path, 1, "kill")}
    assert two.run(trials.fail, orders, lambda *event: heard.append(event)) == {"a": "done"}
    assert heard[0][:2] == ("a", "on_retry")
    assert str(heard[0][2]).startswith("its process was ended by SIGKILL, as the system does")


def test_what_is_refused_is_not_tried_again(two: clnp.Workers, tmp_path: Path) -> None:
    with pytest.raises(TrialError, match="1 of 1 failed: a: no such data"):
        two.run(trials.fail, {"a": (tmp_path, 9, "refuse")})
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(TrialError, match="a: its result can't be sent back"):
        two.run(trials.unsendable, {"a": ()})


def test_tensors_are_copied_unless_they_are_shared(
    two: clnp.Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.ones(50)
    assert two.run(trials.pointer, {"a": (x,)}) == {"a": (False, 50.0)}
    assert not x.is_shared()
    assert two.run(trials.pointer, {"a": (two.shared(x),)}) == {"a": (True, 50.0)}

    class Full:
        @staticmethod
        def dumps(value: object) -> bytes:
            raise RuntimeError("unable to allocate shared memory(shm): No space left on device")

    monkeypatch.setattr(processes, "ForkingPickler", Full)
    assert two.run(trials.pointer, {"a": (two.shared(x),)}) == {"a": (False, 50.0)}


def test_bad_arguments_are_refused(two: clnp.Workers) -> None:
    for bad in (0, -1, 1.5, True):
        with pytest.raises(ConfigError, match=rf"^workers: expected a whole .*, got {bad}$"):
            clnp.Workers(bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^threads: expected .*, got 0$"):
        clnp.Workers(2, threads=0)
    with pytest.raises(ConfigError, match=r"^executor: expected processes or ray, got 'dask'"):
        clnp.Workers(2, executor="dask")
    with pytest.raises(ConfigError, match="a can't be sent to a worker process"):
        two.run(lambda: None, {"a": ()})


SCRIPT = """
import signal
import sys
from pathlib import Path
import clnp
from tests.clnp.parallel import trials

if __name__ == "__main__":
    # Where the tests run in the background, a shell has them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in sys.argv[2:]:
        folder = Path(sys.argv[1]) / name
        folder.mkdir()
        try:
            clnp.fan_out(trials.wait_for_ever, {"a": (folder, "a")}, workers=2)
        except KeyboardInterrupt:
            (folder / "interrupted").touch()
"""


def test_workers_end_with_ctrl_c_and_with_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), "first", "second"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        for folder, number in (("first", signal.SIGINT), ("second", signal.SIGKILL)):
            told = tmp_path / folder / "a"
            _wait(told.exists)
            worker = int(told.read_text())
            assert _alive(worker)
            if number == signal.SIGINT:  # as a terminal does: everyone gets it
                os.killpg(parent.pid, number)
                _wait((tmp_path / folder / "interrupted").exists)
            else:
                parent.kill()
            _wait(lambda worker=worker: not _alive(worker))
    finally:
        parent.kill()
        _, err = parent.communicate(timeout=600)
    assert err == ""


@LONG
def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, clnp\n"
        "try:\n"
        "    clnp.fan_out(os.getpid, {'a': (), 'b': ()}, workers=2)\n"
        "except clnp.TrialError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "2 of 2 failed" in done.stdout
    assert "if __name__ == '__main__':" in done.stdout


@LONG
def test_the_script_of_the_documentation_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "scaling.md").read_text()
    (code,) = re.findall(r"```py\n(.*?)```", text, re.DOTALL)
    (tmp_path / "script.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    *events, results = done.stdout.splitlines()
    assert len(events) == 6
    assert results.startswith("{'seed 0': 0.")


def _wait(holds: object, seconds: float = 600.0) -> None:
    end = time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
