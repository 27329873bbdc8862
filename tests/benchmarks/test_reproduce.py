"""The commands that reproduce the paper run, go on after a kill, and their page says what the CSV
files say.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.pages import reproduced
from benchmarks.reproduce import __main__ as reproduce
from benchmarks.reproduce.capacity import accuracy_at, effective_rank
from benchmarks.reproduce.experiment import Run
from benchmarks.reproduce.figures import accuracy_per_task
from benchmarks.reproduce.tables import task_rows
from clnp.cli import run_folder
from clnp.learner.learner import Learner
from clnp.plots import figures

LONG = bool(os.environ.get("CLNP_LONG_TESTS"))


def command(*words: object) -> int:
    """The exit code of `python -m benchmarks.reproduce WORDS --quick`, its plots small."""
    threads = torch.get_num_threads()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(figures, "DPI", 20)
            return reproduce.main([*map(str, words), "--quick"])
    finally:
        torch.set_num_threads(threads)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a quick table 1 of two contenders and two seeds, CLNP interrupted once."""
    out = tmp_path_factory.mktemp("reproduce")
    words = ["table1", "--only", "CLNP", "superposition", "--tasks", 2, "--epochs", 1, "--out", out]
    learn = Learner.learn

    def once(learner: Learner, task: object) -> object:
        if learner.reports:
            raise KeyboardInterrupt
        return learn(learner, task)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "learn", once)
        with pytest.raises(KeyboardInterrupt):
            command(*words)
    assert command(*words, "--seeds", 2) == 0
    return out / "quick"


