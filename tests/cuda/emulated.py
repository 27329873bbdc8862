"""The CUDA C++ library compiled for the CPU, where the threads of a block take turns."""

import os
import shutil
import subprocess
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which(os.environ.get("CXX", "g++"))


def build(folder: Path) -> Path:
    """Compile the library into a folder."""
    library = folder / "_emulated.so"
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
    return library
