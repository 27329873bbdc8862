"""Everything that a rented GPU is needed for, in stages: ``python -m benchmarks.gpu_suite STAGE``.

Stages, each well inside 8 minutes on one H200:

- ``build``: compiles the libraries, prints which implementation would serve what
- ``test``: every operator by every implementation against float64, captured steps, on the GPU
- ``sanitize``: the CUDA kernels under compute-sanitizer (memcheck, racecheck), a Triton test too
- ``tune``: the products with every tile of the tables
- ``ops``: every operator by every implementation, against a dense vendor call, with the rows that
  ``clnp_kernels/chooser.py`` should get
- ``end-to-end``: training steps of whole networks, by all contenders, captured and not

Each stage writes ``STAGE.csv`` and ``STAGE.log`` to ``--out`` and, when it is through,
``STAGE.done``. A stage that is started again goes on behind the rows that are there; one that is
done is not repeated. It stops by itself after ``--seconds``, with the rest left for the next call.
``--dry-run`` does all of it on the CPU with tiny shapes: emulated, interpreted, no figures.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
SECONDS = 420.0
ROUNDS, TARGET_MS = 9, 20.0  # medians of so many rounds of about so many milliseconds
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Stage:
    """Output, finished rows and time limit of a stage."""

    def __init__(self, name: str, out: Path, dry: bool, seconds: float) -> None:
        self.name, self.out, self.dry = name, out, dry
        self.device = "cpu" if dry else "cuda"
        self.deadline = time.monotonic() + seconds
        out.mkdir(parents=True, exist_ok=True)
        self.table = out / f"{name}.csv"
        self.log = out / f"{name}.log"
        self.known = {row["key"] for row in self.rows()}
        self.failed: list[str] = []

    def rows(self) -> list[dict[str, str]]:
        """The rows that are there."""
        if not self.table.exists():
            return []
        with self.table.open(newline="") as file:
            return list(csv.DictReader(file))

    def say(self, text: str) -> None:
        """Print, and write to the log."""
        print(text, flush=True)
        self.note(text)

    def note(self, text: str) -> None:
        """Write to the log."""
        with self.log.open("a") as file:
            file.write(text + "\n")

    def add(self, key: str, **values: Any) -> None:
        """One more row; all rows of a stage have the same columns."""
        row = {"key": key, **values}
        new = not self.table.exists()
        with self.table.open("a", newline="") as file:
            writer = csv.DictWriter(file, row.keys(), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        self.known.add(key)
        self.say("  ".join(str(value) for value in row.values()))

    def fail(self, key: str, error: Exception) -> None:
        """Note what went wrong; the row is tried again in the next call."""
        self.failed.append(key)
        first = (str(error).strip().splitlines() or [""])[0]
        self.say(f"{key}: {type(error).__name__}: {first}")

    def open(self, key: str) -> bool:
        """True for a row that is still missing. Raises TimeUpError when the time is up."""
        if key in self.known:
            return False
        if time.monotonic() > self.deadline:
            raise TimeUpError
        return True

    def run(self, key: str, command: list[str], **environment: str) -> bool:
        """Run a command as one row: its exit status and its time; the output goes to the log."""
        if not self.open(key):
            return True
        left = max(self.deadline - time.monotonic(), 30)
        start = time.monotonic()
        merged = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "8", **environment}
        # PyTorch's deterministic mode, in which new tensors start as NaN, wants this
        merged["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        if self.dry:
            merged["OMP_NUM_THREADS"] = "1"
        try:
            result = subprocess.run(
                command, cwd=ROOT, env=merged, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, timeout=left, check=False,
            )  # fmt: skip
            status, text = str(result.returncode), result.stdout
        except subprocess.TimeoutExpired as error:
            status, text = "time up", str(error.stdout or "")
        self.note(f"$ {' '.join(command)}\n{text}")
        lines = [line for line in text.strip().splitlines() if line.strip()] or [""]
        seconds = round(time.monotonic() - start, 1)
        self.add(key, status=status, seconds=seconds, last=lines[-1][:200])
        return status == "0"


class TimeUpError(Exception):
    """The stage's time is over; it goes on when it is called again."""


