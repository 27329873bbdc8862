"""Runs the tests of values with the CUDA kernels compiled for the CPU, where threads take turns.

It covers the kernels' arithmetic, tails, tables and sums, and the operators' checks; not what only
a GPU has: its memory model, its compiler, its streams.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda.emulated import COMPILER, ROOT, build


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.skipif("CLNP_EMULATED" in os.environ, reason="this is that run")
def test_values(tmp_path: Path) -> None:
    library = build(tmp_path)
    ours = {key: value for key, value in os.environ.items() if not key.startswith("CLNP_")}
    # CLNP_REFERENCE: the real library would claim the operators' names
    environment = {**ours, "CLNP_EMULATED": str(library), "CLNP_REFERENCE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, "tests/cuda/test_values.py", "tests/cuda/test_cublaslt_values.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    assert "passed" in result.stdout
