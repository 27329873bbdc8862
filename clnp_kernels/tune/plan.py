"""Measurements of `clnp tune`, for usual layers or those of a network's file; its options."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .calls import MODES, Key, call_of
from .cases import Layer, Maker

DTYPES = ("bfloat16", "float32")
LINEAR = tuple(f"masked_linear_{part}" for part in ("fwd", "relu_grad", "dgrad", "wgrad"))
CONV = tuple(f"masked_conv2d_{part}" for part in ("fwd", "relu_grad", "dgrad", "wgrad"))
NORM = ("partial_batch_norm_fwd", "partial_batch_norm_bwd", "channel_activity")
LAYER_NORM = ("partial_layer_norm_fwd", "partial_layer_norm_bwd")
OPTIMIZERS = ("adam_l1", "sgd_l1")
ROWS, SIDE = 256, 16  # examples of a batch; height of an image where a file does not say
LONGEST = 100 << 20  # bytes of a file's header


@dataclass(frozen=True)
class Job:
    """A measurement: an operator for a layer."""

    operator: str
    layer: Layer
    dtype: str
    mode: str

    @property
    def key(self) -> Key:
        """The key of its entry."""
        made = Maker(self.layer, getattr(torch, self.dtype), "meta")
        return call_of(self.operator, made.arguments(self.operator), self.mode).key

    @property
    def name(self) -> str:
        """In words, for a line."""
        layer = self.layer
        sizes = (
            f"{layer.rows} x ({layer.active_in} + {layer.free_in}) -> "
            f"{layer.active_out} + {layer.free_out}"
        )
        return f"{self.operator} {self.dtype} {self.mode} {sizes}"

    def message(self, *, every_tile: bool) -> dict[str, Any]:
        """The job for a worker."""
        return {"kind": "measure", **asdict(self), "every_tile": every_tile}

    def with_half_the_rows(self) -> Job:
        """The same for half as many examples."""
        return replace(self, layer=replace(self.layer, rows=self.layer.rows // 2))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FILE",
        help="measure the layers of this network (.safetensors), not usual sizes",
    )
    parser.add_argument(
        "--full", action="store_true", help="more sizes and every tile: 10 minutes, not 90 seconds"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="also write the table, for CLNP_KERNEL_TABLE"
    )
    parser.add_argument("--device", default="cuda", help="GPU (default: %(default)s)")


def measurements(layers: Sequence[Layer] | None, *, full: bool) -> list[Job]:
    """The jobs for these layers, or for usual ones; the most telling first."""
    jobs = []
    for layer in layers or usual_layers(full=full):
        linear = (*LINEAR, "channel_activity", *LAYER_NORM, *OPTIMIZERS)
        operators = (*CONV, *NORM) if layer.side else linear
        for operator in operators:
            for mode in reversed(MODES):
                dtypes = ("float32",) if operator in OPTIMIZERS else DTYPES
                jobs += [Job(operator, layer, dtype, mode) for dtype in dtypes]
    kinds: dict[Key, Job] = {}
    for job in jobs:  # layers that are nearly alike are one kind
        kinds.setdefault(job.key, job)
    return [*kinds.values()]


def usual_layers(*, full: bool) -> Iterator[Layer]:
    """Layers as those of the paper's networks."""
    for rows, width in ((256, 2000), (256, 1024), (4096, 4096))[: 3 if full else 2]:
        yield from _at_fractions(Layer(rows, 0, width, 0, width), full=full)
    for channels, side in ((64, 16), (256, 14), (512, 7))[: 3 if full else 1]:
        yield from _at_fractions(Layer(128, 0, channels, 0, channels, side), full=full)


def _at_fractions(layer: Layer, *, full: bool) -> Iterator[Layer]:
    """A layer with parts of it frozen, at even boundaries and at odd ones."""
    for quarters in (2, 0, 3, 1) if full else (2, 0):
        active_in, active_out = (
            n * quarters // 4 // 16 * 16 for n in (layer.inputs, layer.outputs)
        )
        yield _split(layer, active_in, active_out)
        if quarters:
            yield _split(layer, active_in | 1, active_out | 1)


def _split(layer: Layer, active_in: int, active_out: int) -> Layer:
    free_in, free_out = layer.inputs - active_in, layer.outputs - active_out
    return replace(
        layer, active_in=active_in, free_in=free_in, active_out=active_out, free_out=free_out
    )


def layers_of_file(file: Path) -> list[Layer]:
    """The layers of a network's file, from the shapes of its weights, at several fractions.

    Images are taken to be 16 high, batches to have 256 rows (128 for images).

    Raises:
        ValueError: no file of safetensors, or no weights in it.
        OSError: it can't be read.
    """
    layers: dict[Layer, None] = {}
    for outputs, inputs, *kernel in _weights(file):
        if kernel and kernel[0] == kernel[-1]:
            layer = Layer(ROWS // 2, 0, inputs, 0, outputs, SIDE, kernel[0], padding=kernel[0] // 2)
        elif not kernel:
            layer = Layer(ROWS, 0, inputs, 0, outputs)
        else:
            continue
        layers |= dict.fromkeys(_at_fractions(layer, full=False))
    if not layers:
        raise ValueError(f"--model: expected a network with weights, got {file} without any")
    return [*layers]


def _weights(file: Path) -> Iterator[tuple[int, ...]]:
    """Shapes [O, I, ...] of the whole weights of all layers in a file of safetensors."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        try:
            if length > LONGEST:
                raise ValueError("no header")
            header = json.loads(opened.read(length))
            shapes = {name: tuple(one["shape"]) for name, one in header.items() if "shape" in one}
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"--model: expected a file of safetensors, got {file}") from error
    for name, shape in shapes.items():
        if name.endswith("free_weight") and len(shape) in (2, 4):
            active = shapes.get(name[: -len("free_weight")] + "active_weight", (0,))
            yield (active[0] + shape[0], *shape[1:])
        elif name.endswith(".weight") and len(shape) in (2, 4):
            yield shape
