"""Atomic file writes: a crash leaves the old file or the new one, never a part."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Any:
    """Yield a temporary path beside `path`; on success, sync it to disk and rename it to `path`.

    The folder of `path` is created if missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes private files; give the result the permissions of any new file.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; create its folder if missing.

    Raises:
        OSError: the folder can't be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text atomically, with line ends unchanged.

    Lone surrogates (Python's form of bytes in a file name that are not UTF-8) are written as
    escapes, which JSON reads back as the same characters.
    """
    write_bytes(path, content.encode("utf-8", "backslashreplace"))
