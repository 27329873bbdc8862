"""Times of the implementations of one call, and the decision between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, Protocol

import torch

from .. import chooser
from ..triton_kernels import tiles
from . import cases
from .calls import Call, call_of, runs, takes
from .check import equal, function_of, small
from .clock import CudaClock
from .environment import Card
from .table import Measured, default_of

LEAST = 0.03  # of the time, by which another implementation has to be faster than the default
AGAIN = "torch again"  # the same implementation once more: the noise
DENSE = "dense"  # the plain layer, for information
ROUNDS, SETS = 7, 10
TOLERANCE = 64  # roundings, of the norm, by which a candidate may differ from PyTorch


Timed = Callable[[int], Any]


class Clock(Protocol):
    """Times calls."""

    def milliseconds(self, call: Timed, sets: int, mode: str, name: str) -> float:
        """Time of `call(i)`, i from 0 to `sets - 1`, for one of them."""


def clock_of(card: Card) -> Clock:
    """The clock of a card; tests put their own here."""
    return CudaClock(torch.device(card.device))


def measure(
    operator: str, layer: cases.Layer, dtype: str, mode: str, card: Card, every_tile: bool = False
) -> Measured:
    """Time all implementations of an operator for a layer.

    Arguments:
        operator: its name.
        layer: sizes.
        dtype: of the tensors, as "float32".
        mode: "eager" or "graph".
        card: the GPU.
        every_tile: products also with each tile of the table, not only that of the rule.

    Raises:
        torch.OutOfMemoryError: for a smaller layer there may be enough memory.
    """
    kind = getattr(torch, dtype)
    first = cases.Maker(layer, kind, card.device).arguments(operator)
    used = sum(t.numel() * t.element_size() for t in cases.tensors_in(first))
    # What a call reads must not be in the cache since the last one.
    count = max(2, min(SETS, -(-2 * card.cache // max(used, 1)) + 1))
    more = [cases.Maker(layer, kind, card.device, seed) for seed in range(1, count)]
    sets = [first, *(make.arguments(operator) for make in more)]
    ways, dropped = _candidates(operator, first, card, every_tile=every_tile)
    calls: dict[str, Timed] = {name: _on(way, sets) for name, way in ways.items()}
    calls[AGAIN] = _on(ways[chooser.TORCH], sets)
    plain = cases.dense(operator, cases.Maker(layer, kind, card.device))
    if plain is not None:
        calls[DENSE] = lambda _: plain()
    clock = clock_of(card)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, timed in calls.items():
            times[name].append(clock.milliseconds(timed, count, mode, name))
    call = call_of(operator, first, mode)
    name, reason = decide(times, _default(call, ways))
    reason = "; ".join([reason, *(f"{way} dropped: {why}" for way, why in dropped.items())])
    implementation, _, tile = name.partition(" ")
    chosen = tuple(map(int, tile.split("x"))) if tile else ()
    return Measured(call.key, implementation, chosen, reason, times)


def _on(way: Callable[..., Any], sets: Sequence[Sequence[Any]]) -> Timed:
    """A call of `way` on one of several sets of arguments."""
    return lambda i: way(*sets[i])


def _default(call: Call, ways: Mapping[str, Any]) -> str:
    """The candidate that would serve without a measurement."""
    default = default_of(call)
    if default is None:
        return chooser.TORCH
    return next((name for name in default.implementations if name in ways), chooser.TORCH)


def _candidates(
    operator: str, args: Sequence[Any], card: Card, *, every_tile: bool
) -> tuple[dict[str, Callable[..., Any]], dict[str, str]]:
    """Implementations that run and agree with PyTorch's: name -> function; and why others don't.

    A name is that of the implementation, then its tile if it is not that of the rule.
    """
    torchs, first = function_of(operator, chooser.TORCH), next(cases.tensors_in(args))
    ways: dict[str, Callable[..., Any]] = {}
    dropped: dict[str, str] = {}
    reference = _results(torchs, args)
    for name in chooser.OFFERS[operator]:
        if name == chooser.TORCH or name in chooser.absent or not runs(name, card.capability):
            continue
        if not takes(name, first.dtype, call_of(operator, args, "eager").alignment):
            continue
        function = function_of(operator, name)
        ways[name] = function
        if every_tile and name == "triton" and "relu" not in operator:
            ways |= _tiled(function, operator, card)
    for name, way in [*ways.items()]:
        try:
            problem = _disagree(_results(way, args), reference, operator)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a tile that does not fit the GPU
            problem = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        if problem:
            dropped[name] = problem
            del ways[name]
    return {chooser.TORCH: torchs, **ways}, dropped


def _tiled(function: Callable[..., Any], operator: str, card: Card) -> dict[str, Any]:
    """A product with each tile of the table of the architecture."""
    row = 0 if small(card) else tiles.row_of(card.capability)
    table = tiles.CONV if "conv2d" in operator else tiles.TILES
    if not operator.startswith("masked"):
        return {}

    def with_tile(tile: tiles.Tile) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with tiles.forced(tile):
                return function(*args)

        return call

    every = {tile for each in table[row].values() for tile in each}
    return {f"triton {'x'.join(map(str, tile))}": with_tile(tile) for tile in sorted(every)}


def _results(way: Callable[..., Any], args: Sequence[Any]) -> list[torch.Tensor]:
    own = cases.mapped(args, torch.clone)
    return list(cases.tensors_in([way(*own), own]))


def _disagree(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], operator: str) -> str:
    """Return how results differ from PyTorch's by more than rounding, or ''."""
    if equal(ours, theirs):
        return ""
    for our, their in zip(ours, theirs, strict=True):
        apart = float((our.double() - their.double()).norm())
        eps = torch.finfo(our.dtype).eps
        if tiles.precision_of(our.dtype, conv="conv2d" in operator) == "tf32":
            eps = 2**-10
        if not apart <= TOLERANCE * eps * float(their.double().norm()):
            return f"wrong numbers: {apart:.2g} from PyTorch's"
    return ""


def decide(times: Mapping[str, Sequence[float]], default: str) -> tuple[str, str]:
    """The fastest candidate and the reason; the default unless another one is clearly faster.

    Clearly is by 3 %, and by twice the difference that the same implementation shows to itself.

    Arguments:
        times: candidate -> milliseconds of each round, "torch" and "torch again" among them.
        default: the candidate that a tie stays with.
    """
    medians = {name: median(each) for name, each in times.items()}
    text = ", ".join(f"{name} {ms:.4g} ms" for name, ms in medians.items() if name != AGAIN)
    again, usual = medians.pop(AGAIN), medians[default]
    medians.pop(DENSE, None)
    noise = abs(again - medians[chooser.TORCH]) / medians[chooser.TORCH]
    need = max(LEAST, 2 * noise)
    best = min(medians, key=lambda name: medians[name])
    if best != default and medians[best] < usual * (1 - need):
        return best, f"{usual / medians[best]:.2f} times as fast as {default}: {text}"
    return default, f"no other is faster by {need:.1%}: {text}"
