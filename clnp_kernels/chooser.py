"""Choice of the implementation of an operator on CUDA, by the table of the GPU (`tune`).

`"torch"`: PyTorch's own operators (cuBLAS, cuDNN and ATen kernels) on contiguous slices.
`"triton"`: `clnp_kernels/triton_kernels`; `"triton-persistent"`: its products with copies by TMA.
`"cuda"`: the CUDA C++ of `csrc/cuda`. `"cublaslt"`: products of cuBLASLt on slices. A GPU without a
table gets PyTorch's operators: kernels serve where they have been checked.

Environment: `CLNP_GPU=torch`, or another of these names, prefers that one wherever it has the
operator and has not failed its check, `CLNP_GPU=ours` our kernels (Triton or CUDA C++); `prefer`
does the same within a block. `CLNP_TUNE=off` leaves tables out, `CLNP_TUNE=require` makes a GPU
without one an error.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .errors import MissingImplementationError, message
from .tune.calls import call_of
from .tune.table import Choice, Table

TORCH = "torch"
PERSISTENT, CUBLASLT = "triton-persistent", "cublaslt"
PREFERENCES = (TORCH, "triton", PERSISTENT, "cuda", CUBLASLT, "ours")
TUNE = ("auto", "off", "require")
UNCHECKED = "the kernels are not checked on this GPU yet: `clnp tune`, or a Learner's first task"
# operator -> implementation -> the module of this package that has it, under the operator's name
_LINEAR = {TORCH: "slices.masked_linear", "triton": "triton_kernels.masked_linear"}
_PRODUCT = {**_LINEAR, CUBLASLT: "cublaslt"}
_CONV = {TORCH: "slices.masked_conv2d", "triton": "triton_kernels.masked_conv2d"}
_NORM = {TORCH: "slices.partial_batch_norm", "triton": "triton_kernels.partial_batch_norm"}
_LAYER_NORM = {TORCH: "slices.partial_layer_norm", "triton": "triton_kernels.partial_layer_norm"}
OFFERS: dict[str, dict[str, str]] = {
    "masked_linear_fwd": {**_PRODUCT, PERSISTENT: "triton_kernels.persistent"},
    "masked_linear_relu_grad": _LINEAR,
    **{f"masked_linear_{part}": _PRODUCT for part in ("dgrad", "wgrad")},
    **{f"masked_conv2d_{part}": _CONV for part in ("fwd", "relu_grad", "dgrad", "wgrad")},
    **{f"partial_batch_norm_{part}": _NORM for part in ("fwd", "bwd")},
    **{f"partial_layer_norm_{part}": _LAYER_NORM for part in ("fwd", "bwd")},
    "channel_activity": {
        TORCH: "slices.channel_activity",
        "triton": "triton_kernels.channel_activity",
        "cuda": "cuda_kernels",
    },
    "dropout": {TORCH: "reference.dropout"},
    **{
        name: {TORCH: f"slices.{name}", "triton": f"triton_kernels.{name}", "cuda": "cuda_kernels"}
        for name in ("adam_l1", "sgd_l1")
    },
}
absent: dict[str, str] = {}  # implementation -> why it is not there, by `_register`
_preferred: list[str] = []
_captured: list[bool] = []
_tables: dict[int | None, Table | None] = {}  # by number of the device


def preference() -> str:
    """Return the implementation preferred over the table, one of `PREFERENCES`, or ''.

    Raises:
        ValueError: `CLNP_GPU` is something else.
    """
    return _preferred[-1] if _preferred else _one_of("CLNP_GPU", PREFERENCES)


def tuning() -> str:
    """Return "auto", "off" or "require".

    Raises:
        ValueError: `CLNP_TUNE` is something else.
    """
    return _one_of("CLNP_TUNE", TUNE) or TUNE[0]


def _one_of(variable: str, choices: Sequence[str]) -> str:
    """Read a variable of the environment, '' where it is not set."""
    value = os.environ.get(variable, "")
    if value and value not in choices:
        raise ValueError(message(variable, repr(value), f"one of {', '.join(choices)}"))
    return value


@contextmanager
def prefer(implementation: str) -> Iterator[None]:
    """Prefer an implementation within a block, on CUDA; for tests and measurements.

    Arguments:
        implementation: one of `PREFERENCES`.

    Raises:
        ValueError: it is none of these.
    """
    if implementation not in PREFERENCES:
        wanted = f"one of {', '.join(PREFERENCES)}"
        raise ValueError(message("implementation", repr(implementation), wanted))
    _preferred.append(implementation)
    try:
        yield
    finally:
        _preferred.pop()


@contextmanager
def captured() -> Iterator[None]:
    """Choose for a step that is captured as a CUDA graph, where launches cost nothing.

    The steps that warm up belong into the block too, so that all take the same kernels. It holds
    for every thread: autograd computes gradients in its own.
    """
    _captured.append(True)
    try:
        yield
    finally:
        _captured.pop()


def use(device: int | None, table: Table | None) -> None:
    """Follow a table on a device from now on; None stands for PyTorch's operators."""
    _tables[device] = table


