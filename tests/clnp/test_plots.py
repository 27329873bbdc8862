"""Figures: real PNG files of the size they should have, the same bytes for the same numbers."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from clnp import diagnostics, plots
from clnp.errors import DataError

GROUPS = ("0", "2")


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
    epoch = {"epoch": 0, "loss": 0.5, "train_accuracy": 0.9, "validation_accuracy": 0.8}
    return R, capacities, reuses, [[epoch, epoch]] * tasks


def figures(tasks: int, seeds: int = 1):
    R, capacities, reuses, history = numbers(tasks)
    matrices = {g: diagnostics.reuse_matrix(capacities, reuses, g) for g in GROUPS}
    return {
        "R": plots.accuracy_heatmap(R),
        "mean": plots.mean_accuracy([numbers(tasks, s)[0] for s in range(seeds)]),
        "capacity": plots.capacity([capacities] * seeds),
        "reuse": plots.reuse(matrices),
        "curves": plots.training_curves(history),
    }


@pytest.mark.parametrize(("tasks", "seeds"), [(1, 1), (10, 2), (25, 1)])
def test_png_files(tmp_path, tasks, seeds):
    for name, figure in figures(tasks, seeds).items():
        path = tmp_path / f"{name}.png"
        plots.save(figure, path)
        raw = path.read_bytes()
        assert raw[:8] == b"\x89PNG\r\n\x1a\n"
        size = struct.unpack(">II", raw[16:24])
        wanted = figure.get_size_inches() * plots.DPI
        assert size == pytest.approx(tuple(wanted), abs=1)
        assert len(set(raw)) > 100  # not blank
    assert [p.suffix for p in tmp_path.iterdir()] == [".png"] * 5


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


def test_all_figures_have_titles_and_labels():
    for figure in figures(2).values():
        axes = figure.axes
        assert figure.get_suptitle() or axes[0].get_title()
        assert any(a.get_ylabel() for a in axes)
        assert any(a.get_xlabel() for a in axes)


def test_pyplot_is_not_used(tmp_path):
    import subprocess
    import sys

    code = "import sys, clnp.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.mean_accuracy([]),
        lambda: plots.mean_accuracy([[[1.0]], np.ones((2, 2))]),
        lambda: plots.capacity([]),
        lambda: plots.capacity([[]]),
        lambda: plots.reuse({}),
    ],
)
def test_nothing_to_draw(draw):
    with pytest.raises(DataError, match="wanted"):
        draw()
