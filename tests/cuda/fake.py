"""The fake cuBLASLt, compiled once for each state of its source."""

import hashlib
import os
import subprocess
from pathlib import Path

from torch.utils.cpp_extension import include_paths

from tests.cuda.emulated import COMPILER, ROOT

SOURCE = ROOT / "tests/cuda/fake_cublaslt.cpp"
FAULT = "CLNP_FAKE_CUBLASLT"


def build() -> Path:
    """The library, a file below the build folder of the checkout."""
    sha = hashlib.sha256(SOURCE.read_bytes() + (ROOT / "csrc/cuda/cublaslt.h").read_bytes())
    library = ROOT / "build" / f"fake-cublaslt-{sha.hexdigest()[:16]}.so"
    if not library.exists():
        library.parent.mkdir(exist_ok=True)
        aside = library.with_suffix(f".{os.getpid()}")
        headers = [part for path in include_paths() for part in ("-isystem", path)]
        command = [str(COMPILER), "-shared", "-std=c++17", "-O1", "-fPIC", *headers]
        command += [str(SOURCE), "-o", str(aside)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-3000:]
        aside.replace(library)
    return library
