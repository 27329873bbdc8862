"""Image files as pixels: which are taken, and what their numbers mean."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .names import shown

# Pillow's modes that turn into RGB, or into grey, without losing anything but a palette.
MODES = {3: ("RGB", "L", "P", "1"), 1: ("L", "1")}
PILLOW = {3: "RGB", 1: "L"}
# Modes that lose something: transparency, inks, or, of more than 8 bits, their range.
TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
CONVERTED = (*MODES[3], *TRANSPARENT, *DEEP, "RGBX", "CMYK", "YCbCr", "HSV")
# What Pillow may take a file for; others of its formats start programs or hold no pixels.
FORMATS = (
    *("JPEG", "MPO", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF", "JPEG2000", "TGA"),
    "AVIF",
)
# Whole numbers without a sign are taken to have the least of these numbers of bits.
BITS = (8, 10, 12, 14, 16)
ORIENTATION = 0x0112
# From this side on, an image is kept by 1/7 larger than it is shown, so that crops have room.
LARGE = 64

T = TypeVar("T")
Range = tuple[float, float]


@dataclass(frozen=True)
class Header:
    """The header of an image file.

    Attributes:
        size: (width, height) as it is shown.
        deep: has numbers of more than 8 bits, which need a range.
        frames: more than one, of which the first is taken.
    """

    size: tuple[int, int]
    deep: bool
    frames: bool


def stored_side(image_size: int) -> int:
    """Side of the square that is kept of an image: image_size, by 1/7 more from 64 pixels on (256
    for 224).
    """
    return image_size if image_size < LARGE else round(image_size * 8 / 7)


def read_header(path: Path, channels: int, *, convert: bool) -> Header:
    """Opens a file as far as its header.

    Raises:
        DataError: it can't be read, or is of a kind that isn't taken.
    """
    with _opened(path) as image:
        _check_kind(image, path, channels, convert)
        width, height = image.size
        # Only where the header has told it: asking a PNG file would decode the image.
        turned = "exif" in image.info and image.getexif().get(ORIENTATION, 1) >= 5
        frames = image.format in ("GIF", "TIFF", "WEBP", "PNG", "AVIF") and (
            getattr(image, "is_animated", False)
        )
        return Header((height, width) if turned else (width, height), image.mode in DEEP, frames)


def read_image(
    path: Path,
    image_size: int,
    channels: int = 3,
    *,
    convert: bool = False,
    value_range: Range | None = None,
) -> Tensor:
    """One image file as [C, S, S] uint8 with S = stored_side(image_size): turned as its EXIF data
    say, the square in its middle, scaled.

    Arguments:
        path: the file; of several frames the first is taken.
        image_size, channels: of x.
        convert: take transparent images (laid on white), inks, and numbers of more than 8 bits.
        value_range: (black, white) of the latter; those outside become black or white.

    Raises:
        DataError: it can't be read, or is of a kind that isn't taken.
    """
    side = stored_side(image_size)
    with _opened(path) as image:
        _check_kind(image, path, channels, convert)
        # Decodes a JPEG at a fraction of its size where that is still large enough.
        image.draft(None, (side, side))
        whole = _pixels(_upright(image), path, channels, value_range)
    left, top = ((n - min(whole.size)) / 2 for n in whole.size)
    square = (left, top, left + min(whole.size), top + min(whole.size))
    scaled = whole.resize((side, side), pillow().Resampling.BILINEAR, box=square)
    array = np.array(scaled, dtype=np.uint8)
    return torch.from_numpy(array.reshape(side, side, channels)).movedim(-1, 0)


def _upright(image: Any) -> Any:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def _pixels(image: Any, path: Path, channels: int, value_range: Range | None) -> Any:
    """An image of 8 bits, RGB or grey."""
    if image.mode in DEEP:
        if value_range is None:
            raise DataError(
                f"{shown(path)}: has numbers of more than 8 bits, wanted value_range=(black, white)"
            )
        low, high = value_range
        scaled = (np.asarray(image, dtype=np.float64) - low) * (255 / (high - low))
        grey = np.rint(scaled.clip(0, 255)).astype(np.uint8)
        return pillow().fromarray(grey).convert(PILLOW[channels])
    if is_transparent(image):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode))
        image = image.convert("RGBA")
        white = pillow().new("RGBA", image.size, "white")
        image = pillow().alpha_composite(white, image)
    return image.convert(PILLOW[channels])


def is_transparent(image: Any) -> bool:
    """Has it transparent pixels, or might it?"""
    return image.mode in TRANSPARENT or "transparency" in image.info


def measured_range(paths: Sequence[Path], workers: int) -> Range:
    """(black, white) for files of more than 8 bits: 0 and the largest number of so many bits where
    all are whole and none is negative, or else the least and the largest number there is.

    Raises:
        DataError: a file that can't be read, or holds NaN or Inf.
    """

    def extremes(path: Path) -> tuple[float, float, bool]:
        with _opened(path) as image:
            values = np.asarray(image)
        low, high = float(values.min()), float(values.max())
        if not np.isfinite((low, high)).all():
            raise DataError(f"{shown(path)}: holds NaN or Inf, wanted finite numbers")
        return low, high, values.dtype.kind in "iu"

    found = by_threads(extremes, paths, workers)
    low, high = min(f[0] for f in found), max(f[1] for f in found)
    if low >= 0 and all(whole for _, _, whole in found):
        fitting = [2.0**bits - 1 for bits in BITS if high < 2**bits]
        return 0.0, fitting[0] if fitting else high
    return low, high if high > low else low + 1


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, as Pillow opens it. Its errors, those of decoding too, become DataError."""
    library = pillow()
    try:
        with library.open(path, formats=_formats()) as image:
            if min(image.size) < 1:
                raise DataError(f"{shown(path)}: is an image of {image.size} pixels, wanted some")
            yield image
    except DataError:
        raise
    except Exception as error:  # Pillow raises its own, and those of zlib, struct and the system
        text = shown(str(error) or type(error).__name__)
        raise DataError(f"{shown(path)}: can't be read as an image ({text})") from error


def _check_kind(image: Any, path: Path, channels: int, convert: bool) -> None:
    mode = image.mode
    if convert:
        if mode not in CONVERTED:
            raise DataError(
                f"{shown(path)}: is of Pillow's mode {mode}, which can't be converted; wanted one "
                f"of {', '.join(CONVERTED)}"
            )
        return
    if mode in MODES[channels] and not is_transparent(image):
        return
    more = " with transparent pixels" if "transparency" in image.info else ""
    raise DataError(
        f"{shown(path)}: is of Pillow's mode {mode}{more}, wanted one of "
        f"{', '.join(MODES[channels])} without transparency for {channels} channels; convert the "
        "file, or take it with convert=True (on the command line --convert-images), which lays "
        "transparent images on white and scales numbers of more than 8 bits"
    )


def by_threads(function: Callable[[Any], T], items: Sequence[Any], workers: int) -> list[T]:
    """[function(item) for item in items], by threads: Pillow decodes outside Python's lock."""
    with warnings.catch_warnings():
        # Large images are legal up to the size that is an error for Pillow, and a file's odd
        # metadata are no concern.
        warnings.filterwarnings("ignore", category=pillow().DecompressionBombWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        if workers == 1 or len(items) < 2:
            return [function(item) for item in items]
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(function, items))


def _formats() -> list[str]:
    library = pillow()
    library.init()
    return [name for name in FORMATS if name in library.OPEN]


def pillow() -> ModuleType:
    """Pillow's main module. Raises DataError where there is none."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            f"Pillow can't be imported ({error}); pip install pillow to read image files"
        ) from error
    return Image
