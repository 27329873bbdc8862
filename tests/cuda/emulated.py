"""The CUDA C++ library compiled for the CPU, where the threads of a block take turns."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which(os.environ.get("CXX", "g++"))


def build(folder: Path) -> Path:
    """The library, compiled once for each state of its sources.

    Arguments:
        folder: for the compiler's work.

    Returns:
        a file below the build folder of the checkout, which later runs find there.
    """
    sources = sorted([*ROOT.glob("csrc/cuda/*.cu"), *ROOT.glob("csrc/cuda/*.cpp")])
    # As one unit, so that the compiler reads PyTorch's headers once.
    whole = folder / "whole.cpp"
    whole.write_text("".join(f'#include "{source}"\n' for source in sources))
    headers = [part for path in include_paths() for part in ("-isystem", path)]
    command = [
        *(str(COMPILER), "-shared", "-std=c++20", "-O1", "-fPIC", "-fno-strict-aliasing"),
        *("-fvisibility=hidden", "-Wno-unknown-pragmas"),
        *("-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{ROOT / 'tests/cuda/emulator'}"),
        *headers,
        str(whole.name),
        *(f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu"),
    ]
    library = ROOT / "build" / f"emulated-{_digest(command)}.so"
    if not library.exists():
        made = folder / "_emulated.so"
        result = subprocess.run(
            [*command, "-o", str(made)], cwd=folder, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr[-3000:]
        library.parent.mkdir(exist_ok=True)
        aside = library.with_suffix(f".{os.getpid()}")
        shutil.copy(made, aside)
        aside.replace(library)
    return library


def _digest(command: list[str]) -> str:
    """Hash of a command, of torch's version and of everything that the sources may include."""
    sha = hashlib.sha256(f"{torch.__version__} {command}".encode())
    folders = (ROOT / "csrc", ROOT / "tests/cuda/emulator")
    for path in sorted(file for folder in folders for file in folder.rglob("*") if file.is_file()):
        sha.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return sha.hexdigest()[:16]
