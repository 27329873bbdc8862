"""Seeds, methods and grid points of the command line in worker processes."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from clnp.cli import build_config, seeds_in_workers
from clnp.cli.arguments import parse
from clnp.cli.run_folder import Places, RunFolder
from clnp.parallel import Workers
from tests.clnp.commands import clnp, tiny
from tests.clnp.parallel.test_fanout import LONG

SAME = ["metrics.json", "accuracy.csv", "capacity.csv", "history.csv"]


def test_seeds_side_by_side_are_the_runs_of_single_seeds(
    two: Workers,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(seeds_in_workers, "Workers", lambda *_, **__: nullcontext(two))
    words = ["run", "permuted-digits", *tiny(tasks=1)]
    code, alone, _ = clnp(capsys, *words, "--seed", 3, "--out", tmp_path / "a")
    assert code == 0
    code, many, _ = clnp(capsys, *words, "--seeds", 0, 3, "--workers", 2, "--out", tmp_path / "b")
    assert code == 0
    for name in SAME:
        one, other = tmp_path / "a" / name, tmp_path / "b" / "seed-3" / name
        assert one.read_bytes() == other.read_bytes(), name
    lines = many.splitlines()
    for seed in ("seed 0", "seed 3"):
        assert any(line.startswith(f"{seed} | task 1/1 digits-0: test") for line in lines)
    assert [f"seed 3 | {line}" for line in alone.splitlines() if line.startswith("ACC ")] == [
        line for line in lines if line.startswith("seed 3 | ACC ")
    ]
    assert "mean over seeds: ACC " in many
    assert "\ntime per seed: " in many
    assert json.loads((tmp_path / "b" / "summary.json").read_text())["seeds"] == [0, 3]


@LONG
def test_a_comparison_side_by_side_tells_what_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "permuted-digits", "--threads", 1, "--epochs", 1, "--width", 2]
    words += ["--tasks", 4, "--methods", "clnp,finetune", "--workers", 2]
    code, out, _ = clnp(capsys, *words, "--out", tmp_path / "a")
    assert code == 3
    assert "method clnp, seed 0 did not finish: the last hidden layer" in out
    assert "clnp, seed 0 | the last hidden layer" in out
    rows = (tmp_path / "a" / "methods.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["method", "finetune"]


def settings(*words: str) -> tuple[object, Places]:
    return build_config.settings(parse(["run", *words]), Path("nowhere"))


def test_workers_divide_the_threads_that_are_not_given() -> None:
    config, places = settings("permuted-mnist", "--workers", "64", "--executor", "processes")
    assert config.threads == 1
    assert (places.workers, places.executor, places.image_threads) == (64, "processes", 2)
    config, _ = settings("permuted-mnist", "--workers", "2", "--threads", "3")
    assert config.threads == 3
    assert settings("--seeds", "2")[0].seeds == (0, 1)
    assert settings("--seeds", "4", "2")[0].seeds == (4, 2)


def test_what_runs_a_run_is_no_setting(tmp_path: Path) -> None:
    config, places = settings("permuted-digits", "--workers", "2")
    RunFolder(tmp_path).write_config(config, places)
    assert "workers" not in json.loads((tmp_path / "config.json").read_text())["config"]
    options = parse(["run", "--resume", "--out", str(tmp_path)])
    assert build_config.settings(options, tmp_path) == (config, Places(data_root=None))