def test_tables_hold_every_seed_and_task(table: Path) -> None:
    folder = table / "results" / "table1"
    tasks = rows(folder / "tasks.csv")
    assert len(tasks) == 2 * 2 * 2
    assert {row["contender"] for row in tasks} == {"CLNP", "superposition"}
    summary = {row["contender"]: row for row in rows(folder / "summary.csv")}
    for name, line in summary.items():
        own = [float(row["test"]) for row in tasks if row["contender"] == name]
        means = np.array(own).reshape(2, 2).mean(axis=1)
        assert float(line["acc_mean"]) == pytest.approx(means.mean())
        assert float(line["acc_std"]) == pytest.approx(means.std(ddof=1))
        assert line["n"] == "2"
    assert float(summary["CLNP"]["used_fc1_mean"]) > 0
    assert summary["superposition"]["used_fc1_mean"] == ""
    settings = json.loads((folder / "settings.json").read_text())["contenders"]
    assert settings["CLNP"]["config"]["seeds"] == [0, 1]
    for run in settings["CLNP"]["runs"]:
        assert run["torch"] == torch.__version__
        assert run["date"]
        assert run["hardware"]
    for name in ("mean_accuracy", "capacity"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_finished_runs_are_passed_over(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Learner, "learn", lambda *_: pytest.fail("a finished run was run again"))
    words = ["table1", "--only", "CLNP", "--tasks", 2, "--epochs", 1, "--out", table.parent]
    before = (table / "results" / "table1" / "tasks.csv").read_bytes()
    assert command(*words) == 0
    assert (table / "results" / "table1" / "tasks.csv").read_bytes() == before


def test_results_of_several_machines_stand_beside_each_other(table: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(table / "results", results)
    before = rows(results / "table1" / "tasks.csv")
    words = ["table1", "--only", "CLNP", "--tasks", 2, "--out", tmp_path, "--results", results]
    assert command(*words, "--first-seed", 2, "--epochs", 2) == 0
    after = rows(results / "table1" / "tasks.csv")
    new = [row for row in after if row["seed"] == "2"]
    assert [row for row in after if row["seed"] != "2"] == before
    assert [(row["contender"], row["task"]) for row in new] == [("CLNP", "0"), ("CLNP", "1")]
    assert after.index(new[0]) == 4  # with those of its contender
    lines = [
        (r["contender"], r["epochs"], r["n"]) for r in rows(results / "table1" / "summary.csv")
    ]
    assert lines == [("CLNP", "1 + 1", "2"), ("CLNP", "2 + 1", "1"), ("superposition", "1", "2")]
    about = json.loads((results / "table1" / "settings.json").read_text())["contenders"]["CLNP"]
    assert about["config"]["seeds"] == [0, 1, 2]
    assert [run["seed"] for run in about["runs"]] == [0, 1, 2]
    own = [run.get("config") for run in about["runs"]]
    assert own[:2] == [None, None]
    assert own[2] == {**about["config"], "epochs": 2, "seeds": [2]}
    # Plots are drawn from the files alone, and what is run again takes the place of what was there.
    plot = results / "table1" / "capacity.png"
    plot.unlink()
    assert command(*words[:-4], "--out", tmp_path / "none", "--results", results, "--write") == 0
    assert plot.exists()
    assert command(*words[:-2], "--results", results, "--first-seed", 2, "--write") == 0
    assert rows(results / "table1" / "tasks.csv") == after


def test_a_number_that_a_run_does_not_have_is_left_out() -> None:
    tasks = []
    for name, validation in (("with", 0.5), ("without", None)):
        report = {"name": "a", "validation": validation, "capacity": {}}
        metrics = {"accuracy_matrix": [[0.4]], "reports": [report]}
        tasks += task_rows(Run(name, 0, Path(), metrics, [1.0], {}))
    assert ["validation" in row for row in tasks] == [True, False]
    (axes,) = accuracy_per_task(tasks, "validation", "").axes
    assert [line.get_label() for line in axes.get_lines()] == ["with"]


def test_other_settings_are_refused_and_told(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["table1", "--only", "CLNP", "--tasks", 2, "--epochs", 2, "--out", table.parent]
    assert command(*words) == 3
    assert "begun with other settings: --epochs 2 (was 1)" in capsys.readouterr().out


def test_an_interrupted_run_ends_as_an_undisturbed_one(table: Path, tmp_path: Path) -> None:
    words = ["table1", "--only", "CLNP", "--tasks", 2, "--epochs", 1, "--out", tmp_path]
    assert command(*words) == 0
    own = Path("permuted-mnist") / "CLNP" / "seed-0" / "metrics.json"
    assert (tmp_path / "quick" / own).read_bytes() == (table / own).read_bytes()


def test_a_run_until_the_network_is_full(tmp_path: Path) -> None:
    words = ["--only", "CLNP, m = 1.6 %", "--epochs", 1, "--tasks", 30]
    words += ["--out", tmp_path, "--results", tmp_path]
    assert command("fig3", *words) == 0
    tasks = rows(tmp_path / "fig3" / "tasks.csv")
    assert 1 < int(tasks[-1]["task"]) < 29
    assert int(tasks[-1]["used_fc2"]) == 60
    assert (tmp_path / "fig3" / "accuracy.png").exists()
    # The frontier is drawn from the same run.
    assert command("frontier", *words) == 0
    (run,) = rows(tmp_path / "frontier" / "runs.csv")
    tenth = tasks[:10][-1]
    assert run["ten"] == tenth["mean"]
    assert float(run["ten_fc1"]) == int(tenth["used_fc1"]) / 60
    assert (tmp_path / "frontier" / "frontier.png").exists()


def test_reuse_is_told_with_the_rank_of_the_features(tmp_path: Path) -> None:
    words = ["reuse", "--only", "no L1 on layer 1", "orthogonal start", "--epochs", 1]
    assert command(*words, "--out", tmp_path, "--results", tmp_path / "results") == 0
    folder = tmp_path / "results" / "reuse"
    plain, orthogonal = rows(folder / "runs.csv")
    tests = [float(row["test"]) for row in rows(folder / "tasks.csv")]
    assert [float(plain[key]) for key in ("first", "second")] == tests[:2]
    assert 1 < float(plain["rank"]) < float(orthogonal["rank"]) <= 60
    assert "effective rank of fc1" in reproduced.summary(folder)


def test_the_effective_rank_counts_directions() -> None:
    q, _ = torch.linalg.qr(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)))
    assert effective_rank(3 * q.T) == pytest.approx(5)
    assert effective_rank(q[:, :1] @ torch.ones(1, 9)) == pytest.approx(1)


def test_recipes_are_compared_at_equal_capacity(tmp_path: Path) -> None:
    names = ["base", "base, m = 2 %", "no fine-tuning"]
    words = ["capacity", "--only", *names, "--epochs", 2]
    assert command(*words, "--out", tmp_path, "--results", tmp_path / "results") == 0
    folder = tmp_path / "results" / "capacity"
    there = {row["contender"]: row for row in rows(folder / "runs.csv")}
    assert list(there) == names
    tasks = [row for row in rows(folder / "tasks.csv") if row["contender"] == "base"]
    counts = [{key: int(row[key]) for key in row if "_fc" in key} for row in tasks]
    weights = sum(
        64 * c["new_fc1"] + c["used_fc1"] * c["new_fc2"] + 10 * c["new_fc2"] for c in counts
    )
    assert float(there["base"]["weights"]) == weights
    low, at, high = (float(there[name]["weights"]) for name in (names[1], names[2], names[0]))
    compared = [(row["seed"], row["recipe"]) for row in rows(folder / "equal.csv")]
    assert compared == ([("0", "no fine-tuning")] if low <= at <= high else [])
    assert "weights kept, thousands" in reproduced.summary(folder)
    assert (folder / "frontier.png").exists()


def test_accuracy_at_equal_capacity_is_on_the_line_between_points() -> None:
    base = [(1000.0, 0.95), (10.0, 0.9), (1e4, 0.9)]
    assert accuracy_at(100.0, base) == pytest.approx(0.925)
    assert accuracy_at(1000.0, base) == 0.95
    assert accuracy_at(9.0, base) is None
    assert accuracy_at(100.0, []) is None


@pytest.mark.skipif(not LONG, reason="CLNP_LONG_TESTS=1")
def test_figures_on_cifar(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, classes in (("cifar10", 10), ("cifar100", 20)):
        arrays = {}
        for half, number in (("train", 4), ("test", 2)):
            labels = np.arange(classes * number, dtype=np.uint8) % classes
            arrays[f"{half}_labels"] = labels
            shape = (len(labels), 32, 32, 3)
            arrays[f"{half}_images"] = rng.integers(0, 255, shape, dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", **arrays)
    words = ["--data-root", tmp_path, "--out", tmp_path, "--epochs", 1]
    assert command("fig4", *words, "--only", "CLNP m = 4 % + FT", "joint") == 0
    folder = tmp_path / "quick" / "results" / "fig4"
    assert [row["task"] for row in rows(folder / "tasks.csv")] == ["0", "1"] * 2
    for name in ("test", "validation", "mean_accuracy", "capacity"):
        assert (folder / f"{name}.png").exists()


def test_unknown_contenders_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command("table1", "--only", "HAT")
    assert "wanted some of ['CLNP'" in capsys.readouterr().err


def test_a_damaged_folder_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "quick" / "permuted-mnist" / "CLNP" / "seed-0"
    damaged.mkdir(parents=True)
    (damaged / run_folder.CONFIG).write_text("{")
    words = ["--only", "CLNP", "superposition", "--tasks", 1, "--epochs", 1, "--out", tmp_path]
    assert command("table1", *words) == 3
    assert "CLNP, seed 0" in capsys.readouterr().out
    assert len(rows(tmp_path / "quick" / "results" / "table1" / "tasks.csv")) == 1
