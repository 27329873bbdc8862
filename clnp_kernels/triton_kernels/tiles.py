"""Tiles of the matrix products: a table per architecture and the function that chooses from it.

The entries are those that compile without spills (tests/clnp_kernels/triton); none has been
timed on a GPU yet. There is no autotuning: the first call of a shape costs what every call costs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import local
from typing import Any, NamedTuple

import torch

# Multiply-adds in the time that a multiprocessor takes to load one element from the L2 cache: some
# 4096 per clock of 2-byte numbers on an H100, at 128 bytes.
BALANCE = 64


class Tile(NamedTuple):
    """Work of one program at a time: [rows, columns] of the result, depth of the sum."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def shared(self, element: int) -> int:
        """Bytes of shared memory that its stages take, for elements of `element` bytes."""
        return (self.rows + self.columns) * self.depth * self.stages * element

    def cover(self, rows: int, sides: tuple[int, ...]) -> int:
        """Return the number of tiles that cover `rows` and the columns of each side apart."""
        return -(-rows // self.rows) * sum(-(-columns // self.columns) for columns in sides)

    def time(self, rows: int, sides: tuple[int, ...], processors: int) -> int:
        """An estimate of the time of a product, in multiply-adds for one step along the sum: the
        multiprocessors take one tile each in waves, and a tile has to be loaded and computed.
        """
        waves = -(-self.cover(rows, sides) // processors)
        return waves * (self.rows * self.columns + BALANCE * (self.rows + self.columns))


_HALF = (
    Tile(128, 256, 64, 8, 3),
    Tile(128, 128, 64, 8, 4),
    Tile(128, 32, 64, 4, 4),
    Tile(64, 64, 64, 4, 4),
)
# architecture (0: the interpreter) -> precision -> tiles, from large to small
TILES: dict[int, dict[str, tuple[Tile, ...]]] = {
    0: dict.fromkeys(("half", "tf32", "ieee"), (Tile(32, 16, 64, 4, 1),)),
    80: {
        "half": (
            Tile(128, 256, 32, 8, 3),
            Tile(128, 128, 32, 4, 4),
            Tile(128, 32, 32, 4, 4),
            Tile(64, 64, 64, 4, 3),
        ),
        "tf32": (Tile(128, 128, 32, 8, 3), Tile(64, 64, 32, 4, 4)),
        "ieee": (Tile(128, 64, 16, 8, 3), Tile(64, 32, 16, 4, 3)),
    },
    90: {
        "half": _HALF,
        "tf32": (Tile(128, 128, 32, 8, 4), Tile(64, 64, 32, 4, 4)),
        "ieee": (Tile(128, 64, 16, 8, 3), Tile(64, 32, 16, 4, 3)),
    },
    100: {
        "half": _HALF,
        "tf32": (Tile(128, 128, 32, 8, 4), Tile(64, 64, 32, 8, 4)),
        "ieee": (Tile(128, 64, 16, 8, 2), Tile(64, 32, 16, 4, 3)),
    },
}
# Convolutions hold more addresses, so some of these tiles would spill.
CONV: dict[int, dict[str, tuple[Tile, ...]]] = {
    0: TILES[0],
    80: {
        "half": (Tile(128, 128, 32, 8, 3), Tile(128, 32, 32, 4, 3), Tile(64, 64, 32, 4, 3)),
        "tf32": (Tile(128, 128, 32, 8, 3), Tile(64, 64, 32, 8, 3)),
        "ieee": (Tile(64, 64, 16, 8, 3), Tile(64, 32, 16, 4, 3)),
    },
    90: TILES[90],
    100: {"half": _HALF[1:], "tf32": TILES[100]["tf32"], "ieee": (Tile(64, 32, 16, 4, 3),)},
}
# Rows of memory that don't start at multiples of 16 elements are loaded element by element: many
# addresses, so larger tiles spill. The interpreter has no such tiles.
UNALIGNED = {
    "half": Tile(64, 64, 32, 8, 3),
    "tf32": Tile(64, 64, 32, 8, 3),
    "ieee": Tile(64, 32, 16, 8, 2),
}


def row_of(capability: int) -> int:
    """The row of the table for a compute capability (major * 10 + minor).

    Only 9.0 has wgmma and only 10.x has tcgen05; all others multiply as 8.0 does.
    """
    if capability == 90:
        return 90
    return 100 if 100 <= capability < 110 else 80


# wgrad of a layer: the least examples that a part of the sum has
PART = 512


def precision_of(dtype: torch.dtype, *, conv: bool = False) -> str:
    """Return the arithmetic of products: "half", "tf32" (if torch allows it) or "ieee".

    torch has a setting for matrices and one for convolutions, which allows tf32 by default.
    """
    if dtype != torch.float32:
        return "half"
    backends: Any = torch.backends
    setting = backends.cudnn.conv if conv else backends.cuda.matmul
    return "tf32" if setting.fp32_precision == "tf32" else "ieee"


_thread = local()


@contextmanager
def forced(tile: tuple[int, ...]) -> Iterator[None]:
    """Use a tile that was measured within the block, in this thread."""
    before = getattr(_thread, "tile", None)
    _thread.tile = Tile(*tile)
    try:
        yield
    finally:
        _thread.tile = before


@contextmanager
def of_convolution() -> Iterator[None]:
    """Let products of matrices within the block, in this thread, be those of a convolution."""
    _thread.convolution = True
    try:
        yield
    finally:
        _thread.convolution = False


def within_convolution() -> bool:
    """Return whether this is such a block."""
    return getattr(_thread, "convolution", False)


def choose(
    architecture: int,
    precision: str,
    rows: int,
    sides: tuple[int, ...],
    aligned: bool,
    processors: int,
    shared: int,
    table: dict[int, dict[str, tuple[Tile, ...]]] = TILES,
) -> Tile:
    """The tile that fits in memory and takes the least time by `Tile.time`.

    Unaligned operands have a tile of their own.

    Arguments:
        architecture: a row of the table.
        precision: as `precision_of` says.
        rows: of the result.
        sides: columns of the result's parts; no tile covers two of them.
        aligned: whether all rows of the operands start and end at multiples of 16 elements.
        processors: multiprocessors of the device.
        shared: bytes of shared memory that one program may take.
        table: `TILES` or `CONV`.
    """
    measured: Tile | None = getattr(_thread, "tile", None)
    if measured is not None:
        return measured
    if architecture and not aligned:
        return UNALIGNED[precision]
    element = 2 if precision == "half" else 4
    tiles = table[architecture][precision]
    fitting = [tile for tile in tiles if tile.shared(element) <= shared] or [tiles[-1]]
    return min(fitting, key=lambda tile: tile.time(rows, sides, processors))


def parts_of(tiles: int, depth: int, processors: int) -> int:
    """Parts that a long sum is cut into where a product has few tiles; they are added afterwards,
    in a fixed order.
    """
    return max(1, min(processors // max(tiles, 1), depth // PART))
