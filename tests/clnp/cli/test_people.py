"""Texts for people: help of an experiment, the start of a run, tables that fit, counts from 1."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from clnp.cli import build_config, report, summary
from clnp.cli.arguments import applies, parse
from clnp.cli.config import Config, shown
from clnp.cli.defaults import NAMED, ONLY, STREAMS
from clnp.cli.options import OPTIONS, PLACES, SETTINGS
from clnp.cli.prepare import try_out
from clnp.cli.run_folder import Run, RunFolder
from clnp.data.names import counted
from clnp.errors import ConfigError
from clnp.html.text import PHASES
from clnp.learner.settings import FineTune, Settings, rows
from tests.clnp.commands import clnp

FLAGS = {
    f"--{word}"
    for groups in (PLACES, OPTIONS)
    for group in groups.values()
    for name in group
    for word in name.split()
}


@pytest.mark.parametrize("settings", [Settings, FineTune])
def test_settings_name_options_that_there_are(settings: type) -> None:
    for row in rows(settings).values():
        assert set(row.option.split(", ")) <= {*FLAGS, ""}


def test_the_command_line_takes_the_ranges_of_the_learner() -> None:
    shared = {**rows(Settings), **{f"fine_tune_{k}": row for k, row in rows(FineTune).items()}}
    narrower = {
        "fine_tune_epochs",
        "fine_tune_lr",
        "granularity",
        "loss",
        "metric",
        "margin",
        "l1",
        "fine_tune_l1",
        "growth",
        "tasks_expected",
    }
    for name, option in SETTINGS.items():
        if name in shared and name not in {*narrower, "first_growth"}:
            assert option.values is shared[name].values, name


def words_of(stream: str) -> list[str]:
    return ["run", stream, *(["a"] if stream in NAMED else [])]


@pytest.mark.parametrize("method", ["clnp", "si"])
@pytest.mark.parametrize("stream", STREAMS)
def test_help_of_an_experiment_shows_its_defaults(
    stream: str, method: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    code, out, _ = clnp(capsys, "run", stream, "--method", method, "--help")
    assert code == 0
    text = " ".join(out.split())
    options = parse([*words_of(stream), "--method", method])
    config, _ = build_config.settings(options, Path("nowhere"))
    for name, option in SETTINGS.items():
        flag = f" --{name.replace('_', '-')}"
        assert (f"{flag} " in text or f"{flag}, " in text) == applies(name, stream, method), name
        if applies(name, stream, method):
            value = getattr(config, name)
            usual = option.unset if value in (None, ()) else shown(value)
            usual = {"True": "yes", "False": "no"}.get(usual, usual)
            start = text.index(option.help.split("%")[0], text.index(flag))
            assert text[start:].startswith(f"{option.help} (default: {usual})"), name


@pytest.mark.parametrize("method", ["clnp", "si"])
@pytest.mark.parametrize("stream", STREAMS)
def test_options_that_help_leaves_out_are_refused(stream: str, method: str) -> None:
    samples: dict[Any, str] = {int: "1", float: "0.5"}
    for name, option in SETTINGS.items():
        if name in ONLY and name != "tasks":
            continue  # the data or the network decides
        flag = f"--{name.replace('_', '-')}"
        assert option.values is not None
        kind = option.values.kind
        if kind is bool:
            words = [flag]
        elif name == "image_range":
            words = [flag, "0,1"]
        elif name == "class_weights":
            words = [flag, "balanced"]
        else:
            words = [flag, *(option.values.names[:1] or [samples.get(kind, "mlp")])]
        try:
            build_config.settings(parse([*words_of(stream), "--method", method, *words]), "nowhere")
            refused = False
        except ConfigError as error:
            told = str(error)
            refused = "applies to" in told and "--net mlp" not in told
            refused |= "leave it out" in told
        if not name.startswith("fine_tune_"):  # without fine-tuning there is nothing to set
            assert refused != applies(name, stream, method), name


def test_help_without_an_experiment_says_where_the_defaults_are(capsys: Any) -> None:
    out = clnp(capsys, "compare", "--help")[1]
    assert "clnp compare EXPERIMENT --help shows the defaults" in " ".join(out.split())
    assert "clnp run folder PATH [PATH ...]" in clnp(capsys, "run", "folder", "--help")[1]


def test_a_run_says_what_it_begins_with(tmp_path: Path) -> None:
    options = parse(["run", "--tasks", "3", "--width", "24", "--lr", "0.01"])
    config, places = build_config.settings(options, tmp_path)
    run, stream = try_out(Run(RunFolder(tmp_path), config, places), contents=False)
    from clnp.cli.prepare import load_or_make

    data, network, settings = summary.lines(run.config, stream, load_or_make(run, stream))
    assert re.fullmatch(
        r"data: 3 tasks, each with 10 classes, \d+ train, \d+ validation, \d+ test examples of 64",
        data,
    )
    weights = 64 * 24 + 24 + 24 * 24 + 24 + 24 * 10 + 10
    assert network == f"network: mlp, fc1 24, fc2 24 channels, {weights:,} parameters"
    assert settings == (
        "settings: --tasks 3 (default 5), --lr 0.01 (default 0.002), --width 24 (default 600)"
    )
    usual = Config(**{**build_config.experiment_defaults("permuted-digits", "si"), "method": "si"})
    assert summary.settings_line(usual) == "settings: the defaults of permuted-digits for si"


def metrics_of(tasks: int, layers: int, name: str) -> dict[str, Any]:
    """Numbers of a run, each of them another one."""
    counts = {"size": 2000, "used": 1234, "new": 1111, "reused": 123, "free": 766}
    return {
        "config": {"method": "clnp", "seeds": [3]},
        "accuracy_matrix": [
            [0.9 + (tasks * i + j) / 1e4 if j <= i else float("nan") for j in range(tasks)]
            for i in range(tasks)
        ],
        "mean_accuracies": [0.8 + i / 1e4 for i in range(tasks)],
        "reports": [
            {"name": f"{name}-{k}", "capacity": {f"layer{n}": counts for n in range(layers)}}
            for k in range(tasks)
        ],
        "acc": 0.9, "bwt": 0.0, "forgetting": 0.0, "tasks_learned": 1,
        "certificate": {"tasks": tasks, "identical": tasks},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["digits", "a name that is longer than any column should be"])
@pytest.mark.parametrize(("tasks", "layers"), [(1, 1), (12, 6), (15, 9)])
def test_tables_fit_80_columns(tasks: int, layers: int, name: str) -> None:
    out = io.StringIO()
    metrics = metrics_of(tasks, layers, name)
    seconds = [
        {"task": k, "name": f"{name}-{k}", **dict.fromkeys(PHASES, 12345.6)} for k in range(tasks)
    ]
    report.show(Console(file=out, width=80), metrics, seconds)
    text = out.getvalue()
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 80
    assert text.count("clnp, seed 3: ") == 3
    words = text.split()
    R = metrics["accuracy_matrix"]
    shown_rows = R if tasks <= report.MOST_COLUMNS else [[R[k][k] for k in range(tasks)], R[-1]]
    for row in shown_rows:
        for value in row:
            assert value != value or f"{100 * value:.2f}" in words
    assert words.count("12345.6") >= tasks * len(PHASES)
    assert not re.search(r"^ *0 ", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 classes"), (1, "1 class"), (2, "2 classes"), (-1, "-1 classes")]
)
def test_one_and_many(count: int, words: str) -> None:
    assert counted(count, "class", "classes") == words
    assert counted(1, "epoch") == "1 epoch"
    assert counted(2, "epoch") == "2 epochs"
