"""Runs test_values.py with the CUDA kernels compiled for the CPU, where threads take turns.

It covers the kernels' arithmetic, tails, tables and sums, and the operators' checks; not what only
a GPU has: its memory model, its compiler, its streams.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which(os.environ.get("CXX", "g++"))


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.skipif("CLNP_EMULATED" in os.environ, reason="this is that run")
def test_values(tmp_path: Path) -> None:
    library = tmp_path / "_emulated.so"
    sources = sorted(map(str, [*ROOT.glob("csrc/cuda/*.cu"), *ROOT.glob("csrc/cuda/*.cpp")]))
    headers = [part for path in include_paths() for part in ("-isystem", path)]
    command = [
        *(str(COMPILER), "-shared", "-std=c++20", "-O1", "-fPIC", "-fno-strict-aliasing"),
        *("-fvisibility=hidden", "-Wno-unknown-pragmas"),
        *("-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{ROOT / 'tests/cuda/emulator'}"),
        *headers,
        *("-x", "c++", *sources, "-x", "none"),
        *(f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu", "-o", str(library)),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    ours = {key: value for key, value in os.environ.items() if not key.startswith("CLNP_")}
    # CLNP_REFERENCE: the real library would claim the operators' names
    environment = {**ours, "CLNP_EMULATED": str(library), "CLNP_REFERENCE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, "tests/cuda/test_values.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    assert "passed" in result.stdout
