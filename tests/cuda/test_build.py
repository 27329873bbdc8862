"""The CUDA library compiles where nvcc is there; installs do without it."""

import importlib.util
import os
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
LONG = bool(os.environ.get("CLNP_LONG_TESTS"))
# registers a thread may take so that 4 blocks of 256 threads fit on a multiprocessor
REGISTERS = 64


def load_setup() -> ModuleType:
    """setup.py as a module; it does nothing when imported."""
    spec = importlib.util.spec_from_file_location("clnp_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SETUP = load_setup()


@pytest.mark.skipif(bool(SETUP.no_cuda()), reason=f"CUDA can't be built: {SETUP.no_cuda()}")
def test_compiles(tmp_path: Path) -> None:
    """For sm_90a; the build does them all. With CLNP_LONG_TESTS=1 also what the compiler of this
    machine says of registers and spills, which another version may decide otherwise.
    """
    library = tmp_path / "_cuda.so"
    command = [*SETUP.nvcc_command(library, ("90a",)), "-Xptxas=-v"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    text = result.stdout + result.stderr
    assert result.returncode == 0, text[-3000:]
    binary = library.read_bytes()
    sources = [path.read_text() for path in (ROOT / "csrc" / "cuda").glob("*.cu")]
    kernels = re.findall(r"(\w+_kernel)\(", "\n".join(sources))
    assert kernels
    assert all(name.encode() in binary for name in kernels)
    if LONG:
        spills = re.findall(r"(\d+) bytes spill stores", text)
        registers = [int(n) for n in re.findall(r"Used (\d+) registers", text)]
        assert {*spills} == {"0"}
        assert 0 < max(registers) <= REGISTERS


@pytest.mark.skipif(bool(SETUP.no_cuda()), reason=f"CUDA can't be built: {SETUP.no_cuda()}")
def test_every_architecture_is_asked_for() -> None:
    text = " ".join(SETUP.nvcc_command(Path("x.so")))
    for code in ("code=sm_80", "code=sm_90a", "code=[sm_100,compute_100]"):
        assert code in text


def test_what_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CLNP_BUILD_CUDA", "0")
    assert [library.name for library in SETUP.libraries()] == ["clnp_kernels._cpu"]
    monkeypatch.setenv("CLNP_BUILD_CUDA", "1")
    names = [library.name for library in SETUP.libraries()]
    assert names == ["clnp_kernels._cpu", "clnp_kernels._cuda"]
    monkeypatch.delenv("CLNP_BUILD_CUDA")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "without CUDA" in SETUP.no_cuda()
    assert len(SETUP.libraries()) == 1


def test_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(SETUP, "find_nvcc", lambda: "/nowhere/nvcc")
    done = subprocess.CompletedProcess([], 0, stdout="Cuda compilation tools, release 13.0, V13")
    monkeypatch.setattr(SETUP.subprocess, "run", lambda *args, **options: done)
    assert SETUP.no_cuda() == "nvcc is release 13.0, torch was built with CUDA 12.6"
    monkeypatch.setattr(SETUP, "find_nvcc", lambda: "")
    assert "CUDA_HOME" in SETUP.no_cuda()
