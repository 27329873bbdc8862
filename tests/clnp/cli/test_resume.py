"""Runs that are killed or whose disk is full, and resumed: the numbers are those of an undisturbed
run, byte for byte.

One helper process imports everything once and forks a child per attempt, so that a kill costs a
second, not an import. CLNP_LONG_TESTS=1 kills at 50 random moments, disturbs every file that is
written, and prints where the kills fell (pytest -s).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

LONG = bool(os.environ.get("CLNP_LONG_TESTS"))
RUN = [
    *("--tasks", "3", "--epochs", "3", "--width", "24", "--threads", "1"),
    *("--grid", "l1=1e-4,1e-3", "--fine-tune-epochs", "1"),
]

# Reads attempts from stdin, one JSON each: {"words", and when to disturb: "seconds": kill after
# that much work of the processor (a busy machine changes nothing), "call": kill at the n-th call of
# a function of clnp in the place "where", "replace": kill at the n-th file, "after": bool, "full":
# the disk is full from the n-th file on, "limit": bytes of a file}. Answers with the place where
# the child was killed, or [exit code, files written, place -> calls, stderr].
HELPER = """
import errno, io, json, mmap, os, resource, signal, sys, traceback
import clnp.cli, clnp.cli.experiment, clnp.plots.figures, clnp.learner.progress, clnp.cli.export
import clnp.files.checkpoint, clnp.network.model, clnp.pruning.search, clnp.training.fit
import torch
import torch._dynamo  # optimizers import it when first made, which takes seconds
torch.set_num_threads(1)
# Small plots are drawn faster, and differ as large ones would.
clnp.plots.figures.DPI = 20
# Save the task in training after every epoch, not every half minute.
clnp.learner.progress.Progress.due = lambda self: self.folder is not None
CLNP = os.path.dirname(clnp.__file__)
place = mmap.mmap(-1, 16)  # shared with the children

def placed(owner, name, word):
    function = getattr(owner, name)
    def call(*arguments, **options):
        before, place[:] = place[:], word.encode().ljust(16)
        try:
            return function(*arguments, **options)
        finally:
            place[:] = before
    setattr(owner, name, call)