def forget() -> None:
    """Follow no table; the next call reads what is stored again. For tests."""
    _tables.clear()


def table_of(device: int | None) -> Table | None:
    """The table of a device, read from the store at the first call."""
    if device not in _tables:
        # Needed once, and not on a CPU.
        from .tune.stored import stored

        _tables[device] = stored(device) if tuning() != "off" else None
    return _tables[device]


def choose(name: str, args: tuple[Any, ...]) -> Choice:
    """The implementation of a call on CUDA and the reason for it.

    Arguments:
        name: the operator.
        args: its arguments.

    Raises:
        MissingImplementationError: with `CLNP_TUNE=require`, the GPU has no table.
    """
    preferred = _offered(name)
    if preferred == TORCH:
        return Choice(TORCH, "preferred (CLNP_GPU)")
    if len(OFFERS[name]) == 1:
        return Choice(TORCH, "the only implementation")
    first = args[0] if isinstance(args[0], Tensor) else args[0][0]
    table = table_of(first.device.index)
    if table is None:
        if tuning() == "require":
            raise MissingImplementationError(f"CLNP_TUNE=require: {UNCHECKED}")
        return Choice(preferred or TORCH, "preferred (CLNP_GPU)" if preferred else UNCHECKED)
    call = call_of(name, args, "graph" if _captured else "eager")
    if not preferred:
        return table.choose(call)
    problem = table.problem(call, preferred)
    if problem and (tuning() == "require" or table.failed(call, preferred)):
        return Choice(TORCH, problem, problem)
    return Choice(preferred, "preferred (CLNP_GPU)")


def conditions(device: int | None) -> tuple[Hashable, ...]:
    """The state that choices depend on besides the call; a choice holds while it is the same."""
    preferred = _preferred[-1] if _preferred else os.environ.get("CLNP_GPU")
    return preferred, bool(_captured), _tables.get(device), *absent.items()


def explain(name: str) -> tuple[str, str]:
    """The implementation of an operator on CUDA in general, and the reasons, for `info`."""
    preferred = _offered(name)
    if preferred:
        return preferred, "preferred (CLNP_GPU)"
    if len(OFFERS[name]) == 1:
        return TORCH, "modules take PyTorch's own dropout on a GPU"
    if torch.cuda.is_available():
        table_of(torch.cuda.current_device())
    table = next((table for table in _tables.values() if table is not None), None)
    return (TORCH, UNCHECKED) if table is None else table.explain(name)


def _offered(name: str) -> str:
    """The preferred implementation, where it has the operator."""
    preferred = preference()
    if preferred == "ours":
        preferred = "cuda" if "cuda" in OFFERS[name] else "triton"
    return preferred if preferred in OFFERS[name] else ""
