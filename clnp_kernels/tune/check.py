"""Check of one implementation of an operator on a GPU: numbers, repeatability, capture.

The rule for numbers is that of the tests: against float64 an implementation errs at most twice as
much as PyTorch's own operators at the same dtype, and one rounding. New memory starts as NaN, so an
element that nothing writes is seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .. import chooser
from .._register import reference_of
from . import cases
from .environment import Card

RATIO = 2.0
SUMS = 1e-5  # relative error of the activity, in any order of summation
ROUNDINGS = {torch.float32: 4.0, torch.float64: 4.0}  # of sums; other types round once
Function = Callable[..., Any]


def function_of(operator: str, implementation: str) -> Function:
    """The Python function of an implementation. Imports triton for its kernels."""
    module = chooser.OFFERS[operator][implementation]
    function: Function = getattr(import_module(f"clnp_kernels.{module}"), operator)
    return function


def verdict(operator: str, implementation: str, dtype: str, alignment: int, card: Card) -> str:
    """Return what is wrong with an implementation, or ''. Raises whatever the kernels raise."""
    function = function_of(operator, implementation)
    kind = getattr(torch, dtype)
    for seed, layer in enumerate(cases.check_layers(operator, alignment, small=small(card))):
        make = cases.Maker(layer, kind, "cpu", seed)
        problem = _compare(function, operator, make.arguments(operator), card)
        if problem:
            return f"{problem} ({_shape(layer)})"
    return ""


def small(card: Card) -> bool:
    """Return whether kernels are interpreted, so that small layers have to do."""
    return card.device == "cpu"


def _shape(layer: cases.Layer) -> str:
    """Sizes of a layer, for a reason."""
    image = f", images of {layer.side}" if layer.side else ""
    return (
        f"{layer.rows} x ({layer.active_in} + {layer.free_in}) -> "
        f"{layer.active_out} + {layer.free_out}{image}"
    )


def _compare(function: Function, operator: str, args: Any, card: Card) -> str:
    """Compare one call with float64, with itself, and with itself in a graph."""
    exact = _run(reference_of(operator), cases.mapped(args, _double), card=None)
    theirs = _run(function_of(operator, chooser.TORCH), args, card)
    with nan_memory():
        ours, again = (_run(function, args, card) for _ in range(2))
    problem = _activity(operator, ours) or wrong(
        *(_but_activity(operator, results) for results in (ours, theirs, exact))
    )
    if problem:
        return problem
    if not equal(ours, again):
        return "two runs differ"
    if card.device != "cpu" and not equal(ours, _captured(function, args, card)):
        return "a captured call differs from an eager one"
    return ""


def _double(tensor: Tensor) -> Tensor:
    """A copy in float64 with the same strides."""
    return tensor.to(torch.float64, copy=True)


def _run(function: Function, args: Any, card: Card | None) -> list[Tensor]:
    """Results of a call on copies, and the arguments after it, on the CPU."""
    own = _copied(args, card)
    results = function(*own)
    return [tensor.cpu() for tensor in cases.tensors_in([results, own])]


def _copied(args: Any, card: Card | None) -> Any:
    device = "cpu" if card is None else card.device
    return cases.mapped(args, lambda t: t.to(device, copy=True))


def _captured(function: Function, args: Any, card: Card) -> list[Tensor]:
    """The same from a graph that is replayed once."""
    device = torch.device(card.device)
    side, own = torch.cuda.Stream(device), _copied(args, card)
    torch.cuda.synchronize(device)
    with torch.cuda.stream(side):
        function(*_copied(args, card))  # compiles, and loads what is lazy
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        results = function(*own)
    graph.replay()
    torch.cuda.synchronize(device)
    return [tensor.cpu() for tensor in cases.tensors_in([results, own])]


def _activity(operator: str, results: Sequence[Tensor]) -> str:
    """Return how the activity differs from the sums of the results' own first tensor, or ''."""
    if not operator.endswith("_fwd") or not results[1].numel():
        return ""
    y = results[0].double().abs().movedim(1, 0).flatten(1).sum(1)
    right = torch.allclose(results[1].double(), y, rtol=SUMS, atol=1e-30)
    return "" if right else "the activity is not the sum of the outputs"


def _but_activity(operator: str, results: Sequence[Tensor]) -> list[Tensor]:
    """Results without the activity, which rounds as the outputs do."""
    return [t for i, t in enumerate(results) if i != 1 or not operator.endswith("_fwd")]


def wrong(ours: Sequence[Tensor], theirs: Sequence[Tensor], exact: Sequence[Tensor]) -> str:
    """Return how results break the rule, or ''. Tensors of a dtype are judged together: a mean that
    happens to be near 0 is not worse for it.
    """
    if len(ours) != len(exact):
        return f"{len(ours)} results instead of {len(exact)}"
    for our, their in zip(ours, theirs, strict=True):
        if our.shape != their.shape or our.dtype != their.dtype:
            return f"{our.dtype} {list(our.shape)}, not {their.dtype} {list(their.shape)}"
        if not our.isfinite().all():
            return "elements are not finite or were not written"
    for dtype in {tensor.dtype for tensor in ours}:
        places = [i for i, tensor in enumerate(ours) if tensor.dtype == dtype]
        our, their, true = (
            torch.cat([results[i].double().flatten() for i in places])
            for results in (ours, theirs, exact)
        )
        error, usual = float((our - true).norm()), float((their - true).norm())
        rounding = ROUNDINGS.get(dtype, 1.0) * torch.finfo(dtype).eps * float(true.norm())
        if error > RATIO * usual + rounding:
            return f"wrong numbers: error {error:.2g}, PyTorch's {usual:.2g}"
    return ""


def equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Return whether all tensors have the same bits (or both NaN)."""
    return all(
        a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
        for a, b in zip(one, other, strict=True)
    )


@contextmanager
def nan_memory() -> Iterator[None]:
    """Let new tensors start as NaN within the block: PyTorch's deterministic mode does that."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which it demands of cuBLAS
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
