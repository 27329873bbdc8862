"""Every Triton kernel compiled ahead of time for sm_80 to sm_120, without a GPU.

By default the forward product is compiled with each tile for bfloat16 and the first ones for
float32, and everything with the first tiles for bfloat16; CLNP_EVERY_TILE=1 compiles everything
with each tile (1 to 2 minutes).

Tested is what holds for every version of the compiler. Registers, spills, shared memory and the
width of loads differ from version to version: they are recorded (see conftest.py), not tested.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels can't be compiled", allow_module_level=True)

from clnp_kernels import chooser, ops  # noqa: F401  (notes what is absent)
from clnp_kernels.triton_kernels import _launch, channel_activity, masked_linear, persistent, tiles
from clnp_kernels.tune.cases import Layer, Maker
from clnp_kernels.tune.check import function_of
from tests.clnp_kernels.triton import aot

EVERY_TILE = os.environ.get("CLNP_EVERY_TILE") == "1"
ARCHITECTURES = (80, 90, 100)
PRODUCTS = ("fwd", "dgrad", "wgrad")
# the matrix instruction that each architecture must use, by precision
MATRIX = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


@pytest.fixture(autouse=True)
def _tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def calls(precision: str, rows: int, active_in: int, inputs: int) -> dict[str, Callable[[], Any]]:
    """The operators on tensors without memory, square layers."""
    dtype = torch.bfloat16 if precision == "half" else torch.float32
    # "none" is what a fresh process has
    torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"

    def empty(*sizes: int) -> Tensor:
        return torch.empty(*sizes, dtype=dtype, device="meta")

    x, y, free_out = empty(rows, inputs), empty(rows, inputs), inputs - active_in
    active, free = empty(active_in, active_in), empty(free_out, inputs)
    biases = empty(active_in), empty(free_out)
    part, images = y[:, active_in:], empty(64, 96, 14, 14)
    return {
        "fwd": lambda: masked_linear.masked_linear_fwd(x, active, free, *biases, "relu", True),
        "dgrad": lambda: masked_linear.masked_linear_dgrad(part, free, active_in),
        "wgrad": lambda: masked_linear.masked_linear_wgrad(part, x, True),
        "relu_grad": lambda: masked_linear.masked_linear_relu_grad(x, y, active_in, True),
        "activity of rows": lambda: channel_activity.channel_activity(x, 1),
        "activity of images": lambda: channel_activity.channel_activity(images, 1),
    }


def cases() -> list[tuple[int, str, int, str]]:
    """Architecture, precision, place of the tile in the table, kernel."""
    return [
        (architecture, precision, place, name)
        for architecture in ARCHITECTURES
        for precision, row in tiles.TILES[architecture].items()
        for place in range(len(row))
        for name in PRODUCTS
        if EVERY_TILE
        or (precision == "half" and place == 0)
        or (name == "fwd" and (precision == "half" or place == 0))
    ]


@pytest.mark.parametrize(("architecture", "precision", "place", "name"), cases())
def test_products(
    architecture: int, precision: str, place: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile = tiles.TILES[architecture][precision][place]
    monkeypatch.setattr(tiles, "choose", lambda *_: tile)
    (binary,) = aot.compile_launches(architecture, calls(precision, 8192, 2048, 4096)[name])
    assert (MATRIX[architecture] in binary.ptx) == (precision != "ieee")
    assert binary.local <= aot.LOCAL
    aot.check_launchable(binary)
    aot.check_offsets(binary)


PERSISTENT = [
    (architecture, place)
    for architecture in (90, 100, 120)
    for place in range(len(tiles.TILES[tiles.row_of(architecture)]["half"]))
    if EVERY_TILE or place == 0
]


@pytest.mark.skipif("triton-persistent" in chooser.absent, reason="triton has no descriptors")
@pytest.mark.parametrize(("architecture", "place"), PERSISTENT)
def test_persistent_product(architecture: int, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same instructions, tiles by TMA, and nothing kept in local memory."""
    row = tiles.row_of(architecture)
    tile = tiles.TILES[row]["half"][place]
    monkeypatch.setattr(tiles, "choose", lambda *_: tile)
    x, weight = (torch.empty(n, 4096, dtype=torch.bfloat16, device="meta") for n in (8192, 2048))
    bias = torch.empty(2048, dtype=torch.bfloat16, device="meta")
    arguments = (x, weight[:, :2048], weight, bias, bias, "relu", True)
    call = lambda: persistent.masked_linear_fwd(*arguments)  # noqa: E731
    (binary,) = aot.compile_launches(architecture, call)
    assert binary.name == "persistent_kernel"
    assert MATRIX[row] in binary.ptx
    assert binary.widest == "tma"
    assert binary.local <= aot.LOCAL
    aot.check_launchable(binary)


