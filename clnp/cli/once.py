"""A parser of command lines that drops nothing of what it is given."""

from __future__ import annotations

import argparse
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
        value = self.value(values, option_string)
        if option_string is not None:
            known, before = self.last
            value = self.joined(before, value) if known is namespace else value
            items = value if isinstance(value, list) else []
            twice = [item for i, item in enumerate(items) if item in items[:i]]
            if twice:
                raise argparse.ArgumentError(
                    self, f"expected each item once, got {_shown(twice[0])} twice"
                )
            self.last = namespace, value
        setattr(namespace, self.dest, value)

    def value(self, values: Any, option_string: str | None) -> Any:
        return values

    def joined(self, before: Any, value: Any) -> Any:
        """The value of several occurrences. Raises argparse.ArgumentError where they differ."""
        if before != value:
            raise argparse.ArgumentError(
                self, f"expected one value, got {_shown(before)} and then {_shown(value)}"
            )
        return value


class Extend(Once):
    """Collects the items of all occurrences of an option."""

    def joined(self, before: Any, value: Any) -> Any:
        return [*before, *value]


class OnceFlag(Once, argparse.BooleanOptionalAction):
    """--flag or --no-flag, not both."""

    def value(self, values: Any, option_string: str | None) -> Any:
        return not str(option_string).startswith("--no-")

    def joined(self, before: Any, value: Any) -> Any:
        if before != value:
            raise argparse.ArgumentError(self, "expected one of them, got both")
        return value


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
