"""Reading of CIFAR-10 and CIFAR-100 in all common file formats.

The original Python pickles are read by an unpickler that accepts numpy arrays only, so that no file
can run code.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError

SIDE = 32
PIXELS = 3 * SIDE * SIDE
HALVES = ("train", "test")
ARRAYS = tuple(f"{half}_{part}" for half in HALVES for part in ("images", "labels"))
# {"train" | "test": (images [N, 3, 32, 32] uint8, labels [N] int64)}
Half = tuple[np.ndarray, np.ndarray]
Halves = dict[str, Half]


@dataclass(frozen=True)
class Kind:
    """One of the two data sets.

    Attributes:
        classes: number of classes.
        pickles, binaries: folders of the two original formats.
        files: half -> stems of its files.
        label: key of the labels in a pickle.
        label_bytes: bytes before the pixels of an image in a binary file; the last is the label.
    """

    classes: int
    pickles: str
    binaries: str
    files: Mapping[str, tuple[str, ...]]
    label: str
    label_bytes: int


KINDS: dict[str, Kind] = {
    "cifar10": Kind(
        10,
        "cifar-10-batches-py",
        "cifar-10-batches-bin",
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        "labels",
        1,
    ),
    "cifar100": Kind(
        100,
        "cifar-100-python",
        "cifar-100-binary",
        {"train": ("train",), "test": ("test",)},
        "fine_labels",
        2,
    ),
}


def read_cifar(root: str | Path, name: str) -> Halves:
    """Read a CIFAR data set in the first format found in `root`:

    1. `cifar10.npz` (or `cifar100.npz`): train_images, train_labels, test_images, test_labels, with
       images [N, 32, 32, 3] or [N, 3, 32, 32] uint8; a subset of the classes is enough;
    2. a folder `cifar10` (`cifar100`) with arrays of these names as .npy files;
    3. `cifar-10-batches-py` (`cifar-100-python`), the Python version;
    4. `cifar-10-batches-bin` (`cifar-100-binary`), the binary version.

    Arguments:
        root: a folder that contains one of these, or that file or folder itself.
        name: "cifar10" or "cifar100" (fine labels).

    Returns:
        {"train" | "test": (images [N, 3, 32, 32] uint8, labels [N] int64)}.

    Raises:
        DataError: nothing found, listing the names; or a damaged file.
    """
    root, kind = Path(root), KINDS[name]
    if root.is_file():
        return _checked(_read_npz(root, kind), kind, root)
    first = kind.files["train"][0]
    # (file or folder, a file in that folder, reader)
    forms: tuple[tuple[str, str, Callable[[Path, Kind], Halves]], ...] = (
        (f"{name}.npz", "", _read_npz),
        (name, "train_images.npy", _read_npy),
        (kind.pickles, first, partial(_read_original, _pickled)),
        (kind.binaries, f"{first}.bin", partial(_read_original, _binary)),
    )
    for place, inside, read in forms:
        for path in (root / place, root) if inside else (root / place,):
            if (path / inside if inside else path).is_file():
                return _checked(read(path, kind), kind, path)
    raise DataError(
        f"data root {str(root)!r}: expected {name} as one of "
        + ", ".join(place for place, _, _ in forms)
        + ", got none of them"
    )


def _read_npz(path: Path, kind: Kind) -> Halves:
    try:
        # numpy doesn't close damaged files that it opened itself.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files if key in ARRAYS}
    except Exception as error:  # zip, zlib, numpy and the system raise different types
        raise DataError(f"{path}: can't be read ({error})") from error
    return _from_arrays(arrays, path)


def _read_npy(path: Path, kind: Kind) -> Halves:
    arrays = {}
    for file in path.glob("*.npy"):
        if file.stem in ARRAYS:
            try:
                arrays[file.stem] = np.load(file, allow_pickle=False)
            except Exception as error:  # numpy and the system raise different types
                raise DataError(f"{file}: can't be read ({error})") from error
    return _from_arrays(arrays, path)


def _from_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> Halves:
    missing = [name for name in ARRAYS if name not in arrays]
    if missing:
        raise DataError(f"{path}: expected {', '.join(ARRAYS)}, got no {', '.join(missing)}")
    halves = {}
    for half in HALVES:
        images, labels = arrays[f"{half}_images"], arrays[f"{half}_labels"]
        if images.ndim == 4 and images.shape[-1] == 3:
            images = images.transpose(0, 3, 1, 2)
        halves[half] = (images, labels)
    return halves


def _read_original(read: Callable[[Path, Kind], Half], path: Path, kind: Kind) -> Halves:
    """Read the files of a folder in one of the original formats."""
    halves = {}
    for half, stems in kind.files.items():
        images, labels = zip(*(read(path / stem, kind) for stem in stems), strict=True)
        shape = (-1, 3, SIDE, SIDE)
        halves[half] = (np.concatenate(images).reshape(shape), np.concatenate(labels))
    return halves


def _pickled(path: Path, kind: Kind) -> Half:
    data = read_pickle(path)
    if not isinstance(data, dict) or not {"data", kind.label} <= set(data):
        raise DataError(f"{path}: expected a dictionary with data and {kind.label}")
    pixels = data["data"]
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != PIXELS:
        raise DataError(f"{path}: data: expected an array [N, {PIXELS}]")
    return pixels, _labels(data[kind.label], path)


def _labels(values: Any, path: Path) -> np.ndarray:
    try:
        labels = np.asarray(values)
    except ValueError as error:  # lists of different lengths
        raise DataError(f"{path}: labels: expected a list of numbers ({error})") from error
    if labels.ndim != 1:
        raise DataError(f"{path}: labels: expected [N], got {list(labels.shape)}")
    return labels


def _binary(path: Path, kind: Kind) -> Half:
    file, record = path.with_name(f"{path.name}.bin"), kind.label_bytes + PIXELS
    try:
        raw = np.fromfile(file, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{file}: can't be read ({error})") from error
    if not raw.size or raw.size % record:
        raise DataError(
            f"{file}: expected a multiple of {record} bytes ({kind.label_bytes} of label "
            f"and {PIXELS} of pixels per image), got {raw.size}"
        )
    table = raw.reshape(-1, record)
    return table[:, kind.label_bytes :], table[:, kind.label_bytes - 1]


def _checked(halves: Halves, kind: Kind, path: Path) -> Halves:
    for half, (images, labels) in halves.items():
        where = f"{path}, {half}"
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (3, SIDE, SIDE):
            raise DataError(
                f"{where}: images: expected [N, {SIDE}, {SIDE}, 3] or [N, 3, {SIDE}, {SIDE}] "
                f"uint8, got {list(images.shape)} {images.dtype}"
            )
        if labels.dtype.kind not in "iu" or labels.shape != (len(images),) or not len(images):
            raise DataError(
                f"{where}: labels: expected [{len(images)}] integers, and at least one, got "
                f"{list(labels.shape)} {labels.dtype}"
            )
        labels = labels.astype(np.int64)
        if labels.min() < 0 or labels.max() >= kind.classes:
            raise DataError(
                f"{where}: labels: expected 0 to {kind.classes - 1}, got {labels.min()} to "
                f"{labels.max()}"
            )
        halves[half] = (np.ascontiguousarray(images), labels)
    return halves


# Pickles


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


_EMPTY: Any = np.empty(0, dtype=np.uint8)
# Everything that the files need. The function that makes an empty array has moved between numpy
# versions; the reduction of an array names the current one.
_RECONSTRUCT = _EMPTY.__reduce__()[0]
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    """Unpickler of numpy arrays, numbers, strings and containers only."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed") from None


def read_pickle(path: Path) -> Any:
    """Read a pickle of numbers, strings, containers and numpy arrays.

    Raises:
        DataError: the file can't be read, is damaged, or needs anything else.
    """
    try:
        with open(path, "rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{path}: can't be read as a CIFAR file ({error})") from error
