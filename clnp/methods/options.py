"""Options of the methods: a table each, checked before any work."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError


@dataclass(frozen=True)
class Option:
    """One option of a method.

    Attributes:
        default: taken where none is given.
        meaning: one line for help texts.
        wanted: what values are possible, for errors.
        holds: whether a value is.
    """

    default: Any
    meaning: str
    wanted: str
    holds: Callable[[Any], bool]


Options = Mapping[str, Option]


def number(
    default: float, meaning: str, low: float = 0.0, high: float = math.inf, *, above: bool = False
) -> Option:
    """A finite number in [low, high], or in (low, high] with `above`."""
    sign = ">" if above else ">="
    wanted = f"a number {sign} {low:g}" + ("" if high == math.inf else f" and <= {high:g}")

    def holds(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return math.isfinite(value) and (value > low if above else value >= low) and value <= high

    return Option(default, meaning, wanted, holds)


def whole(default: int, meaning: str, low: int = 0) -> Option:
    """An integer of at least `low`."""

    def holds(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= low

    return Option(default, meaning, f"an integer >= {low}", holds)


def choice(default: str, meaning: str, names: Sequence[str]) -> Option:
    """One of the names."""
    return Option(
        default,
        meaning,
        f"one of {list(names)}",
        lambda value: isinstance(value, str) and value in names,
    )


def flag(default: bool, meaning: str) -> Option:
    """True or False."""
    return Option(default, meaning, "True or False", lambda value: isinstance(value, bool))


def checked(method: str, options: Options, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a method: those given, and the defaults of the others.

    Raises:
        ConfigError: an unknown option or a value out of range, naming it and what is possible.
    """
    unknown = sorted(set(given) - set(options))
    if unknown:
        known = f"there are {sorted(options)}" if options else "it has none"
        raise ConfigError(f"method {method!r}: unknown options {unknown}; {known}")
    values = {name: given.get(name, option.default) for name, option in options.items()}
    for name, value in values.items():
        if not options[name].holds(value):
            raise ConfigError(
                f"method {method!r}, {name}={value!r}: expected {options[name].wanted}"
            )
    return values
