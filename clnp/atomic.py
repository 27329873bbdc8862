"""Small files that are there whole or not at all, also when the machine stops in between."""

from __future__ import annotations

from pathlib import Path

from clnp.checkpoint import replacing


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` beside `path`, onto the disk, and renames it to `path`; its folder is made
    if need be.

    Raises:
        OSError: the folder can't be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` of UTF-8 text, with its line ends as they are."""
    write_bytes(path, content.encode())
