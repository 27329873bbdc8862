"""Ranges of settings: the accepted values, in words and as a test."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError


@dataclass(frozen=True)
class Range:
    """The values that a setting accepts.

    Attributes:
        expected: those values in words, for errors, help and documentation.
        holds: whether a value is one of them.
        kind: int, float, bool or str; None for anything else.
        names: the choices of a str.
    """

    expected: str
    holds: Callable[[Any], bool]
    kind: type | None = None
    names: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """Raises ConfigError for a value outside, which the error calls `name`."""
        if not self.holds(value):
            raise ConfigError(f"{name}: expected {self.expected}, got {value!r}")


def whole(low: int, high: float = math.inf) -> Range:
    """An int from `low` to `high`, both included."""
    ends = f">= {low}" if high == math.inf else f"from {low} to {high}"

    def holds(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return Range(f"an integer {ends}", holds, int)


def optional(values: Range) -> Range:
    """None, or a value of a range."""
    return Range(f"None or {values.expected}", lambda v: v is None or values.holds(v))


def number(
    low: float = 0, high: float = math.inf, *, above: bool = False, below: bool = False
) -> Range:
    """A finite int or float from `low` to `high`, without `low` if `above`, without `high` if
    `below`.
    """

    def holds(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        least = low < value if above else low <= value
        return least and (value < high if below else value <= high) and abs(value) < math.inf

    ends = f"{'>' if above else '>='} {low:g}"
    if high < math.inf:
        ends += f" and {'<' if below else '<='} {high:g}"
    return Range(f"a number {ends}", holds, float)


def choice(names: Iterable[str]) -> Range:
    """One of some names."""
    names = tuple(names)

    def holds(value: Any) -> bool:
        return isinstance(value, str) and value in names

    return Range("one of " + ", ".join(names), holds, str, names)


def flag() -> Range:
    """True or False."""
    return Range("True or False", lambda value: isinstance(value, bool), bool)


def by_name(value: Any, names: Sequence[str], what: str) -> dict[str, Any]:
    """A setting of one value for all names, one per name in a list, or {name: value}, as the last.

    Names that are missing from a dictionary are left out; the values are not checked.

    Arguments:
        what: the setting's name in errors.

    Raises:
        ConfigError: a wrong number of values, or an unknown name.
    """
    if isinstance(value, dict):
        unknown = sorted(set(value) - set(names))
        if unknown:
            raise ConfigError(f"{what}: expected names of {list(names)}, got {unknown}")
        return dict(value)
    if not isinstance(value, (list, tuple)):
        return dict.fromkeys(names, value)
    if len(value) != len(names):
        raise ConfigError(
            f"{what}: expected {len(names)} numbers, one for each of {list(names)}, got "
            f"{list(value)}"
        )
    return dict(zip(names, value, strict=True))
