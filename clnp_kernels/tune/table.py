"""The table that a process chooses implementations by on one GPU: checks, measurements, defaults.

Order: the user's measurements, those shipped for this GPU, those for its architecture, the defaults
by byte count, PyTorch. An implementation serves only where its check has passed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from .calls import LISTS, Call, Key

TORCH = "torch"
NEAR = 2  # half octaves, or quarters of the channels, from which a measurement still holds


class Choice(NamedTuple):
    """The implementation of a call.

    Attributes:
        implementation: one of those that `chooser.OFFERS` has.
        reason: for it.
        missed: why a faster one can't serve; "" where none was due.
        tile: of a product that was measured with it; () for the rule of `tiles`.
    """

    implementation: str
    reason: str
    missed: str = ""
    tile: tuple[int, ...] = ()


@dataclass(frozen=True)
class Check:
    """Result of the check of an implementation; `reason` is "" where it passed."""

    operator: str
    implementation: str
    dtype: str
    alignment: int
    reason: str = ""

    @property
    def name(self) -> str:
        """Name of the entry, good for a file."""
        parts = (self.operator, self.implementation, self.dtype, self.alignment)
        return f"check-{'-'.join(map(str, parts))}"

    @property
    def kernel(self) -> tuple[str, str, str, int]:
        """Operator, implementation, dtype and alignment that were checked."""
        return self.operator, self.implementation, self.dtype, self.alignment


@dataclass(frozen=True)
class Measured:
    """The fastest implementation of a class of calls, with the times of all candidates.

    Attributes:
        key: of the calls.
        implementation, tile: the chosen one.
        reason: in words.
        times: candidate -> milliseconds of each round.
    """

    key: Key
    implementation: str
    tile: tuple[int, ...] = ()
    reason: str = ""
    times: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the entry, good for a file."""
        key = self.key
        sizes = "_".join(map(str, key.sizes))
        parts = (*key[:3], sizes, key.active, key.options or "plain", key.mode)
        return f"measured-{'-'.join(map(str, parts))}"


Entry = Check | Measured


def entry_from(data: Mapping[str, Any]) -> Entry:
    """The entry that `asdict` made. Raises LookupError, TypeError or ValueError for other data."""
    if "key" not in data:
        check = Check(**data)
        if not isinstance(check.alignment, int) or not isinstance(check.reason, str):
            raise ValueError("an entry of a check has other fields")
        return check
    operator, dtype, alignment, sizes, *rest = data["key"]
    key = Key(operator, dtype, int(alignment), tuple(map(int, sizes)), *rest)
    times = {str(name): [float(ms) for ms in each] for name, each in data["times"].items()}
    tile = tuple(map(int, data["tile"]))
    return Measured(key, str(data["implementation"]), tile, str(data["reason"]), times)


class Default(NamedTuple):
    """An implementation that is certain to save traffic or launches, before any measurement.

    Attributes:
        implementations: the first one that passed its check serves.
        mode: "graph" where it takes a captured step to pay; "" for any.
        alignment: the least of the boundaries.
        most: floating-point operations up to which it holds; 0 for any number.
        frozen: only where channels are active.
    """

    implementations: tuple[str, ...]
    mode: str = ""
    alignment: int = 1
    most: int = 0
    frozen: bool = False

    def holds(self, call: Call) -> bool:
        """Return whether it is meant for a call."""
        fits = not self.most or call.flop <= self.most
        fits = fits and (call.fraction > 0 or not self.frozen)
        return self.mode in ("", call.mode) and call.alignment % self.alignment == 0 and fits


_ONE_PASS = Default(("cuda", "triton"))
_CAPTURED = Default(("triton",), "graph")
# With frozen blocks, PyTorch's operators go over the channels ten times and more.
_BLOCKS = Default(("triton",), frozen=True)
# operator -> defaults, of which the first that holds is followed
DEFAULTS: dict[str, tuple[Default, ...]] = {
    "adam_l1": (_ONE_PASS,),
    "sgd_l1": (_ONE_PASS,),
    "channel_activity": (_ONE_PASS,),
    "masked_linear_relu_grad": (_CAPTURED,),
    "masked_conv2d_relu_grad": (_CAPTURED,),
    "partial_batch_norm_fwd": (_CAPTURED,),
    "partial_batch_norm_bwd": (_CAPTURED,),
    "partial_layer_norm_fwd": (_BLOCKS,),
    "partial_layer_norm_bwd": (_BLOCKS,),
    # Above that, the vendor's product, but without the copy that joins its two parts.
    "masked_linear_fwd": (
        Default(("triton",), "graph", 8, 4_000_000_000),
        Default(("cublaslt",), "graph", 8, frozen=True),
    ),
}


def default_of(call: Call) -> Default | None:
    """The default that holds for a call, if there is one."""
    return next((one for one in DEFAULTS.get(call.operator, ()) if one.holds(call)), None)


