"""Work and traffic of every kernel for the paper's three networks, against the least possible.

Layer norms, which these networks lack, are those of a transformer.

``python -m benchmarks.bytes_and_flops``: a count, no measurement; it needs no GPU. One training
step with a batch of 256 at bfloat16 (optimizer: float32), every hidden layer frozen by the same
fraction, on an H200: tiles as ``clnp_kernels.triton_kernels.tiles`` chooses them there.

Columns of ``benchmarks/results/bytes_and_flops.csv``:

- ``gflop`` least: every multiply-add that the operator's definition has; ``issued``: those that the
  tiles compute, with the padding of their edges.
- ``mbyte`` least: every input read once, every output written once; ``moved``: what the launches
  of the operator read and write in device memory. A tensor that a launch reads several times while
  it lies in the L2 cache (60 MB; a launch walks over it once) counts once.
- ``reason``: why more than 1.5 times the least is moved or issued.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import torch
from torch import nn

from clnp.cli.once import OnceParser
from clnp.models.networks import mlp, narrow, wide

RESULTS = Path(__file__).parent / "results" / "bytes_and_flops.csv"
BATCH, FRACTIONS, LIMIT = 256, (0.0, 0.5, 0.75), 1.5
BF16, FP32 = 2, 4
PROCESSORS, SHARED = 132, 232448  # of an H200
NETWORKS = {
    "784-2000-2000-10": (lambda: mlp(), (784,)),
    "Table 2 (narrow)": (lambda: narrow(), (3, 32, 32)),
    "Table 3 (wide)": (lambda: wide(), (3, 32, 32)),
}
EDGES = "tiles are at least 64 x 64 or 128 x 32, and this side has fewer channels"
SPLIT = "few tiles: the sum over pixels is split among multiprocessors, its parts are added after"
NORMS = {"LayerNorm, 768 channels": (8192, 768)}  # rows and channels
SUMS = "sums along a row and sums over rows are two launches: gradient and input are read twice"
TWICE = "the statistics need the whole batch before the first output: images are read twice"


@dataclass(frozen=True)
class Layer:
    """A layer as it was called: sizes in channels and pixels; kernel 0 is a batch norm."""

    name: str
    inputs: int
    outputs: int
    kernel: int
    pixels_in: int  # of the batch
    pixels: int  # of the batch, of the output
    active_in: int
    active_out: int
    first: bool  # its input is data, which needs no gradient
    bias: bool  # without one a batch norm follows, which has the ReLU


@dataclass(frozen=True)
class Count:
    """Work of one operator of one layer: multiply-adds * 2, and bytes."""

    op: str
    flop: float
    issued: float
    least: float
    moved: float
    reason: str = ""


def layers_of(net: nn.Module, shape: tuple[int, ...], fraction: float) -> list[Layer]:
    """The layers of a network, in the order of their calls."""
    found: list[Layer] = []
    frozen = {"in": -1}

    def note(name: str, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        first = frozen["in"] < 0
        inputs, pixels_in, pixels = x.shape[1], x.numel() // x.shape[1], y.numel() // y.shape[1]
        flat = 1
        if isinstance(module, nn.Linear) and not first:  # of a flattened image
            flat = inputs // channels["count"]
        active_in = (inputs if fraction else 0) if first else frozen["in"] * flat
        if isinstance(module, nn.BatchNorm2d):
            active, kernel = frozen["in"], 0
        else:
            active = 0 if name.endswith("head") else round(y.shape[1] * fraction)
            kernel = module.kernel_size[0] if isinstance(module, nn.Conv2d) else 1
            frozen["in"], channels["count"] = active, y.shape[1]
        sizes = (inputs, y.shape[1], kernel, pixels_in, pixels, active_in, active)
        found.append(Layer(name, *sizes, first, module.bias is not None))

    channels = {"count": 1}
    for name, module in net.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.BatchNorm2d)):
            module.register_forward_hook(lambda m, x, y, name=name: note(name, m, x[0], y))
    net.to("meta")(torch.empty(BATCH, *shape, device="meta"))
    return found


def issued(
    rows: int, parts: list[tuple[int, int]], taps: int, aligned: bool, conv: bool
) -> tuple[float, int]:
    """Floating-point operations of the tiles of a product, and how many tiles it has.

    ``parts`` are (columns, depth) of each side of the boundary.
    """
    from clnp_kernels.triton_kernels import tiles

    table = tiles.CONV if conv else tiles.TILES
    sides = tuple(count for count, _ in parts)
    tile = tiles.choose(90, "half", rows, sides, aligned, PROCESSORS, SHARED, table)
    total, number = 0.0, 0
    for count, depth in parts:
        cover = ceil(rows / tile.rows) * ceil(count / tile.columns)
        work = ceil(depth / tile.depth) * tile.depth * taps if depth else 0
        total += 2.0 * cover * tile.rows * tile.columns * work
        number += cover
    return total, number


def product(layer: Layer) -> Iterator[Count]:
    """The operators of a linear layer or a convolution."""
    inputs, outputs, taps = layer.inputs, layer.outputs, layer.kernel**2
    active_in, active_out = layer.active_in, layer.active_out
    free_in, free_out = inputs - active_in, outputs - active_out
    conv, m, m_in = layer.kernel > 1, layer.pixels, layer.pixels_in
    name = "masked_conv2d" if conv else "masked_linear"
    aligned = all(n % 8 == 0 for n in (inputs, active_in, free_out))  # 16 bytes
    weights = taps * (active_out * active_in + free_out * inputs)
    y, x, grad = m * outputs * BF16, m_in * inputs * BF16, m * free_out * BF16

    flop = 2.0 * m * weights
    done, _ = issued(m, [(free_out, inputs), (active_out, active_in)], taps, aligned, conv)
    least = x + weights * BF16 + outputs * BF16 + y
    reason = EDGES if done > LIMIT * flop else ""
    yield Count(f"{name}_fwd", flop, done, least, least, reason)
    if layer.name != "head" and layer.bias:
        least = 3 * grad + free_out * BF16  # gradient and output in, gradient out
        yield Count(f"{name}_relu_grad", 0, 0, least, least)
    if not layer.first:
        flop = 2.0 * m * taps * free_out * free_in
        done, _ = issued(m_in, [(free_in, free_out)], taps, aligned, conv)
        done *= flop / (2.0 * m_in * taps * free_out * free_in) if flop else 0.0
        least = grad + taps * free_out * free_in * BF16 + m_in * inputs * BF16
        reason = EDGES if done > LIMIT * flop else ""
        yield Count(f"{name}_dgrad", flop, done, least, least, reason)
    yield _wgrad(layer, name, aligned, conv, x + grad)


def _wgrad(layer: Layer, name: str, aligned: bool, conv: bool, read: int) -> Count:
    taps, m = layer.kernel**2, layer.pixels
    free_out, inputs = layer.outputs - layer.active_out, layer.inputs
    result = taps * free_out * inputs
    flop = 2.0 * m * result
    done, number = issued(free_out, [(inputs, m)] * taps, 1, aligned, conv)
    least = read + (result + free_out) * BF16
    moved = float(least)
    reason = EDGES if done > LIMIT * flop else ""
    if conv:
        from clnp_kernels.triton_kernels import masked_conv2d

        parts = max(1, masked_conv2d.WAVES * PROCESSORS // max(number, 1))
        parts = max(1, min(parts, m // masked_conv2d.PART))
    else:
        from clnp_kernels.triton_kernels import tiles

        parts = tiles.parts_of(number, m, PROCESSORS)
    if parts > 1:  # written and read in float32
        moved += 2 * parts * result * FP32
    reason = SPLIT if moved > LIMIT * least else reason
    return Count(f"{name}_wgrad", flop, done, least, moved, reason)


def norm(layer: Layer) -> Iterator[Count]:
    """Batch normalisation in training, with ReLU."""
    channels, m = layer.outputs, layer.pixels
    free, image = channels - layer.active_out, m * channels * BF16
    part = m * free * BF16
    vectors = 8 * channels * FP32
    least, moved = 2 * image + vectors, 2 * image + part + vectors
    reason = TWICE if moved > LIMIT * least else ""
    yield Count("partial_batch_norm_fwd", 0, 0, least, moved, reason)
    least = 3 * part + image + vectors  # gradient, x, y of free channels; gradient of x
    moved = 6 * part + image + vectors
    yield Count(
        "partial_batch_norm_bwd", 0, 0, least, moved, TWICE if moved > LIMIT * least else ""
    )


def layer_norm(rows: int, channels: int, fraction: float) -> Iterator[Count]:
    """Layer normalisation in blocks; the second walk over a row finds it in the cache."""
    free = channels - round(channels * fraction)
    tensor, part = rows * channels * BF16, rows * free * BF16
    vectors, statistics = 2 * channels * FP32, 2 * rows * FP32
    least = 2.0 * tensor + vectors + statistics
    yield Count("partial_layer_norm_fwd", 0, 0, least, least)
    # gradient and x of free channels in, gradients out; again in for those of weight and bias
    least = 2 * part + tensor + 3 * free * FP32 + statistics
    moved = least + 2 * part + statistics
    reason = SUMS if moved > LIMIT * least else ""
    yield Count("partial_layer_norm_bwd", 0, 0, least, moved, reason)


def counts(layer: Layer) -> Iterator[Count]:
    """All operators of a layer in one step, and of a measurement of the activity."""
    yield from norm(layer) if layer.kernel == 0 else product(layer)
    if layer.name != "head":
        least = layer.pixels * layer.outputs * BF16 + layer.outputs * FP32
        yield Count("channel_activity", 0, 0, least, least)
    if layer.kernel:
        taps = layer.kernel**2
        free = (layer.outputs - layer.active_out) * (taps * layer.inputs + 1)
        # weight, gradient and two moments in; weight and moments out
        yield Count("adam_l1", 0, 0, 7 * free * FP32, 7 * free * FP32)
        yield Count("sgd_l1", 0, 0, 5 * free * FP32, 5 * free * FP32)


def rows() -> list[dict[str, object]]:
    """The table."""
    table: list[dict[str, object]] = []
    for network, (make, shape) in NETWORKS.items():
        for fraction in FRACTIONS:
            for layer in layers_of(make(), shape, fraction):
                for count in counts(layer):
                    table.append(_row(network, fraction, layer.name, count))
    for network, sizes in NORMS.items():
        for fraction in FRACTIONS:
            rows_of = layer_norm(*sizes, fraction)
            table += [_row(network, fraction, "norm", count) for count in rows_of]
    return table


def _row(network: str, fraction: float, layer: str, count: Count) -> dict[str, object]:
    def ratio(value: float, least: float) -> float | str:
        return round(value / least, 3) if least else ""

    return {
        "network": network,
        "fraction": fraction,
        "layer": layer,
        "op": count.op,
        "gflop": round(count.flop / 1e9, 4),
        "gflop issued": round(count.issued / 1e9, 4),
        "issued / least": ratio(count.issued, count.flop),
        "mbyte": round(count.least / 1e6, 4),
        "mbyte moved": round(count.moved / 1e6, 4),
        "moved / least": ratio(count.moved, count.least),
        "reason": count.reason,
    }


def unexplained(table: list[dict[str, object]]) -> list[dict[str, object]]:
    """Rows above the limit without a reason."""
    over = []
    for row in table:
        ratios = (row["issued / least"], row["moved / least"])
        if any(isinstance(r, float) and r > LIMIT for r in ratios) and not row["reason"]:
            over.append(row)
    return over


def show(table: list[dict[str, object]]) -> None:
    """Print the table without its reasons, then these."""
    form = "{network:18}{fraction:5} {layer:8}{op:26}{gflop:>9} {issued:>6} {mbyte:>9} {moved:>6}"
    print(form.format(network="network", fraction="froz.", layer="layer", op="operator",
                      gflop="GFLOP", issued="x", mbyte="MB", moved="x"))  # fmt: skip
    for row in table:
        ratios = {"issued": row["issued / least"], "moved": row["moved / least"]}
        print(form.format(**{**row, **ratios}))
    for reason in sorted({str(row["reason"]) for row in table if row["reason"]}):
        number = sum(row["reason"] == reason for row in table)
        print(f"{number} rows: {reason}")


def main() -> None:
    """Print the table and write it."""
    parser = OnceParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--csv", type=Path, default=RESULTS)
    path = parser.parse_args().csv
    table = rows()
    show(table)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    missing = unexplained(table)
    if missing:
        raise SystemExit(f"{len(missing)} rows move too much without a reason: {missing[0]}")


if __name__ == "__main__":
    main()
