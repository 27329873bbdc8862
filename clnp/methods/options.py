"""Options of the methods: a table each, checked before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import ranges
from ..errors import ConfigError
from ..ranges import Range


@dataclass(frozen=True)
class Option:
    """One option of a method.

    Attributes:
        default: taken where none is given.
        meaning: one line for help texts.
        values: the accepted ones.
    """

    default: Any
    meaning: str
    values: Range


Options = Mapping[str, Option]


def number(
    default: float, meaning: str, low: float = 0.0, high: float = math.inf, *, above: bool = False
) -> Option:
    """A finite number in [low, high], or in (low, high] with `above`."""
    return Option(default, meaning, ranges.number(low, high, above=above))


def whole(default: int, meaning: str, low: int = 0) -> Option:
    """An integer of at least `low`."""
    return Option(default, meaning, ranges.whole(low))


def choice(default: str, meaning: str, names: Sequence[str]) -> Option:
    """One of the names."""
    return Option(default, meaning, ranges.choice(names))


def flag(default: bool, meaning: str) -> Option:
    """True or False."""
    return Option(default, meaning, ranges.flag())


def checked(method: str, options: Options, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a method: those given, and the defaults of the others.

    Raises:
        ConfigError: an unknown option or a value out of range, naming it and what is possible.
    """
    unknown = sorted(set(given) - set(options))
    if unknown:
        known = f"expected some of {sorted(options)}" if options else "expected no options"
        raise ConfigError(f"method {method!r}: {known}, got {unknown}")
    values = {name: given.get(name, option.default) for name, option in options.items()}
    for name, value in values.items():
        options[name].values.check(f"method {method!r}, {name}", value)
    return values
