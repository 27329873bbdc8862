"""Folders of images, every file opened as far as its header: sizes, bits, frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .layout import Layout, find_images
from .names import counted, listed
from .pictures import Range, by_threads, measured_range, read_header

# Largest side that images without a given size may have.
LARGEST = 4096


@dataclass(frozen=True)
class Found:
    """A folder of images, every file opened as far as its header.

    Attributes:
        layout: its splits and classes.
        sizes: all sizes (width, height) of its images.
        deep: training images of more than 8 bits.
        any_deep: are there such in any split?
        notes: of the layout, and on files of several frames.
    """

    layout: Layout
    sizes: frozenset[tuple[int, int]]
    deep: tuple[Path, ...]
    any_deep: bool
    notes: tuple[str, ...]


def look_into(root: Path, channels: int = 3, *, convert: bool = False, workers: int = 2) -> Found:
    """The images of a folder as `find_images` finds them, with their headers read. Raises as
    `folder_task` does.
    """
    layout = find_images(root)
    paths = [path for split in layout.items.values() for path, _ in split]
    headers = by_threads(lambda p: read_header(p, channels, convert=convert), paths, workers)
    of = dict(zip(paths, headers, strict=True))
    frames = [path.relative_to(root) for path in paths if of[path].frames]
    notes = list(layout.notes)
    if frames:
        notes.append(
            f"{counted(len(frames), 'file')} of several frames, the first one taken: "
            f"{listed(frames)}"
        )
    return Found(
        layout,
        frozenset(header.size for header in headers),
        tuple(path for path, _ in layout.items["train"] if of[path].deep),
        any(header.deep for header in headers),
        tuple(notes),
    )


def common_side(every: Sequence[Found], roots: Sequence[Path]) -> int:
    """Side of all images. Raises DataError where they are no squares of one size."""
    sizes = sorted(frozenset().union(*(found.sizes for found in every)))
    where = listed(roots)
    way_out = "give one (image_size=N, on the command line --image-size N): images are then scaled"
    if len(sizes) > 1:
        least, most = (" x ".join(map(str, size)) for size in (sizes[0], sizes[-1]))
        raise DataError(
            f"image_size: images of {where} have {len(sizes)} sizes, from {least} to {most}; "
            f"{way_out}, and their middle squares taken"
        )
    width, height = sizes[0]
    if width != height:
        raise DataError(
            f"image_size: images of {where} are {width} x {height}, no squares; {way_out}, and "
            "their middle squares taken"
        )
    if width > LARGEST:
        raise DataError(f"image_size: images of {where} are {width} x {height}; {way_out}")
    return width


def common_range(every: Sequence[Found], workers: int) -> Range | None:
    """(black, white) of all training images of more than 8 bits; None where no split has any.

    Raises:
        DataError: the training splits have none, but others do.
    """
    deep = [path for found in every for path in found.deep]
    if deep:
        return measured_range(deep, workers)
    if any(found.any_deep for found in every):
        raise DataError(
            "value_range: only validation or test images have more than 8 bits, the training "
            "images, which decide their range, have 8; convert them, or give (black, white)"
        )
    return None
