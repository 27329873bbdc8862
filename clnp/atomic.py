"""Files that are there whole or not at all, also when the machine stops in between."""

from __future__ import annotations

import os
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` into a neighbour of `path`, onto the disk, and then renames it to `path`.

    A reader sees the old file or the new one; what a killed process leaves behind is a
    `.NAME.PID.tmp` next to it.

    Raises:
        OSError: the folder can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, content: str) -> None:
    """`write_bytes` of UTF-8 text, with line ends as they are."""
    write_bytes(path, content.encode())
