"""The Triton kernels of masked_conv2d and partial_batch_norm, compiled ahead of time.

As test_compiled.py: the first tiles for bfloat16, CLNP_EVERY_TILE=1 for all of them.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels can't be compiled", allow_module_level=True)

from clnp_kernels.triton_kernels import masked_conv2d, partial_batch_norm, tiles
from tests.clnp_kernels.triton import aot
from tests.clnp_kernels.triton.test_compiled import ARCHITECTURES, EVERY_TILE, MATRIX

PRODUCTS = ("fwd", "dgrad", "dgrad strided", "wgrad")


def images(channels: int, size: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(
        256, channels, size, size, dtype=dtype, device="meta", memory_format=torch.channels_last
    )


def conv_calls(dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """A 3 x 3 layer of 256 channels, half of them frozen."""

    def weight(rows: int, columns: int) -> Tensor:
        shape = (rows, columns, 3, 3)
        return torch.empty(shape, dtype=dtype, device="meta", memory_format=torch.channels_last)

    x, y = images(256, 32, dtype), images(256, 32, dtype)
    active, free = weight(128, 128), weight(128, 256)
    biases = [torch.empty(128, dtype=dtype, device="meta") for _ in range(2)]
    plain, strided = ([1, 1], [1, 1], [1, 1], False), ([2, 2], [1, 1], [1, 1], False)
    halved, part = images(128, 16, dtype), y[:, 128:]
    depth = ([1, 1], [1, 1], [1, 1], True)
    tall = weight(128, 1), weight(128, 1)
    conv = masked_conv2d
    return {
        "fwd": lambda: conv.masked_conv2d_fwd(x, active, free, *biases, *plain, "relu", True),
        "dgrad": lambda: conv.masked_conv2d_dgrad(part, x, free, 128, *plain),
        "dgrad strided": lambda: conv.masked_conv2d_dgrad(halved, x, free, 128, *strided),
        "wgrad": lambda: conv.masked_conv2d_wgrad(part, x, [3, 3], *plain, False),
        "depthwise fwd": lambda: conv.masked_conv2d_fwd(x, *tall, *biases, *depth, "relu", True),
        "depthwise dgrad": lambda: conv.masked_conv2d_dgrad(part, x, tall[1], 128, *depth),
        "depthwise wgrad": lambda: conv.masked_conv2d_wgrad(part, x, [3, 3], *depth, False),
    }  # fmt: skip


def norm_calls(dtype: torch.dtype, layout: torch.memory_format) -> dict[str, Callable[[], Any]]:
    """256 channels, half of them frozen."""
    x = torch.empty(256, 256, 32, 32, dtype=dtype, device="meta").contiguous(memory_format=layout)
    vectors = [torch.empty(128, device="meta") for _ in range(8)]
    rest = (*vectors[2:4], vectors[5], True, 1e-5)
    norm = partial_batch_norm
    return {
        "fwd": lambda: norm.partial_batch_norm_fwd(x, *vectors, True, 1e-5, "relu", True),
        "bwd": lambda: norm.partial_batch_norm_bwd(x, x, x, *rest),
    }


def cases() -> list[tuple[int, str, int, str]]:
    """Architecture, precision, place of the tile in the table, kernel."""
    return [
        (architecture, precision, place, name)
        for architecture in ARCHITECTURES
        for precision, row in tiles.CONV[architecture].items()
        for place in range(len(row))
        for name in PRODUCTS
        if EVERY_TILE
        or (precision == "half" and place == 0 and (architecture == 90 or name in ("fwd", "wgrad")))
        or (precision == "ieee" and place == 0 and name == "fwd" and architecture == 90)
    ]


@pytest.mark.parametrize(("architecture", "precision", "place", "name"), cases())
def test_products(
    architecture: int, precision: str, place: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile = tiles.CONV[architecture][precision][place]
    monkeypatch.setattr(tiles, "choose", lambda *_: tile)
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        dtype = torch.bfloat16 if precision == "half" else torch.float32
        (binary,) = aot.compile_launches(architecture, conv_calls(dtype)[name])
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    assert (MATRIX[architecture] in binary.ptx) == (precision != "ieee")
    assert binary.local <= aot.LOCAL
    aot.check_launchable(binary)
    aot.check_offsets(binary)


@pytest.mark.parametrize("name", ["depthwise fwd", "depthwise dgrad", "depthwise wgrad"])
@pytest.mark.parametrize("architecture", ARCHITECTURES if EVERY_TILE else (90,))
def test_depthwise(architecture: int, name: str) -> None:
    (binary,) = aot.compile_launches(architecture, conv_calls(torch.bfloat16)[name])
    aot.check_launchable(binary)
    aot.check_offsets(binary)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("name", ["fwd", "bwd"])
@pytest.mark.parametrize("architecture", ARCHITECTURES if EVERY_TILE else (90,))
def test_batch_norm(architecture: int, name: str, layout: torch.memory_format) -> None:
    binaries = aot.compile_launches(architecture, norm_calls(torch.bfloat16, layout)[name])
    assert len(binaries) == 3
    for binary in binaries:
        aot.check_launchable(binary)
        aot.check_offsets(binary)


def test_odd_channels() -> None:
    """Channels that allow no loads of 16 bytes: by the tile for them, without large spills."""
    dtype, geometry = torch.bfloat16, ([1, 1], [1, 1], [1, 1], False)
    x, part = images(67, 8, dtype), images(35, 8, dtype)
    active, free = (torch.empty(n, i, 3, 3, dtype=dtype, device="meta") for n, i in
                    ((32, 32), (35, 67)))  # fmt: skip
    conv = masked_conv2d
    calls: list[Callable[[], Any]] = [
        lambda: conv.masked_conv2d_fwd(x, active, free, None, None, *geometry, "relu", True),
        lambda: conv.masked_conv2d_dgrad(part, x, free, 32, *geometry),
        lambda: conv.masked_conv2d_wgrad(part, x, [3, 3], *geometry, False),
    ]
    for call in calls:
        (binary,) = aot.compile_launches(90, call)
        assert binary.local <= aot.LOCAL
        assert MATRIX[90] in binary.ptx
