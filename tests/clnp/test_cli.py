"""The command line: what it refuses, what it writes, what it prints."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from clnp import cli, diagnostics, plots, results, runs
from clnp.config import Config, defaults, differences, validate
from clnp.console import Reporter
from clnp.errors import ConfigError
from clnp.learner import Learner

TINY = ["--tasks", "2", "--epochs", "2", "--width", "24", "--threads", "1"]


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def small_plots():
    """Figures are looked at in test_plots; here they only have to be drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "DPI", 20)
        yield


@pytest.fixture(scope="module")
def finished(small_plots, tmp_path_factory):
    """A finished run of two tiny tasks; tests must not change it."""
    folder = tmp_path_factory.mktemp("run") / "digits"
    assert cli.main(["run", "--out", str(folder), *TINY]) == 0
    return folder


def clnp(capsys, *words: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


BAD_RUNS = {
    "unknown stream": (["permuted-cats"], "invalid choice: 'permuted-cats'"),
    "unknown option": (["--colour=red"], "unrecognized arguments: --colour"),
    "no number": (["--epochs", "many"], "--epochs: invalid int value: 'many'"),
    "no tasks": (["--tasks", "0"], "--tasks: got 0, wanted a whole number from 1"),
    "negative epochs": (["--epochs", "-3"], "--epochs: got -3"),
    "no batch": (["--batch-size", "0"], "--batch-size: got 0"),
    "lr zero": (["--lr", "0"], "--lr: got 0, wanted a number above 0"),
    "lr NaN": (["--lr", "nan"], "--lr: got nan"),
    "lr inf": (["--lr", "inf"], "--lr: got inf"),
    "negative l1": (["--l1=-1e-5"], "--l1: got -1e-05"),
    "l1 of other layers": (
        ["--l1", "1e-5,1e-5"],
        "--l1: got 2 numbers (1e-05,1e-05), wanted one, or one per layer (3)",
    ),
    "l1 words": (["--l1", "a,b"], "--l1: invalid numbers value: 'a,b'"),
    "margin": (["--margin", "1"], "--margin: got 1, wanted a fraction from 0 to below 1"),
    "width": (["--width", "0"], "--width: got 0"),
    "depth": (["--depth", "0"], "--depth: got 0"),
    "dropout": (["--dropout", "1"], "--dropout: got 1"),
    "head": (["--head", "none"], "--head: invalid choice: 'none'"),
    "dtype": (["--dtype", "fp8"], "--dtype: invalid choice: 'fp8'"),
    "search": (["--search", "luck"], "--search: invalid choice: 'luck'"),
    "schedule": (["--schedule", "never"], "--schedule: invalid choice: 'never'"),
    "threads": (["--threads", "0"], "--threads: got 0"),
    "granularity": (["--granularity", "0"], "--granularity: got 0"),
    "reinit scale": (["--reinit-scale", "0"], "--reinit-scale: got 0"),
    "fine-tune": (["--fine-tune-epochs", "-1"], "--fine-tune-epochs: got -1"),
    "device": (["--device", "abacus"], "--device: got 'abacus', wanted cpu, cuda"),
    "meta device": (["--device", "meta"], "--device: got 'meta'"),
    "absent GPU": (["--device", "cuda:99"], "--device: got 'cuda:99', but torch"),
    "negative seed": (["--seed", "-1"], "--seeds: got -1"),
    "no seeds": (["--seeds", "0"], "--seeds: got 0, wanted 1 to 1000 seeds"),
    "seed and seeds": (["--seed", "1", "--seeds", "2"], "not allowed with argument"),
    "grid name": (["--grid", "momentum=1"], "--grid: got 'momentum=1', wanted l1=LIST and lr=LIST"),
    "grid twice": (["--grid", "lr=1e-3", "lr=1e-2"], "each at most once"),
    "grid words": (["--grid", "lr=fast"], "--grid lr: got 'fast'"),
    "grid lr per layer": (["--grid", "lr=1e-3:1e-3"], "one number per candidate"),
    "grid lr zero": (["--grid", "lr=1e-3,0"], "--grid lr: got 0.001,0"),
    "grid l1 layers": (["--grid", "l1=1e-5:1e-5"], "--grid l1: got 2 numbers"),
    "resume and overwrite": (["--resume", "--overwrite"], "--resume and --overwrite: got both"),
    "no data": (
        ["permuted-mnist", "--data-root", "nowhere"],
        "no MNIST files. Wanted train-images-idx3-ubyte",
    ),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_bad_arguments_are_refused_before_any_work(capsys, tmp_path, case):
    words, fragment = BAD_RUNS[case]
    code, out, err = clnp(capsys, "run", "--out", tmp_path / "run", *words)
    assert code == 2
    assert out == ""
    assert fragment in err
    assert err.startswith("clnp: error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_defaults_are_good_settings():
    for stream in cli.STREAMS:
        config = Config(**defaults(stream))
        validate(config)
        assert Config.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    assert tuple(cli.STREAMS) == ("permuted-digits", "permuted-mnist")
    with pytest.raises(ConfigError, match="stream"):
        defaults("permuted-cats")


def test_stored_settings_are_checked():
    values = Config(**defaults("permuted-digits")).as_dict()
    with pytest.raises(ConfigError, match="--lr: got True"):
        Config.from_dict({**values, "lr": True})
    with pytest.raises(ConfigError, match="colour"):
        Config.from_dict({**values, "colour": "red"})
    one = Config.from_dict(values)
    other = Config.from_dict({**values, "lr": 0.5, "l1": [0.1]})
    assert differences(one, one) == []
    assert differences(one, other) == [
        f"--lr 0.5 (was {one.lr:g})",
        f"--l1 0.1 (was {','.join(f'{v:g}' for v in one.l1)})",
    ]


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["export", "--help"]])
def test_help(capsys, command):
    code, out, _ = clnp(capsys, *command)
    assert code == 0
    assert "usage: clnp" in out


def test_no_command(capsys):
    code, _, err = clnp(capsys)
    assert code == 2
    assert "COMMAND" in err


# What a run writes


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
    metrics = results.read(finished)
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
        results.read(finished)["reports"][1]["row"] == results.read(finished)["accuracy_matrix"][1]
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
    metrics = results.read(finished)
    assert code == 0
    assert out.endswith("certificate: 2/2 tasks bit-identical\n")
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


# What a run does to what was there before


def test_existing_run_is_not_touched_unasked(finished, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    code, _, err = clnp(capsys, "run", "--out", finished, *TINY)
    assert code == 2
    assert "--resume" in err
    assert "--overwrite" in err
    code, _, err = clnp(capsys, "run", "--out", finished, "--resume", "--lr", "0.5", "--width", 24)
    assert code == 2
    assert "--lr 0.5 (was " in err
    assert "--width" not in err
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*")}


@pytest.mark.parametrize("flag", [[], ["--resume"], ["--overwrite"]])
def test_foreign_folder_is_never_touched(tmp_path, capsys, flag):
    (tmp_path / "thesis.tex").write_text("ten years")
    code, _, err = clnp(capsys, "run", "--out", tmp_path, *flag)
    assert code == 2
    assert "holds no run of clnp" in err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_out_that_cannot_be_a_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere/run")):
        code, _, err = clnp(capsys, "run", "--out", out, *TINY)
        assert code == 2
        assert "--out: " in err
        assert err.count("\n") == 1


def test_overwrite_deletes_runs_and_nothing_else(finished, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "seed-7").mkdir()
    (tmp_path / "seed-7" / "precious").write_text("mine too")
    for name in ("config.json", "metrics.json", "checkpoint.safetensors"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    assert clnp(capsys, "run", "--out", tmp_path, "--overwrite", *TINY, "--tasks", 1)[0] == 0
    assert results.read(tmp_path)["tasks_learned"] == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "seed-7" / "precious").read_text() == "mine too"


def test_resume_of_a_finished_run_changes_no_number(finished, tmp_path, capsys):
    for name in ("config.json", "checkpoint.safetensors"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    code, out, _ = clnp(capsys, "run", "--out", tmp_path, "--resume")
    assert code == 0
    assert "going on after 2 of 2 tasks" in out
    assert (tmp_path / "metrics.json").read_bytes() == (finished / "metrics.json").read_bytes()


def test_two_processes_do_not_share_a_folder(tmp_path, capsys):
    with runs.locked(tmp_path):
        code, _, err = clnp(capsys, "run", "--out", tmp_path, *TINY)
    assert code == 2
    assert "in use by another clnp process" in err


# Larger ways of running


def test_several_seeds(tmp_path, capsys):
    code, out, _ = clnp(capsys, "run", "--out", tmp_path, "--seeds", 2, *TINY)
    assert code == 0
    one, two = (results.read(tmp_path / f"seed-{s}") for s in (0, 1))
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
    assert clnp(capsys, "report", tmp_path)[1].endswith("certificate: 4/4 tasks bit-identical\n")
    assert clnp(capsys, "verify", tmp_path)[0] == 0
    code, _, err = clnp(capsys, "export", tmp_path, "--task", 0)
    assert code == 2
    assert "seed-0" in err
    assert clnp(capsys, "export", tmp_path / "seed-1", "--task", 0)[0] == 0


def test_full_network_keeps_what_was_learned(tmp_path, capsys):
    words = ["--tasks", 6, "--epochs", 3, "--width", 3, "--margin", 0, "--threads", 1, "--l1", 0]
    code, out, err = clnp(capsys, "run", "--out", tmp_path, *words)
    assert code == 3
    assert "belong to earlier tasks" in err
    assert err.count("\n") == 1
    metrics = results.read(tmp_path)
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
        "layerwise",
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
        "layerwise",
        "cosine",
        "bf16",
    )
    assert (settings.margin, settings.seed, settings.epochs) == (0.02, 3, 2)
    assert settings.fine_tune.epochs == 1
    assert settings.fine_tune.l1 is None
    report = results.read(tmp_path)["reports"][0]
    assert [(p["l1"]["fc1"], p["l1"]["head"], p["lr"]) for p in report["grid"]] == [
        (1e-5, 1e-5, 1e-3), (1e-5, 1e-5, 2e-3), (1e-4, 1e-5, 1e-3), (1e-4, 1e-5, 2e-3)
    ]  # fmt: skip
    assert json.loads((tmp_path / "config.json").read_text())["config"]["seeds"] == [3]


def test_depth_stretches_the_default_l1(tmp_path, capsys):
    assert clnp(capsys, "run", "--out", tmp_path, *TINY, "--tasks", 1, "--depth", 3)[0] == 0
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


@pytest.mark.parametrize("task", [-1, 2])
def test_export_of_an_unknown_task(finished, capsys, task):
    code, _, err = clnp(capsys, "export", finished, f"--task={task}")
    assert code == 2
    assert f"--task: got {task}, wanted 0 to 1" in err


# Trouble


def test_interrupt_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Learner, "learn", interrupt)
    code, _, err = clnp(capsys, "run", "--out", tmp_path / "r", *TINY)
    assert code == 130
    assert f"go on with: clnp run --resume --out {tmp_path / 'r'}" in err


@pytest.mark.parametrize(("debug", "lines"), [("", 1), ("1", 5)])
def test_bugs_are_one_line_unless_debugging(tmp_path, capsys, monkeypatch, debug, lines):
    def bug(*_):
        raise ZeroDivisionError("by\nnought")

    monkeypatch.setenv("CLNP_DEBUG", debug)
    monkeypatch.setattr(Learner, "learn", bug)
    code, _, err = clnp(capsys, "run", "--out", tmp_path, *TINY)
    assert code == 3
    assert "clnp: error: ZeroDivisionError: by nought" in err
    assert (err.count("\n") == 1) if lines == 1 else ("Traceback" in err)


def test_disk_trouble_is_one_line(finished, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "metrics.json")

    monkeypatch.setattr(results, "write", full)
    code, _, err = clnp(capsys, "run", "--out", tmp_path, *TINY)
    assert code == 3
    assert "No space left on device" in err
    assert err.count("\n") == 1


def test_bar_on_a_terminal():
    """The bar's arithmetic; drawing it is rich's business."""
    console = Console(file=io.StringIO(), force_terminal=True)
    reporter = Reporter(console, None, tasks=4, learned=1)
    learner = SimpleNamespace(
        settings=SimpleNamespace(epochs=3, fine_tune=SimpleNamespace(epochs=4))
    )
    record = {"loss": 1.0, "train_accuracy": 0.5, "validation_accuracy": 0.25}
    with reporter.live():
        reporter.on_task_begin(learner, 1, "b", 10)  # 2 grid points of 3 epochs, 4 of fine-tuning
        reporter.on_batch_end(learner, 1.0, 0.5, 1, 2)
        assert reporter.bar.tasks[0].completed == pytest.approx(1.05)
        reporter.on_epoch_end(learner, {**record, "epoch": 1, "point": 1, "points": 2})
        assert reporter.bar.tasks[0].completed == pytest.approx(1.5)
        reporter.on_epoch_end(learner, {**record, "epoch": 3, "fine_tune": True})
        assert reporter.bar.tasks[0].completed == pytest.approx(2.0)
