"""Compiles kernels ahead of time, as a launch on a given architecture would, without a GPU."""

import re
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from clnp_kernels.triton_kernels import _launch

# Bytes a thread may keep in local memory (spilled registers, stack) in a kernel of products: what
# stays in the first-level cache. Compilers of different versions differ by a register or two.
LOCAL = 64
REPORT: list["Binary"] = []  # everything that was compiled; conftest.py writes it
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64"}
# architecture -> multiprocessors and bytes of shared memory of A100, H200 and B200
DEVICES = {80: (108, 166912), 90: (132, 232448), 100: (148, 232448)}


class Binary(NamedTuple):
    """Output of the compiler for one launch."""

    architecture: int
    name: str
    types: str  # of the pointers, in the order of the arguments
    tile: str  # rows x columns x depth, or empty
    warps: int
    ttir: str
    ptx: str
    registers: int  # of a thread
    local: int  # bytes of spilled registers and stack, of a thread
    shared: int  # bytes, of a program

    @property
    def widest(self) -> str:
        """The widest access to global memory: "tma", or bytes of a thread at a time."""
        if "cp.async.bulk" in self.ptx:
            return "tma"
        copies = re.findall(r"cp\.async\.c[ag]\.shared\.global.*?\], (0x[0-9a-f]+|\d+)", self.ptx)
        loads = re.findall(r"ld\.global[\w.:]*?(?:\.v(\d))?\.[bfu](\d+)", self.ptx)
        sizes = [int(size, 0) for size in copies]
        sizes += [int(count or 1) * int(bits) // 8 for count, bits in loads]
        return str(max(sizes, default=0))


def compile_launches(architecture: int, call: Callable[[], Any]) -> list[Binary]:
    """The kernels that `call` (on tensors of the meta device) would launch, compiled."""
    launches: list[tuple[Any, dict[str, Any]]] = []
    with pytest.MonkeyPatch.context() as patch:
        device = _launch.Device(architecture, *DEVICES[architecture])
        patch.setattr(_launch, "describe", lambda _: device)
        patch.setattr(_launch, "launch", lambda *given: launches.append((given[0], given[3])))
        call()
    assert launches
    binaries = [_compile(architecture, *one) for one in launches]
    REPORT.extend(binaries)
    return binaries


def _compile(architecture: int, kernel: Any, arguments: dict[str, Any]) -> Binary:
    """Types, constants and alignment are those that triton derives from the arguments."""
    options = {name: arguments[name] for name in ("num_warps", "num_stages") if name in arguments}
    options |= _launch.OPTIONS
    constants: dict[str, Any] = {}
    signature: dict[str, str] = {}
    aligned: dict[tuple[int, ...], list[list[Any]]] = {}
    for place, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if isinstance(value, Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        elif value is None or parameter.is_constexpr or value == 1:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        else:
            signature[parameter.name] = "i32" if value < 1 << 31 else "i64"
        if isinstance(value, Tensor) or (signature[parameter.name][0] == "i" and value % 16 == 0):
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options=options)
    cubin = compiled.asm["cubin"]
    registers, local = _resources(cubin)
    tile = "x".join(str(arguments[name]) for name in ("BM", "BN", "BK") if name in arguments)
    pointers = [kind[1:] for kind in signature.values() if kind.startswith("*")]
    return Binary(
        architecture,
        kernel.fn.__name__,
        " ".join(pointers),
        tile,
        compiled.metadata.num_warps,
        compiled.asm["ttir"],
        compiled.asm["ptx"],
        registers,
        local,
        compiled.metadata.shared,
    )


def check_launchable(binary: Binary) -> None:
    """Asserts that the architecture can start the kernel: registers and shared memory suffice."""
    assert binary.registers * 32 * binary.warps <= 65536
    assert binary.shared <= DEVICES[binary.architecture][1]


def check_offsets(binary: Binary) -> None:
    """Asserts that pointers move by 64-bit offsets and no stride is multiplied in 32 bits."""
    moves = re.findall(r"tt\.addptr .* : (.*?)(?: loc.*)?$", binary.ttir, re.MULTILINE)
    assert moves
    for types in moves:
        assert types.endswith(("i64", "xi64>")), types
    for line in re.findall(r"arith\.muli .*", binary.ttir):
        assert "stride" not in line or "i64" in line, line


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory (stack and spills) of a kernel."""
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [_cuobjdump(), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    numbers = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text))
    return int(numbers["REG"]), int(numbers["STACK"]) + int(numbers["LOCAL"])


@cache
def _cuobjdump() -> str:
    """The tool that triton's wheel brings."""
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
