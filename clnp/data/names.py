"""Names that come from file systems: as text that can be printed and written anywhere."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import DataError


def shown(name: str | os.PathLike[str]) -> str:
    r"""A name or path as printable text: bytes that are no UTF-8 become \xff, control characters
    \n and the like. Other names stay as they are.
    """
    text = os.fspath(name)
    try:
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a surrogate pair, which no file system gives
        text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def listed(names: Iterable[str | os.PathLike[str]], most: int = 5) -> str:
    """ "a, b, c and 7 more", each as `shown`."""
    every = [shown(name) for name in names]
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def counted(number: int, noun: str, plural: str = "") -> str:
    """ "1 image", "3 images"."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def task_names(paths: Sequence[Path], *, stems: bool = False) -> list[str]:
    """A name for each path's task: its last part, and before it the folder's where two are alike.

    Arguments:
        paths: of the tasks.
        stems: leave the last ending of a file's name out.

    Raises:
        DataError: the same path twice, or two tasks that would have one name.
    """
    resolved = [Path(os.path.realpath(path)) for path in paths]
    for i, path in enumerate(resolved):
        if path in resolved[:i]:
            raise DataError(f"{shown(paths[i])}: is there twice; name every task once")
    last = [path.stem if stems and path.is_file() else path.name for path in resolved]
    names = [
        shown(name if last.count(name) == 1 else f"{path.parent.name}/{name}")
        for name, path in zip(last, resolved, strict=True)
    ]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise DataError(
                f"{shown(paths[i])}: its task would be called {name}, as another one is; rename "
                "one of the folders"
            )
    return names