placed(clnp.training.fit.Fit, "run", "training")
placed(clnp.pruning.search.ThresholdSearch, "run", "search")
placed(clnp.network.model.Model, "consolidate", "consolidate")
placed(clnp.files.checkpoint, "write", "checkpoint write")

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def child(attempt, pipe):
    count, calls = 0, {}
    replace, fsync = os.replace, os.fsync
    def counted(*arguments):
        nonlocal count
        if count == attempt.get("replace") and not attempt["after"]:
            kill()
        replace(*arguments)
        if count == attempt.get("replace"):
            kill()
        count += 1
    def full(handle):
        if count >= attempt.get("full", 1e9):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)
    def profile(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(CLNP):
            here = place[:].decode().strip()
            calls[here] = calls.get(here, 0) + 1
            if calls[here] == attempt["call"] and here == attempt["where"]:
                kill()
    os.replace, os.fsync = counted, full
    if "limit" in attempt:
        resource.setrlimit(resource.RLIMIT_FSIZE, (attempt["limit"], attempt["limit"]))
    out = os.open(os.devnull, os.O_WRONLY)
    os.dup2(out, 1)
    sys.stderr = io.StringIO()
    if "seconds" in attempt:
        # The signal's default is to end the process as it stands.
        signal.setitimer(signal.ITIMER_PROF, attempt["seconds"])
    if "call" in attempt:
        sys.setprofile(profile)
    try:
        code = clnp.cli.main(attempt["words"])
    except BaseException:
        code = traceback.format_exc()
    sys.setprofile(None)
    os.write(pipe, json.dumps([code, count, calls, sys.stderr.getvalue()]).encode())

for line in sys.stdin:
    attempt = json.loads(line)
    place[:] = b"elsewhere".ljust(16)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(attempt, writer)
        os._exit(0)
    os.close(writer)
    text = os.read(reader, 65536)
    os.close(reader)
    os.waitpid(pid, 0)
    print(text.decode() or json.dumps(place[:].decode().strip()), flush=True)
"""


@pytest.fixture(scope="module")
def attempt():
    """attempt(folder, *words, **when) -> [exit code, files written, place -> calls, stderr], or
    None if it was killed; attempt.places are the places where that happened.
    """
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
        result = json.loads(answer)
        if isinstance(result, list):
            return result
        ask.places[result] += 1
        return None

    ask.places = Counter()
    yield ask
    process.stdin.close()
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="module")
def undisturbed(attempt, tmp_path_factory):
    """(folder of a run that nobody disturbed, number of files it wrote, place -> calls)."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    code, files, calls, error = attempt(folder, call=-1, where="")
    assert code == 0, error
    return folder, files, calls


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


@pytest.mark.parametrize("seed", range(20 if LONG else 1))
def test_killed_again_and_again(attempt, undisturbed, tmp_path, seed):
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


def test_killed_at_random_moments(attempt, undisturbed, tmp_path):
    """At calls of functions of clnp: in training, in the search, while a task is consolidated,
    while a checkpoint is written, and elsewhere, in turn.
    """
    rng, moments = random.Random(0), 50 if LONG else 2
    before = attempt.places.copy()
    for moment in range(moments):
        folder = tmp_path / str(moment)
        where = sorted(undisturbed[2], reverse=True)[moment % len(undisturbed[2])]
        # Some calls depend on the time, so the last ones of all might not come.
        call = rng.randint(1, max(1, int(0.95 * undisturbed[2][where])))
        assert attempt(folder, call=call, where=where) is None
        assert attempt(folder, "--resume")[0] == 0
        assert_same(folder, undisturbed[0])
    places = attempt.places - before
    print(f"\nkilled at {moments} random moments: {dict(places)}")
    assert places.total() == moments
    if LONG:
        assert len(places) == 5


# Files written after the last checkpoint: four CSV and metrics.json, twice, and five plots.
LAST = 15


def moments(files: int) -> list[int]:
    return list(range(files)) if LONG else [0, files // 3, files - LAST - 1]


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_a_file(attempt, undisturbed, tmp_path, after):
    """Killed just before or just after a file appears under its name."""
    folder, files, _ = undisturbed
    for moment in moments(files):
        killed = tmp_path / str(moment)
        assert attempt(killed, replace=moment, after=after) is None
        assert attempt(killed, "--resume")[0] == 0
        assert_same(killed, folder)


def test_full_disk(attempt, undisturbed, tmp_path):
    """From some file on nothing can be written: a clear end, and what is there can be resumed."""
    folder, files, _ = undisturbed
    for moment in range(files) if LONG else [files // 2]:
        full = tmp_path / str(moment)
        code, _, _, error = attempt(full, full=moment)
        assert code == 3, error
        assert "No space left" in error
        assert "--resume" in error
        assert not list(full.rglob("*.tmp"))
        assert attempt(full, "--resume")[0] == 0
        assert_same(full, folder)


def test_too_small_a_disk(attempt, undisturbed, tmp_path):
    """The system itself cuts a file short, in the middle of a checkpoint."""
    folder = undisturbed[0]
    size = (folder / "checkpoint.safetensors").stat().st_size
    code, _, _, error = attempt(tmp_path, limit=size * 3 // 4)
    assert code == 3, error
    assert "checkpoint.safetensors can't be written" in error or "point-" in error
    assert attempt(tmp_path, "--resume")[0] == 0
    assert_same(tmp_path, folder)


def test_several_seeds_resume(attempt, tmp_path):
    words = ["--seeds", "2"]
    code, files, *_ = attempt(tmp_path / "a", *words)
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
