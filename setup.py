"""Build of the compiled CPU library; everything else is in pyproject.toml.

The library uses PyTorch's stable ABI only: one binary serves every torch from 2.11 on and every
Python. Without a compiler the package installs without it, and the reference serves.
"""

import os
import sys
from pathlib import Path

import setuptools
from setuptools import setup

if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(
        f"clnp: building needs setuptools >= 77, found {setuptools.__version__}\n"
        "Upgrade it (pip install --upgrade setuptools), or let pip do so: without "
        "--no-build-isolation."
    )

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
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


def libraries() -> list[CppExtension]:
    """The compiled libraries: files of operators, no Python module."""
    sources = sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp"))
    headers = sorted(str(path) for path in Path("csrc").rglob("*.h"))
    arguments = {"cxx": COMPILE}
    extension = CppExtension(
        "clnp_kernels._cpu",
        sources,
        extra_compile_args=arguments,
        depends=headers,
        py_limited_api=True,
    )
    return [extension]


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


setup(
    ext_modules=libraries(),
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
