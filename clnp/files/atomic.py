"""Files that are there whole or not at all, also when the machine stops in between."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Any:
    """Yields a temporary path beside `path`; on success it is synced to disk and renamed over
    `path`, so a reader finds the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes private files; a checkpoint gets the permissions of any new file.
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
    """Writes `content` beside `path`, onto the disk, and renames it to `path`; its folder is made
    if need be.

    Raises:
        OSError: the folder can't be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` of UTF-8 text, with its line ends as they are.

    Of a file name's bytes that are no UTF-8 (Python's lone surrogates) the escapes are written,
    which JSON reads as the same again.
    """
    write_bytes(path, content.encode("utf-8", "backslashreplace"))
