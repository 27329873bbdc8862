"""The words of the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from clnp_kernels import __version__

from .defaults import DEFAULTS, NAMED
from .once import OnceParser
from .options import OPTIONS, PLACES

USAGE = 2
STREAMS = tuple(DEFAULTS)
FORMATS = ("pt2", "onnx", "safetensors")


class Parser(OnceParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Prints the complaint and exits with code 2."""
        print(f"clnp: error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(USAGE)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of one command. Raises SystemExit with the exit code, after saying why."""
    top = parser()
    options, extra = top.parse_known_args(arguments)
    # argparse gives a list of words all the words up to the first option, and forgets the rest.
    if extra and hasattr(options, "words") and not any(word.startswith("-") for word in extra):
        options.words += extra
    elif extra:
        top.error(f"unrecognized arguments: {' '.join(extra)}")
    if hasattr(options, "words"):
        options.stream, options.paths = _experiment(top, options.words)
    return options


def _experiment(top: Parser, words: list[str]) -> tuple[str | None, tuple[str, ...]]:
    """(experiment or None, files or folders that follow it)."""
    if not words:
        return None, ()
    stream, paths = words[0], tuple(words[1:])
    if stream not in STREAMS:
        choices = ", ".join(map(repr, STREAMS))
        top.error(f"EXPERIMENT: invalid choice: {stream!r} (choose from {choices})")
    if paths and stream not in NAMED:
        top.error(f"unrecognized arguments: {' '.join(paths)}; {stream} takes no files")
    known: dict[Path, str] = {}
    for path in paths:
        place = Path(path).resolve()
        if place in known:
            top.error(f"{stream}: got {known[place]} and {path}, the same; wanted each task once")
        known[place] = path
    return stream, paths


def parser() -> Parser:
    """The parser of all commands."""
    top = Parser(
        prog="clnp",
        description="Continual learning by neural pruning: learn tasks, forget nothing.",
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="learn a stream of tasks and write a run folder")
    run.add_argument("--method", metavar="NAME", help="clnp (default) or another, see clnp methods")
    _add_experiment(run)
    compare = commands.add_parser("compare", help="run several methods and put them in one table")
    compare.add_argument(
        "--methods",
        metavar="A,B,...",
        default="clnp,finetune,ewc,si",
        help="default: %(default)s; see clnp methods",
    )
    _add_experiment(compare)
    commands.add_parser("methods", help="list the methods and their options")
    commands.add_parser("info", help="versions, hardware, and who serves each operator")
    show = commands.add_parser(
        "report", help="print the tables of a run or a comparison, and write them as an HTML page"
    )
    show.add_argument("run", metavar="RUN", type=Path, help="its folder")
    show.add_argument("--plots", action="store_true", help="draw the plots anew from metrics.json")
    show.add_argument(
        "--html", type=Path, metavar="FILE", help="where the page goes (default: RUN/report.html)"
    )
    verify = commands.add_parser(
        "verify", help="recompute earlier tasks' logits and compare bit by bit"
    )
    verify.add_argument("run", metavar="RUN", type=Path, help="run folder")
    _add_export(commands.add_parser("export", help="write one task's narrow network to a file"))
    return top


def _add_export(export: argparse.ArgumentParser) -> None:
    export.add_argument("run", metavar="RUN", type=Path, help="run folder (of one seed)")
    export.add_argument("--task", type=int, required=True, metavar="K", help="task, from 0")
    export.add_argument(
        "--format",
        choices=FORMATS,
        help="pt2 for torch.export (default), onnx for ONNX runtimes, safetensors for "
        "clnp.load_network",
    )
    export.add_argument(
        "--fold-batch-norm", action="store_true", help="work batch norms into the convolutions"
    )
    export.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/task-K.FORMAT")
    export.add_argument("--overwrite", action="store_true", help="replace the file if it is there")


def _add_experiment(run: argparse.ArgumentParser) -> None:
    """Options of `run` and `compare`. None has a default here: what isn't given comes from the
    experiment's settings or the run resumed.
    """
    run.add_argument(
        "words",
        nargs="*",
        metavar="EXPERIMENT",
        help=f"{', '.join(STREAMS)} (default: {STREAMS[0]}, which needs no download); folder and "
        "arrays are followed by one folder of images or .npz file per task",
    )
    for title, options in (*PLACES.items(), *OPTIONS.items()):
        group: Any = run.add_argument_group(title)
        if title == "seeds":
            group = group.add_mutually_exclusive_group()
        for name, keywords in options.items():
            flags = [f"--{word}" for word in name.split()]
            group.add_argument(*flags, **keywords)