@pytest.mark.parametrize("name", ["relu_grad", "activity of rows", "activity of images"])
@pytest.mark.parametrize("precision", ["half", "ieee"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_others(architecture: int, precision: str, name: str) -> None:
    (binary,) = aot.compile_launches(architecture, calls(precision, 8192, 2048, 4096)[name])
    aot.check_launchable(binary)
    aot.check_offsets(binary)


@pytest.mark.parametrize("precision", tiles.UNALIGNED)
@pytest.mark.parametrize("architecture", ARCHITECTURES if EVERY_TILE else (90,))
def test_odd_sizes(architecture: int, precision: str) -> None:
    """Sizes that allow no loads of 16 bytes: by their own tiles, without large spills too."""
    for name, call in calls(precision, 4097, 1001, 2003).items():
        if EVERY_TILE or name == "dgrad" or precision == "half":
            (binary,) = aot.compile_launches(architecture, call)
            aot.check_launchable(binary)
            if name in PRODUCTS:
                assert binary.local <= aot.LOCAL
                assert (MATRIX[architecture] in binary.ptx) == (precision != "ieee")


def constants(boundary: int, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What triton compiles a launch for: its constants, and numbers that it specialises on."""
    seen: list[dict[str, Any]] = []

    def note(kernel: Any, programs: Any, like: Tensor, arguments: dict[str, Any]) -> None:
        names = [p.name for p in kernel.params if p.is_constexpr or not p.do_not_specialize]
        options = [name for name in arguments if name.startswith("num_")]
        seen.append({
            name: arguments[name]
            for name in (*names, *options)
            if not isinstance(arguments[name], Tensor)
        })  # fmt: skip

    device = _launch.Device(90, *aot.DEVICES[90])
    with monkeypatch.context() as patch:
        patch.setattr(_launch, "describe", lambda _: device)
        patch.setattr(_launch, "launch", note)
        calls("half", 4096, boundary, 3 * boundary)[name]()
    return seen[0]


@pytest.mark.parametrize("name", [*PRODUCTS, "relu_grad", "activity of rows"])
def test_one_binary_for_an_alignment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A boundary that moves by multiples of 8 compiles nothing, and an odd one is told apart."""
    one, other, odd = (constants(n, name, monkeypatch) for n in (1000, 1008, 1001))
    assert one == other
    assert 8 in one.values()
    assert odd != one


def test_units() -> None:
    """What divides all numbers, up to 8 elements; products with it stay below 2^31."""
    assert _launch.align_of(1000, 2008) == 8
    assert _launch.align_of(1000, 2004) == 4
    assert _launch.align_of(1001, 16) == 1
    assert _launch.align_of(0, 16) == 8
    assert _launch.align_of() == 8
    assert _launch.align_of(16, 2**31 + 16) == 1
    assert _launch.in_units(8, a=1000, b=0) == {"a": 125, "b": 0}


OPTIMIZERS = ("adam_l1", "sgd_l1")


@pytest.mark.parametrize("architecture", ARCHITECTURES if EVERY_TILE else (90,))
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str, architecture: int) -> None:
    """A launch that fills the table, and one for all tensors; no copy from the host."""
    layer = Layer(64, 16, 16, 16, 16)
    arguments = Maker(layer, torch.bfloat16, "meta").arguments(name)
    binaries = aot.compile_launches(architecture, lambda: function_of(name, "triton")(*arguments))
    assert len(binaries) == 2
    for binary in binaries:
        aot.check_launchable(binary)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_choice(architecture: int) -> None:
    """Large results take large tiles, small ones smaller tiles; little memory is respected."""
    processors, shared = aot.DEVICES[architecture]
    for precision, row in tiles.TILES[architecture].items():

        def choose(size: int, shared: int = shared, aligned: bool = True) -> tiles.Tile:
            sizes = size, (size,), aligned, processors, shared
            return tiles.choose(architecture, precision, *sizes)  # noqa: B023

        assert choose(8192) == row[0]
        assert choose(64) == row[-1]
        assert choose(8192, shared=0) == row[-1]
        assert choose(8192, aligned=False) == tiles.UNALIGNED[precision]
        element = 2 if precision == "half" else 4
        assert all(tile.shared(element) <= 99 * 1024 for tile in row[-1:])


def test_choice_wastes_little() -> None:
    """Narrow results take narrow tiles, and each side of the boundary counts by itself."""
    processors, shared = aot.DEVICES[90]

    def choose(rows: int, *sides: int) -> tiles.Tile:
        return tiles.choose(90, "half", rows, sides, True, processors, shared)

    assert choose(100_000, 32).columns == 32
    assert choose(100_000, 10).columns == 32
    assert choose(100_000, 256).columns == 256
    assert choose(100_000, 128, 128).columns == 128
    assert choose(256, 2000) == tiles.TILES[90]["half"][-1]


def test_choice_counts_waves() -> None:
    """128 tiles of 128 x 128 are one wave of 132 multiprocessors, and stay whole."""
    processors, shared = aot.DEVICES[90]
    tile = tiles.choose(90, "half", 1024, (2048,), True, processors, shared)
    assert (tile.rows, tile.columns) == (128, 128)
    tile = tiles.choose(90, "half", 1024 + 128, (2048,), True, processors, shared)
    assert tile.cover(1152, (2048,)) <= processors or tile.rows * tile.columns < 128 * 128


def test_long_sums_of_few_tiles_are_cut() -> None:
    assert tiles.parts_of(100, 1 << 20, 132) == 1
    assert tiles.parts_of(4, 256, 132) == 1
    assert tiles.parts_of(4, 4096, 132) == 8
    assert tiles.parts_of(0, 0, 132) == 1
    assert tiles.parts_of(66, 1 << 20, 132) == 2


def test_rows_of_the_table() -> None:
    rows = {tiles.row_of(capability) for capability in (80, 86, 89, 90, 100, 103, 120, 121)}
    assert rows == {80, 90, 100}
    assert tiles.row_of(120) == tiles.row_of(89) == 80
    assert tiles.row_of(103) == 100
