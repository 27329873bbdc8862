"""Kernels as a launch on a given architecture would compile them, without a GPU."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from clnp_kernels.triton_kernels import _launch, tiles

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64"}
# architecture -> multiprocessors and bytes of shared memory of A100, A10, H200, B200 and RTX 5090
DEVICES = {
    80: (108, 166912),
    86: (72, 101376),
    90: (132, 232448),
    100: (148, 232448),
    120: (170, 101376),
}


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

    @property
    def copies(self) -> str:
        """The asynchronous copy from global to shared memory: "tma", "cp.async", or "" for none."""
        if "cp.async.bulk" in self.ptx:
            return "tma"
        return "cp.async" if re.search(r"cp\.async\.c[ag]\.shared", self.ptx) else ""


def compile_launches(architecture: int, call: Callable[[], Any]) -> list[Binary]:
    """The kernels that `call` (on tensors of the meta device) would launch, compiled."""
    launches: list[tuple[Any, dict[str, Any]]] = []
    device = _launch.Device(tiles.row_of(architecture), *DEVICES[architecture])

    def note(kernel: Any, programs: Any, like: Any, arguments: dict[str, Any]) -> None:
        launches.append((kernel, arguments))

    with patch.object(_launch, "describe", lambda _: device), patch.object(_launch, "launch", note):
        call()
    return [_compile(architecture, *one) for one in launches]


def _compile(architecture: int, kernel: Any, arguments: dict[str, Any]) -> Binary:
    """Types, constants and alignment are those that triton derives from the arguments."""
    options: dict[str, Any] = {
        name: arguments[name] for name in ("num_warps", "num_stages") if name in arguments
    }
    options |= _launch.OPTIONS
    constants: dict[str, Any] = {}
    signature: dict[str, Any] = {}
    aligned: dict[tuple[int, ...], list[list[Any]]] = {}
    for place, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if isinstance(value, Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
        elif hasattr(value, "block_shape"):  # a descriptor of a tensor
            signature[parameter.name] = (
                f"tensordesc<{TYPES[value.base.dtype]}{list(value.block_shape)}>"
            )
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        elif isinstance(value, tuple) and not parameter.is_constexpr:
            signature[parameter.name] = _types(value)
        elif value is None or parameter.is_constexpr or (value == 1 and _special(parameter)):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        else:
            signature[parameter.name] = "i32" if value < 1 << 31 else "i64"
        number = signature[parameter.name][0] == "i" and _special(parameter)
        if isinstance(value, Tensor) or (number and value % 16 == 0):
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options=options)
    cubin = compiled.asm["cubin"]
    registers, local = _resources(cubin)
    tile = "x".join(str(arguments[name]) for name in ("BM", "BN", "BK") if name in arguments)
    pointers = [kind[1:] for kind in signature.values() if kind[0] == "*"]
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


def _types(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Types of a tuple of floats, of integers that `_optimizers.coded` made, or of such tuples."""
    kinds = {float: "fp32", int: "i64"}
    return tuple(_types(v) if isinstance(v, tuple) else kinds[type(v)] for v in values)


def _special(parameter: Any) -> bool:
    """Return True if triton looks at the value of a number."""
    return not parameter.do_not_specialize


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
