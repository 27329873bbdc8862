"""Tables in Markdown, and blocks of a page that are written by a program."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

BLOCK = re.compile(r"<!-- (\S+): begin -->\n.*?<!-- \1: end -->", re.DOTALL)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table with one line per row."""
    rows = [list(head), ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def filled(page: str, body: Callable[[str], str]) -> str:
    """Return a page with its blocks written anew.

    Arguments:
        page: Markdown; a block NAME begins with `<!-- NAME: begin -->` and ends with
            `<!-- NAME: end -->`.
        body: the text of a block, by its name.
    """
    return BLOCK.sub(
        lambda b: f"<!-- {b[1]}: begin -->\n\n{body(b[1])}\n\n<!-- {b[1]}: end -->", page
    )
