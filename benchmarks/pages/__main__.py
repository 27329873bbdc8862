"""Write the generated tables of README.md and docs/.

    python -m benchmarks.pages

writes every block between `<!-- NAME: begin -->` and `<!-- NAME: end -->` anew, from the files of
benchmarks/results.

    python -m benchmarks.pages FOLDER ...

prints the tables of the CSV files that `python -m benchmarks.run --out FOLDER` wrote.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks import compiled, settings
from benchmarks.documented import COMPARED
from benchmarks.pages import conversion, esacl, gpu, readme, reproduced, suites, sweeps
from benchmarks.pages.markdown import filled
from clnp.cli.once import OnceParser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
SUITES = (RESULTS / "cpu-avx2", RESULTS / "cpu-avx512")
REPRODUCED = ("table1", "fig3", "fig4", "fig5", "quick/fig5", "capacity", "reuse", "frontier")
# name of a block -> its text
BLOCKS: dict[str, Callable[[], str]] = {
    "results": readme.results,
    "peers": readme.peers,
    "settings": sweeps.every_setting,
    "recipes": sweeps.recipes,
    "sweeps": sweeps.conditions,
    **{name: partial(sweeps.sweep, name) for name in settings.SWEEPS},
    "operations": conversion.operations,
    "coverage": conversion.models,
    "tables": lambda: suites.text(SUITES, DOCS),
    "compiled": compiled.text,
    "launches": lambda: gpu.launches(RESULTS / "launches.csv"),
    "gpus": lambda: gpu.measured(RESULTS),
    "compare": lambda: reproduced.methods(COMPARED),
    **{f"pruning-{data}": partial(esacl.pruning, data) for data in ("digits", "mnist")},
    **{f"ids-{data}": partial(esacl.selection, data) for data in ("digits", "mnist")},
    **{f"structured-{data}": partial(esacl.structured, data) for data in ("digits", "mnist")},
    "fig4-tasks": lambda: reproduced.by_task(RESULTS / "reproduce" / "fig4"),
    "equal": lambda: reproduced.equal(RESULTS / "reproduce" / "capacity"),
    **{name: partial(reproduced.summary, RESULTS / "reproduce" / name) for name in REPRODUCED},
}


def pages() -> list[Path]:
    """Return the pages that may have blocks."""
    return [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def text(page: Path) -> str:
    """Return a page with its blocks written anew.

    Raises:
        KeyError: a block that no table is known for.
    """
    return filled(page.read_text(), lambda name: BLOCKS[name]())


def parser() -> OnceParser:
    """Return the parser of the command line."""
    made = OnceParser(prog="python -m benchmarks.pages", description=__doc__)
    made.add_argument("folders", type=Path, nargs="*", metavar="FOLDER")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    folders = parser().parse_args(arguments).folders
    if folders:
        print(suites.text(folders, Path(os.curdir)))
        return 0
    for page in pages():
        page.write_text(text(page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
