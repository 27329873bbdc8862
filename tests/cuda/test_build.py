"""The CUDA library compiles where nvcc is there; installs do without it."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]


def load_setup() -> ModuleType:
    """setup.py as a module; it does nothing when imported."""
    spec = importlib.util.spec_from_file_location("clnp_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SETUP = load_setup()


LOADED = """
import sys, torch
torch.ops.load_library(sys.argv[1])
for name in ("adam_l1", "sgd_l1", "channel_activity"):
    qualified = f"clnp_kernels_cuda::{name}"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(qualified, "CUDA"), name
"""


@pytest.mark.skipif(bool(SETUP.no_cuda()), reason=f"CUDA can't be built: {SETUP.no_cuda()}")
def test_compiles_and_loads(tmp_path: Path) -> None:
    """For sm_90a; the build does them all. Registers and spills are the compiler's affair."""
    library = tmp_path / "_cuda.so"
    command = SETUP.nvcc_command(library, ("90a",))
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    command = [sys.executable, "-c", LOADED, str(library)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]


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
