"""The documented commands, read as their programs read them; and the table of methods.

    python -m benchmarks.documented FOLDER

takes the results of `clnp compare` in FOLDER over into benchmarks/results/methods/compare, if the
command in docs/methods.md is what made them, and writes the table in docs/methods.md anew.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clnp.cli import chosen, compare
from clnp.cli.arguments import parse
from clnp.cli.config import Config
from clnp.cli.configurations import FILE, resolved
from clnp.cli.once import OnceParser

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
    (words,) = (w for w in commands(METHODS.read_text()) if w[:2] == ["clnp", "compare"])
    options = parse(words[1:])
    result = {}
    for name in compare.method_names(options.methods, options.set):
        config, _ = chosen.settings(options, Path(name), name)
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
    there, asked = _flat(entry["settings"]), _flat(wanted)
    # A field with a default came later: the default is what was done before it.
    later = {f.name: f.default for f in dataclasses.fields(Config)}
    return [
        f"{key} {there.get(key)}, by the command {asked.get(key)}"
        for key in sorted({*there, *asked})
        if there.get(key, later.get(key)) != asked.get(key, later.get(key))
    ]


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    own = {f"option {key}": value for key, value in settings.get("options", {}).items()}
    return {**{key: value for key, value in settings.items() if key != "options"}, **own}


def adopt(run: Path, target: Path = COMPARED) -> list[str]:
    """Writes the numbers and configurations of a comparison into another folder; in what they
    differ from the documented command. Raises RunError where `run` is no comparison.
    """
    target.mkdir(parents=True, exist_ok=True)
    compare.write_numbers(run, target)
    return differences(target)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where the runs are not those of the documented command."""
    from benchmarks.reproduce import page  # which imports this module

    parser = OnceParser(prog="python -m benchmarks.documented", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of a finished clnp compare")
    lines = adopt(parser.parse_args(arguments).folder)
    page.main()
    print("\n".join(lines) or f"written: {COMPARED} and {METHODS}")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
