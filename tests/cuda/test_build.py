"""The CUDA library compiles where nvcc is there; installs do without it."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
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
    """For one architecture; the build does them all. Registers are the compiler's affair."""
    library = tmp_path / "_cuda.so"
    command = SETUP.nvcc_command(library, SETUP.architectures()[:1])
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    command = [sys.executable, "-c", LOADED, str(library)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]


# what nvcc lists -> what the library is built for
LISTS = {
    "13.0": ("75 80 86 87 88 89 90 100 110 103 120 121", ("80", "90", "100", "120")),
    "12.8": ("50 60 70 75 80 86 89 90 90a 100 100a 101 120 120a", ("80", "90", "100", "120")),
    "12.4": ("50 52 53 60 61 62 70 72 75 80 86 87 89 90 90a", ("80", "90")),
    "11.1": ("35 50 60 70 75 80 86", ("80",)),
    "20.0": ("90 100 120 130", ("90", "100", "120")),
}


@pytest.fixture
def nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Make an nvcc of a version that lists some architectures."""

    def make(version: str, codes: str) -> None:
        file = tmp_path / "bin" / "nvcc"
        file.parent.mkdir(exist_ok=True)
        listed = "\n".join(f"sm_{code}" for code in codes.split())
        release = f"Cuda compilation tools, release {version}, V{version}.48"
        text = f'case "$1" in --list-gpu-code) echo "{listed}";; *) echo "{release}";; esac'
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
        monkeypatch.setenv("CUDA_HOME", str(tmp_path))
        monkeypatch.setattr(torch.version, "cuda", version)
        monkeypatch.setattr(torch.version, "hip", None)

    return make


@pytest.mark.parametrize("version", LISTS)
def test_architectures(version: str, nvcc: Callable[[str, str], None]) -> None:
    """Those that nvcc knows, with the PTX of the last one for what comes after it."""
    codes, wanted = LISTS[version]
    nvcc(version, codes)
    assert SETUP.no_cuda() == ""
    assert SETUP.architectures() == wanted
    asked = [part for part in SETUP.nvcc_command(Path("x.so"), wanted) if "-gencode" in part]
    assert asked[:-1] == [f"-gencode=arch=compute_{n},code=sm_{n}" for n in wanted[:-1]]
    last = wanted[-1]
    assert asked[-1] == f"-gencode=arch=compute_{last},code=[sm_{last},compute_{last}]"


def test_unusable_compilers_have_a_reason(nvcc: Callable[[str, str], None]) -> None:
    nvcc("13.0", "130 140")
    assert (
        SETUP.no_cuda() == "nvcc (release 13.0) compiles for none of sm_80, sm_90, sm_100, sm_120"
    )
    nvcc("13.0", "")
    assert "compiles for none" in SETUP.no_cuda()


def test_rocm_is_refused(nvcc: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvcc that happens to be installed changes nothing."""
    nvcc("13.0", "80 90")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("CLNP_BUILD_CUDA", raising=False)
    assert "ROCm" in SETUP.no_cuda()
    assert [library.name for library in SETUP.libraries()] == ["clnp_kernels._cpu"]


def test_wheels_carry_the_cuda_library() -> None:
    """Their build fails without it, and nvcc has the major version of torch's CUDA."""
    settings = (ROOT / "pyproject.toml").read_text().partition("[tool.cibuildwheel]")[2]
    assert 'CLNP_BUILD_CUDA = "1"' in settings
    assert "nvidia-cuda-nvcc" in settings


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


def test_other_versions_are_refused(
    nvcc: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc("13.0", "80 90")
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    assert SETUP.no_cuda() == "nvcc is release 13.0, torch was built with CUDA 12.6"
    monkeypatch.setattr(SETUP, "find_nvcc", lambda: "")
    assert "CUDA_HOME" in SETUP.no_cuda()
