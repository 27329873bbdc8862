"""Files and texts of a run, and the commands that read them: report, verify, export."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from clnp import metrics as diagnostics
from clnp.cli.config import defaults
from clnp.cli.run_folder import RunFolder
from clnp.learner.learner import Learner
from tests.clnp.commands import TINY, clnp, finished_run, tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two tiny tasks; tests must not change it."""
    return finished_run(tmp_path_factory.mktemp("run"))


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_all_files_are_there(finished):
    names = {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()}
    assert names == {
        ".lock",
        "accuracy.csv",
        "capacity.csv",
        "checkpoint.safetensors",
        "config.json",
        "configurations.json",
        "cost.csv",
        "environment.json",
        "history.csv",
        "log.txt",
        "metrics.json",
        "timing.csv",
        *(
            f"plots/{n}.png"
            for n in ("accuracy_matrix", "capacity", "mean_accuracy", "reuse", "training")
        ),
    }
    for path in (finished / "plots").iterdir():
        assert path.read_bytes()[:4] == b"\x89PNG"


def test_numbers_agree(finished):
    metrics = RunFolder(finished).read_metrics()
    R = np.array(metrics["accuracy_matrix"])
    learner = Learner.load(finished / "checkpoint.safetensors")
    np.testing.assert_array_equal(R, learner.accuracy_matrix)
    assert metrics["acc"] == diagnostics.average_accuracy(R)
    assert metrics["bwt"] == 0
    assert metrics["forgetting"] == 0
    assert metrics["certificate"] == {"tasks": 2, "identical": 2, "differing": []}
    accuracy = read_csv(finished / "accuracy.csv")
    for i, row in enumerate(accuracy):
        for j in range(2):
            cell = row[f"task_{j}"]
            assert (float(cell) == R[i, j]) if j <= i else cell == ""
    for row in read_csv(finished / "capacity.csv"):
        report = learner.reports[int(row["task"])]
        counts = report.capacity[row["layer"]]
        assert {k: int(row[k]) for k in counts} == counts
        assert float(row["threshold"]) == report.thresholds[row["layer"]]
        assert int(row["used"]) + int(row["free"]) == int(row["size"])
    history = read_csv(finished / "history.csv")
    assert [(int(r["task"]), float(r["loss"])) for r in history] == [
        (i, record["loss"]) for i, report in enumerate(learner.reports) for record in report.history
    ]
    for row, report in zip(read_csv(finished / "timing.csv"), learner.reports, strict=True):
        assert float(row["total"]) == report.seconds["total"] > 0


def test_metrics_hold_no_times_dates_or_paths(finished):
    text = (finished / "metrics.json").read_text()
    assert "seconds" not in text
    assert str(finished.parent) not in text
    assert "NaN" not in text
    assert (
        RunFolder(finished).read_metrics()["reports"][1]["row"]
        == RunFolder(finished).read_metrics()["accuracy_matrix"][1]
    )


def test_same_settings_same_metrics(finished, tmp_path, capsys):
    assert clnp(capsys, "run", "--out", tmp_path / "b", *TINY)[0] == 0
    for name in (
        "metrics.json",
        "accuracy.csv",
        "capacity.csv",
        "history.csv",
        "plots/capacity.png",
    ):
        assert (tmp_path / "b" / name).read_bytes() == (finished / name).read_bytes(), name


def test_report_prints_the_tables_again(finished, capsys):
    code, out, _ = clnp(capsys, "report", finished)
    metrics = RunFolder(finished).read_metrics()
    assert code == 0
    assert out.endswith(f"certificate: 2/2 tasks bit-identical\npage: {finished}/report.html\n")
    assert f"ACC {metrics['acc']:.4f}, BWT 0, forgetting 0\n" in out
    assert f"{100 * metrics['accuracy_matrix'][1][0]:.2f}" in out
    for title in ("Test accuracy (%)", "Channels used so far", "Time (s)"):
        assert title in out


def test_verify(finished, capsys):
    code, out, _ = clnp(capsys, "verify", finished)
    assert code == 0
    assert out.endswith("certificate: 2/2 tasks bit-identical\n")


