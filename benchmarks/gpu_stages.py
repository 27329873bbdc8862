"""Stages of the GPU suite: each adds the rows that are missing, and looks at the time between."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu_stage import ROOT, Stage, TimeUpError

ROUNDS, TARGET_MS = 9, 20.0  # medians of so many rounds of about so many milliseconds
PROCESSES = 12
WIDTHS = (1000, 1008, 1024)  # boundaries that are multiples of 8, 16 and more
# the CUDA library by nvcc alone: needs no setuptools of any version
NVCC = """
import runpy, subprocess, pathlib
setup = runpy.run_path("setup.py")
command = setup["nvcc_command"](pathlib.Path("clnp_kernels/_cuda.abi3.so"))
raise SystemExit(setup["no_cuda"]() or subprocess.run(command).returncode)
"""
TABLE = """
import sys, torch
from clnp_kernels import ops
from clnp_kernels.tune import __main__, environment, first_use
from pathlib import Path
card = environment.card_of(torch.device("cuda"))
if len(sys.argv) > 2:
    print(first_use.qualify(card=card).digest)
__main__.write_table(card, Path(sys.argv[1]))
"""


def build(stage: Stage) -> None:
    """The libraries, where they are not carried in, and the table of implementations."""
    if not stage.dry:
        stage.run("nvidia-smi", ["nvidia-smi"])
        libraries = {
            "_cuda*.so": ([sys.executable, "-c", NVCC], {}),
            "_cpu*.so": (
                [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
                {"CLNP_BUILD_CUDA": "0", "CLNP_REQUIRE_BUILD": "1"},
            ),
        }
        for pattern, (command, environment) in libraries.items():
            if not any((ROOT / "clnp_kernels").glob(pattern)):
                stage.run(f"build {pattern}", command, **environment)
    if stage.missing("info"):
        from clnp_kernels import info

        stage.say(info.describe())
        stage.add("info", status="0", seconds=0, last=info.versions()["cuda library"])


def check(stage: Stage) -> None:
    """The check that serves before the first use; its results are in the folder of tables."""
    if stage.dry:
        with _interpreted(stage) as card:
            from clnp_kernels.tune import check as kernels

            for operator in ("masked_linear_relu_grad", "channel_activity"):
                if stage.missing(operator):
                    reason = kernels.verdict(operator, "triton", "float32", 8, card)
                    stage.add(operator, status="1" if reason else "0", seconds=0, last=reason)
        return
    table = str(stage.out / "table.json")
    stage.run("check", [sys.executable, "-c", TABLE, table, "check"])


def pytest_command(*words: str, several: bool = False) -> list[str]:
    """Pytest on some files, in several processes if asked for."""
    pool = ["-n", str(PROCESSES)] if several and find_spec("xdist") else []
    plain = ["-q", "-p", "no:cacheprovider", "--tb=short"]
    return [sys.executable, "-m", "pytest", *plain, *pool, *words]


def test(stage: Stage) -> None:
    """The tests that a GPU is needed for."""
    if stage.dry:
        words = ("-p", "tests.gpu_on_cpu", "tests/gpu", "-k", "activity")
        stage.run("operators", pytest_command(*words), TRITON_INTERPRET="1", CLNP_REHEARSE="1")
        return
    for folder in ("tests/gpu", "tests/cuda", "tests/clnp_kernels/triton"):
        stage.run(folder, pytest_command(folder, several=True), CLNP_GPU="triton")


def sanitize(stage: Stage) -> None:
    """Our kernels under compute-sanitizer, which looks at nothing else."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if stage.dry:
        stage.run("rehearsal", [sys.executable, "-c", "print('nothing to look at')"])
        return
    # its own allocator would hide what lies beyond a tensor
    plain = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [tool, "--error-exitcode", "9", "--target-processes", "all", "--tool", "memcheck"]
    names = {"CUDA": "clnp", "Triton": "_kernel"}
    files = {
        "CUDA": ("tests/cuda/test_values.py", "-k", "not captured and not many"),
        "Triton": ("tests/gpu", "-k", "(linear or norm) and triton and odd and not large"),
    }
    for kind, substring in names.items():
        chosen = [*command, "--kernel-name", f"kernel_substring={substring}"]
        stage.run(f"{kind} memcheck", [*chosen, *pytest_command(*files[kind])], **plain)