# the CUDA library by nvcc alone: needs no setuptools of any version
NVCC = """
import runpy, subprocess, pathlib
setup = runpy.run_path("setup.py")
command = setup["nvcc_command"](pathlib.Path("clnp_kernels/_cuda.abi3.so"))
raise SystemExit(setup["no_cuda"]() or subprocess.run(command).returncode)
"""


def build(stage: Stage) -> None:
    """The libraries, and the table of implementations."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    if not stage.dry:
        stage.run("nvidia-smi", ["nvidia-smi"])
        stage.run("CUDA library", [sys.executable, "-c", NVCC])
        stage.run("CPU library", command, CLNP_BUILD_CUDA="0", CLNP_REQUIRE_BUILD="1")
    stage.run("info", [sys.executable, "-m", "clnp_kernels.info"])
    stage.run("info, ours", [sys.executable, "-m", "clnp_kernels.info"], CLNP_GPU="ours")


def pytest_command(*words: str) -> list[str]:
    """Pytest on some files."""
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *words]


def test(stage: Stage) -> None:
    """The tests that a GPU is needed for."""
    if stage.dry:
        words = ("-p", "tests.gpu_on_cpu", "tests/gpu", "-k", "activity or captured or odd")
        stage.run("operators", pytest_command(*words), TRITON_INTERPRET="1", CLNP_REHEARSE="1")
        return
    for folder in ("tests/gpu", "tests/cuda"):
        stage.run(folder, pytest_command(folder))
    stage.run(
        "tests/clnp_kernels/triton", pytest_command("tests/clnp_kernels/triton"), CLNP_GPU="triton"
    )


def sanitize(stage: Stage) -> None:
    """The kernels under compute-sanitizer."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if stage.dry:
        stage.run("rehearsal", pytest_command("tests/cuda/test_build.py", "-k", "built"))
        return
    # its own allocator would hide what lies beyond a tensor
    plain = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    cuda = pytest_command("tests/cuda/test_values.py", "-k", "not captured")
    picked = "(linear or conv2d or norm) and triton and (odd or dtype1) and not large"
    triton = pytest_command("tests/gpu", "-k", picked)
    for kind in ("memcheck", "racecheck"):
        command = [tool, "--tool", kind, "--error-exitcode", "9", "--target-processes", "all"]
        stage.run(f"CUDA {kind}", [*command, *cuda], **plain)
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", "--target-processes", "all"]
    stage.run("Triton memcheck", [*command, *triton], **plain)


def milliseconds(function: Callable[[], Any], dry: bool) -> float:
    """Median time of a call: on a GPU by events around many calls, launched ahead of it."""
    for _ in range(2):
        function()
    if dry:
        start = time.perf_counter()
        function()
        return (time.perf_counter() - start) * 1e3
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


def captured(function: Callable[[], Any], dry: bool) -> Callable[[], Any]:
    """The call as a CUDA graph, so that the launch from Python is not what is timed."""
    if dry:
        return function
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


@contextlib.contextmanager
def serving(dry: bool) -> Iterator[None]:
    """On the CPU, what would serve on a GPU."""
    if dry:
        import tests.gpu_on_cpu  # noqa: F401
    yield


def ceilings(stage: Stage) -> tuple[float, float]:
    """GB/s of a copy (read and written) and TFLOP/s of a bfloat16 product, measured now."""
    size, side = (1 << 10, 32) if stage.dry else (1 << 30, 8192)
    source = torch.zeros(size, dtype=torch.uint8, device=stage.device)
    target = torch.empty_like(source)
    copy = 2 * size / milliseconds(lambda: target.copy_(source), stage.dry) / 1e6
    a, b = (torch.randn(side, side, device=stage.device).bfloat16() for _ in range(2))
    gemm = 2 * side**3 / milliseconds(lambda: a @ b, stage.dry) / 1e9
    stage.say(f"copy {copy:.0f} GB/s, bfloat16 product {gemm:.1f} TFLOP/s")
    return copy, gemm


