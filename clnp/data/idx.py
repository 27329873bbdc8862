"""The idx files of MNIST: found, unpacked and checked."""

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
# Where people and torchvision keep the files below the folder they name.
FOLDERS = (".", "MNIST/raw", "raw")


PIECE = 1 << 20


def read_idx(path: Path) -> np.ndarray:
    """The array of one idx file of unsigned bytes, plain or gzip.

    Arguments:
        path: the file; a name that ends in .gz is unpacked.

    Returns:
        uint8, in the shape that the file's header gives.

    Raises:
        DataError: the file can't be read, is no idx file of unsigned bytes, or is cut short.
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
            f"{path}: starts with {start.hex()!r}, wanted 000008: an idx file of unsigned bytes"
        )
    rank = start[3]
    sizes = file.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise DataError(f"{path}: is cut short inside its header")
    shape = struct.unpack(f">{rank}I", sizes)
    # Of numbers without bounds: a product that overflows could be any size.
    size = math.prod(shape)
    # No more than the header promises, whatever a compressed file grows to, and no memory for what
    # a header promises alone.
    raw = bytearray()
    while len(raw) <= size and (piece := file.read(min(size + 1 - len(raw), PIECE))):
        raw += piece
    if len(raw) != size:
        held = f"more than {size}" if len(raw) > size else f"{len(raw)}"
        raise DataError(
            f"{path}: holds {held} bytes after the header, wanted {size} for shape {list(shape)}"
        )
    return np.frombuffer(raw, dtype=np.uint8).reshape(shape)


def find_idx_files(root: Path) -> dict[tuple[str, str], Path]:
    """The four MNIST files below `root`: {("train" | "test", "images" | "labels"): path}.

    They are looked for in `root` itself, `root/MNIST/raw` and `root/raw`, plain or as .gz; all four
    in one of these folders.

    Raises:
        DataError: none of the folders has all four; the message lists what was looked for and what
            is missing.
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
        f"data root {str(root)!r}: no MNIST files. Wanted {', '.join(FILES.values())} (plain or "
        ".gz) in one folder; " + "; ".join(missing)
    )


def read_mnist(root: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """MNIST's {"train" | "test": (images [N, 784] uint8, labels [N] uint8)} from the idx files
    below `root`.

    Images of another size than 28 x 28 are taken as they are (the files of Fashion-MNIST or EMNIST
    work too).

    Raises:
        DataError: files missing, damaged, or of different lengths.
    """
    files = find_idx_files(root)
    halves = {}
    for half in ("train", "test"):
        images, labels = read_idx(files[half, "images"]), read_idx(files[half, "labels"])
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not len(images):
            raise DataError(
                f"{files[half, 'images']}: images {list(images.shape)} and labels "
                f"{list(labels.shape)}, wanted [N, H, W] and [N]"
            )
        halves[half] = (images.reshape(len(images), -1), labels)
    return halves
