"""Headers of the images in a folder: sizes, bit depths and numbers of frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .layout import Layout, find_images
from .names import counted, listed
from .pictures import Range, by_threads, measured_range, read_header

# Largest side of images whose size is not given.
LARGEST = 4096


@dataclass(frozen=True)
class Found:
    """A folder of images whose headers have been read.

    Attributes:
        layout: its splits and classes.
        sizes: all sizes (width, height) of its images.
        deep: training images of more than 8 bits.
        any_deep: whether any split has such images.
        notes: notes of the layout, and on files with several frames.
    """

    layout: Layout
    sizes: frozenset[tuple[int, int]]
    deep: tuple[Path, ...]
    any_deep: bool
    notes: tuple[str, ...]


def look_into(root: Path, channels: int = 3, *, convert: bool = False, workers: int = 2) -> Found:
    """Find the images of a folder and read their headers. Raises as `folder_task`."""
    layout = find_images(root)
    paths = [path for split in layout.items.values() for path, _ in split]
    headers = by_threads(lambda p: read_header(p, channels, convert=convert), paths, workers)
    header_of = dict(zip(paths, headers, strict=True))
    frames = [path.relative_to(root) for path in paths if header_of[path].frames]
    notes = list(layout.notes)
    if frames:
        notes.append(
            f"{counted(len(frames), 'file')} with several frames, of which the first is read: "
            f"{listed(frames)}"
        )
    return Found(
        layout,
        frozenset(header.size for header in headers),
        tuple(path for path, _ in layout.items["train"] if header_of[path].deep),
        any(header.deep for header in headers),
        tuple(notes),
    )


def common_side(folders: Sequence[Found], roots: Sequence[Path]) -> int:
    """Return the side of all images. Raises DataError unless they are squares of one size."""
    sizes = sorted(frozenset().union(*(found.sizes for found in folders)))
    where = listed(roots)
    way_out = "pass image_size=N (on the command line --image-size N) to scale"
    crop = "and crop them to their middle squares"
    if len(sizes) > 1:
        least, most = (" x ".join(map(str, size)) for size in (sizes[0], sizes[-1]))
        raise DataError(
            f"image_size: expected images of one size in {where}, got {len(sizes)} sizes, from "
            f"{least} to {most}; {way_out} {crop}"
        )
    width, height = sizes[0]
    if width != height:
        raise DataError(
            f"image_size: expected square images in {where}, got {width} x {height}; {way_out} "
            f"{crop}"
        )
    if width > LARGEST:
        raise DataError(
            f"image_size: expected images of at most {LARGEST} x {LARGEST} in {where}, got "
            f"{width} x {height}; {way_out} them"
        )
    return width


def common_range(folders: Sequence[Found], workers: int) -> Range | None:
    """Return (black, white) of all training images of more than 8 bits; None if there are none.

    Raises:
        DataError: validation or test images have more than 8 bits, but no training images.
    """
    deep = [path for found in folders for path in found.deep]
    if deep:
        return measured_range(deep, workers)
    if any(found.any_deep for found in folders):
        raise DataError(
            "value_range: expected training images of more than 8 bits, which define the range, "
            "as in validation or test, got 8 bits; convert the images, or pass (black, white)"
        )
    return None