def ops(stage: Stage) -> None:
    """Every operator by every implementation that has it."""
    from benchmarks.gpu_cases import calls
    from clnp_kernels import chooser, cuda_kernels

    copy, gemm = ceilings(stage)
    for name in ("bf16",) if stage.dry else DTYPES:
        for call in calls(DTYPES[name], stage.device, stage.dry):
            ways: dict[str, Callable[[], Any]] = {} if call.dense is None else {"dense": call.dense}
            for offer in chooser.OFFERS[call.op]:
                if offer != "cuda" or (cuda_kernels.available() and not stage.dry):
                    ways[offer] = call.ours
            for way, function in ways.items():
                key = f"{call.op}, {call.case}, {name}, {call.fraction}, {way}"
                if not stage.open(key):
                    continue
                with chooser.prefer("torch" if way == "dense" else way):
                    try:
                        ms = milliseconds(captured(function, stage.dry), stage.dry)
                    except Exception as error:
                        stage.fail(key, error)
                        continue
                work = {
                    "tflops": round(call.flop / ms / 1e9, 3),
                    "gbs": round(call.byte / ms / 1e6, 1),
                }
                # a dense call does more work than the count of the masked one says
                parts = {
                    "of copy": round(work["gbs"] / copy, 3),
                    "of product": round(work["tflops"] / gemm, 3),
                }
                stage.add(key, op=call.op, case=call.case, dtype=name, fraction=call.fraction,
                          way=way, ms=round(ms, 5), **work, **parts)  # fmt: skip
    advise(stage)


def advise(stage: Stage) -> None:
    """The fastest implementation of each case, for the table of the chooser."""
    best: dict[str, dict[str, float]] = {}
    for row in stage.rows():
        if row["way"] != "dense":
            case = f"{row['op']}, {row['case']}, {row['dtype']}, {row['fraction']}"
            best.setdefault(case, {})[row["way"]] = float(row["ms"])
    for case, ways in best.items():
        first = min(ways, key=ways.__getitem__)
        text = ", ".join(f"{way} {ms:.4f} ms" for way, ms in ways.items())
        stage.say(f"{first:7} {case}: {text}")


def tune(stage: Stage) -> None:
    """The products with every tile of the tables."""
    from benchmarks.gpu_cases import conv_calls, linear_calls
    from clnp_kernels import chooser
    from clnp_kernels.triton_kernels import _launch, tiles

    row = _launch.describe(torch.device(stage.device)).architecture
    choose = tiles.choose
    sizes: dict[Any, tuple[tuple[int, ...], ...]] = {
        linear_calls: ((8, 16),) if stage.dry else ((256, 2000), (256, 2048), (4096, 4096)),
        conv_calls: ((2, 8, 4),) if stage.dry else ((256, 64, 16), (128, 256, 15), (256, 1024, 7)),
    }
    for make, shapes in sizes.items():
        table = tiles.TILES if make is linear_calls else tiles.CONV
        for shape in shapes:
            for call in make(*shape, 0.5, torch.bfloat16, stage.device):
                for tile in table[row]["half"] if call.flop else ():
                    key = f"{call.op}, {call.case}, {tuple(tile)}"
                    if not stage.open(key):
                        continue
                    tiles.choose = lambda *_, tile=tile: tile
                    try:
                        with chooser.prefer("triton"):
                            ms = milliseconds(captured(call.ours, stage.dry), stage.dry)
                    except Exception as error:
                        stage.fail(key, error)
                        continue
                    finally:
                        tiles.choose = choose
                    stage.add(key, op=call.op, case=call.case, tile=str(tuple(tile)),
                              ms=round(ms, 5), tflops=round(call.flop / ms / 1e9, 3))  # fmt: skip


