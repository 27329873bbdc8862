"""The command line: what it refuses, what it leaves alone, how it reports trouble."""

from __future__ import annotations

import dataclasses
import io
import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from clnp import cli
from clnp.cli import results, streams
from clnp.cli.commands import one_line_warnings
from clnp.cli.config import Config, defaults, differences, validate
from clnp.cli.console import Reporter, claimed
from clnp.cli.run_folder import RunFolder
from clnp.errors import ConfigError, MarginWarning
from clnp.learner.learner import Learner
from clnp.learner.settings import FineTune, Settings
from tests.clnp.commands import TINY, clnp, finished_run, tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two tiny tasks; tests must not change it."""
    return finished_run(tmp_path_factory.mktemp("run"))


# Arguments, and what the error tells: our words, or those of the user where argparse refuses.
BAD_RUNS: dict[str, tuple[list[str], str | tuple[str, ...]]] = {
    "unknown stream": (["permuted-cats"], "permuted-cats"),
    "unknown option": (["--colour=red"], "--colour"),
    "no number": (["--epochs", "many"], ("--epochs", "many")),
    "no tasks": (["--tasks", "0"], "--tasks: expected an integer from 1 to 1000, got 0"),
    "negative epochs": (["--epochs", "-3"], "--epochs: expected an integer >= 1, got -3"),
    "no batch": (["--batch-size", "0"], "--batch-size: expected an integer >= 1, got 0"),
    "lr zero": (["--lr", "0"], "--lr: expected a number > 0, got 0"),
    "lr NaN": (["--lr", "nan"], "--lr: expected a number > 0, got nan"),
    "lr inf": (["--lr", "inf"], "--lr: expected a number > 0, got inf"),
    "negative l1": (["--l1=-1e-5"], "--l1: expected a list, each a number >= 0, got -1e-05"),
    "l1 of other layers": (
        ["--l1", "1e-5,1e-5"],
        "--l1: expected one number, or one per layer (3), got 2 (1e-05,1e-05)",
    ),
    "l1 words": (["--l1", "a,b"], ("--l1", "a,b")),
    "margin": (["--margin", "1"], "--margin: expected a fraction in [0, 1) of accuracy, got 1.0"),
    "width": (["--width", "0"], "--width: expected an integer from 1 to 1000000, got 0"),
    "depth": (["--depth", "0"], "--depth: expected an integer from 1 to 100, got 0"),
    "dropout": (["--dropout", "1"], "--dropout: expected a number >= 0 and < 1, got 1"),
    "head": (["--head", "none"], ("--head", "none")),
    "dtype": (["--dtype", "fp8"], ("--dtype", "fp8")),
    "search": (["--search", "luck"], ("--search", "luck")),
    "schedule": (["--schedule", "never"], ("--schedule", "never")),
    "threads": (["--threads", "0"], "--threads: expected an integer from 1 to 4096, got 0"),
    "granularity": (["--granularity", "0"], "--granularity: expected an integer >= 1, got 0"),
    "fine-tune": (
        ["--fine-tune-epochs", "-1"],
        "--fine-tune-epochs: expected auto or an integer >= 0, got -1",
    ),
    "device": (["--device", "abacus"], "--device: expected cpu, cuda or cuda:N, got 'abacus'"),
    "meta device": (["--device", "meta"], "--device: expected cpu, cuda or cuda:N, got 'meta'"),
    "absent GPU": (
        ["--device", "cuda:99"],
        ("--device: expected one of the", "got 'cuda:99'; take cpu"),
    ),
    "negative seed": (
        ["--seed", "-1"],
        "--seeds: expected a list, each an integer from 0 to 2147483647, got -1",
    ),
    "no seeds": (["--seeds", "0"], "--seeds: expected 1 to 1000 seeds, got 0"),
    "seed and seeds": (["--seed", "1", "--seeds", "2"], ("--seed", "--seeds")),
    "grid name": (["--grid", "momentum=1"], "--grid: expected l1=LIST and lr=LIST"),
    "grid twice": (["--grid", "lr=1e-3", "lr=1e-2"], "each at most once"),
    "grid words": (
        ["--grid", "lr=fast"],
        "--grid lr: expected numbers with commas between, got 'fast'",
    ),
    "grid lr per layer": (["--grid", "lr=1e-3:1e-3"], "one number per candidate"),
    "grid lr zero": (
        ["--grid", "lr=1e-3,0"],
        "--grid lr: expected a list, each a number > 0, got 0.001,0",
    ),
    "grid l1 layers": (
        ["--grid", "l1=1e-5:1e-5"],
        "--grid l1: expected one number, or one per layer (3), got 2",
    ),
    "resume and overwrite": (
        ["--resume", "--overwrite"],
        "--resume and --overwrite: expected one of them, got both",
    ),
    "files where none are wanted": (
        ["permuted-digits", "a"],
        "permuted-digits: expected no files, got a",
    ),
    "no folders": (["folder"], "expected folders of images after it, one per task"),
    "no arrays": (["arrays"], "expected .npz files"),
    "absent folder": (["folder", "nowhere"], "nowhere: no such folder"),
    "tasks of folders": (["folder", "a", "--tasks", "2"], "--tasks: folder has one task per"),
    "image size": (
        ["folder", "a", "--image-size", "0"],
        "--image-size: expected an integer from 1 to 4096, got 0",
    ),
    "option of another": (
        ["--image-size", "8"],
        "--image-size applies to folder only (got permuted-digits)",
    ),
    "validation of digits": (
        ["--validation", "0.1"],
        "--validation applies to permuted-mnist, split",
    ),
    "split": (["split-cifar", "--split", "cifar20"], ("--split", "cifar20")),
    "no cifar": (["split-cifar", "--data-root", "nowhere"], "expected cifar10 as one of cifar10."),
    "unknown network": (["--net", "resnet_18"], "got 'resnet_18'; similar ones are"),
    "network of images": (["--net", "narrow"], "expected (C, H, W)"),
    "width of another": (
        ["--net", "narrow", "--width", "8"],
        "--width applies to --net mlp only (got --net narrow)",
    ),
    "net scale": (["--net-scale", "0"], "--net-scale: expected a number > 0 and <= 64, got 0"),
    "mlp has no scale": (["--net-scale", "0.5"], "network 'mlp': expected options out of"),
    "no weights": (["--pretrained", "nowhere"], "nowhere can't be read"),
    "adopt": (["--adopt"], "--adopt: expected a trained network by --pretrained"),
    "workers": (["--workers", "0"], "--workers: expected an integer >= 1, got 0"),
    "unknown method": (
        ["--method", "magic"],
        ("--method: expected one of clnp, fin", "got 'magic'"),
    ),
    "setting of clnp": (
        ["--method", "si", "--margin", "0.1"],
        "--margin applies to --method clnp only (got --method si)",
    ),
    "option of a method": (["--method", "si", "--set", "z=1"], "['c', 'xi'], or of all methods"),
    "method before data": (
        ["permuted-mnist", "--data-root", "nowhere", "--method", "magic"],
        ("--method: expected one of", "got 'magic'"),
    ),
    "option before data": (
        ["permuted-mnist", "--data-root", "nowhere", "--method", "si", "--set", "z=1"],
        ("--set: method 'si': expected options of its own", "got ['z']"),
    ),
    "range before data": (
        ["permuted-mnist", "--data-root", "nowhere", "--method", "si", "--set", "c=-1"],
        "--set: method 'si', c: expected a number >= 0, got -1",
    ),
    "shared option before data": (
        ["permuted-mnist", "--data-root", "nowhere", "--method", "si", "--set", "momentum=2"],
        "--set: momentum: expected a number >= 0 and < 1, got 2",
    ),
    "grid of clnp": (
        ["--method", "si", "--grid", "l1=1e-5", "lr=1e-3"],
        "--grid l1, --grid lr apply to --method clnp only (got --method si)",
    ),
    "settings of no fine-tuning": (
        ["--fine-tune-lr", "1e-3"],
        "--fine-tune-lr applies to runs with epochs of fine-tuning only (got --fine-tune-epochs 0)",
    ),
    "range of an option": (
        ["--method", "si", "--set", "c=-1"],
        "c: expected a number >= 0, got -1",
    ),
    "fewer tasks than the run has": (
        ["--tasks", "5", "--method", "packnet", "--set", "tasks=2"],
        "--set tasks: packnet divides its weights among so many tasks, expected 5 or more",
    ),
    "set of clnp": (
        ["--set", "c=1"],
        "--set applies to the other methods only; clnp's settings have options",
    ),
    "set of others": (["--method", "si", "--set", "ewc.c=1"], "--set: expected options of si"),
    "set without value": (["--method", "si", "--set", "c"], "expected NAME=VALUE or METHOD.NAME"),
    "no data": (
        ["permuted-mnist", "--data-root", "nowhere"],
        "expected the MNIST files train-images-idx3-ubyte",
    ),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_bad_arguments_are_refused_before_any_work(capsys, tmp_path, case):
    words, told = BAD_RUNS[case]
    code, out, err = clnp(capsys, "run", "--out", tmp_path / "run", *words)
    assert code == 2
    assert out == ""
    assert all(fragment in err for fragment in ([told] if isinstance(told, str) else told))
    assert err.startswith("clnp: error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_defaults_are_good_settings():
    for stream in cli.commands.STREAMS:
        config = Config(**defaults(stream))
        validate(config)
        assert Config.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    assert tuple(cli.commands.STREAMS) == tuple(streams.MAKERS)
    with pytest.raises(ConfigError, match="stream"):
        defaults("permuted-cats")


def test_settings_stored_by_an_earlier_version_are_read():
    values = Config(**defaults("permuted-digits")).as_dict()
    later = [f.name for f in dataclasses.fields(Config) if f.default is not dataclasses.MISSING]
    assert "method" in later
    old = Config.from_dict({k: v for k, v in values.items() if k not in later})
    assert old == Config(**defaults("permuted-digits"))


def test_stored_settings_are_checked():
    values = Config(**defaults("permuted-digits")).as_dict()
    with pytest.raises(ConfigError, match="--lr: expected a number > 0, got True"):
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


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ([], ("run", "compare", "report", "verify", "export", "methods", "info", "tune")),
        (["run"], ("--out", "--tasks", "--resume")),
        (["export"], ("--task", "--format")),
    ],
)
def test_help(capsys, command, told):
    code, out, _ = clnp(capsys, *command, "--help")
    assert code == 0
    assert all(word in out for word in told)


def test_no_command(capsys):
    code, _, err = clnp(capsys)
    assert code == 2
    assert "COMMAND" in err


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
    assert clnp(capsys, "run", "--out", tmp_path, "--overwrite", *tiny(tasks=1))[0] == 0
    assert RunFolder(tmp_path).read_metrics()["tasks_learned"] == 1
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
    with RunFolder(tmp_path).locked():
        code, _, err = clnp(capsys, "run", "--out", tmp_path, *TINY)
    assert code == 2
    assert "in use by another clnp process" in err


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
    learner = SimpleNamespace(settings=Settings(epochs=3, fine_tune=FineTune(epochs=4)))
    record = {"loss": 1.0, "train_metric": 0.5, "validation_metric": 0.25}
    with reporter:
        reporter.on_task_begin(learner, 1, "b", 10)  # 2 grid points of 3 epochs, 4 of fine-tuning
        reporter.on_batch_end(learner, 1.0, 0.5, 1, 2)
        reporter.on_search(learner, 7, 0)
        assert reporter._bar.tasks[0].fields["numbers"] == "pruning, 7 networks evaluated"
        reporter.on_batch_end(learner, 1.0, 0.5, 1, 2)
        assert reporter._bar.tasks[0].completed == pytest.approx(1.05)
        reporter.on_epoch_end(learner, {**record, "epoch": 1, "point": 1, "points": 2, "done": 5})
        assert reporter._bar.tasks[0].completed == pytest.approx(1.5)
        reporter.on_epoch_end(learner, {**record, "epoch": 3, "fine_tune": True})
        assert reporter._bar.tasks[0].completed == pytest.approx(2.0)


def test_search_is_told_where_the_output_is_no_terminal():
    out, log = io.StringIO(), io.StringIO()
    reporter = Reporter(Console(file=out, width=80), log, tasks=2)
    reporter.on_search(None, 7, 0)
    reporter.on_search(None, 8, 90)  # too soon after the last line
    reporter.spoke = 0.0
    reporter.on_search(None, 9, 90)
    lines = ["task 1/2 search 7 networks tried", "task 1/2 search 9/90 networks tried"]
    assert out.getvalue().splitlines() == lines
    assert [line[20:] for line in log.getvalue().splitlines()] == lines


def test_many_layers_are_one_number():
    counts = {"size": 10, "used": 4, "new": 1, "reused": 0, "free": 6}
    assert claimed({"a": counts, "b": counts}) == "channels used a 4/10 (+1), b 4/10 (+1)"
    many = {str(k): counts for k in range(9)}
    assert claimed(many) == "channels used 36/90 (+9) in 9 layers"


def test_warnings_of_ours_are_one_line() -> None:
    """Without the file and the source line that warned; other packages' keep theirs."""
    with one_line_warnings():
        ours = warnings.formatwarning("too small", MarginWarning, "file.py", 7, "code()")
        other = warnings.formatwarning("old", DeprecationWarning, "file.py", 7, "code()")
    assert ours == "clnp: warning: too small\n"
    assert "file.py:7" in other
    assert "file.py" in warnings.formatwarning("small", MarginWarning, "file.py", 7, "x")
