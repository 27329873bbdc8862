"""The pages' commands: what the programs take, and what the committed figures were made by."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import documented, gpu_suite, methods_evidence, run
from benchmarks import settings as settings_sweeps
from benchmarks.pages import __main__ as pages
from benchmarks.reproduce import __main__ as reproduce
from benchmarks.reproduce.experiment import settings_of
from clnp.cli import build_config, config, run_folder
from clnp.cli.arguments import STREAMS, parse
from clnp.cli.commands import COMMANDS
from clnp.cli.configurations import resolved
from clnp.cli.environment import environment
from clnp.learner.settings import REMOVED, SEARCHES
from clnp.methods import METHODS
from tests.clnp.commands import run_clnp, tiny

ROOT = documented.ROOT
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), RESULTS / "README.md")
# Words of the pages that stand for others.
STANDS_FOR = {"...": STREAMS[0], "EXPERIMENT": STREAMS[0], "$stage": "ops", "COMMAND": "run"}
PARSERS: dict[str, Callable[[list[str]], Any]] = {
    "clnp": parse,
    "benchmarks.run": lambda words: run.parser().parse_args(words),
    "benchmarks.pages": lambda words: pages.parser().parse_args(words),
    "benchmarks.settings": lambda words: settings_sweeps.parser().parse_args(words),
    "benchmarks.reproduce": lambda words: reproduce.parser().parse_args(words),
    "benchmarks.methods_evidence": lambda words: methods_evidence.parser().parse_args(words),
    "benchmarks.gpu_suite": lambda words: gpu_suite.parser().parse_args(words),
}


def ours(words: list[str]) -> tuple[str, list[str]] | None:
    """(program, its words) of a command with options, or None for another's and for a bare name."""
    if words[0] == "clnp":
        program, rest = "clnp", words[1:]
    elif "-m" in words:
        program, *rest = words[words.index("-m") + 1 :]
    else:
        return None
    rest = [STANDS_FOR.get(word, word) for word in rest]
    return (program, rest) if program in PARSERS and len(rest) > 1 else None


ALL = [
    pytest.param(*found, id=f"{path.name}: {' '.join(words)[:60]}")
    for path in PAGES
    for words in documented.commands(path.read_text())
    if (found := ours(words))
]


def given(words: list[str]) -> dict[str, list[str]]:
    """Option -> the words after it, of all its occurrences."""
    found: dict[str, list[str]] = {}
    own: list[str] = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            own = found.setdefault(name, [])
            own += [value] if equals else []
        else:
            own.append(word)
    return found


def holds(value: Any, text: str) -> bool:
    """Is the value what a word of the command line stands for, or has it among others?"""
    if isinstance(value, list):
        return any(holds(item, text) for item in value)
    if isinstance(value, tuple):
        parts = text.split(",")
        return len(parts) == len(value) and all(map(holds, value, parts))
    if isinstance(value, (int, float)):
        return value == float(text)
    known = str(value).casefold()  # a name may be written small, and its words joined
    return text.casefold() in (known, known.replace(" ", "-"))


@pytest.mark.parametrize(("program", "words"), ALL)
def test_no_word_of_a_documented_command_is_lost(program: str, words: list[str]) -> None:
    if words[-1] == "--help":
        assert words[0] in COMMANDS
        return
    parsed = vars(PARSERS[program](words))
    for option, texts in given(words).items():
        name = option.removeprefix("--").replace("-", "_")
        value = parsed["net" if name == "model" and words[0] in ("run", "compare") else name]
        assert value is not None
        assert value is not False
        for text in texts if value is not True else ():
            assert holds(value, text), (option, text, value)


@pytest.mark.parametrize(
    "words",
    [p.values[1] for p in ALL if p.values[0] == "clnp" and p.values[1][0] in ("run", "compare")],
)
def test_documented_settings_are_settings(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "_check_device", lambda name: None)  # some are for a GPU
    Path("net.pt").touch()
    if words[-1] == "--help":
        return
    options = parse(words)
    names = build_config.compared_methods(options.methods) if words[0] == "compare" else [None]
    for name in names:
        build_config.settings(options, tmp_path, name)


