"""Build of the compiled libraries, CPU and CUDA; everything else is in pyproject.toml.

The libraries use PyTorch's stable ABI only: one binary serves every torch from 2.11 on and every
Python. Without a compiler the package installs without them, and the reference serves. The CUDA
library is built where nvcc has the major version of ``torch.version.cuda``, whether or not there is
a GPU; ``CLNP_BUILD_CUDA=0`` leaves it out, ``CLNP_BUILD_CUDA=1`` makes it an error if it fails.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import setuptools

if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(
        f"clnp: building needs setuptools >= 77, found {setuptools.__version__}\n"
        "Upgrade it (pip install --upgrade setuptools), or let pip do so: without "
        "--no-build-isolation."
    )

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths
except ImportError as error:
    sys.exit(
        f"clnp: building needs torch >= 2.11 and importing it failed: {error}\n"
        "Install it first (pip install 'torch>=2.11'), or let pip do so: without "
        "--no-build-isolation."
    )

# The oldest torch that the binary runs on, as torch/headeronly/version.h writes versions.
TARGET = "0x020b000000000000"
COMPILE = [
    "-O3",
    "-g0",
    "-std=c++17",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wall",
    "-Wno-unknown-pragmas",
    f"-DTORCH_TARGET_VERSION={TARGET}",
]
# CLNP_SANITIZE=1, for tests/sanitize.sh: readable stacks, and the first finding ends the process.
# Optimised as always, so that results round as they do without.
SANITIZE = [
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-g",
]
CUDA = "clnp_kernels._cuda"
ROOT = Path(__file__).parent
# One binary for each major version of compute capability that nvcc knows; the PTX of the last one
# serves whatever comes after it.
ARCHITECTURES = ("80", "90", "100", "120")


def find_nvcc() -> str:
    """The path of nvcc, or an empty string: of the system, or of the package `nvidia-cuda-nvcc`."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    packaged = sorted(Path(torch.__file__).parents[1].glob("nvidia/cu*/bin/nvcc"))
    places = [Path(home, "bin", "nvcc"), "nvcc", *packaged]
    return next(filter(None, (shutil.which(str(place)) for place in places)), "")


def output_of(*command: str) -> str:
    """What a command prints, '' if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode else done.stdout


def architectures() -> tuple[str, ...]:
    """Those of `ARCHITECTURES` that nvcc compiles for: older ones lack 100 and 120, newer ones drop
    what is old.
    """
    known = re.findall(r"\bsm_(\d+[a-z]?)\b", output_of(find_nvcc(), "--list-gpu-code"))
    return tuple(name for name in ARCHITECTURES if name in known)


def no_cuda() -> str:
    """Why the CUDA library can't be built here, or an empty string."""
    nvcc = find_nvcc()
    if torch.version.hip is not None:
        return "this torch is built for ROCm, and the kernels are CUDA's"
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if not nvcc:
        return "nvcc was not found (set CUDA_HOME)"
    found = re.search(r"release (\d+)\.(\d+)", output_of(nvcc, "--version"))
    if found is None or found[1] != torch.version.cuda.split(".")[0]:
        return f"nvcc is {found and found[0]}, torch was built with CUDA {torch.version.cuda}"
    if not architectures():
        return f"nvcc ({found[0]}) compiles for none of sm_{', sm_'.join(ARCHITECTURES)}"
    return ""


