"""CIFAR-10 and CIFAR-100 from disk, in any of the forms in which people keep them.

The original Python pickles are read by an unpickler that knows numpy arrays and nothing else, so
that no file can run code.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError

SIDE = 32
PIXELS = 3 * SIDE * SIDE
HALVES = ("train", "test")
# {"train" | "test": (images [N, 3, 32, 32] uint8, labels [N] int64)}
Halves = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Kind:
    """One of the two data sets.

    Attributes:
        classes: number of classes.
        pickles, binaries: folders of the two original forms.
        files: half -> stems of its files.
        label: key of the labels in a pickle.
        label_bytes: bytes before the pixels of an image in a binary file; the last one is the
            label.
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
    """A CIFAR data set below `root`, in the first form that is there:

    1. `cifar10.npz` (or `cifar100.npz`): train_images, train_labels, test_images, test_labels, the
       images [N, 32, 32, 3] or [N, 3, 32, 32] uint8; some of the classes are enough;
    2. a folder `cifar10` (`cifar100`) with the same names as .npy files;
    3. `cifar-10-batches-py` (`cifar-100-python`), the Python version;
    4. `cifar-10-batches-bin` (`cifar-100-binary`), the binary version.

    `root` may be that file or folder itself.

    Arguments:
        root: a folder or a file.
        name: "cifar10" or "cifar100" (fine labels).

    Returns:
        {"train" | "test": (images [N, 3, 32, 32] uint8, labels [N] int64)}.

    Raises:
        DataError: nothing there, listing what was looked for; or a file that is damaged.
    """
    root, kind = Path(root), KINDS[name]
    if root.is_file():
        return _checked(_read_npz(root, kind), kind, root)
    first = kind.files["train"][0]
    # Where, a file that tells that it is there, and who reads it.
    forms: tuple[tuple[str, str, Callable[[Path, Kind], Halves]], ...] = (
        (f"{name}.npz", "", _read_npz),
        (name, "train_images.npy", _read_npy),
        (kind.pickles, first, _read_pickles),
        (kind.binaries, f"{first}.bin", _read_binaries),
    )
    for place, inside, read in forms:
        for path in (root / place, root) if inside else (root / place,):
            if (path / inside if inside else path).is_file():
                return _checked(read(path, kind), kind, path)
    raise DataError(
        f"data root {str(root)!r}: no {name}. Wanted one of "
        + ", ".join(place for place, _, _ in forms)
        + " in it"
    )


def _read_npz(path: Path, kind: Kind) -> Halves:
    try:
        # numpy leaves files open that it opens itself and that are damaged.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files if _wanted(key)}
    except Exception as error:  # zip, zlib, numpy and the system each have their own
        raise DataError(f"{path}: can't be read ({error})") from error
    return _from_arrays(arrays, path)


def _read_npy(path: Path, kind: Kind) -> Halves:
    arrays = {}
    for file in path.glob("*.npy"):
        if _wanted(file.stem):
            try:
                arrays[file.stem] = np.load(file, allow_pickle=False)
            except Exception as error:  # numpy and the system each have their own
                raise DataError(f"{file}: can't be read ({error})") from error
    return _from_arrays(arrays, path)


def _wanted(key: str) -> bool:
    return key in {f"{half}_{part}" for half in HALVES for part in ("images", "labels")}


def _from_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> Halves:
    missing = [
        f"{half}_{part}"
        for half in HALVES
        for part in ("images", "labels")
        if f"{half}_{part}" not in arrays
    ]
    if missing:
        raise DataError(f"{path}: lacks {', '.join(missing)}")
    halves = {}
    for half in HALVES:
        images, labels = arrays[f"{half}_images"], arrays[f"{half}_labels"]
        if images.ndim == 4 and images.shape[-1] == 3:
            images = images.transpose(0, 3, 1, 2)
        halves[half] = (images, labels)
    return halves


def _read_pickles(path: Path, kind: Kind) -> Halves:
    halves = {}
    for half, stems in kind.files.items():
        images, labels = [], []
        for stem in stems:
            data = read_pickle(path / stem)
            if not isinstance(data, dict) or not {"data", kind.label} <= set(data):
                raise DataError(f"{path / stem}: lacks data or {kind.label}")
            pixels = data["data"]
            if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != PIXELS:
                raise DataError(f"{path / stem}: data is no array [N, {PIXELS}]")
            images.append(pixels)
            labels.append(_labels(data[kind.label], path / stem))
        shape = (-1, 3, SIDE, SIDE)
        halves[half] = (np.concatenate(images).reshape(shape), np.concatenate(labels))
    return halves


def _labels(values: Any, path: Path) -> np.ndarray:
    try:
        labels = np.asarray(values)
    except ValueError as error:  # lists of different lengths
        raise DataError(f"{path}: labels are no list of numbers ({error})") from error
    if labels.ndim != 1:
        raise DataError(f"{path}: labels are {list(labels.shape)}, wanted [N]")
    return labels


def _read_binaries(path: Path, kind: Kind) -> Halves:
    record = kind.label_bytes + PIXELS
    halves = {}
    for half, stems in kind.files.items():
        rows = []
        for stem in stems:
            file = path / f"{stem}.bin"
            try:
                raw = np.fromfile(file, dtype=np.uint8)
            except OSError as error:
                raise DataError(f"{file}: can't be read ({error})") from error
            if not raw.size or raw.size % record:
                raise DataError(
                    f"{file}: holds {raw.size} bytes, wanted a multiple of {record}, "
                    f"{kind.label_bytes} of label and {PIXELS} of pixels an image"
                )
            rows.append(raw.reshape(-1, record))
        table = np.concatenate(rows)
        pixels = table[:, kind.label_bytes :].reshape(-1, 3, SIDE, SIDE)
        halves[half] = (pixels, table[:, kind.label_bytes - 1])
    return halves


def _checked(halves: Halves, kind: Kind, path: Path) -> Halves:
    for half, (images, labels) in halves.items():
        where = f"{path}, {half}"
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (3, SIDE, SIDE):
            raise DataError(
                f"{where}: images are {list(images.shape)} {images.dtype}, wanted [N, {SIDE}, "
                f"{SIDE}, 3] or [N, 3, {SIDE}, {SIDE}] uint8"
            )
        if labels.dtype.kind not in "iu" or labels.shape != (len(images),) or not len(images):
            raise DataError(
                f"{where}: labels are {list(labels.shape)} {labels.dtype}, wanted [{len(images)}] "
                "integers, and at least one"
            )
        labels = labels.astype(np.int64)
        if labels.min() < 0 or labels.max() >= kind.classes:
            raise DataError(
                f"{where}: labels go from {labels.min()} to {labels.max()}, wanted 0 to "
                f"{kind.classes - 1}"
            )
        halves[half] = (np.ascontiguousarray(images), labels)
    return halves


# Pickles


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


_EMPTY: Any = np.empty(0, dtype=np.uint8)
# All that the files need. The function that makes an empty array has moved between numpy versions;
# an array's own reduction names it.
_RECONSTRUCT = _EMPTY.__reduce__()[0]
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    """Knows numpy arrays, besides numbers, strings and containers."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"asks for {module}.{name}") from None


def read_pickle(path: Path) -> Any:
    """A pickle of numbers, strings, containers and numpy arrays.

    Raises:
        DataError: the file can't be read, is damaged, or asks for anything else.
    """
    try:
        with open(path, "rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{path}: can't be read as a CIFAR file ({error})") from error
