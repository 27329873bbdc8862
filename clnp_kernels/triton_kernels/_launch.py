"""Shared by all launches: the device, the tile and the start of a kernel."""

from contextlib import nullcontext
from functools import cache
from math import gcd
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
WIDEST = 8  # elements that are loaded at once, of 2 bytes
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


def align_of(*numbers: int) -> int:
    """The largest power of two up to 8 that divides all numbers: elements that can be loaded at
    once. Products of a number and its unit are in 32 bits, so it is 1 for large ones.
    """
    return gcd(WIDEST, *numbers) if max(numbers, default=0) < 1 << 31 else 1


def in_units(unit: int, **numbers: int) -> dict[str, int]:
    """Sizes and strides in units of what `align_of` found for them."""
    return {name: number // unit for name, number in numbers.items()}


def product_options(
    rows: int,
    sides: tuple[int, ...],
    operands: tuple[Tensor, ...],
    unit: int,
    table: Table = tiles.TILES,
) -> dict[str, Any]:
    """Tile, warps, stages and arithmetic of a product.

    Arguments:
        rows: of the result.
        sides: columns of its parts; no tile covers two of them.
        operands: matrices or images, alike in dtype and device, with channels side by side.
        unit: what divides the lengths and strides of their rows.
        table: `tiles.TILES` or `tiles.CONV`.
    """
    architecture, processors, shared = describe(operands[0].device)
    dtype = operands[0].dtype
    precision = tiles.precision_of(dtype, conv=table is tiles.CONV or tiles.within_convolution())
    aligned = unit * dtype.itemsize >= 16 and all(t.data_ptr() % 16 == 0 for t in operands)
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


class Strides(NamedTuple):
    """Distances in memory of the operands of a product, by the names of a kernel's arguments."""

    x: dict[str, int]
    active: dict[str, int]
    free: dict[str, int]


def launch_fwd(
    kernel: Any,
    rows: int,
    operands: tuple[Tensor, Tensor, Tensor],
    strides: Strides,
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
    whole = align_of(inputs, *strides.x.values(), *strides.free.values())
    part, out = align_of(active_in, *strides.active.values()), align_of(*sides)
    read: tuple[Tensor, ...] = operands if sides[1] else (x, free)
    unit = min(whole, part) if sides[1] else whole
    options = product_options(rows, sides, read, unit, table)
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
        **in_units(whole, I=inputs, **strides.x, **strides.free),
        **in_units(part, Ia=active_in, **strides.active),
        **in_units(out, Oa=sides[1], Of=sides[0]),
        "IN": whole,
        "ACTIVE": part,
        "OUT": out,
    }
    launch(kernel, (tiles_m * tiles_n,), x, common | arguments | options)
    return sum_parts(partial) if activity else partial.view(-1)


def launch_dgrad(
    kernel: Any,
    rows: int,
    operands: tuple[Tensor, Tensor],
    strides: tuple[dict[str, int], dict[str, int]],
    grad_x: Tensor,
    active: int,
    arguments: dict[str, Any],
    classes: int = 1,
    table: Table = tiles.TILES,
) -> None:
    """Fill `grad_x`, `classes` times `rows` times I, by products of grad_z with the free weight;
    `active` columns at the front with zeros. `strides` are those of the two operands.
    """
    grad, free = operands
    free_out, inputs = free.shape[:2]
    whole, out = (
        align_of(active, inputs, *strides[1].values()),
        align_of(free_out, *strides[0].values()),
    )
    options = product_options(rows, (inputs - active, 0), operands, min(whole, out), table)
    tiles_n = sum(triton.cdiv(side, options["BN"]) for side in (active, inputs - active))
    common = {
        "grad_z": grad,
        "free_weight": free,
        "grad_x": grad_x,
        **in_units(whole, Ia=active, I=inputs, **strides[1]),
        **in_units(out, Of=free_out, **strides[0]),
        "IN": whole,
        "OUT": out,
    }
    programs = (triton.cdiv(rows, options["BM"]) * tiles_n, classes)
    launch(kernel, programs, grad, common | arguments | options)


def wgrad_arguments(
    operands: tuple[Tensor, Tensor], strides: tuple[dict[str, int], dict[str, int]]
) -> tuple[dict[str, Any], int]:
    """Arguments for the product of grad_z and x, whose strides are given, and the common unit."""
    (grad, x), (of_grad, of_x) = operands, strides
    out, whole = align_of(grad.shape[1], *of_grad.values()), align_of(x.shape[1], *of_x.values())
    arguments: dict[str, Any] = {
        "grad_z": grad,
        "x": x,
        **in_units(out, Of=grad.shape[1], **of_grad),
        **in_units(whole, I=x.shape[1], **of_x),
        "IN": whole,
        "OUT": out,
    }
    return arguments, min(whole, out)
