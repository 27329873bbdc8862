"""Options given twice: added up or refused, never dropped."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.run import parser as benchmark_parser
from clnp.cli import build_config
from clnp.cli.arguments import parse, parser
from clnp.cli.once import OnceParser
from clnp.cli.options import OPTIONS, PLACES
from tests.clnp.commands import clnp

VALUES = {int: ("1", "2"), float: ("0.1", "0.2"), None: ("a", "b")}


def two_values(option):
    """Two different values that argparse accepts for an option."""
    keywords = option.keywords
    if "choices" in keywords:
        return tuple(keywords["choices"])[:2]
    return VALUES.get(keywords.get("type"), ("1", "2"))


EVERY = {
    name: option
    for group in (PLACES, OPTIONS)
    for part in group.values()
    for name, option in part.items()
}
SCALARS = [name for name, option in EVERY.items() if option.keywords.get("action") is None]
FLAGS = [
    name
    for name, option in EVERY.items()
    if option.keywords.get("action") is argparse.BooleanOptionalAction
]


@pytest.mark.parametrize("name", SCALARS)
def test_every_option_with_two_values_is_refused(capsys, name):
    first, second = two_values(EVERY[name])
    for flag in (f"--{word}" for word in name.split()):
        assert vars(parse(["run", flag, first, flag, first]))
        with pytest.raises(SystemExit):
            parse(["run", flag, first, flag, second])
        error = capsys.readouterr().err
        assert flag in error
        assert f"expected one value, got {first} and then {second}" in error


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_and_its_opposite_are_refused(capsys, name):
    assert parse(["run", f"--{name}", f"--{name}"])
    with pytest.raises(SystemExit):
        parse(["run", f"--{name}", f"--no-{name}"])
    assert "got both" in capsys.readouterr().err


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True), st.data())
def test_lists_are_what_all_occurrences_name(names, data):
    items = [f"{name}=1" for name in names]
    words, rest = [], items
    while rest:
        count = data.draw(st.integers(1, len(rest)))
        words, rest = [*words, "--set", *rest[:count]], rest[count:]
    assert parse(["run", *words]).set == items
    assert parse(["compare", "--epochs", "3", *words]).set == items


def test_lists_begin_empty_for_every_command_line():
    top = parser()
    for _ in range(2):
        assert top.parse_args(["run", "--grid", "l1=1", "--grid", "lr=1"]).grid == ["l1=1", "lr=1"]
    # A default is taken where nothing is given, and is no part of a list that is.
    assert benchmark_parser().parse_args([]).suite == ["step"]
    both = benchmark_parser().parse_args(["--suite", "ops", "--suite", "memory"])
    assert both.suite == ["ops", "memory"]


def test_a_value_that_is_the_default_counts(capsys):
    made = OnceParser()
    made.add_argument("--seeds", type=int, default=1)
    assert made.parse_args(["--seeds", "1", "--seeds", "1"]).seeds == 1
    with pytest.raises(SystemExit):
        made.parse_args(["--seeds", "1", "--seeds", "2"])
    assert "got 1 and then 2" in capsys.readouterr().err


TWICE = {
    "one name, two values": (
        ["--set", "c=1", "--set", "c=2"],
        "--set: expected one c of si, got 1 and 2",
    ),
    "for all and for one": (["--set", "c=1", "si.c=2"], "--set: expected one c of si, got 1 and 2"),
    "one item": (["--set", "c=1", "--set", "c=1"], "got c=1 twice"),
    "grid": (["--grid", "lr=1e-3", "--grid", "lr=1e-2"], "each at most once"),
    "seeds": (["--seeds", "3", "--seeds", "5"], "got 3 and then 5"),
    "one seed": (["--seeds", "1", "2", "1"], "got 1 twice"),
    "folder": (["folder", "a", "b", "--epochs", "1", "./a"], "got a and ./a, the same"),
    "array": (["arrays", "a.npz", "a.npz"], "got a.npz and a.npz"),
    "abbreviation": (["--epoch", "3"], "unrecognized arguments: --epoch"),
    "abbreviated flag": (["--over"], "unrecognized arguments: --over"),
}


@pytest.mark.parametrize("case", TWICE)
def test_what_is_said_twice_is_refused_before_any_work(capsys, tmp_path, case):
    words, fragment = TWICE[case]
    method = [] if case == "grid" else ["--method", "si"]
    code, out, err = clnp(capsys, "run", *words, *method, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert fragment in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_experiment_may_be_named_like_a_folder():
    assert parse(["run", "folder", "folder", "a"]).paths == ("folder", "a")


def test_repeated_options_reach_their_methods():
    words = ["compare", "permuted-mnist", "--methods", "ewc,si,sparcl"]
    words += ["--set", "ewc.strength=100", "--set", "si.c=2"]
    words += ["--set", "sparcl.lr=0.1", "--set", "sparcl.momentum=0.9"]
    options = parse(words)
    own = {
        name: dict(build_config.settings(options, Path("nowhere"), name)[0].options)
        for name in ("ewc", "si", "sparcl")
    }
    assert own["ewc"]["strength"] == 100
    assert own["si"]["c"] == 2
    assert own["sparcl"]["lr"] == 0.1
    assert own["sparcl"]["momentum"] == 0.9
