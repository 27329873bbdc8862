"""Reading of MNIST's idx files."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import DataError

FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}
# Subfolders of the data root that may hold the files (torchvision uses MNIST/raw).
FOLDERS = (".", "MNIST/raw", "raw")
PIECE = 1 << 20


def read_idx(path: Path) -> np.ndarray:
    """Read an idx file of unsigned bytes, plain or gzip.

    Arguments:
        path: the file; unpacked if its name ends in .gz.

    Returns:
        uint8 array with the shape in the file's header.

    Raises:
        DataError: the file can't be read, is not an idx file of unsigned bytes, or is truncated.
    """
    opened: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            return _read(file, path)
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise DataError(f"{path}: can't be read ({error})") from error


def _read(file: IO[bytes], path: Path) -> np.ndarray:
    start = file.read(4)
    if len(start) < 4 or start[:3] != b"\x00\x00\x08":
        raise DataError(
            f"{path}: expected an idx file of unsigned bytes, which starts with 000008, got "
            f"{start.hex()!r}"
        )
    dims = start[3]
    sizes = file.read(4 * dims)
    if len(sizes) < 4 * dims:
        raise DataError(f"{path}: expected {4 * dims} bytes of sizes in the header, got fewer")
    shape = struct.unpack(f">{dims}I", sizes)
    # Python's integers don't overflow, so a hostile header can't wrap around to a small size.
    size = math.prod(shape)
    # Read at most the size in the header, however far a file unpacks, and allocate only what is
    # really there.
    raw = bytearray()
    while len(raw) <= size and (piece := file.read(min(size + 1 - len(raw), PIECE))):
        raw += piece
    if len(raw) != size:
        got = f"more than {size}" if len(raw) > size else f"{len(raw)}"
        raise DataError(
            f"{path}: expected {size} bytes after the header for shape {list(shape)}, got {got}"
        )
    return np.frombuffer(raw, dtype=np.uint8).reshape(shape)


def find_idx_files(root: Path) -> dict[tuple[str, str], Path]:
    """Find the four MNIST files: {("train" | "test", "images" | "labels"): path}.

    All four must be in one folder: `root`, `root/MNIST/raw` or `root/raw`, plain or as .gz.

    Raises:
        DataError: no folder has all four; the message lists the missing ones.
    """
    missing: list[str] = []
    for folder in (root / name for name in FOLDERS):
        found = {}
        for key, name in FILES.items():
            hits = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
            if hits:
                found[key] = hits[0]
        if len(found) == len(FILES):
            return found
        lacks = [name for key, name in FILES.items() if key not in found]
        missing.append(
            f"{folder} lacks {'all four' if len(lacks) == len(FILES) else ', '.join(lacks)}"
        )
    raise DataError(
        f"data root {str(root)!r}: expected the MNIST files {', '.join(FILES.values())} (plain or "
        ".gz) in one folder, got none or some; " + "; ".join(missing)
    )


def read_mnist(root: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read MNIST: {"train" | "test": (images [N, 784] uint8, labels [N] uint8)}.

    Other files in this format (Fashion-MNIST, EMNIST) and other image sizes are read too.

    Raises:
        DataError: files are missing, damaged, or of different lengths.
    """
    files = find_idx_files(root)
    halves = {}
    for half in ("train", "test"):
        images, labels = read_idx(files[half, "images"]), read_idx(files[half, "labels"])
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not len(images):
            raise DataError(
                f"{files[half, 'images']}: expected images [N, H, W] and labels [N], got "
                f"{list(images.shape)} and {list(labels.shape)}"
            )
        halves[half] = (images.reshape(len(images), -1), labels)
    return halves
