"""Documented commands, and the committed comparison of methods.

    python -m benchmarks.documented FOLDER

replaces the results of the same methods in benchmarks/results/methods/compare by those of
`clnp compare` in FOLDER. The exit status is 1 where they were not made by the command of
docs/methods.md.
"""

from __future__ import annotations

import csv
import dataclasses
import inspect
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clnp.cli import build_config, compare, run_folder
from clnp.cli.arguments import parse
from clnp.cli.config import Config
from clnp.cli.configurations import FILE, of_runs, resolved
from clnp.cli.once import OnceParser
from clnp.data import PermutedMNIST
from clnp.learner.settings import without_removed

ROOT = Path(__file__).parents[1]
METHODS = ROOT / "docs" / "methods.md"
COMPARED = ROOT / "benchmarks" / "results" / "methods" / "compare"
BLOCK = re.compile(r"^```(?:sh|bash|shell|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command of a page in Markdown: lines of shell blocks, and code in a
    sentence that is a command of ours.
    """
    blocks = [line for block in BLOCK.findall(text) for line in _lines(block)]
    for line in (*blocks, *INLINE.findall(BLOCK.sub("", text))):
        try:
            words = shlex.split(line.removeprefix("$ "), comments=True)
        except ValueError:  # an apostrophe: no command
            continue
        if words:
            yield words


def _lines(block: str) -> list[str]:
    return block.replace("\\\n", " ").splitlines()


def comparison() -> dict[str, dict[str, Any]]:
    """Method -> all settings and the seeds of its runs, by the command in docs/methods.md."""
    every = commands(METHODS.read_text())
    (words,) = (w for w in every if w[:2] == ["clnp", "compare"] and "--methods" in w)
    options = parse(words[1:])
    result = {}
    for name in compare.method_names(options.methods, options.set):
        config, _ = build_config.settings(options, Path(name), name)
        result[name] = {"seeds": [*config.seeds], "settings": resolved(config.as_dict())}
    return result


def differences(folder: Path) -> list[str]:
    """In what the runs of a folder's configurations.json differ from the documented comparison, a
    line each.
    """
    every = json.loads((folder / FILE).read_text())["methods"]
    wanted = comparison()
    lines = [f"{name}: not of the command" for name in every if name not in wanted]
    for name, one in wanted.items():
        entries = every.get(name, [])
        seeds = sorted(seed for entry in entries for seed in entry["seeds"])
        if seeds != one["seeds"]:
            lines.append(f"{name}: seeds {seeds}, by the command {one['seeds']}")
        for entry in entries:
            lines += [f"{name}: {line}" for line in _differences(entry, one["settings"])]
    return lines


def _differences(entry: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    if entry["settings"] is None:
        return ["settings not recorded"]
    there, asked = _flat(meaning(entry["settings"])), _flat(meaning(wanted))
    # A field with a default came later: the default is what was done before it.
    later = {f.name: f.default for f in dataclasses.fields(Config)}
    later = {key: list(v) if isinstance(v, tuple) else v for key, v in later.items()}
    return [
        f"{key} {there.get(key)}, by the command {asked.get(key)}"
        for key in sorted({*there, *asked})
        if there.get(key, later.get(key)) != asked.get(key, later.get(key))
    ]


def meaning(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `resolved`, of which some can be written in two ways, in one."""
    result = without_removed(settings)
    if result["stream"] == "permuted-mnist" and result.get("validation") is None:
        result["validation"] = inspect.signature(PermutedMNIST).parameters["validation"].default
    if result.get("init") is None:
        result["init"] = "default"
    for name in ("growth", "first_growth"):
        limits = result.get(name, ())
        if result["width"] and all(limit >= result["width"] for limit in limits):
            result.pop(name, None)
    return result


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    own = {f"option {key}": value for key, value in settings.get("options", {}).items()}
    return {**{key: value for key, value in settings.items() if key != "options"}, **own}


def unmarked(folder: Path) -> list[str]:
    """The `differences` that the entries of configurations.json don't name under "differs"."""
    every = json.loads((folder / FILE).read_text())["methods"]
    marked = {
        f"{name}: {line}"
        for name, entries in every.items()
        for entry in entries
        for line in entry.get("differs", ())
    }
    there = differences(folder)
    return [line for line in there if line not in marked] + [
        f"{line}: not so, but marked" for line in sorted(marked - set(there))
    ]


def adopt(run: Path, target: Path = COMPARED) -> list[str]:
    """Puts the numbers and configurations of a comparison in the place of those that another folder
    has of the same methods; its unmarked differences from the documented command. Raises RunError
    where `run` is no comparison.
    """
    rows, found = compare.rows_of(run), of_runs(compare.learned_runs(run))
    known = json.loads((target / FILE).read_text())["methods"]
    order = [*comparison()]
    rows += [row for row in _rows(target / "compare.csv") if row["method"] not in found["methods"]]
    rows.sort(key=lambda row: (order.index(row["method"]), row["seed"]))
    every = known | found["methods"]
    compare.write_tables(target, rows)
    run_folder.write_json(
        target / FILE, {**found, "methods": {name: every[name] for name in order}}
    )
    return unmarked(target)


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a compare.csv, whose numbers are written again as they are."""
    with path.open(newline="") as file:
        return [
            {
                key: value if key == "method" else json.loads(value or "null")
                for key, value in row.items()
            }
            for row in csv.DictReader(file)
        ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 where runs differ from the documented command, unmarked."""
    parser = OnceParser(prog="python -m benchmarks.documented", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of a finished clnp compare")
    lines = adopt(parser.parse_args(arguments).folder)
    print("\n".join(lines) or f"written: {COMPARED}; now run python -m benchmarks.pages")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