def nvcc_command(output: Path, names: tuple[str, ...]) -> list[str]:
    """The call of nvcc that makes the CUDA library for these architectures.

    The kernels (.cu) include no header of PyTorch, and the operators (.cpp) none of CUDA, so all
    of it takes seconds.
    """
    codes = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in names]
    codes[-1] = f"-gencode=arch=compute_{names[-1]},code=[sm_{names[-1]},compute_{names[-1]}]"
    sources = [
        str(path) for kind in ("cu", "cpp") for path in sorted(ROOT.glob(f"csrc/cuda/*.{kind}"))
    ]
    # An nvcc from a package index has not all headers; those that torch brings come after its own.
    headers = [
        *include_paths(),
        *map(str, Path(torch.__file__).parents[1].glob("nvidia/cu*/include")),
    ]
    return [
        find_nvcc(),
        *(
            "-shared",
            "-std=c++17",
            "-O3",
            "--threads=0",
            "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall",
        ),
        *("-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={TARGET}", f"-I{ROOT / 'csrc/cuda/device'}"),
        *(part for path in headers for part in ("-isystem", path)),
        *codes,
        *sources,
        *(f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu", "-ltorch_cuda"),
        *("-o", str(output)),
    ]


def libraries() -> list[Extension]:
    """The compiled libraries: files of operators, no Python module."""
    sources = sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp"))
    headers = sorted(str(path) for path in Path("csrc").rglob("*.h"))
    sanitize = SANITIZE if os.environ.get("CLNP_SANITIZE", "0") not in ("", "0") else []
    extension = CppExtension(
        "clnp_kernels._cpu",
        sources,
        extra_compile_args={"cxx": [*COMPILE, *sanitize]},
        extra_link_args=sanitize[:1],
        depends=headers,
        py_limited_api=True,
    )
    wanted = os.environ.get("CLNP_BUILD_CUDA", "")
    if wanted == "0" or (wanted == "" and no_cuda()):
        return [extension]
    files = sorted(str(path) for path in Path("csrc").rglob("*") if path.is_file())
    cuda = Extension(CUDA, [], depends=files, py_limited_api=True, optional=True)
    return [extension, cuda]


class Build(BuildExtension):
    """BuildExtension that goes on without the libraries if they can't be compiled."""

    def run(self) -> None:
        """Build, or say once that the reference serves."""
        try:
            super().run()
        except (Exception, SystemExit) as error:
            if os.environ.get("CLNP_REQUIRE_BUILD", "0") not in ("", "0"):
                raise
            # Later commands ask these for the files that were built.
            self.extensions = self.distribution.ext_modules = []
            reason = str(error).strip().splitlines() or [type(error).__name__]
            print(
                "\nclnp: WARNING: the C++ library could not be built, so the slower reference in "
                f"Python serves. Reason: {reason[-1]}\nclnp: for the fast one install a C++17 "
                "compiler (Debian: apt install g++) and install clnp again.\n",
                file=sys.stderr,
            )

    def build_extension(self, ext: Extension) -> None:
        """Build one library; the CUDA library with nvcc, and if that fails without it."""
        if ext.name != CUDA:
            super().build_extension(ext)
            return
        try:
            self._build_cuda(ext)
        except (RuntimeError, OSError) as error:
            if {os.environ.get("CLNP_BUILD_CUDA"), os.environ.get("CLNP_REQUIRE_BUILD")} & {"1"}:
                raise
            print(
                "\nclnp: WARNING: the CUDA library could not be built, so PyTorch's own operators "
                f"serve on GPUs. Reason: {error}\nclnp: CLNP_BUILD_CUDA=0 silences this.\n",
                file=sys.stderr,
            )

    def _build_cuda(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name))
        newest = max(Path(path).stat().st_mtime for path in [*ext.depends, __file__])
        if output.exists() and output.stat().st_mtime > newest:
            return
        reason = no_cuda()
        if reason:
            raise RuntimeError(reason)
        output.parent.mkdir(parents=True, exist_ok=True)
        command = nvcc_command(output, architectures())
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"nvcc failed\n{(result.stdout + result.stderr)[-3000:]}")


class Wheel(bdist_wheel):
    """The wheel: its libraries know a platform, but no Python; without them it is for any."""

    def get_tag(self) -> tuple[str, str, str]:
        """(Python, its ABI, platform)."""
        platform = super().get_tag()[2]
        return "py3", "none", platform if self.distribution.ext_modules else "any"


if __name__ == "__main__":
    setup(ext_modules=libraries(), cmdclass={"build_ext": Build, "bdist_wheel": Wheel})