def end_to_end(stage: Stage) -> None:
    """Training steps of whole networks."""
    from benchmarks.gpu_cases import FRACTIONS
    from clnp_kernels import chooser

    for network in ("mlp",) if stage.dry else ("mlp", "narrow", "wide"):
        for dtype in ("fp32",) if stage.dry else DTYPES:
            for fraction in (0.5,) if stage.dry else FRACTIONS:
                for preference in ("torch", "triton") if stage.dry else ("torch", "ours"):
                    with chooser.prefer(preference):
                        for name, ms in _time_steps(stage, network, dtype, fraction, preference):
                            key = f"{network}, {dtype}, {fraction}, {name}, {preference}"
                            stage.add(key, network=network, dtype=dtype, fraction=fraction,
                                      way=name, kernels=preference, ms=round(ms, 4))  # fmt: skip


def _time_steps(
    stage: Stage, network: str, dtype: str, fraction: float, preference: str
) -> Iterator[tuple[str, float]]:
    from benchmarks.gpu_cases import step_functions

    for name, step in step_functions(network, fraction, dtype, stage.device, stage.dry):
        others = preference != "torch" and not name.startswith("ours")  # have no kernels of ours
        key = f"{network}, {dtype}, {fraction}, {name}, {preference}"
        if others or not stage.open(key):
            continue
        try:
            for _ in range(5):
                step()
            yield name, milliseconds(step, stage.dry)
        except Exception as error:
            stage.fail(key, error)


STAGES: dict[str, Callable[[Stage], None]] = {
    "build": build,
    "test": test,
    "sanitize": sanitize,
    "tune": tune,
    "ops": ops,
    "end-to-end": end_to_end,
}

TIMED = ("tune", "ops", "end-to-end")


def facts() -> dict[str, Any]:
    """Description of the machine."""
    from clnp_kernels import info

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {**info.versions(), "gpu": name, "time": time.strftime("%Y-%m-%d %H:%M:%S")}


def parser() -> argparse.ArgumentParser:
    """The command line. Imports clnp."""
    from clnp.cli.once import OnceParser

    made = OnceParser(prog="python -m benchmarks.gpu_suite")
    made.add_argument("stage", choices=STAGES)
    made.add_argument("--out", type=Path, required=True, help="folder of the results")
    made.add_argument("--dry-run", action="store_true", help="rehearse on the CPU")
    made.add_argument("--seconds", type=float, default=SECONDS)
    made.add_argument("--reference", action="store_true", help="time it, where no library is")
    return made


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 if the stage is through without an error."""
    if "--dry-run" in (sys.argv[1:] if arguments is None else arguments):
        # Read when Triton is imported, which the import of the parser can do.
        os.environ["TRITON_INTERPRET"] = "1"
    args = parser().parse_args(arguments)
    done = args.out / f"{args.stage}.done"
    if done.exists():
        print(f"{args.stage} is done, see {args.out}; remove {done} to go on or repeat it")
        return 0
    if not args.dry_run and not torch.cuda.is_available():
        print("no GPU here; --dry-run rehearses the stages on the CPU", file=sys.stderr)
        return 2
    if args.stage in TIMED and not args.dry_run:
        from benchmarks import served

        served.require(args.reference)
    stage = Stage(args.stage, args.out, args.dry_run, args.seconds)
    with serving(args.dry_run):
        stage.say(json.dumps(facts()))
        try:
            STAGES[args.stage](stage)
        except TimeUpError:
            stage.say(f"time is up; call it again to go on ({len(stage.known)} rows so far)")
            return 3
    failed = [row["key"] for row in stage.rows() if row.get("status", "0") != "0"]
    if failed or stage.failed:
        stage.say(f"failed: {'; '.join([*failed, *stage.failed])} (rows with a status other than 0 "
                  f"must be removed from {stage.table} to be tried again)")  # fmt: skip
        return 1
    done.write_text(json.dumps(facts()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
