"""Figures: PNG files of the right size, with the same bytes for the same numbers."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from clnp import metrics, plots
from clnp.errors import DataError
from clnp.plots.figures import DPI

GROUPS = ("0", "2")
METHODS = [f"method-{k}" for k in range(9)]
ROWS = [
    {"method": name, "acc": 0.9 - 0.01 * k, "flops": 10.0 ** (9 + k), "seconds": 10.0 + s}
    for k, name in enumerate(METHODS)
    for s in range(2)
]


def numbers(tasks: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    R = np.where(np.tri(tasks, dtype=bool), 0.98 + 0.01 * rng.random(tasks), np.nan)
    capacities, reuses, used = [], [], 0
    for task in range(tasks):
        new, earlier = 3, [1] * task
        used += new
        counts = {"size": 100, "used": used, "new": new, "reused": task, "free": 100 - used}
        capacities.append(dict.fromkeys(GROUPS, counts))
        reuses.append(dict.fromkeys(GROUPS, earlier))
    epoch = {"epoch": 0, "loss": 0.5, "train_metric": 0.9, "validation_metric": 0.8}
    return R, capacities, reuses, [[epoch, epoch]] * tasks


def figures(tasks: int, seeds: int = 1):
    R, capacities, reuses, history = numbers(tasks)
    matrices = {g: metrics.reuse_matrix(capacities, reuses, g) for g in GROUPS}
    return {
        "R": plots.accuracy_heatmap(R),
        "mean": plots.mean_accuracy([numbers(tasks, s)[0] for s in range(seeds)]),
        "capacity": plots.capacity([capacities] * seeds),
        "reuse": plots.reuse(matrices),
        "curves": plots.training_curves(history),
        "methods": plots.mean_accuracies({name: [R] * seeds for name in METHODS}),
        "cost": plots.accuracy_against_cost(ROWS),
    }


@pytest.mark.parametrize(("tasks", "seeds"), [(1, 1), (10, 2), (25, 1)])
def test_png_files(tmp_path, tasks, seeds):
    for name, figure in figures(tasks, seeds).items():
        path = tmp_path / f"{name}.png"
        plots.save(figure, path)
        raw = path.read_bytes()
        assert raw[:8] == b"\x89PNG\r\n\x1a\n"
        size = struct.unpack(">II", raw[16:24])
        wanted = figure.get_size_inches() * DPI
        assert size == pytest.approx(tuple(wanted), abs=1)
        assert len(set(raw)) > 100  # not blank
    assert [p.suffix for p in tmp_path.iterdir()] == [".png"] * 7


def test_same_numbers_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        plots.save(figures(3)["capacity"], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_figures_show_their_numbers():
    R, capacities, _, _ = numbers(3)
    texts = [text.get_text() for text in plots.accuracy_heatmap(R).axes[0].texts]
    assert texts == [f"{100 * R[i, j]:.1f}" for i in range(3) for j in range(i + 1)]
    bars = plots.capacity([capacities]).axes[0].containers
    assert [bar.get_height() for bar in bars[2]] == pytest.approx([3, 3, 3])
    assert [bar.get_height() for bar in bars[3]] == pytest.approx([97, 94, 91])


def test_methods_are_told_apart():
    R = numbers(4)[0]
    lines = plots.mean_accuracies({name: [R, R] for name in METHODS}).axes[0].lines
    assert [line.get_label() for line in lines] == METHODS
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(METHODS)
    assert lines[0].get_ydata() == pytest.approx(100 * metrics.mean_accuracies(R))
    panels = plots.accuracy_against_cost(ROWS).axes
    for panel, key in zip(panels, ("flops", "seconds"), strict=True):
        points = [(x, y) for line in panel.lines for x, y in line.get_xydata()]
        assert points == [pytest.approx((row[key], 100 * row["acc"])) for row in ROWS]


def test_many_layers_make_several_rows_of_panels():
    counts = {"size": 10, "used": 4, "new": 4, "reused": 0, "free": 6}
    many = {f"layer{k}": counts for k in range(12)}
    matrices = {name: np.array([[4]]) for name in many}
    for figure, panels in ((plots.capacity([[many]]), 12), (plots.reuse(matrices), 13)):
        width, height = figure.get_size_inches()
        assert len(figure.axes) == panels  # one more for the colour bar
        assert width < 5 * 6
        assert height > 7


def test_all_figures_have_titles_and_labels():
    for figure in figures(2).values():
        axes = figure.axes
        assert figure.get_suptitle() or axes[0].get_title()
        assert any(a.get_ylabel() for a in axes)
        assert any(a.get_xlabel() for a in axes)


def test_pyplot_is_not_used(tmp_path):
    import subprocess
    import sys

    code = "import sys, clnp.plots.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.mean_accuracy([]),
        lambda: plots.mean_accuracy([[[1.0]], np.ones((2, 2))]),
        lambda: plots.capacity([]),
        lambda: plots.capacity([[]]),
        lambda: plots.reuse({}),
        lambda: plots.mean_accuracies({}),
        lambda: plots.mean_accuracies({"a": []}),
        lambda: plots.accuracy_against_cost([]),
    ],
)
def test_nothing_to_draw(draw):
    with pytest.raises(DataError, match="expected"):
        draw()