class Table:
    """Checks and measurements of one GPU in one environment; fixed once it is in use.

    Arguments:
        environment: digest of the environment.
        entries: of the user, from the store or a file.
        shipped: (source, measurements) of this package, in order of precedence.
        absent: implementation -> why it is not there.

    Attributes:
        checks, measured: the entries.
    """

    def __init__(
        self,
        environment: str,
        entries: Iterable[Entry],
        shipped: Sequence[tuple[str, Sequence[Measured]]] = (),
        absent: Mapping[str, str] | None = None,
    ) -> None:
        entries = list(entries)
        self.environment, self.shipped, self.absent = environment, shipped, dict(absent or {})
        self.checks = {e.kernel: e for e in entries if isinstance(e, Check)}
        self.measured = [e for e in entries if isinstance(e, Measured)]
        self._sources = [("on this card", self.measured), *shipped]
        self._chosen: dict[Call, Choice] = {}

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that change with any choice that the table may make."""
        checks = sorted((*kernel, check.reason == "") for kernel, check in self.checks.items())
        rows = [
            sorted([*m.key, m.implementation, m.tile] for m in source)
            for _, source in self._sources
        ]
        text = json.dumps([self.environment, checks, rows])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def problem(self, call: Call, implementation: str) -> str:
        """Return why an implementation can't serve a call, or ''."""
        for dtype in call.dtype.split("+"):
            check = self.checks.get((call.operator, implementation, dtype, call.alignment))
            if check is None:
                return self.absent.get(implementation) or (
                    f"{implementation} is not checked for {dtype} with boundaries at multiples of "
                    f"{call.alignment}"
                )
            if check.reason:
                return f"{implementation} failed its check: {check.reason}"
        return ""

    def failed(self, call: Call, implementation: str) -> bool:
        """Return whether an implementation failed its check for a call."""
        kernels = [
            (call.operator, implementation, t, call.alignment) for t in call.dtype.split("+")
        ]
        return any(kernel in self.checks and self.checks[kernel].reason for kernel in kernels)

    def choose(self, call: Call) -> Choice:
        """Choose the implementation of a call; the same one every time."""
        chosen = self._chosen.get(call)
        if chosen is None:
            chosen = self._chosen[call] = self._choice(call)
        return chosen

    def _choice(self, call: Call) -> Choice:
        for source, measured in self._sources:
            found = nearest(measured, call.key)
            if found is not None:
                name = found.implementation
                if name == TORCH or not self.problem(call, name):
                    reason = f"measured {source}: {found.reason}"
                    return Choice(name, reason, tile=found.tile)
        default = default_of(call)
        if default is None:
            return Choice(TORCH, "no measurement, and the count of bytes decides nothing")
        problems = []
        for name in default.implementations:
            problem = self.problem(call, name)
            if not problem:
                return Choice(name, "default by byte count, checked on this card")
            problems.append(problem)
        return Choice(TORCH, "; ".join(problems), "; ".join(problems))

    def explain(self, operator: str) -> tuple[str, str]:
        """The implementation of a typical call, and the reasons, for `info`."""
        first, *others = (self._choice(_typical(operator, mode)) for mode in ("eager", "graph"))
        reasons = [first.reason]
        for other in others:
            if other.implementation != first.implementation:
                reasons.append(f"in a captured step {other.implementation}: {other.reason}")
        for source, measured in self._sources:
            rows = [m for m in measured if m.key.operator == operator]
            for name in sorted({m.implementation for m in rows}):
                count = sum(m.implementation == name for m in rows)
                reasons.append(f"measured {source}: {name} in {count} of {len(rows)} cases")
        reasons += [
            f"failed: {check.implementation}, {check.dtype}, boundaries at multiples of "
            f"{check.alignment}: {check.reason}"
            for check in self.checks.values()
            if check.operator == operator and check.reason
        ]
        return first.implementation, "; ".join(dict.fromkeys(reasons))

    def to_json(self) -> dict[str, Any]:
        """Return the table for JSON, without what the package ships."""
        entries: list[Entry] = [*self.checks.values(), *self.measured]
        return {"digest": self.digest, "entries": [asdict(entry) for entry in entries]}


def _typical(operator: str, mode: str) -> Call:
    """A call of a middling size, float32, for `info`."""
    return Call(operator, "float32", 1 if operator in LISTS else 16, (), 0.5, "", mode)


def nearest(measured: Iterable[Measured], key: Key) -> Measured | None:
    """The measurement of the same kind that is nearest to a key, within `NEAR`; the first in the
    order of their names where several are.
    """
    alike = [m for m in measured if m.key.kind == key.kind and len(m.key.sizes) == len(key.sizes)]
    close = [m for m in alike if key.distance(m.key) <= NEAR]
    return min(close, key=lambda m: (key.distance(m.key), m.name), default=None)