@contextmanager
def _interpreted(stage: Stage) -> Iterator[Any]:
    """A card that is none, with the stage's own folder of tables."""
    from tests.clnp_kernels.tune.conftest import CARD

    folder = {"CLNP_CACHE_DIR": str(stage.out / "tables")}
    with mock.patch.dict(os.environ, folder):
        yield CARD


def jobs(*, dry: bool) -> list[Any]:
    """Measurements, the most telling first: usual layers, and widths of several alignments."""
    from clnp_kernels.tune.cases import Layer
    from clnp_kernels.tune.plan import Job, measurements

    if dry:
        layer = Layer(8, 8, 8, 8, 8)
        return [
            Job(f"masked_linear_{part}", layer, "float32", "eager") for part in ("fwd", "wgrad")
        ]
    halves = [Layer(256, w // 2, w - w // 2, w // 2, w - w // 2) for w in WIDTHS]
    return measurements(halves, full=True) + measurements(None, full=True)


def compile_job(job: Any, device: str) -> None:
    """Compile every candidate of a kind of calls, on tensors of few rows."""
    from dataclasses import replace

    from clnp_kernels import chooser, ops  # noqa: F401  (registers the operators)
    from clnp_kernels.triton_kernels import _launch, tiles
    from clnp_kernels.tune import cases
    from clnp_kernels.tune.check import function_of

    if "triton" not in chooser.OFFERS[job.operator]:
        return
    layer = replace(job.layer, rows=min(job.layer.rows, 16))
    args = cases.Maker(layer, getattr(torch, job.dtype), device).arguments(job.operator)
    function = function_of(job.operator, "triton")
    function(*args)
    table = tiles.CONV if "conv2d" in job.operator else tiles.TILES
    if not job.operator.startswith("masked") or "relu" in job.operator:
        return
    row = _launch.describe(torch.device(device)).architecture
    for tile in sorted({tile for each in table[row].values() for tile in each}):
        try:
            with tiles.forced(tile):
                function(*args)
        except Exception:  # a tile that does not fit; the measurement says so
            continue


def compile_all(stage: Stage) -> None:
    """Compile what is measured, in a pool; the measurement finds it in Triton's cache."""
    kinds = {(job.operator, job.dtype, job.key.alignment, job.key.options): job
             for job in jobs(dry=stage.dry)}  # fmt: skip
    if stage.dry:
        kinds = dict([*kinds.items()][:1])
    missing = {" ".join(map(str, kind)): job for kind, job in kinds.items()}
    missing = {key: job for key, job in missing.items() if stage.missing(key)}
    pool = ProcessPoolExecutor(1 if stage.dry else PROCESSES, get_context("spawn"))
    try:
        futures = {pool.submit(compile_job, job, stage.device): key for key, job in missing.items()}
        for future in as_completed(futures, timeout=max(stage.left, 1.0)):
            error = future.exception()
            stage.add(futures[future], status="0" if error is None else "1", last=str(error or ""))
    except TimeoutError:
        raise TimeUpError from None
    finally:
        for process in [*(pool._processes or {}).values()] if stage.left <= 0 else []:
            process.kill()
        pool.shutdown(cancel_futures=True)


def tune(stage: Stage) -> None:
    """All implementations with a cold cache, as `clnp tune` measures them, and one file of them."""
    from clnp_kernels.tune import __main__ as command

    if stage.dry:
        with _interpreted(stage) as card:
            import tests.clnp_kernels.tune.card  # noqa: F401  (its clock)
            from clnp_kernels.tune import measure as timed
            from clnp_kernels.tune.stored import open_store

            for job in jobs(dry=True):
                if stage.missing(job.name):
                    found = timed.measure(job.operator, job.layer, job.dtype, job.mode, card)
                    open_store(card).write(found)
                    stage.add(job.name, status="0")
            command.write_table(card, stage.out / "table.json")
        return
    # Stopped in time, it keeps what it has measured and goes on at the next call.
    code = "from benchmarks import gpu_stages; gpu_stages.measure()"
    stage.known.discard("tune")
    stage.run("tune", [sys.executable, "-c", code])
    stage.deadline += 15.0
    stage.known.discard("table")
    stage.run("table", [sys.executable, "-c", TABLE, str(stage.out / "table.json")])


def measure() -> None:
    """Measure `jobs` on the GPU, as `clnp tune` does."""
    from clnp_kernels import ops  # noqa: F401  (registers the operators)
    from clnp_kernels.tune import __main__ as command
    from clnp_kernels.tune.environment import card_of

    command.tune(card_of(torch.device("cuda")), jobs(dry=False), True, print)


def milliseconds(function: Callable[[], Any], dry: bool) -> float:
    """Median time of a call: on a GPU by events around many calls, launched ahead of it."""
    for _ in range(2):
        function()
    if dry:
        return 1.0
    torch.cuda.synchronize()
    once = _between(function, 1)
    count = max(1, min(1000, int(TARGET_MS / max(once, 1e-3))))
    return statistics.median(_between(function, count) / count for _ in range(ROUNDS))


def _between(function: Callable[[], Any], count: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def step(stage: Stage) -> None:
    """Training steps of whole networks, captured and not; a step is made only if it is missing."""
    from benchmarks.gpu_cases import steps
    from clnp_kernels import chooser

    for case in steps(dry=stage.dry):
        if not stage.missing(case.key):
            continue
        try:
            with chooser.prefer(case.kernels) if case.kernels != "table" else _table(stage):
                function = case.make(stage.device, stage.dry)
                for _ in range(5):
                    function()
                ms = milliseconds(function, stage.dry)
        except Exception as error:
            stage.fail(case.key, error)
            continue
        finally:
            if not stage.dry:
                torch.cuda.empty_cache()
        stage.add(case.key, network=case.network, dtype=case.dtype, fraction=case.fraction,
                  way=case.way, kernels=case.kernels, ms=round(ms, 4))  # fmt: skip


@contextmanager
def _table(stage: Stage) -> Iterator[None]:
    """Serve by the table that the call before has measured."""
    from clnp_kernels import chooser

    file = stage.out / "table.json"
    known = {"CLNP_KERNEL_TABLE": str(file)} if file.exists() and not stage.dry else {}
    with mock.patch.dict(os.environ, known):
        chooser.forget()
        yield
    chooser.forget()


def profile(stage: Stage) -> None:
    """The kernels of three steps, by the time that they take, one file for each network."""
    from benchmarks.gpu_cases import profiled

    activities = [torch.profiler.ProfilerActivity.CPU]
    if not stage.dry:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    sort = "self_cpu_time_total" if stage.dry else "self_cuda_time_total"
    for case in profiled(dry=stage.dry):
        if not stage.missing(case.key):
            continue
        with _table(stage):
            function = case.make(stage.device, stage.dry)
            for _ in range(5):
                function()
            with torch.profiler.profile(activities=activities) as record:
                for _ in range(3):
                    function()
        file = Path(f"profile-{case.key.replace(', ', '-').replace(' ', '_')}.txt")
        text = record.key_averages().table(sort_by=sort, row_limit=30)
        (stage.out / file).write_text(text + "\n")
        stage.add(case.key, file=str(file))


STAGES: dict[str, Callable[[Stage], None]] = {
    "build": build,
    "check": check,
    "test": test,
    "sanitize": sanitize,
    "compile": compile_all,
    "tune": tune,
    "step": step,
    "profile": profile,
}
