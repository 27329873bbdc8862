"""Names from file systems as printable text."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import DataError


def shown(name: str | os.PathLike[str]) -> str:
    r"""Format a name or path as printable text.

    Bytes that are not UTF-8 become \xff, control characters \n and the like.
    """
    text = os.fspath(name)
    try:
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a surrogate pair, which no file system returns
        text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def listed(names: Iterable[str | os.PathLike[str]], most: int = 5) -> str:
    """Join names, each as `shown`, as "a, b, c and 7 more"."""
    texts = [shown(name) for name in names]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return "1 image", "3 images"; `plural` if it is not the noun with an s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def task_names(paths: Sequence[Path], *, stems: bool = False) -> list[str]:
    """Name a task for each path: its last part, preceded by the folder if two are equal.

    Arguments:
        paths: a file or folder per task.
        stems: drop the suffix of file names.

    Raises:
        DataError: a path occurs twice, or two tasks would have one name.
    """
    resolved = [Path(os.path.realpath(path)) for path in paths]
    for i, path in enumerate(resolved):
        if path in resolved[:i]:
            raise DataError(f"{shown(paths[i])}: expected every path once, got it twice")
    last = [path.stem if stems and path.is_file() else path.name for path in resolved]
    names = [
        shown(name if last.count(name) == 1 else f"{path.parent.name}/{name}")
        for name, path in zip(last, resolved, strict=True)
    ]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise DataError(
                f"{shown(paths[i])}: expected a different name for every task, got {name} twice; "
                "rename one of the folders"
            )
    return names
