"""Draws the pictures of docs/method.md: python docs/images/draw.py"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from svg import Drawing  # noqa: E402

CAPACITY = HERE.parents[1] / "benchmarks" / "results" / "permuted-mnist" / "capacity.csv"


def task_life() -> Drawing:
    """What happens to ten channels of a hidden layer in a network's second task."""
    picture = Drawing(760, 286, "The life of a task: begin, train, prune, consolidate, verify")
    frozen, free = ["frozen"] * 3, ["free"] * 7
    stays = [True, False, True, False, False, True, False]
    pruned = ["free" if stay else "none" for stay in stays]
    stages = [
        ("begin", "free weights are\ndrawn anew", frozen + ["none"] * 7),
        ("train", "only they learn,\nwith an L1 penalty", frozen + free),
        ("prune", "channels of little\nactivity are cut", frozen + pruned),
        ("consolidate", "what stays moves to\nthe front, frozen", ["frozen"] * 6 + ["none"] * 4),
        ("verify", "logits of tasks 0 to k:\nthe same bits", ["frozen"] * 6 + ["none"] * 4),
    ]
    for i, (name, words, channels) in enumerate(stages):
        x = 76 + 152 * i
        picture.text(x, 26, name, "ink title", "middle")
        for row, kind in enumerate(channels):
            picture.box(x - 14, 40 + 17 * row, 28, 14, kind)
        if name == "prune":
            _activity(picture, x + 18, stays)
        picture.lines(x, 230, words)
        if i:
            picture.arrow(f"M{x - 102} 118H{x - 50}")
    picture.arrow("M684 256V270H76V258")
    picture.text(380, 266, "next task", "small ink", "middle")
    return picture


def _activity(picture: Drawing, x: float, stays: list[bool]) -> None:
    """Bars of mean activity beside the free channels, and the threshold."""
    high, low = iter((26, 34, 22)), iter((6, 3, 8, 2))
    for row, stay in enumerate(stays):
        length = next(high) if stay else next(low)
        picture.box(x, 95 + 17 * row, length, 6, "free" if stay else "older")
    picture.parts.append(f'<path d="M{x + 14} 88V212" class="arrow" stroke-dasharray="3 3"/>')


def masks_are_shapes() -> Drawing:
    """One weight matrix as the paper has it, and as it is stored."""
    picture = Drawing(760, 330, "A weight matrix with masks, and the same one as two tensors")
    size, cell = 8, 26
    rows, columns = {1, 4, 6}, {0, 3, 5, 7}
    left, top = 54, 66
    picture.text(left + 104, 24, "in the paper: masks", "ink title", "middle")
    picture.lines(left + 104, 42, "active channels anywhere")
    for i in range(size):
        for j in range(size):
            kind = _kind(i in rows, j in columns)
            picture.box(left + cell * j, top + cell * i, cell - 2, cell - 2, kind)
    picture.lines(left + 104, 296, "inputs")
    picture.lines(left - 30, top + 106, "out-\nputs")
    picture.arrow("M276 170H372")
    picture.lines(324, 136, "channels in the\norder in which")
    picture.lines(324, 190, "tasks claimed\nthem")
    left, active_in, active_out = 390, 104, 78
    picture.text(left + 104, 24, "here: two tensors, no mask", "ink title", "middle")
    picture.lines(left + 104, 42, "the boundary is their shape")
    picture.box(left, top, active_in - 2, active_out - 2, "frozen")
    picture.box(left + active_in, top, 206 - active_in, active_out - 2, "hatch")
    picture.box(left, top + active_out, 206, 206 - active_out, "free")
    picture.text(left + 51, top + 42, "frozen", "page title", "middle")
    for words, y in (
        ("active_weight [Oa, Ia]", top + 20),
        ("a buffer, no parameter", top + 36),
        ("(hatched) interference:", top + 60),
        ("does not exist", top + 76),
        ("free_weight [Of, I]", top + 130),
        ("the only parameter", top + 146),
    ):
        kind = "small code ink" if "[" in words else "small faint"
        picture.text(left + 216, y, words, kind)
    picture.text(left + 103, top + 146, "free", "label title", "middle")
    picture.lines(left + 51, 296, "Ia active inputs")
    picture.lines(left + 157, 296, "If free inputs")
    return picture


def _kind(active_row: bool, active_column: bool) -> str:
    if not active_row:
        return "free"
    return "frozen" if active_column else "hatch"


def work_skipped() -> Drawing:
    """The parts of the weight matrix that the three products of a layer touch."""
    picture = Drawing(760, 262, "Work of forward, input gradient and weight gradient")
    size, active = 130, 65
    panels = [
        ("forward", "1 - a(1 - a)", ("frozen", "hatch", "free", "free")),
        ("input gradient", "(1 - a)\u00b2", ("hatch", "hatch", "hatch", "free")),
        ("weight gradient", "1 - a", ("hatch", "hatch", "free", "free")),
    ]
    for i, (name, share, kinds) in enumerate(panels):
        x, y = 110 + 210 * i, 44
        picture.text(x + size / 2, 26, name, "ink title", "middle")
        corners = [(0, 0), (active, 0), (0, active), (active, active)]
        for (right, down), kind in zip(corners, kinds, strict=True):
            picture.box(x + right, y + down, active - 2, active - 2, kind)
        picture.text(x + size / 2, 198, share, "ink", "middle")
        picture.lines(x + size / 2, 216, "of the dense layer's work")
    picture.lines(20, 80, "frozen\noutputs", "start")
    picture.lines(20, 145, "free\noutputs", "start")
    picture.lines(380, 246, "a: fraction of frozen channels on both sides; hatched: not computed")
    return picture


def capacity(path: Path = CAPACITY) -> Drawing:
    """Channels of both hidden layers of the committed run over permuted MNIST, task by task."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    picture = Drawing(760, 292, "Channels used and free after every task of permuted MNIST")
    for i, layer in enumerate(layers):
        left, height = 40 + 370 * i, 190
        picture.text(left + 165, 24, f"{layer}, {rows[0]['size']} channels", "ink title", "middle")
        for k, row in enumerate(r for r in rows if r["layer"] == layer):
            _bar(picture, left + 33 * k, 40, height, {n: int(row[n]) for n in NUMBERS})
            picture.text(left + 33 * k + 14, 246, row["task"], "small faint", "middle")
        picture.text(left + 165, 262, "task", "small faint", "middle")
    for i, (kind, words) in enumerate(LEGEND):
        x = 60 + 172 * i
        picture.box(x, 272, 12, 12, kind)
        picture.text(x + 18, 282, words, "small ink")
    return picture


NUMBERS = ("size", "used", "new", "reused", "free")
LEGEND = (
    ("frozen", "earlier, reused"),
    ("older", "earlier, not read"),
    ("free", "new with this task"),
    ("none", "free"),
)


def _bar(picture: Drawing, x: float, top: float, height: float, n: dict[str, int]) -> None:
    """One stacked bar, free channels on top."""
    older = n["used"] - n["new"] - n["reused"]
    parts = {"none": n["free"], "free": n["new"], "older": older, "frozen": n["reused"]}
    for kind, channels in parts.items():
        part = round(height * channels / n["size"], 1)
        if part:
            picture.box(x, top, 28, part, kind)
        top += part


DRAWINGS = {
    "task-life": task_life,
    "masks-are-shapes": masks_are_shapes,
    "work-skipped": work_skipped,
    "capacity": capacity,
}

if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        draw().save(HERE / f"{name}.svg")
