"""Shared by all launches: the device, the tile and the start of a kernel."""

from contextlib import nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import tiles

# Kernels are decorated for the interpreter or for a GPU once, when their modules are imported.
INTERPRETED: bool = triton.knobs.runtime.interpret
# Products and sums may fuse (FMA), whatever this triton's default is.
OPTIONS = {"enable_fp_fusion": True}


class Device(NamedTuple):
    """Properties of a device that the choice of tiles depends on."""

    architecture: int  # row of tiles.TILES
    processors: int
    shared: int  # bytes


@cache
def describe(device: torch.device) -> Device:
    """The properties of a device; 0 is the architecture of the interpreter."""
    if INTERPRETED:
        return Device(0, 1, 1 << 30)
    properties: Any = torch.cuda.get_device_properties(device)
    row = tiles.row_of(properties.major * 10 + properties.minor)
    return Device(row, properties.multi_processor_count, properties.shared_memory_per_block_optin)


def rows_of(t: Tensor) -> Tensor:
    """A matrix whose rows are runs of memory: itself, or a contiguous copy."""
    return t if t.stride(1) == 1 else t.contiguous()


def product_options(
    rows: int, sides: tuple[int, ...], operands: tuple[Tensor, ...], lengths: tuple[int, ...]
) -> dict[str, Any]:
    """Tile, warps, stages and arithmetic of a product.

    Arguments:
        rows: of the result.
        sides: columns of its parts; no tile covers two of them.
        operands: the matrices, alike in dtype and device, with rows that are runs of memory.
        lengths: lengths of the parts of their rows, and where in a row parts begin.
    """
    return tile_options(rows, sides, operands, (*(t.stride(0) for t in operands), *lengths))


def tile_options(
    rows: int,
    sides: tuple[int, ...],
    operands: tuple[Tensor, ...],
    numbers: tuple[int, ...],
    table: dict[int, dict[str, tuple[tiles.Tile, ...]]] = tiles.TILES,
) -> dict[str, Any]:
    """The same for operands of any form, from a table of tiles; `numbers` are all distances
    between their runs of memory and all lengths of these.
    """
    device, dtype = describe(operands[0].device), operands[0].dtype
    precision = tiles.precision_of(dtype, conv=table is tiles.CONV or tiles.within_convolution())
    addresses = [t.data_ptr() for t in operands]
    aligned = all(number % 16 == 0 for number in (*addresses, *numbers))
    tile = tiles.choose(
        device.architecture,
        precision,
        rows,
        sides,
        aligned,
        device.processors,
        device.shared,
        table,
    )
    return {
        "PRECISION": "ieee" if precision == "half" else precision,
        "WIDEN": INTERPRETED and dtype == torch.bfloat16,
        "BM": tile.rows,
        "BN": tile.columns,
        "BK": tile.depth,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def launch(kernel: Any, programs: tuple[int, ...], like: Tensor, arguments: dict[str, Any]) -> None:
    """Start a kernel on the device of `like`, which need not be the current one."""
    with torch.cuda.device(like.device) if like.is_cuda else nullcontext():
        kernel[programs](**arguments, **OPTIONS)
