"""The words of the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from clnp_kernels import __version__
from clnp_kernels.tune.plan import add_arguments

from .build_config import experiment_defaults
from .config import Config, shown
from .defaults import DEFAULTS, NAMED, ONLY, SOME, STREAMS
from .once import OnceParser
from .options import NO_METHOD, OPTIONS, PLACES, Option

USAGE = 2
FORMATS = ("pt2", "onnx", "safetensors")
RUN = "run folder, or a checkpoint file (.safetensors)"


class Parser(OnceParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Prints the complaint and exits with code 2."""
        print(f"clnp: error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(USAGE)


class ExperimentHelp(argparse.Action):
    """--help of `run` and `compare`: of the experiment and method named before it, if any."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Prints the help and exits with code 0."""
        words = namespace.words or []
        method = getattr(namespace, "method", None) or "clnp"
        if words and words[0] in STREAMS:
            made = Parser(prog=f"{parser.prog} {words[0]}", usage=_usage(words[0]), add_help=False)
            _add_options(made, words[0], method)
            parser = made
        parser.print_help()
        parser.exit()


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
        top.error(f"EXPERIMENT: expected one of {', '.join(STREAMS)}, got {stream!r}")
    if paths and stream not in NAMED:
        top.error(f"{stream}: expected no files, got {' '.join(paths)}")
    known: dict[Path, str] = {}
    for path in paths:
        place = Path(path).resolve()
        if place in known:
            top.error(f"{stream}: expected each task once, got {known[place]} and {path}, the same")
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
    _add_experiment(commands, "run", "learn a stream of tasks and write a run folder")
    _add_experiment(commands, "compare", "run several methods and put them in one table")
    commands.add_parser("methods", help="list the methods and their options")
    commands.add_parser("info", help="versions, hardware, and who serves each operator")
    add_arguments(
        commands.add_parser("tune", help="check the GPU kernels on this GPU and measure them")
    )
    report = commands.add_parser(
        "report", help="print the tables of a run or a comparison, and write them as an HTML page"
    )
    report.add_argument("run", metavar="RUN", type=Path, help=f"{RUN}; or folder of a comparison")
    report.add_argument(
        "--plots", action="store_true", help="draw the plots of a folder anew from metrics.json"
    )
    report.add_argument(
        "--html", type=Path, metavar="FILE", help="file of the page (default: RUN/report.html)"
    )
    verify = commands.add_parser(
        "verify", help="recompute earlier tasks' logits and compare bit by bit"
    )
    verify.add_argument("run", metavar="RUN", type=Path, help=RUN)
    forget = commands.add_parser(
        "forget", help="remove a task, and every channel that no other task reads, from the files"
    )
    forget.add_argument("run", metavar="RUN", type=Path, help=RUN)
    _add_task(forget)
    forget.add_argument(
        "--cascade", action="store_true", help="forget the tasks that read its channels too"
    )
    _add_export(commands.add_parser("export", help="write one task's narrow network to a file"))
    return top


def _add_export(export: argparse.ArgumentParser) -> None:
    export.add_argument("run", metavar="RUN", type=Path, help=f"{RUN}, of one seed")
    _add_task(export)
    export.add_argument(
        "--format",
        choices=FORMATS,
        help="pt2 for torch.export (default), onnx for ONNX runtimes, safetensors for "
        "clnp.load_network",
    )
    export.add_argument(
        "--fold-batch-norm", action="store_true", help="work batch norms into the convolutions"
    )
    export.add_argument(
        "--out", type=Path, metavar="FILE", help="default: task-K.FORMAT in the run folder"
    )
    export.add_argument("--overwrite", action="store_true", help="replace the file if it is there")


def _add_task(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--task",
        required=True,
        metavar="K",
        help="name of the task, or its index as in Python and in the CSV files: 0 is the first "
        "task, which tables and progress call task 1",
    )


def _usage(stream: str) -> str:
    return f"%(prog)s{' PATH [PATH ...]' if stream in NAMED else ''} [OPTION ...]"


def _add_experiment(commands: Any, command: str, text: str) -> None:
    """Adds a command that runs experiments. Its options have no defaults here: they come from the
    experiment or from the resumed run.
    """
    made = commands.add_parser(
        command,
        help=text,
        add_help=False,
        usage="%(prog)s [EXPERIMENT [PATH ...]] [OPTION ...]",
        epilog=f"clnp {command} EXPERIMENT --help shows the defaults and the options of one.",
    )
    made.add_argument("-h", "--help", action=ExperimentHelp, nargs=0, help="show this help")
    made.add_argument(
        "words",
        nargs="*",
        metavar="EXPERIMENT",
        help=f"{', '.join(STREAMS)} (default: {STREAMS[0]}, which needs no download); folder and "
        "arrays are followed by one folder of images or .npz file per task",
    )
    if command == "run":
        made.add_argument(
            "--method", metavar="NAME", help="clnp (default) or another, see clnp methods"
        )
    else:
        made.add_argument(
            "--methods",
            metavar="A,B,...",
            default="clnp,finetune,ewc,si",
            help="default: %(default)s; see clnp methods",
        )
    _add_options(made)


def _add_options(made: Parser, stream: str | None = None, method: str = "clnp") -> None:
    """The options of experiments; of one experiment those that apply, with its defaults."""
    base = None if stream is None else experiment_defaults(stream, method)
    for title, options in (*PLACES.items(), *OPTIONS.items()):
        group: Any = made.add_argument_group(title)
        if title == "seeds":
            group = group.add_mutually_exclusive_group()
        for name, option in options.items():
            field = name.split()[0].replace("-", "_")
            if stream is None or applies(field, stream, method):
                flags = [f"--{word}" for word in name.split()]
                group.add_argument(*flags, **option.keywords, help=_help(field, option, base))


def applies(field: str, stream: str, method: str) -> bool:
    """Returns whether an option serves an experiment with a method."""
    if field in SOME and field not in DEFAULTS[stream]:
        return False
    if stream not in ONLY.get(field, (stream,)):
        return False
    if field == "set":
        return method != "clnp"
    return method == "clnp" or field not in NO_METHOD


def _help(field: str, option: Option, base: dict[str, Any] | None) -> str:
    text = option.help
    if base is not None and option.values is not None:
        value = base.get(field, Config.__dataclass_fields__[field].default)
        usual = option.unset if value is None or value == () else shown(value)
        if isinstance(value, bool):
            usual = "yes" if value else "no"
        text += f" (default: {usual})"
    return text.replace("%", "%%")
