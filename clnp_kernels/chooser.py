"""Which implementation serves an operator on CUDA: a small table by operator and size.

``"torch"``: PyTorch's own operators (cuBLAS, cuDNN and ATen kernels) on contiguous slices.
``"triton"``: ``clnp_kernels/triton_kernels``. ``"cuda"``: the CUDA C++ of ``csrc/cuda``. A row is
changed only with its evidence, a measurement of ``python -m benchmarks.gpu_suite ops``.

Environment: ``CLNP_GPU=torch``, ``triton`` or ``cuda`` prefers that one wherever it has the
operator, ``CLNP_GPU=ours`` whichever of ours has it. :func:`prefer` does the same within a block.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from .errors import message

PREFERENCES = ("torch", "triton", "cuda", "ours")


class Row(NamedTuple):
    """From ``least`` on (in the unit of :func:`size`) this implementation serves."""

    least: int
    implementation: str
    evidence: str


_UNKNOWN = "not measured on a GPU yet, so vendor products and PyTorch's operators on slices"
_BYTES = "not measured on a GPU yet, so PyTorch's operators"
# operator -> rows by ascending size; the last one whose `least` is not above the size holds
TABLE: dict[str, tuple[Row, ...]] = {
    "masked_linear_fwd": (Row(0, "torch", _UNKNOWN),),
    "masked_linear_relu_grad": (Row(0, "torch", _BYTES),),
    "masked_linear_dgrad": (Row(0, "torch", _UNKNOWN),),
    "masked_linear_wgrad": (Row(0, "torch", _UNKNOWN),),
    "masked_conv2d_fwd": (Row(0, "torch", _UNKNOWN),),
    "masked_conv2d_relu_grad": (Row(0, "torch", _BYTES),),
    "masked_conv2d_dgrad": (Row(0, "torch", _UNKNOWN),),
    "masked_conv2d_wgrad": (Row(0, "torch", _UNKNOWN),),
    "partial_batch_norm_fwd": (Row(0, "torch", _BYTES),),
    "partial_batch_norm_bwd": (Row(0, "torch", _BYTES),),
    "channel_activity": (Row(0, "torch", _BYTES),),
    "dropout": (Row(0, "torch", "modules take PyTorch's own dropout there"),),
    "adam_l1": (Row(0, "torch", _BYTES),),
    "sgd_l1": (Row(0, "torch", _BYTES),),
}
# operator -> implementation -> the module of this package that has it, under the operator's name
_LINEAR = {"torch": "slices.masked_linear", "triton": "triton_kernels.masked_linear"}
_CONV = {"torch": "reference.masked_conv2d", "triton": "triton_kernels.masked_conv2d"}
_NORM = {"torch": "slices.partial_batch_norm", "triton": "triton_kernels.partial_batch_norm"}
OFFERS: dict[str, dict[str, str]] = {
    **{f"masked_linear_{part}": _LINEAR for part in ("fwd", "relu_grad", "dgrad", "wgrad")},
    **{f"masked_conv2d_{part}": _CONV for part in ("fwd", "relu_grad", "dgrad", "wgrad")},
    **{f"partial_batch_norm_{part}": _NORM for part in ("fwd", "bwd")},
    "channel_activity": {
        "torch": "slices.channel_activity",
        "triton": "triton_kernels.channel_activity",
        "cuda": "cuda_kernels",
    },
    "dropout": {"torch": "reference.dropout"},
    "adam_l1": {"torch": "slices.adam_l1", "cuda": "cuda_kernels"},
    "sgd_l1": {"torch": "slices.sgd_l1", "cuda": "cuda_kernels"},
}
_preferred: list[str] = []


def _numel(tensors: Any) -> int:
    """Elements of a tensor, or of all tensors of a list."""
    return tensors.numel() if isinstance(tensors, Tensor) else sum(t.numel() for t in tensors)


# stem -> multiply-adds of a call, from its arguments
_PRODUCTS: dict[str, Callable[..., int]] = {
    "masked_linear_fwd": lambda x, active, free, *_: len(x) * (_numel(active) + _numel(free)),
    "masked_linear_dgrad": lambda grad, free, *_: len(grad) * _numel(free),
    "masked_linear_wgrad": lambda grad, x, *_: _numel(grad) * x.shape[1],
}


def size(name: str, args: tuple[Any, ...]) -> int:
    """How large a call is: multiply-adds of a linear product, else elements of the first argument.

    The first argument of an optimizer is all its tensors.
    """
    count = _PRODUCTS.get(name)
    return count(*args) if count else _numel(args[0])


def preference() -> str:
    """What is preferred over the table: a key of ``PREFERENCES``, or an empty string.

    Raises:
        ValueError: ``CLNP_GPU`` is something else.
    """
    if _preferred:
        return _preferred[-1]
    asked = os.environ.get("CLNP_GPU", "")
    if asked and asked not in PREFERENCES:
        raise ValueError(message("CLNP_GPU", repr(asked), f"one of {', '.join(PREFERENCES)}"))
    return asked


@contextmanager
def prefer(implementation: str) -> Iterator[None]:
    """Prefer an implementation within a block, on CUDA; for tests and measurements.

    Arguments:
        implementation: "torch", "triton", "cuda" or "ours".

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


def choose(name: str, args: tuple[Any, ...] | None = None) -> tuple[str, str]:
    """The implementation of an operator on CUDA and the reason for it.

    Arguments:
        name: the operator.
        args: its arguments; None: those of a call of no particular size (the first row).
    """
    offers, asked = OFFERS[name], preference()
    if asked == "ours":
        asked = "cuda" if "cuda" in offers else "triton"
    if asked in offers:
        return asked, "preferred (CLNP_GPU)"
    rows = TABLE[name]
    count = size(name, args) if args is not None and len(rows) > 1 else 0
    row = [row for row in rows if row.least <= count][-1]
    return row.implementation, row.evidence
