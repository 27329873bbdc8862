"""A GPU that is none: Triton's interpreter and the CUDA emulator, with faults and times as asked.

Processes of the check import this module first (`Card.plugin`). FAULTS is {operator: fault} for
"wrong", "unwritten", "crash", "hang", "raise", "memory" and "random"; TIMES {candidate:
milliseconds}.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
os.environ["CLNP_REFERENCE"] = "1"  # the real library would claim the emulator's names

import torch

from clnp_kernels import chooser, cuda_kernels, ops, triton_kernels  # noqa: F401
from clnp_kernels.tune import check, environment, measure

FAULTS, TIMES, EMULATED = "CLNP_TEST_FAULTS", "CLNP_TEST_TIMES", "CLNP_EMULATED"
CUBLASLT = "CLNP_TEST_CUBLASLT"
CARD = environment.Card("cpu", "Interpreter 100", 90, 4, 1 << 12, __name__)

if os.environ.get(EMULATED):
    torch.ops.load_library(os.environ[EMULATED])
    chooser.absent.pop("cuda", None)
if os.environ.get(CUBLASLT):
    torch.ops.clnp_kernels_cuda.cublaslt_load(os.environ[CUBLASLT])
    chooser.absent.pop("cublaslt", None)


def spoil(fault: str, function: Callable[..., Any], args: Any) -> Any:
    """A call that goes wrong."""
    if fault == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "hang":
        time.sleep(3600)
    if fault == "raise":
        raise RuntimeError("no compiler was found")
    if fault == "memory" and largest(args) > int(os.environ.get("CLNP_TEST_LEAST", "1000")):
        raise torch.OutOfMemoryError("CUDA out of memory")
    results = function(*args)
    written = results if results is not None else args[0]
    first = written if isinstance(written, torch.Tensor) else written[0]
    if not first.numel() or fault == "memory":
        return results
    if fault == "random":
        first.add_(torch.rand(()).item() * 1e-9 + torch.finfo(first.dtype).eps * first.abs())
    else:
        first[(-1,) * first.ndim] = float("nan") if fault == "unwritten" else 1e3
    return results


def largest(args: Any) -> int:
    from clnp_kernels.tune.cases import tensors_in

    return max(tensor.numel() for tensor in tensors_in(args))


honest = check.function_of


def faulty(operator: str, implementation: str) -> Callable[..., Any]:
    """The function of an implementation, spoilt if asked for; PyTorch's is left alone."""
    function = honest(operator, implementation)
    fault = json.loads(os.environ.get(FAULTS, "{}")).get(operator)
    if implementation == chooser.TORCH or fault is None:
        return function
    return lambda *args: spoil(fault, function, args)


class Times:
    """A clock that calls once and reads the times from the environment."""

    def milliseconds(self, call: Callable[[int], Any], sets: int, mode: str, name: str) -> float:
        call(sets - 1)
        times: dict[str, float] = json.loads(os.environ.get(TIMES, "{}"))
        return times.get(name, times.get("torch", 1.0) if name == measure.AGAIN else 1.0)


check.function_of = faulty
measure.function_of = faulty
measure.clock_of = lambda card: Times()
