"""Reading of image files: accepted kinds, value ranges, crop and scale."""

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

# Pillow's modes that convert to RGB, or to grey, without loss.
MODES = {3: ("RGB", "L", "P", "1"), 1: ("L", "1")}
PILLOW = {3: "RGB", 1: "L"}
# Modes that lose transparency, inks, or the range of more than 8 bits.
TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
CONVERTED = (*MODES[3], *TRANSPARENT, *DEEP, "RGBX", "CMYK", "YCbCr", "HSV")
# Formats that Pillow may use; others start programs or hold no pixels.
FORMATS = (
    *("JPEG", "MPO", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF", "JPEG2000", "TGA"),
    "AVIF",
)
# Possible bit depths of unsigned integers; the smallest that fits is assumed.
BITS = (8, 10, 12, 14, 16)
ORIENTATION = 0x0112
# From this side on, images are stored larger by 1/7, as a margin for crops.
LARGE = 64

T = TypeVar("T")
Range = tuple[float, float]


@dataclass(frozen=True)
class Header:
    """Header of an image file.

    Attributes:
        size: (width, height) after rotation.
        deep: whether it has values of more than 8 bits, which need a range.
        frames: whether it has several frames, of which the first is read.
    """

    size: tuple[int, int]
    deep: bool
    frames: bool


def stored_side(image_size: int) -> int:
    """Return the side of the stored square: image_size, or 8/7 of it from 64 on (256 for 224)."""
    return image_size if image_size < LARGE else round(image_size * 8 / 7)


def read_header(path: Path, channels: int, *, convert: bool) -> Header:
    """Read the header of an image file.

    Raises:
        DataError: it can't be read, or is of a kind that isn't accepted.
    """
    with _opened(path) as image:
        _check_kind(image, path, channels, convert)
        width, height = image.size
        # Only if "exif" is in the header: getexif() of a PNG file would decode the image.
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
    """Read an image file as [C, S, S] uint8 with S = stored_side(image_size).

    The image is rotated as its EXIF data say, cropped to its middle square, and scaled.

    Arguments:
        path: the file; the first of several frames is read.
        image_size, channels: side and channels of x.
        convert: accept transparent images (laid on white), inks, and values of more than 8 bits.
        value_range: (black, white) of values of more than 8 bits; others are clipped.

    Raises:
        DataError: it can't be read, or is of a kind that isn't accepted.
    """
    side = stored_side(image_size)
    with _opened(path) as image:
        _check_kind(image, path, channels, convert)
        # Decode a JPEG at a fraction of its size if that is large enough.
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
    """Convert an image to 8 bits, RGB or grey."""
    if image.mode in DEEP:
        if value_range is None:
            raise DataError(
                f"{shown(path)}: expected value_range=(black, white) for its values of more than 8 "
                "bits, got None"
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
    """Return whether an image may have transparent pixels."""
    return image.mode in TRANSPARENT or "transparency" in image.info


def measured_range(paths: Sequence[Path], workers: int) -> Range:
    """Measure (black, white) of files of more than 8 bits.

    Non-negative integers give 0 and the largest number of their bit depth; other values give their
    minimum and maximum.

    Raises:
        DataError: a file can't be read, or holds NaN or Inf.
    """

    def extremes(path: Path) -> tuple[float, float, bool]:
        with _opened(path) as image:
            values = np.asarray(image)
        low, high = float(values.min()), float(values.max())
        if not np.isfinite((low, high)).all():
            raise DataError(f"{shown(path)}: expected finite numbers, got NaN or Inf")
        return low, high, values.dtype.kind in "iu"

    found = by_threads(extremes, paths, workers)
    low, high = min(f[0] for f in found), max(f[1] for f in found)
    if low >= 0 and all(whole for _, _, whole in found):
        fitting = [2.0**bits - 1 for bits in BITS if high < 2**bits]
        return 0.0, fitting[0] if fitting else high
    return low, high if high > low else low + 1


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file with Pillow and convert its errors, also of decoding, to DataError."""
    library = pillow()
    try:
        with library.open(path, formats=_formats()) as image:
            if min(image.size) < 1:
                raise DataError(f"{shown(path)}: expected at least one pixel, got {image.size}")
            yield image
    except DataError:
        raise
    except Exception as error:  # Pillow, zlib, struct and the system raise different types
        text = shown(str(error) or type(error).__name__)
        raise DataError(f"{shown(path)}: can't be read as an image ({text})") from error


def _check_kind(image: Any, path: Path, channels: int, convert: bool) -> None:
    mode = image.mode
    if convert:
        if mode not in CONVERTED:
            raise DataError(
                f"{shown(path)}: expected a Pillow mode that can be converted "
                f"({', '.join(CONVERTED)}), got {mode}"
            )
        return
    if mode in MODES[channels] and not is_transparent(image):
        return
    more = " with transparent pixels" if "transparency" in image.info else ""
    raise DataError(
        f"{shown(path)}: expected Pillow mode {', '.join(MODES[channels])} without transparency "
        f"for {channels} channels, got {mode}{more}; convert the file, or use convert=True (on the "
        "command line --convert-images), which lays transparent images on white and scales values "
        "of more than 8 bits"
    )


def by_threads(function: Callable[[Any], T], items: Sequence[Any], workers: int) -> list[T]:
    """Return [function(item) for item in items], by threads; Pillow decodes without the GIL."""
    with warnings.catch_warnings():
        # Pillow raises an error above twice the size it warns about, and invalid metadata don't
        # affect the pixels.
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
    """Import Pillow's main module; raises DataError if it is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            f"Pillow can't be imported ({error}); pip install pillow to read image files"
        ) from error
    return Image