def test_a_lost_word_is_found() -> None:
    """The test above sees what argparse's own lists do."""
    assert given(["--set", "a=1", "b=2", "--set", "c=3"]) == {"--set": ["a=1", "b=2", "c=3"]}
    assert not holds(["c=3"], "a=1")
    assert holds((0.0, 1e-5), "0,1e-5")
    assert not holds((0.0,), "0,1e-5")


def meaning(config: dict[str, Any]) -> dict[str, Any]:
    """All settings of a run, in one way of writing them."""
    return documented.meaning(resolved(config))


RESULTS_COMMANDS = [*documented.commands((RESULTS / "README.md").read_text())]


def recorded(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """(contender, seed) -> its configuration, of a folder of `benchmarks.reproduce`."""
    contenders = json.loads((folder / "settings.json").read_text())["contenders"]
    return {
        (name, one["seed"]): meaning(one.get("config", about["config"]))
        for name, about in contenders.items()
        for one in about["runs"]
    }


def of_removed_settings(settings: dict[str, Any]) -> bool:
    """Did the run use a setting that was removed since, with an effect?"""
    return bool(REMOVED.keys() & settings.keys()) or settings.get("search", "auto") not in SEARCHES


@pytest.mark.parametrize(
    "folder",
    sorted(p.parent for p in (RESULTS / "reproduce").rglob("settings.json")),
    ids=lambda p: p.name,
)
def test_reproduced_figures_have_the_settings_of_their_commands(folder: Path) -> None:
    quick = folder.parent.name == "quick"
    asked = {}
    for words in RESULTS_COMMANDS:
        if words[:4] != ["python", "-m", "benchmarks.reproduce", folder.name]:
            continue
        parsed = reproduce.parser().parse_args(words[3:])
        options = reproduce.options_of(parsed)
        experiment = reproduce.EXPERIMENTS[parsed.experiment]
        assert parsed.quick == quick
        for name, contender in experiment.contenders.items():
            if options.only and name not in options.only:
                continue
            for seed in options.seeds:
                assert (name, seed) not in asked
                config, _ = settings_of(experiment, contender, seed, Path("nowhere"), options)
                asked[name, seed] = meaning(config.as_dict())
    there = recorded(folder)
    gone = {key for key, settings in there.items() if of_removed_settings(settings)}
    # A contender that was added after the runs has none.
    assert set(there) - gone == {key for key in asked if key in there}
    for key in set(there) - gone:
        assert there[key] == asked[key], key


def test_the_committed_run_has_the_settings_of_its_command() -> None:
    (words,) = (w for w in RESULTS_COMMANDS if w[:3] == ["clnp", "run", "permuted-mnist"])
    asked, _ = build_config.settings(parse(words[1:]), Path("nowhere"))
    config = run_folder.read_json(RESULTS / "permuted-mnist" / "config.json")["config"]
    assert meaning(config) == meaning(asked.as_dict())


def test_compared_methods_have_the_settings_of_the_documented_command() -> None:
    """But for what is marked in configurations.json, and so told under the table."""
    lines = documented.unmarked(documented.COMPARED)
    assert not lines, "\n".join(lines)


def test_every_row_of_the_comparison_has_a_configuration() -> None:
    every = json.loads((documented.COMPARED / "configurations.json").read_text())["methods"]
    with (documented.COMPARED / "compare.csv").open(newline="") as file:
        there = [(row["method"], int(row["seed"])) for row in csv.DictReader(file)]
    assert there == [
        (name, seed) for name, own in every.items() for entry in own for seed in entry["seeds"]
    ]


def test_a_comparison_takes_the_place_of_its_methods(tmp_path: Path) -> None:
    """Other rows stay to the letter."""
    words = ["compare", "permuted-digits", *tiny(tasks=1, epochs=1), "--methods", "si,ewc"]
    assert run_clnp(*words, "--out", tmp_path / "run") == 0
    target = tmp_path / "results"
    shutil.copytree(documented.COMPARED, target)
    lines = documented.adopt(tmp_path / "run", target)
    assert "si: stream permuted-digits, by the command permuted-mnist" in lines
    assert "ewc: seeds [0], by the command [0, 1, 2]" in lines
    before = (documented.COMPARED / "compare.csv").read_text().splitlines()
    after = (target / "compare.csv").read_text().splitlines()
    others = [line for line in before if line.split(",")[0] not in ("si", "ewc")]
    assert [line for line in after if line.split(",")[0] not in ("si", "ewc")] == others
    assert [line.split(",")[0] for line in after[1:]].count("si") == 1
    every = json.loads((target / "configurations.json").read_text())["methods"]
    assert list(every) == list(documented.comparison())
    assert every["si"][0]["settings"]["options"]["c"] == METHODS["si"].options["c"].default
    assert "differs" not in every["si"][0]


def test_differences_from_the_documented_command_are_told(tmp_path: Path) -> None:
    every = {
        name: [{"seeds": [*one["seeds"]], "settings": dict(one["settings"]), "environment": None}]
        for name, one in documented.comparison().items()
    }

    def told() -> list[str]:
        text = json.dumps({"format": "clnp-configurations", "methods": every})
        (tmp_path / "configurations.json").write_text(text)
        return documented.differences(tmp_path)

    assert told() == []
    every["derpp"][0]["settings"]["epochs"] = 1
    assert documented.unmarked(tmp_path) == []
    told()
    assert documented.unmarked(tmp_path) == ["derpp: epochs 1, by the command 10"]
    every["derpp"][0]["differs"] = ["epochs 1, by the command 10"]  # type: ignore[assignment]
    assert told() == ["derpp: epochs 1, by the command 10"]
    assert documented.unmarked(tmp_path) == []
    every["derpp"][0]["settings"]["epochs"] = 10
    assert told() == []
    assert documented.unmarked(tmp_path) == [
        "derpp: epochs 1, by the command 10: not so, but marked"
    ]
    del every["derpp"][0]["differs"]
    every["ewc"][0]["settings"]["options"] = {
        **every["ewc"][0]["settings"]["options"],
        "strength": 5000,
    }
    every["si"][0]["settings"]["lr"] = 0.5
    every["joint"][0]["settings"] = None  # type: ignore[assignment]
    every["er"][0]["seeds"] = [0]
    del every["scratch"]
    assert told() == [
        "ewc: option strength 5000, by the command 100",
        "si: lr 0.5, by the command 0.001",
        "er: seeds [0], by the command [0, 1, 2]",
        "scratch: seeds [], by the command [0, 1, 2]",
        "joint: settings not recorded",
    ]


@pytest.mark.parametrize(
    "path", sorted((RESULTS / "methods").glob("*.csv")), ids=lambda path: path.stem
)
def test_evidence_has_its_settings_beside_it(path: Path) -> None:
    about = json.loads(path.with_suffix(".json").read_text())
    with path.open(newline="") as file:
        assert about["seeds"] == sorted({int(row["seed"]) for row in csv.DictReader(file)})
    known = ("settings", "environment", "revision")
    assert all(about[key] is None for key in known) == ("unrecorded" in about)


def test_evidence_is_written_with_its_settings(tmp_path: Path) -> None:
    setting = methods_evidence.Setting("digits", True, "a/place", 50)
    methods_evidence.write(tmp_path / "ids-digits", setting, [{"seed": 1, "accuracy": 0.5}])
    about = json.loads((tmp_path / "ids-digits.json").read_text())
    assert about["settings"] == {
        "name": "digits", "examples": 50, "width": 200, "epochs": 3, "batch": 64
    }  # fmt: skip
    assert about["environment"] == environment()
    assert "a/place" not in (tmp_path / "ids-digits.json").read_text()
    assert (tmp_path / "ids-digits.csv").read_text().split() == ["seed,accuracy", "1,0.5"]
