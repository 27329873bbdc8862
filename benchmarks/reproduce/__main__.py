"""python -m benchmarks.reproduce table1|fig3|fig4|fig5|capacity|reuse|frontier [--seeds N] ...

Each (contender, seed) has a run folder in --out, which resumes after a kill and is passed over once
it is finished; CSV files, plots and settings go to --results, after every run. The same command may
be started several times side by side: a run that another process is busy with is left to it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import served
from benchmarks.reproduce.capacity import CAPACITY, FRONTIER, REUSE
from benchmarks.reproduce.cifar import FIG_4, FIG_5
from benchmarks.reproduce.experiment import Experiment, Options, carry_out, found, write_settings
from benchmarks.reproduce.permuted_mnist import FIG_3, TABLE_1
from benchmarks.reproduce.tables import Tables
from clnp.cli.console import make_console
from clnp.cli.once import OnceParser

EXPERIMENTS = {e.name: e for e in (TABLE_1, FIG_3, FIG_4, FIG_5, CAPACITY, REUSE, FRONTIER)}
RESULTS = Path(__file__).parents[1] / "results" / "reproduce"
# Options of `clnp run` that are handed on to every contender.
HANDED_ON = (
    "tasks",
    "epochs",
    "fine-tune-epochs",
    "batch-size",
    "threads",
    "dtype",
    "device",
    "data-root",
    "workers",
)


def parser() -> OnceParser:
    """The command line."""
    made = OnceParser(
        prog="python -m benchmarks.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("experiment", choices=list(EXPERIMENTS))
    made.add_argument("--seeds", type=int, default=1, metavar="N", help="so many seeds")
    made.add_argument("--first-seed", type=int, default=0, metavar="N", help="from this one on")
    made.add_argument("--quick", action="store_true", help="minutes, on small data")
    made.add_argument(
        "--only", action="extend", nargs="+", default=(), metavar="NAME", help="contenders"
    )
    for name in HANDED_ON:
        made.add_argument(f"--{name}", metavar="X", help="as of clnp run, for every contender")
    made.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="run folders")
    made.add_argument("--results", type=Path, help="CSV files and plots")
    made.add_argument("--write", action="store_true", help="only write results of what has run")
    made.add_argument("--reference", action="store_true", help="time it, where no library is")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 if every run was finished, else 3."""
    given = parser().parse_args(arguments)
    experiment = EXPERIMENTS[given.experiment]
    unknown = sorted(set(given.only) - set(experiment.contenders))
    if unknown:
        parser().error(f"--only: got {unknown}, wanted some of {list(experiment.contenders)}")
    options = options_of(given)
    out = given.out / "quick" if given.quick else given.out
    folder = given.results or (out / "results" if given.quick else RESULTS)
    if not given.write:
        served.require(given.reference)
    problems = [] if given.write else carry_out(experiment, out, options, make_console())
    write(experiment, out, folder / experiment.name)
    return 3 if problems else 0


def options_of(given: argparse.Namespace) -> Options:
    """The options of the command line."""
    words = [
        word
        for name in HANDED_ON
        if (value := getattr(given, name.replace("-", "_"))) is not None
        for word in (f"--{name}", value)
    ]
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    return Options(seeds, given.quick, tuple(given.only), tuple(words))


def write(experiment: Experiment, out: Path, folder: Path) -> None:
    """Writes the CSV files, plots and settings of what has run so far, beside what the files
    already have of other runs.
    """
    there = found(experiment, out)
    tables = Tables.of(there, experiment.more)
    tables = tables.beside(Tables.read(folder), experiment.contenders)
    if tables.runs:
        experiment.write(folder, tables)
    if there:
        write_settings(folder, experiment, there)


if __name__ == "__main__":
    sys.exit(main())
