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
Table = dict[int, dict[str, tuple[tiles.Tile, ...]]]
GROUP = 8  # rows of tiles that are worked on together


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
    rows: int,
    sides: tuple[int, ...],
    operands: tuple[Tensor, ...],
    lengths: tuple[int, ...],
    table: Table = tiles.TILES,
) -> dict[str, Any]:
    """Tile, warps, stages and arithmetic of a product.

    Arguments:
        rows: of the result.
        sides: columns of its parts; no tile covers two of them.
        operands: matrices or images, alike in dtype and device, with channels side by side.
        lengths: lengths of the parts of their rows, and where in a row parts begin.
        table: `tiles.TILES` or `tiles.CONV`.
    """
    architecture, processors, shared = describe(operands[0].device)
    dtype = operands[0].dtype
    precision = tiles.precision_of(dtype, conv=table is tiles.CONV or tiles.within_convolution())
    numbers = [stride for t in operands for d, stride in enumerate(t.stride()) if d != 1]
    addresses = [t.data_ptr() for t in operands]
    aligned = all(number % 16 == 0 for number in (*addresses, *numbers, *lengths))
    tile = tiles.choose(architecture, precision, rows, sides, aligned, processors, shared, table)
    return {
        "PRECISION": "ieee" if precision == "half" else precision,
        "WIDEN": INTERPRETED and dtype == torch.bfloat16,
        "BM": tile.rows,
        "BN": tile.columns,
        "BK": tile.depth,
        "GROUP": GROUP,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def sum_parts(partial: Tensor) -> Tensor:
    """The sum over the parts: [parts, ...] -> [...]."""
    return partial[0] if partial.shape[0] == 1 else partial.sum(0)


def launch(kernel: Any, programs: tuple[int, ...], like: Tensor, arguments: dict[str, Any]) -> None:
    """Start a kernel on the device of `like`, which need not be the current one."""
    with torch.cuda.device(like.device) if like.is_cuda else nullcontext():
        kernel[programs](**arguments, **OPTIONS)


def output_arguments(
    active_bias: Tensor | None, free_bias: Tensor | None, activation: str, activity: bool
) -> dict[str, Any]:
    """Arguments of a forward kernel: what is added to the products and done with the sums."""
    return {
        "active_bias": None if active_bias is None else active_bias.contiguous(),
        "free_bias": None if free_bias is None else free_bias.contiguous(),
        "BIAS": free_bias is not None,
        "RELU": activation == "relu",
        "ACTIVITY": activity,
    }


def launch_fwd(
    kernel: Any,
    rows: int,
    operands: tuple[Tensor, Tensor, Tensor],
    y: Tensor,
    arguments: dict[str, Any],
    table: Table = tiles.TILES,
) -> Tensor:
    """Fill `y`, `rows` times O, by products of x with the active and the free weight.

    Returns:
        the activity [O], or an empty tensor.
    """
    x, active, free = operands
    sides, (active_in, inputs) = (free.shape[0], active.shape[0]), (active.shape[1], free.shape[1])
    read = operands if sides[1] else (x, free)
    options = product_options(rows, sides, read, (active_in, inputs), table)
    tiles_m = triton.cdiv(rows, options["BM"])
    tiles_n = sum(triton.cdiv(side, options["BN"]) for side in sides)
    activity = arguments["ACTIVITY"]
    partial = x.new_empty(tiles_m if activity else 0, sum(sides), dtype=torch.float32)
    common = {
        "x": x,
        "active_weight": active,
        "free_weight": free,
        "y": y,
        "partial": partial,
        "Ia": active_in,
        "I": inputs,
        "Oa": sides[1],
        "Of": sides[0],
    }
    launch(kernel, (tiles_m * tiles_n,), x, common | arguments | options)
    return sum_parts(partial) if activity else partial.view(-1)


def launch_dgrad(
    kernel: Any,
    rows: int,
    operands: tuple[Tensor, Tensor],
    grad_x: Tensor,
    active: int,
    arguments: dict[str, Any],
    classes: int = 1,
    table: Table = tiles.TILES,
) -> None:
    """Fill `grad_x`, `classes` times `rows` times I, by products of grad_z with the free weight;
    `active` columns at the front with zeros.
    """
    grad, free = operands
    free_out, inputs = free.shape[:2]
    lengths = (active, inputs, free_out)
    options = product_options(rows, (inputs - active, 0), operands, lengths, table)
    tiles_n = sum(triton.cdiv(side, options["BN"]) for side in (active, inputs - active))
    common = {
        "grad_z": grad,
        "free_weight": free,
        "grad_x": grad_x,
        "Ia": active,
        "I": inputs,
        "Of": free_out,
    }
    programs = (triton.cdiv(rows, options["BM"]) * tiles_n, classes)
    launch(kernel, programs, grad, common | arguments | options)
