"""Tables in Markdown, and blocks of a page that are written by a program."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence

WIDTH = 100  # columns of prose
BLOCK = re.compile(r"<!-- (\S+): begin -->\n.*?<!-- \1: end -->", re.DOTALL)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table with one line per row."""
    rows = [list(head), ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def filled(page: str, body: Callable[[str], str]) -> str:
    """Return a page with its blocks written anew, their lines wrapped.

    Arguments:
        page: Markdown; a block NAME begins with `<!-- NAME: begin -->` and ends with
            `<!-- NAME: end -->`.
        body: the text of a block, by its name.
    """

    def block(found: re.Match[str]) -> str:
        lines = "\n".join(map(wrapped, body(found[1]).split("\n")))
        return f"<!-- {found[1]}: begin -->\n\n{lines}\n\n<!-- {found[1]}: end -->"

    return BLOCK.sub(block, page)


def wrapped(line: str) -> str:
    """Return a line of prose within `WIDTH`; tables, headings and pictures stay as they are."""
    if line.startswith(("|", "#", "![")):
        return line
    return textwrap.fill(line, WIDTH, break_long_words=False, break_on_hyphens=False)
