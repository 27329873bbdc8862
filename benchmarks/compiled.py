"""Every Triton kernel as the compiler makes it, by architecture and alignment of the boundaries.

``python -m benchmarks.compiled``: ahead of time, without a GPU, for the installed triton; some 5
minutes of a core for each architecture. Layers have n active and 2 n free channels on both sides,
at bfloat16 (optimizers: float32 too), images in both memory formats.

Columns of ``benchmarks/results/compiled/boundaries.csv``: registers and bytes of local memory
(spills, stack) of a thread, bytes of shared memory of a program, the widest load from global memory
in bytes, and what copies to shared memory in the background.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from math import gcd
from pathlib import Path
from typing import Any

import torch

from benchmarks.pages.markdown import table
from clnp.cli.once import OnceParser
from clnp_kernels.chooser import OFFERS, PERSISTENT
from clnp_kernels.tune.calls import ALIGNMENTS, LISTS, OPERATORS, runs, takes
from clnp_kernels.tune.cases import Layer, Maker

FILE = Path(__file__).parent / "results" / "compiled" / "boundaries.csv"
ARCHITECTURES = (80, 86, 90, 100, 120)
BOUNDARIES = (1000, 1001, 1008)
COLUMNS = ("triton", "architecture", "operator", "images", "kernel", "dtype", "boundary", "tile",
           "warps", "registers", "local", "shared", "widest", "copies")  # fmt: skip
Row = dict[str, Any]


def layers(operator: str, n: int) -> Iterator[tuple[str, Layer]]:
    """Layers of an operator, and a word for their images."""
    layer = Layer(1024, n, 2 * n, n, 2 * n)
    if operator in LISTS or "linear" in operator or "layer_norm" in operator:
        yield "", layer
        return
    images = replace(layer, rows=64, side=16)  # 16 x 15 pixels
    yield "channels_last", images
    if operator.startswith("masked_conv2d"):
        if "relu" not in operator:
            yield "depthwise", replace(images, depthwise=True)
    else:
        yield "planes", replace(images, last=False)


def kinds(architecture: int, n: int) -> Iterator[tuple[str, str, torch.dtype]]:
    """Operators, their implementations in Triton for an architecture, and dtypes."""
    for operator in OPERATORS:
        dtypes = (torch.bfloat16, torch.float32) if operator in LISTS else (torch.bfloat16,)
        for implementation in ("triton", PERSISTENT):
            if implementation not in OFFERS[operator] or not runs(implementation, architecture):
                continue
            for dtype in dtypes:
                if takes(implementation, dtype, gcd(n, ALIGNMENTS[0])):
                    yield operator, implementation, dtype


def rows(architecture: int, n: int) -> Iterator[Row]:
    """All kernels for boundaries at n and 3 n."""
    import triton

    from benchmarks.ahead_of_time import compile_launches
    from clnp_kernels.tune.check import function_of

    for operator, implementation, dtype in kinds(architecture, n):
        function = function_of(operator, implementation)
        for images, layer in layers(operator, n):
            arguments = Maker(layer, dtype, "meta").arguments(operator)
            for one in compile_launches(architecture, lambda: function(*arguments)):  # noqa: B023
                yield {
                    **{"triton": triton.__version__, "architecture": architecture},
                    **{"operator": operator, "images": images, "kernel": one.name},
                    **{"dtype": str(dtype).partition(".")[2], "boundary": n, "tile": one.tile},
                    **{"warps": one.warps, "registers": one.registers, "local": one.local},
                    **{"shared": one.shared, "widest": one.widest, "copies": one.copies},
                }


def read() -> list[dict[str, str]]:
    """The committed rows."""
    with FILE.open(newline="") as file:
        return list(csv.DictReader(file))


def text() -> str:
    """The table of the documentation: registers, widest load and spills at bfloat16."""
    found: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for row in read():
        if row["dtype"] == "bfloat16" and (row["boundary"] != "1008"):
            name = (row["operator"], row["images"], row["kernel"].removesuffix("_kernel"))
            cells = found.setdefault(name, {}).setdefault(row["architecture"], [])
            spilled = f" ({row['local']} B spilled)" if row["local"] != "0" else ""
            copies = f" {row['copies']}" if row["copies"] else ""
            loads = "TMA" if row["widest"] == "tma" else f"{row['widest']} B{copies}"
            cells.append(f"{row['registers']}, {loads}{spilled}")
    present = sorted({int(row["architecture"]) for row in read()})
    head = ["operator", "kernel", *(f"sm_{a}" for a in present)]
    lines = []
    for (operator, images, kernel), by_architecture in found.items():
        title = f"`{operator}`" + (f", {images}" if images else "")
        shown = (" / ".join(by_architecture.get(str(a), [])) for a in present)
        lines.append([title, kernel, *shown])
    versions = ", ".join(dict.fromkeys(row["triton"] for row in read()))
    return (
        f"By triton {versions}: registers of a thread and the widest load, at boundaries that are "
        "multiples of 8 (1000 and 1008 give one binary) / at odd ones (1001).\n\n"
        + table(head, lines)
    )


def main() -> None:
    """Compile, and write the table."""
    parser = OnceParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--csv", type=Path, default=FILE)
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES)
    arguments = parser.parse_args()
    with arguments.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for architecture in arguments.architectures:
            for n in BOUNDARIES:
                for row in rows(architecture, n):
                    writer.writerow(row)
                    file.flush()


if __name__ == "__main__":
    main()
