"""A parser of command lines that drops nothing of what it is given."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any


class OnceParser(argparse.ArgumentParser):
    """An ArgumentParser without abbreviations that refuses an option given twice.

    argparse keeps the last value of a repeated option and says nothing. Here an option may be
    repeated with the value it has, no other; a list of `action="extend"` grows by every repetition,
    and begins empty, not with its default. No list may have the same item twice.
    """

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **keywords})
        self.register("action", None, Once)
        self.register("action", "store", Once)
        self.register("action", "extend", Extend)
        self.register("action", argparse.BooleanOptionalAction, OnceFlag)


class Once(argparse.Action):
    """Stores the value of an option, whose repetition has to have the same."""

    # The namespace of the last call and its value. Each parsing has a namespace of its own.
    last: tuple[Any, Any] = (None, None)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Called by argparse for every occurrence. Raises argparse.ArgumentError."""
        if option_string is not None:
            self.check(namespace, values)
        setattr(namespace, self.dest, values)

    def check(self, namespace: argparse.Namespace, values: Any) -> None:
        """Raises argparse.ArgumentError for another value than before, or an item twice."""
        known, before = self.last
        if known is namespace and before != values:
            raise argparse.ArgumentError(
                self, f"expected one value, got {_shown(before)} and then {_shown(values)}"
            )
        check_different(self, values if isinstance(values, list) else ())
        self.last = namespace, values


class Extend(Once):
    """Collects the items of all occurrences of an option."""

    def check(self, namespace: argparse.Namespace, values: Any) -> None:
        """Puts the items of earlier occurrences before `values`. Raises argparse.ArgumentError."""
        known, before = self.last
        if known is namespace:
            values[:0] = before
        check_different(self, values)
        self.last = namespace, list(values)


class OnceFlag(argparse.BooleanOptionalAction):
    """--flag or --no-flag, not both."""

    last: tuple[Any, Any] = (None, None)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Called by argparse for every occurrence. Raises argparse.ArgumentError."""
        super().__call__(parser, namespace, values, option_string)
        known, before = self.last
        value = getattr(namespace, self.dest)
        if known is namespace and before != value:
            raise argparse.ArgumentError(self, "expected one of them, got both")
        self.last = namespace, value


def check_different(action: argparse.Action, items: Sequence[Any]) -> None:
    """Raises argparse.ArgumentError where an item occurs twice."""
    twice = [item for i, item in enumerate(items) if item in items[:i]]
    if twice:
        raise argparse.ArgumentError(
            action, f"expected each item once, got {_shown(twice[0])} twice"
        )


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