def test_verify_finds_a_changed_weight(finished, tmp_path, capsys, monkeypatch):
    load = Learner.load

    def tampered(*arguments, **keywords):
        learner = load(*arguments, **keywords)
        buffer = next(
            b for name, b in learner.model.named_buffers() if name.endswith("active_weight")
        )
        buffer[0] += 0.5
        return learner

    monkeypatch.setattr(Learner, "load", tampered)
    code, out, _ = clnp(capsys, "verify", finished)
    assert code == 1
    assert "NO" in out
    assert "certificate: 0/2 tasks bit-identical" in out


@pytest.mark.parametrize("command", ["report", "verify", "export"])
@pytest.mark.parametrize("content", [None, "{", "{}", '{"format": "clnp-run", "version": 99}'])
def test_foreign_run_folder(command, content, tmp_path, capsys):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    words = [command, tmp_path, *(["--task", 0] if command == "export" else [])]
    code, _, err = clnp(capsys, *words)
    assert code == 2
    assert "config.json" in err
    assert err.count("\n") == 1


def test_damaged_checkpoint(finished, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((finished / "config.json").read_bytes())
    raw = bytearray((finished / "checkpoint.safetensors").read_bytes())
    raw[-5] ^= 1
    (tmp_path / "checkpoint.safetensors").write_bytes(raw)
    for words in (["verify", tmp_path], ["run", "--resume", "--out", tmp_path]):
        code, _, err = clnp(capsys, *words)
        assert code == 2
        assert "damaged" in err
        assert err.count("\n") == 1


def test_several_seeds(tmp_path, capsys):
    code, out, _ = clnp(capsys, "run", "--out", tmp_path, "--seeds", 2, *TINY)
    assert code == 0
    one, two = (RunFolder(tmp_path / f"seed-{s}").read_metrics() for s in (0, 1))
    assert one["accuracy_matrix"] != two["accuracy_matrix"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["seeds"] == [0, 1]
    assert summary["acc"]["mean"] == pytest.approx((one["acc"] + two["acc"]) / 2, abs=1e-15)
    assert summary["acc"]["std"] == pytest.approx(
        abs(one["acc"] - two["acc"]) / math.sqrt(2), abs=1e-15
    )
    assert [float(r["acc"]) for r in read_csv(tmp_path / "summary.csv")] == [one["acc"], two["acc"]]
    assert "mean over seeds: ACC" in out
    assert "certificate: 4/4 tasks bit-identical" in out
    assert "certificate: 4/4 tasks bit-identical\n" in clnp(capsys, "report", tmp_path)[1]
    assert clnp(capsys, "verify", tmp_path)[0] == 0
    code, _, err = clnp(capsys, "export", tmp_path, "--task", 0)
    assert code == 2
    assert "seed-0" in err
    assert clnp(capsys, "export", tmp_path / "seed-1", "--task", 0)[0] == 0


def test_full_network_keeps_what_was_learned(tmp_path, capsys):
    words = ["--tasks", 6, "--epochs", 3, "--width", 3, "--margin", 0, "--threads", 1, "--l1", 0]
    code, out, err = clnp(capsys, "run", "--out", tmp_path, *words)
    assert code == 3
    assert "expected free channels for a single head, got none of 3" in err
    assert err.count("\n") == 1
    metrics = RunFolder(tmp_path).read_metrics()
    learned = metrics["tasks_learned"]
    assert 1 <= learned < 6
    assert f"certificate: {learned}/{learned} tasks bit-identical" in out
    assert (tmp_path / "plots" / "capacity.png").is_file()


def test_options_reach_the_learner(tmp_path, capsys):
    words = [
        "--head",
        "multi",
        "--grid",
        "l1=1e-5,1e-4:1e-4:1e-5",
        "lr=1e-3,2e-3",
        "--search",
        "global",
    ]
    words += [
        "--fine-tune-epochs",
        1,
        "--schedule",
        "cosine",
        "--dtype",
        "bf16",
        "--margin",
        0.02,
        "--seed",
        3,
    ]
    code, _, err = clnp(capsys, "run", "--out", tmp_path, *TINY, *words)
    assert code == 0, err
    settings = Learner.load(tmp_path / "checkpoint.safetensors").settings
    assert (settings.head, settings.search, settings.schedule, settings.dtype) == (
        "multi",
        "global",
        "cosine",
        "bf16",
    )
    assert (settings.margin, settings.seed, settings.epochs) == (0.02, 3, 2)
    assert settings.fine_tune.epochs == 1
    assert settings.fine_tune.l1 is None
    report = RunFolder(tmp_path).read_metrics()["reports"][0]
    assert [(p["l1"]["fc1"], p["l1"]["head"], p["lr"]) for p in report["grid"]] == [
        (1e-5, 1e-5, 1e-3), (1e-5, 1e-5, 2e-3), (1e-4, 1e-5, 1e-3), (1e-4, 1e-5, 2e-3)
    ]  # fmt: skip
    assert json.loads((tmp_path / "config.json").read_text())["config"]["seeds"] == [3]


def test_depth_stretches_the_default_l1(tmp_path, capsys):
    assert clnp(capsys, "run", "--out", tmp_path, *tiny(tasks=1), "--depth", 3)[0] == 0
    l1 = defaults("permuted-digits")["l1"]
    stored = json.loads((tmp_path / "config.json").read_text())["config"]["l1"]
    assert stored == [l1[0], l1[1], l1[1], l1[2]]


WITHOUT_CLNP = """
import sys
sys.modules["clnp"] = sys.modules["clnp_kernels"] = None
import torch
network = torch.export.load(sys.argv[1]).module()
x, wanted = torch.load(sys.argv[2])
for rows in (1, 7, len(x)):
    torch.testing.assert_close(network(x[:rows]), wanted[:rows])
"""


def test_export_runs_without_clnp(finished, tmp_path, capsys):
    file = tmp_path / "narrow.pt2"
    code, out, _ = clnp(capsys, "export", finished, "--task", 0, "--out", file)
    assert code == 0
    assert str(file) in out
    assert f"{file.stat().st_size} bytes" in out
    learner = Learner.load(finished / "checkpoint.safetensors")
    x = torch.rand(33, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.save((x, learner.model(x, task=0)), tmp_path / "x.pt")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_CLNP, str(file), str(tmp_path / "x.pt")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    used = [learner.reports[0].capacity[layer]["used"] for layer in ("fc1", "fc2")]
    assert f"64 -> {used[0]} -> {used[1]} -> 10" in out
    code, _, err = clnp(capsys, "export", finished, "--task", 0, "--out", file)
    assert code == 2
    assert "--overwrite" in err


@pytest.mark.parametrize("task", [-1, 2, "digits-2", "²"])
def test_export_of_an_unknown_task(finished, capsys, task):
    code, _, err = clnp(capsys, "export", finished, f"--task={task}")
    assert code == 2
    assert "--task: expected 0 to 1 or a name" in err


def test_a_checkpoint_file_serves_as_its_run(finished, tmp_path, capsys):
    file = tmp_path / "learner.safetensors"
    file.write_bytes((finished / "checkpoint.safetensors").read_bytes())
    code, out, _ = clnp(capsys, "verify", file)
    assert code == 0
    assert out.endswith("certificate: 2/2 tasks bit-identical\n")
    code, out, _ = clnp(capsys, "report", file)
    assert code == 0
    printed = clnp(capsys, "report", finished)[1]
    assert out.splitlines()[:-1] == printed.splitlines()[:-1]
    assert out.endswith(f"page: {tmp_path / 'report.html'}\n")
    code, out, _ = clnp(capsys, "export", file, "--task", "digits-1")
    assert code == 0
    assert "task 2 of 2, digits-1, 64 -> " in out
    assert (tmp_path / "task-1.pt2").is_file()


def test_a_checkpoint_file_that_is_none(tmp_path, capsys):
    file = tmp_path / "learner.safetensors"
    file.write_bytes(b"no numbers")
    for words in (["verify", file], ["report", file], ["export", file, "--task", 0]):
        code, _, err = clnp(capsys, *words)
        assert code == 2
        assert "learner.safetensors is damaged or not a safetensors file" in err
        assert err.count("\n") == 1
