"""Runs that are killed, and resumed: the numbers are those of an undisturbed run, byte for byte.

One helper process imports everything once and forks a child per attempt, so that a kill costs a
second, not an import. CLNP_LONG_TESTS=1 kills at every file that is written and at many random
moments.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

LONG = bool(os.environ.get("CLNP_LONG_TESTS"))
RUN = ["--tasks", "3", "--epochs", "3", "--width", "24", "--threads", "1", "--grid", "l1=1e-4,1e-3"]

# Reads attempts from stdin, one JSON each: {"words", "seconds": kill after, or "replace": kill at
# the n-th file, "after": bool}. Answers with {"killed": bool, "replaced": n, "error": text}.
HELPER = """
import json, os, select, signal, sys, time, traceback
import clnp.cli, clnp.cli.experiment, clnp.plots, clnp.progress, clnp.cli.export
import torch
import torch._dynamo  # optimizers import it when first made, which takes seconds
torch.set_num_threads(1)
# Small plots are drawn faster, and differ as large ones would.
clnp.plots.DPI = 20
# Save the task in training after every epoch, not every half minute.
clnp.progress.Progress.due = lambda self: self.folder is not None

def child(attempt, pipe):
    count = 0
    replace = os.replace
    def counted(*arguments):
        nonlocal count
        if count == attempt.get("replace") and not attempt["after"]:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*arguments)
        if count == attempt.get("replace"):
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
    os.replace = counted
    out = os.open(os.devnull, os.O_WRONLY)
    os.dup2(out, 1)
    try:
        code = clnp.cli.main(attempt["words"])
    except BaseException:
        code = traceback.format_exc()
    os.write(pipe, json.dumps([code, count]).encode())

for line in sys.stdin:
    attempt = json.loads(line)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(attempt, writer)
        os._exit(0)
    os.close(writer)
    seconds = attempt.get("seconds")
    ready, _, _ = select.select([reader], [], [], seconds)
    if not ready:
        os.kill(pid, signal.SIGKILL)
    text = os.read(reader, 65536)
    os.close(reader)
    os.waitpid(pid, 0)
    print(text.decode() or "null", flush=True)
"""


@pytest.fixture(scope="module")
def attempt():
    """attempt(folder, *words, **when) -> [exit code, files written], or None if it was killed."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", HELPER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdin
    assert process.stdout

    def ask(folder: Path, *words: str, bare: bool = False, **when: object):
        settings = ["--resume"] if bare else [*RUN, *words]
        order = {"words": ["run", "--out", str(folder), *settings], **when}
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, "the helper process died"
        return json.loads(answer)

    yield ask
    process.stdin.close()
    process.wait(timeout=60)
    process.stdout.close()


@pytest.fixture(scope="module")
def undisturbed(attempt, tmp_path_factory):
    """(folder of a run that nobody disturbed, number of files it wrote)."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    code, files = attempt(folder)
    assert code == 0
    return folder, files


def numbers(folder: Path) -> dict[str, bytes]:
    names = [
        "metrics.json",
        "accuracy.csv",
        "capacity.csv",
        "history.csv",
        "config.json",
        "environment.json",
    ]
    plots = sorted(str(p.relative_to(folder)) for p in folder.glob("plots/*.png"))
    assert len(plots) == 5
    return {name: (folder / name).read_bytes() for name in [*names, *plots]}


def assert_same(folder: Path, undisturbed: Path) -> None:
    wanted = numbers(undisturbed)
    assert [name for name, content in numbers(folder).items() if content != wanted[name]] == []
    assert not list(folder.rglob("*.tmp"))
    assert not (folder / "progress").exists()


@pytest.mark.parametrize("seed", range(20 if LONG else 2))
def test_killed_at_random_moments(attempt, undisturbed, tmp_path, seed):
    rng = random.Random(seed)
    kills = 0
    while True:
        # Later attempts get longer, so that the run ends.
        done = attempt(tmp_path, "--resume", seconds=rng.uniform(0.05, 0.8) * (1 + kills / 3))
        if done is not None:
            break
        kills += 1
    assert done[0] == 0
    assert kills >= 1
    assert_same(tmp_path, undisturbed[0])


# Files written after the last checkpoint: four CSV and metrics.json, twice, and five plots.
LAST = 15


def moments(files: int) -> list[int]:
    return list(range(files)) if LONG else [0, 1, files // 3, files - LAST - 1, files - 6]


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_a_file(attempt, undisturbed, tmp_path, after):
    """Killed just before or just after a file appears under its name."""
    folder, files = undisturbed
    for moment in moments(files):
        killed = tmp_path / str(moment)
        assert attempt(killed, replace=moment, after=after) is None
        assert attempt(killed, "--resume")[0] == 0
        assert_same(killed, folder)


def test_several_seeds_resume(attempt, tmp_path):
    words = ["--seeds", "2", "--tasks", "2"]
    code, files = attempt(tmp_path / "a", *words)
    assert code == 0
    assert attempt(tmp_path / "b", *words, replace=2 * files // 3, after=True) is None
    assert attempt(tmp_path / "b", "--resume", *words)[0] == 0
    for name in ("summary.json", "summary.csv", "seed-0/metrics.json", "seed-1/metrics.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_resume_takes_the_settings_of_the_run(attempt, undisturbed, tmp_path):
    """--resume alone is enough, whatever the defaults are."""
    folder = tmp_path / "run"
    assert attempt(folder, replace=undisturbed[1] // 2, after=True) is None
    assert attempt(folder, bare=True)[0] == 0
    assert_same(folder, undisturbed[0])
