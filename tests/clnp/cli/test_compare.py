"""Other methods on the command line, and several in one table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from clnp.cli import build_config, compare, configurations
from clnp.cli.arguments import parse
from clnp.cli.config import SHARED
from clnp.cli.defaults import DEFAULTS
from clnp.cli.environment import environment
from clnp.cli.run_folder import RunFolder
from clnp.errors import CapacityError
from clnp.learner.learner import Learner
from clnp.methods import METHODS, MethodLearner, MethodSettings
from tests.clnp.commands import TINY, clnp, run_clnp, tiny


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_by_another_method(tmp_path, capsys):
    words = ["run", "permuted-digits", *TINY, "--method", "si", "--set", "c=0.5"]
    code, out, _ = clnp(capsys, *words, "--out", tmp_path / "a")
    assert code == 0
    assert "certificate" not in out
    assert "pruning" not in out
    metrics = RunFolder(tmp_path / "a").read_metrics()
    assert metrics["config"]["method"] == "si"
    assert metrics["config"]["options"] == [["c", 0.5]]
    assert metrics["reports"][0]["capacity"] == {}
    assert metrics["cost"]["examples"] == 2 * 2 * 1100
    assert not (tmp_path / "a" / "plots" / "capacity.png").exists()
    code, out, _ = clnp(capsys, "report", tmp_path / "a")
    assert code == 0
    assert "Channels" not in out
    # A finished run goes on to nothing; the method and its options come from the folder.
    before = (tmp_path / "a" / "metrics.json").read_bytes()
    code, out, _ = clnp(capsys, "run", "--resume", "--out", tmp_path / "a")
    assert code == 0
    assert "going on after 2 of 2 tasks" in out
    assert (tmp_path / "a" / "metrics.json").read_bytes() == before
    for command in (["verify", tmp_path / "a"], ["export", tmp_path / "a", "--task", 0]):
        code, _, err = clnp(capsys, *command)
        assert code == 2
        assert "applies to the method clnp only" in err
    code, _, err = clnp(capsys, "run", "--resume", "--out", tmp_path / "a", "--method", "ewc")
    assert code == 2
    assert "--method ewc (was si)" in err


def settings(stream, method, *words):
    options = parse(["run", stream, "--method", method, *words])
    return build_config.settings(options, Path("nowhere"))[0]


def test_methods_have_settings_of_their_own():
    si = settings("permuted-mnist", "si")
    assert (si.lr, si.schedule, si.dropout, si.fine_tune_epochs) == (1e-3, "constant", 0.0, 0)
    assert si.epochs == settings("permuted-mnist", "clnp").epochs + 10
    assert si.init is None
    assert dict(si.options) == {"c": 0.1, "reset_optimizer": False, "xi": 0.1}
    other = settings("permuted-mnist", "si", "--set", "c=0", "--lr", "0.1", "--dropout", "0.5")
    assert (other.lr, other.dropout, dict(other.options)["c"]) == (0.1, 0.5, 0)
    assert dict(settings("split-cifar", "si").options) == {"c": 0.01, "xi": 1e-3}
    sparcl = settings("split-cifar", "sparcl")
    assert (sparcl.lr, sparcl.schedule) == (0.03, "cosine")
    packnet = settings("permuted-digits", "packnet", "--tasks", "3")
    assert dict(packnet.options) == {"tasks": 3}


def test_limits_of_growth_go_with_the_network(tmp_path):
    deep = settings("permuted-mnist", "clnp", "--depth", "3")
    assert (deep.l1, deep.growth) == ((0.0, 1e-5, 1e-5, 1e-6), (240, 400, 400))
    assert deep.first_growth == (400, 300, 300)
    shallow = settings("permuted-mnist", "clnp", "--depth", "1", "--growth", "20")
    assert (shallow.growth, shallow.first_growth) == ((20,), (400,))
    other = settings("permuted-mnist", "clnp", "--net", "narrow")
    assert (other.growth, other.first_growth, other.init) == (("auto",), ("auto",), None)
    (tmp_path / "weights").touch()
    adopted = settings(
        "permuted-mnist", "clnp", "--adopt", "--pretrained", str(tmp_path / "weights")
    )
    assert (adopted.growth, adopted.first_growth) == ((240, 400), ())


def compared(method, *words):
    options = parse(["compare", "permuted-mnist", "--methods", "clnp,si", *words])
    return build_config.settings(options, Path("nowhere"), method)[0]


@pytest.mark.parametrize(
    ("words", "epochs"),
    [
        ((), 20 + 10),
        (("--epochs", "7"), 7 + 10),
        (("--fine-tune-epochs", "3"), 20 + 3),
        (("--fine-tune-lr", "1e-3"), 20 + 10),
        (("--epochs", "7", "--fine-tune-epochs", "3"), 10),
        (("--epochs", "7", "--fine-tune-epochs", "0"), 7),
        (("--epochs", "7", "--fine-tune-epochs", "3", "--fine-tune-rounds", "4"), 19),
    ],
)
def test_compared_methods_train_for_as_many_epochs_as_clnp(words, epochs):
    clnp, si = (compared(name, *words) for name in ("clnp", "si"))
    assert clnp.epochs + clnp.fine_tune_rounds * clnp.fine_tune_epochs == epochs
    assert (si.epochs, si.fine_tune_epochs) == (epochs, 0)
    assert settings("permuted-mnist", "si", "--epochs", "7").epochs == 7


def test_every_method_takes_the_settings_of_every_experiment():
    for stream in DEFAULTS:
        for name, info in METHODS.items():
            arguments = settings(stream, name).method_arguments()
            shared = {k: v for k, v in arguments.items() if k in SHARED and k != "device"}
            MethodSettings(**{**info.cls.fixed, **shared})
            assert set(arguments) - set(SHARED) - {"seed"} <= {*info.options, "reset_optimizer"}


def test_torchrun_is_for_run(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = clnp(capsys, "compare", "--out", tmp_path / "here")
    assert code == 2
    assert "clnp compare expects one process, got 2 of torchrun" in err
    assert not (tmp_path / "here").exists()


def test_methods_are_listed(capsys):
    code, out, _ = clnp(capsys, "methods")
    assert code == 0
    for name in METHODS:
        assert f"\n{name}: " in out
    assert "--set xi=0.1" in out


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "digits"
    words = ["compare", "permuted-digits", *tiny(width=12), "--methods", "clnp,finetune,si"]
    words += ["--seeds", 2, "--set", "si.c=0.3", "--margin", 0.05, "--out", folder]
    assert run_clnp(*words) == 0
    return folder


def test_one_table_of_all_methods(comparison, capsys):
    code, out, _ = clnp(capsys, "report", comparison)
    assert code == 0
    rows = read_csv(comparison / "compare.csv")
    assert [(r["method"], r["seed"]) for r in rows] == [
        (m, s) for m in ("clnp", "finetune", "si") for s in ("0", "1")
    ]
    summary = read_csv(comparison / "methods.csv")
    for line in summary:
        own = [r for r in rows if r["method"] == line["method"]]
        for key in ("acc", "forgetting", "flops", "seconds", "peak_memory"):
            values = [float(r[key]) for r in own]
            assert float(line[f"{key}_mean"]) == pytest.approx(np.mean(values))
            assert float(line[f"{key}_std"]) == pytest.approx(np.std(values, ddof=1))
        acc = f"{100 * float(line['acc_mean']):.2f} +- {100 * float(line['acc_std']):.2f}"
        assert acc in out
    by_name = {line["method"]: line for line in summary}
    assert float(by_name["clnp"]["forgetting_mean"]) == 0
    assert float(by_name["clnp"]["used_mean"]) > 0
    assert by_name["si"]["used_mean"] == ""
    assert "n/a" in out
    # Frozen work is left out of the count.
    assert float(by_name["clnp"]["flops_mean"]) < float(by_name["finetune"]["flops_mean"])


def test_plots_are_drawn_again(comparison, capsys):
    paths = sorted((comparison / "plots").iterdir())
    assert [p.name for p in paths] == ["cost.png", "mean_accuracy.png"]
    before = [p.read_bytes() for p in paths]
    paths[0].unlink()
    assert clnp(capsys, "report", comparison, "--plots")[0] == 0
    assert [p.read_bytes() for p in paths] == before


def test_every_run_has_its_configuration_beside_the_table(comparison):
    found = json.loads((comparison / "configurations.json").read_text())
    assert list(found["methods"]) == ["clnp", "finetune", "si"]
    (si,), (clnp_runs,) = found["methods"]["si"], found["methods"]["clnp"]
    assert si["seeds"] == clnp_runs["seeds"] == [0, 1]
    # Those given, and the defaults of the others.
    assert si["settings"]["options"] == {"c": 0.3, "xi": METHODS["si"].options["xi"].default}
    assert (si["settings"]["optimizer"], si["settings"]["width"]) == ("adam", 12)
    assert "margin" not in si["settings"]
    assert clnp_runs["settings"]["margin"] == 0.05
    assert si["environment"]["packages"] == environment()["packages"]
    # Of each run's folder too, of one seed and of several.
    for folder, seeds in ((comparison / "si", [0, 1]), (comparison / "si" / "seed-1", [1])):
        (own,) = json.loads((folder / "configurations.json").read_text())["methods"]["si"]
        assert own == {**si, "seeds": seeds}


def test_other_settings_have_an_entry_of_their_own(comparison):
    folder = RunFolder(comparison / "si" / "seed-0")
    one = folder.read_metrics()
    other = {**one, "config": {**one["config"], "seeds": [5], "options": [["c", 0.7]]}}
    entries = configurations.of_runs([(folder, one), (folder, other)])["methods"]["si"]
    told = [(e["seeds"], e["settings"]["options"]["c"]) for e in entries]
    assert told == [([0], 0.3), ([5], 0.7)]


def test_a_seed_that_fails_leaves_the_others_in_the_table(tmp_path, capsys, monkeypatch):
    learn = MethodLearner.learn

    def stops(learner, task):
        if learner.settings["seed"] == 1:
            raise CapacityError("no room")
        return learn(learner, task)

    monkeypatch.setattr(MethodLearner, "learn", stops)
    words = [
        "compare",
        "permuted-digits",
        *tiny(tasks=1, epochs=1),
        "--methods",
        "finetune,scratch",
    ]
    code, out, _ = clnp(capsys, *words, "--seeds", 0, 1, 2, "--out", tmp_path / "a")
    assert code == 3
    for name in ("finetune", "scratch"):
        assert f"method {name}, seed 1 did not finish: no room" in out
        assert f"not finished, and not in the table: {name}, seed 1" in out
    rows = [(r["method"], r["seed"]) for r in read_csv(tmp_path / "a" / "compare.csv")]
    assert rows == [(m, s) for m in ("finetune", "scratch") for s in ("0", "2")]
    assert {line["seeds"] for line in read_csv(tmp_path / "a" / "methods.csv")} == {"2"}
    assert "deviation (n - 1) over n = 2 seeds" in out
    (entry,) = json.loads((tmp_path / "a" / "configurations.json").read_text())["methods"][
        "scratch"
    ]
    assert entry["seeds"] == [0, 2]
    monkeypatch.undo()
    code, out, _ = clnp(capsys, *words, "--seeds", 0, 1, 2, "--out", tmp_path / "a", "--resume")
    assert code == 0
    assert "not finished" not in out
    assert len(read_csv(tmp_path / "a" / "compare.csv")) == 6


def test_one_seed_has_no_deviation(tmp_path, capsys):
    words = ["compare", "permuted-digits", *tiny(tasks=1, epochs=1), "--methods", "finetune"]
    code, out, _ = clnp(capsys, *words, "--out", tmp_path / "a")
    assert code == 0
    assert "one seed each, so no deviation" in out
    assert "+-" not in out


@pytest.mark.parametrize(
    ("seeds", "told"),
    [
        ([1, 1], "one seed each, so no deviation"),
        ([3.0, 3.0], "mean +- standard deviation (n - 1) over n = 3 seeds"),
        ([3, 1, 2], "mean +- standard deviation (n - 1) over n = 1 to 3 seeds"),
    ],
)
def test_the_table_says_over_how_many_seeds(seeds, told):
    assert compare.spread_of(seeds) == told


def test_settings_reach_the_methods(comparison):
    configs = {
        name: RunFolder(comparison / name / "seed-0").read_metrics()["config"]
        for name in ("clnp", "finetune", "si")
    }
    assert configs["clnp"]["margin"] == 0.05
    assert configs["si"]["options"] == [["c", 0.3]]
    assert configs["finetune"]["options"] == []
    assert {c["epochs"] for c in configs.values()} == {2}
    for name, metrics in configs.items():
        assert metrics["method"] == name


def test_a_comparison_is_not_touched_unasked(comparison, capsys):
    words = ["compare", "permuted-digits", *TINY, "--seeds", 2, "--out", comparison]
    code, _, err = clnp(capsys, *words, "--methods", "clnp")
    assert code == 2
    assert "holds a comparison; continue it with --resume" in err
    code, _, err = clnp(capsys, *words, "--methods", "clnp", "--resume", "--lr", 0.5)
    assert code == 2
    assert "--lr 0.5" in err


def test_resume_runs_what_is_missing_and_adds_methods(comparison, tmp_path, capsys, monkeypatch):
    words = ["compare", "permuted-digits", *tiny(width=12), "--seeds", 2, "--margin", 0.05]
    words += ["--out", tmp_path]
    learn, calls = Learner.learn, []

    def killed(learner, task):
        calls.append(task.name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return learn(learner, task)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", killed)
        code, _, err = clnp(capsys, *words, "--methods", "clnp")
    assert code == 130
    assert "go on with: clnp compare permuted-digits --resume --out" in err
    assert clnp(capsys, *words, "--methods", "clnp", "--resume")[0] == 0
    same = [row for row in compare.rows_of(comparison) if row["method"] == "clnp"]
    for row, other in zip(compare.rows_of(tmp_path), same, strict=True):
        for key in ("seed", "acc", "bwt", "forgetting", "used", "flops", "examples"):
            assert row[key] == other[key], key
    code, out, _ = clnp(capsys, *words, "--methods", "clnp,er", "--resume")
    assert code == 0
    assert out.count("finished before") == 1
    methods = [line["method"] for line in read_csv(tmp_path / "methods.csv")]
    assert methods == ["clnp", "er"]


def test_a_method_that_stops_is_told_and_left_out(tmp_path, capsys):
    words = ["compare", "permuted-digits", "--threads", 1, "--epochs", 1, "--width", 2]
    words += ["--tasks", 4, "--methods", "clnp,finetune", "--out", tmp_path / "a"]
    code, out, _ = clnp(capsys, *words)
    assert code == 3
    assert "method clnp, seed 0 did not finish: " in out
    assert [line["method"] for line in read_csv(tmp_path / "a" / "methods.csv")] == ["finetune"]


BAD = {
    "unknown": (["--methods", "clnp,magic"], "--methods: expected some of clnp, "),
    "none": (["--methods", ","], "got ','"),
    "twice": (["--methods", "si,si"], "--methods: expected each once"),
    "set": (["--methods", "si", "--set", "ewc.x=1"], "--set: expected options of si"),
    "option": (
        ["--methods", "clnp,si", "--set", "si.z=1"],
        "expected options of its own, ['c', 'xi']",
    ),
    "set of clnp": (
        ["--methods", "clnp,si", "--set", "clnp.c=1"],
        "--set applies to the other methods only",
    ),
    "set of nobody": (
        ["--methods", "clnp", "--set", "c=1"],
        "--set applies to the other methods only",
    ),
    "margin of nobody": (
        ["--methods", "si,ewc", "--margin", "0.1"],
        "--margin applies to --method clnp only (got --methods si,ewc)",
    ),
    "before data": (
        ["permuted-mnist", "--data-root", "nowhere", "--methods", "ewc,si", "--set", "si.c=-1"],
        "--set: method 'si', c: expected a number >= 0, got -1",
    ),
    "resume": (["--resume", "--overwrite"], "got both"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_comparisons_are_refused_before_any_work(tmp_path, capsys, case):
    words, fragment = BAD[case]
    code, out, err = clnp(capsys, "compare", *TINY, "--out", tmp_path / "a", *words)
    assert code == 2
    assert out == ""
    assert fragment in err
    assert err.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_foreign_folders_are_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("ten years")
    for flag in ([], ["--resume"], ["--overwrite"]):
        code, _, err = clnp(capsys, "compare", "--out", tmp_path, *TINY, *flag)
        assert code == 2
        assert "holds no comparison" in err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
