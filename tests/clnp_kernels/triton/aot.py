"""Compiles kernels ahead of time, and notes all that was compiled for the report."""

import re
from collections.abc import Callable
from typing import Any

import triton

from benchmarks import ahead_of_time
from benchmarks.ahead_of_time import DEVICES, Binary

__all__ = ["DEVICES", "LOCAL", "REPORT", "Binary", "compile_launches", "triton"]

# Bytes a thread may keep in local memory (spilled registers, stack) in a kernel of products: what
# stays in the first-level cache. Compilers of different versions differ by a register or two.
LOCAL = 64
REPORT: list[Binary] = []  # everything that was compiled; conftest.py writes it


def compile_launches(architecture: int, call: Callable[[], Any]) -> list[Binary]:
    """The kernels that `call` (on tensors of the meta device) would launch, compiled."""
    binaries = ahead_of_time.compile_launches(architecture, call)
    assert binaries
    REPORT.extend(binaries)
    return binaries


def check_launchable(binary: Binary) -> None:
    """Asserts that the architecture can start the kernel: registers and shared memory suffice."""
    assert binary.registers * 32 * binary.warps <= 65536
    assert binary.shared <= DEVICES[binary.architecture][1]


def check_offsets(binary: Binary) -> None:
    """Asserts that pointers move by 64-bit offsets and no stride is multiplied in 32 bits, but by
    its unit.
    """
    moves = re.findall(r"tt\.addptr .* : (.*?)(?: loc.*)?$", binary.ttir, re.MULTILINE)
    assert moves
    for types in moves:
        assert types.endswith(("i64", "xi64>")), types
    for line in re.findall(r"arith\.muli .*", binary.ttir):
        by_unit = re.search(r"%c\d+_i32", line)  # `_launch.align_of` leaves room for it
        assert "stride" not in line or "i64" in line or by_unit, line
