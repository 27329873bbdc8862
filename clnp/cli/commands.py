"""The command line: `clnp run`, `clnp report`, `clnp verify`, `clnp export`.

Exit codes: 0 done; 1 a certificate doesn't hold; 2 bad arguments, settings or data; 3 stopped in
the middle (network full, loss not finite, disk full, bug); 130 interrupted. Errors are one line on
stderr; with CLNP_DEBUG=1 the traceback too.

Each command imports rich and matplotlib itself, so that --help and complaints come quickly.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from clnp.cli import config as configs
from clnp.cli import runs
from clnp.cli.config import DEFAULTS
from clnp.errors import CheckpointError, ClnpError, ConfigError, ConvertError, DataError
from clnp.heads import HEADS
from clnp.learner import Learner
from clnp.settings import DTYPES, SEARCHES
from clnp.train import SCHEDULES

OK, FAILED, USAGE, STOPPED, INTERRUPTED = 0, 1, 2, 3, 130
STREAMS = tuple(DEFAULTS)
# argparse destinations that are no settings of `clnp.cli.config.Config`.
PLACES = ("command", "data_root", "out", "resume", "overwrite", "seed", "grid")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Prints the complaint and exits with code 2."""
        print(f"clnp: error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(USAGE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code.

    Arguments:
        arguments: the words after `clnp`; None takes those of the process.
    """
    try:
        options = parser().parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        return COMMANDS[options.command](options)
    except KeyboardInterrupt:
        return _interrupted(options)
    except BrokenPipeError:
        # The reader of a pipe (head, less) went away: not our error, and nothing can be printed any
        # more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STOPPED
    except Exception as error:
        return _complain(error)


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = Parser(
        prog="clnp",
        description="Continual learning by neural pruning: learn tasks, forget nothing.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="learn a stream of tasks and write a run folder"))
    show = commands.add_parser("report", help="print the tables of a run")
    show.add_argument("run", metavar="RUN", type=Path, help="run folder")
    show.add_argument("--plots", action="store_true", help="draw the plots anew from metrics.json")
    verify = commands.add_parser(
        "verify", help="recompute earlier tasks' logits and compare bit by bit"
    )
    verify.add_argument("run", metavar="RUN", type=Path, help="run folder")
    export = commands.add_parser(
        "export", help="write one task's narrow network as a torch.export file"
    )
    export.add_argument("run", metavar="RUN", type=Path, help="run folder (of one seed)")
    export.add_argument("--task", type=int, required=True, metavar="K", help="task, from 0")
    export.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/task-K.pt2")
    export.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    return top


def _add_run(run: argparse.ArgumentParser) -> None:
    """Options of `run`. None has a default here: what isn't given comes from the stream's settings
    or the run resumed.
    """
    run.set_defaults(stream=None)
    run.add_argument(
        "stream",
        nargs="?",
        choices=STREAMS,
        help="default: permuted-digits, which needs no download",
    )
    folder = run.add_argument_group("folder")
    folder.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/STREAM)")
    folder.add_argument(
        "--resume", action="store_true", help="go on with the run in --out, with its settings"
    )
    folder.add_argument("--overwrite", action="store_true", help="delete the run in --out first")
    folder.add_argument(
        "--data-root",
        metavar="DIR",
        help="folder with the MNIST idx files; without it they are downloaded",
    )
    seeds = run.add_argument_group("seeds").add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, metavar="S", help="one seed (default: 0)")
    seeds.add_argument(
        "--seeds", type=int, metavar="N", help="seeds 0 to N-1, each in its own sub-folder"
    )
    for title, options in OPTIONS.items():
        group = run.add_argument_group(title)
        for name, keywords in options.items():
            group.add_argument(f"--{name}", **keywords)


def numbers(text: str) -> tuple[float, ...]:
    """ "1e-5,1e-6" -> (1e-5, 1e-6)."""
    return tuple(float(part) for part in text.split(","))


NUMBERS: dict[str, Any] = {"type": numbers, "metavar": "A[,A...]"}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "training": {
        "tasks": {"type": int, "metavar": "T", "help": "tasks of the stream"},
        "epochs": {"type": int, "metavar": "N", "help": "epochs per task"},
        "batch-size": {"type": int, "metavar": "B"},
        "lr": {"type": float, "metavar": "X", "help": "learning rate of Adam"},
        "l1": {**NUMBERS, "help": "L1 coefficient, one or one per layer"},
        "schedule": {"choices": tuple(SCHEDULES), "help": "of the learning rate"},
        "dtype": {"choices": tuple(DTYPES)},
        "device": {"metavar": "D", "help": "cpu, cuda or cuda:N"},
        "threads": {
            "type": int,
            "metavar": "N",
            "help": "CPU threads; another number can change the last bits",
        },
    },
    "network": {
        "width": {"type": int, "metavar": "N", "help": "channels of each hidden layer"},
        "depth": {"type": int, "metavar": "N", "help": "hidden layers"},
        "dropout": {"type": float, "metavar": "P"},
        "head": {
            "choices": tuple(HEADS),
            "help": "one output layer for all tasks, or one each",
        },
    },
    "pruning": {
        "margin": {
            "type": float,
            "metavar": "M",
            "help": "validation accuracy that pruning may cost (0.0005 = 0.05 %%)",
        },
        "search": {
            "choices": SEARCHES,
            "help": "thresholds of all layers together, or one by one",
        },
        "grid": {
            "nargs": "+",
            "metavar": "NAME=LIST",
            "help": "graceful forgetting over a grid: l1=1e-6,1e-5 lr=1e-3,2e-3; per layer with "
            "colons, l1=1e-5:1e-5:1e-6",
        },
        "grid-first-only": {
            "action": argparse.BooleanOptionalAction,
            "help": "search the grid on the first task and keep what it chose",
        },
        "granularity": {
            "type": int,
            "metavar": "N",
            "help": "round kept channels up to a multiple",
        },
        "reinit-scale": {
            "type": float,
            "metavar": "X",
            "help": "scale of re-initialised free weights",
        },
        "fine-tune-epochs": {
            "type": int,
            "metavar": "N",
            "help": "epochs for the survivors after pruning (0: none)",
        },
        "fine-tune-lr": {"type": float, "metavar": "X"},
        "fine-tune-l1": {**NUMBERS, "help": "default: that of training"},
    },
}


def command_run(options: argparse.Namespace) -> int:
    """`clnp run`: checks everything that can be checked, then works."""
    from clnp.cli import experiment
    from clnp.cli.console import make_console

    if options.resume and options.overwrite:
        raise ConfigError("--resume and --overwrite: got both, wanted one")
    folder = _out(options)
    config, data_root = _settings(options, folder)
    runs.check_free(folder, resume=options.resume, overwrite=options.overwrite)
    if options.resume and runs.is_run(folder):
        runs.check_same(folder, config)
    holds = experiment.run(folder, config, data_root, make_console(), overwrite=options.overwrite)
    return OK if holds else FAILED


def command_report(options: argparse.Namespace) -> int:
    """`clnp report`: the tables again, from the files."""
    from clnp.cli import report, results
    from clnp.cli.console import make_console

    console = make_console()
    config, _ = runs.read_config(options.run)
    every = []
    for seed, folder in runs.seed_folders(options.run, config):
        if len(config.seeds) > 1:
            report.show_line(console, f"seed {seed}")
        every.append(results.read(folder))
        report.show(console, every[-1], results.read_seconds(folder))
        if options.plots:
            results.draw(folder, every[-1])
    if len(every) > 1:
        report.show_summary(console, results.summarise(every), every)
    return OK


def command_verify(options: argparse.Namespace) -> int:
    """`clnp verify`: 0 if every task's logits are the bits that were recorded, else 1."""
    from clnp.cli import report
    from clnp.cli.console import make_console

    console = make_console()
    config, _ = runs.read_config(options.run)
    torch.set_num_threads(config.threads)
    tasks = identical = 0
    for seed, folder in runs.seed_folders(options.run, config):
        verdicts = Learner.load(folder / runs.CHECKPOINT, device=config.device).verify()
        if len(config.seeds) > 1:
            report.show_line(console, f"seed {seed}")
        report.show_table(console, report.verdict_table(verdicts))
        tasks += len(verdicts)
        identical += sum(v.identical for v in verdicts)
    report.show_line(console, report.certificate_line({"tasks": tasks, "identical": identical}))
    return OK if tasks and tasks == identical else FAILED


def command_export(options: argparse.Namespace) -> int:
    """`clnp export`: one task's network as a .pt2 file that needs torch alone."""
    from clnp.cli import export

    config, _ = runs.read_config(options.run)
    if len(config.seeds) > 1:
        folders = ", ".join(str(folder) for _, folder in runs.seed_folders(options.run, config))
        raise ConfigError(f"RUN: {options.run} holds several seeds, wanted one of {folders}")
    target = options.out or options.run / f"task-{options.task}.pt2"
    if target.exists() and not options.overwrite:
        raise ConfigError(
            f"--out: {target} exists; replace it with --overwrite, or name another file"
        )
    learner = Learner.load(options.run / runs.CHECKPOINT)
    if not 0 <= options.task < len(learner.reports):
        raise ConfigError(
            f"--task: got {options.task}, wanted 0 to {len(learner.reports) - 1}, the tasks of "
            f"{options.run}"
        )
    print(export.write(learner, options.task, target))
    return OK


COMMANDS = {
    "run": command_run,
    "report": command_report,
    "verify": command_verify,
    "export": command_export,
}


def _out(options: argparse.Namespace) -> Path:
    return options.out or Path("runs") / (options.stream or STREAMS[0])


def _settings(options: argparse.Namespace, folder: Path) -> tuple[Any, str | None]:
    """(Config, data root): the given options over the resumed run's settings, or else over the
    stream's defaults.
    """
    given = {k: v for k, v in vars(options).items() if k not in PLACES and v is not None}
    given |= _seeds(options) | _grid(options.grid)
    data_root = options.data_root
    if options.resume and runs.is_run(folder):
        old, old_root = runs.read_config(folder)
        base: dict[str, Any] = {name: getattr(old, name) for name in old.__dataclass_fields__}
        data_root = data_root or old_root
    else:
        base = configs.defaults(options.stream or STREAMS[0])
        if "depth" in given and "l1" not in given:
            base["l1"] = _stretched(base["l1"], given["depth"])
    config = configs.Config(**{**base, **given})
    configs.validate(config)
    return config, None if data_root is None else str(Path(data_root).absolute())


def _seeds(options: argparse.Namespace) -> dict[str, Any]:
    if options.seeds is not None:
        if not 1 <= options.seeds <= 1000:
            raise ConfigError(f"--seeds: got {options.seeds}, wanted 1 to 1000 seeds")
        return {"seeds": tuple(range(options.seeds))}
    return {} if options.seed is None else {"seeds": (options.seed,)}


def _grid(items: Sequence[str] | None) -> dict[str, Any]:
    """["l1=1e-6,1e-5:1e-5:1e-6", "lr=1e-3"] -> {"grid_l1": ((1e-6,), (1e-5, 1e-5, 1e-6)),
    "grid_lr": (1e-3,)}.
    """
    grid: dict[str, Any] = {}
    for item in items or ():
        name, equals, text = item.partition("=")
        if name not in ("l1", "lr") or not equals or f"grid_{name}" in grid:
            raise ConfigError(
                f"--grid: got {item!r}, wanted l1=LIST and lr=LIST, each at most once"
            )
        try:
            points = tuple(tuple(float(v) for v in point.split(":")) for point in text.split(","))
        except ValueError:
            raise ConfigError(
                f"--grid {name}: got {text!r}, wanted numbers with commas between"
            ) from None
        if name == "lr":
            if any(len(point) != 1 for point in points):
                raise ConfigError(f"--grid lr: got {text!r}, wanted one number per candidate")
            grid["grid_lr"] = tuple(point[0] for point in points)
        else:
            grid["grid_l1"] = points
    return grid


def _stretched(l1: tuple[float, ...], depth: int) -> tuple[float, ...]:
    """Default l1 for another depth: first and last stay, those between repeat the second."""
    if len(l1) < 3 or depth < 1:
        return l1
    return (l1[0], *[l1[1]] * (depth - 1), l1[-1])


def _interrupted(options: argparse.Namespace) -> int:
    if options.command == "run":
        print(
            f"\nclnp: stopped; go on with: clnp run --resume --out {_out(options)}", file=sys.stderr
        )
    return INTERRUPTED


def _complain(error: Exception) -> int:
    """One line on stderr; the exit code that goes with the error."""
    if os.environ.get("CLNP_DEBUG"):
        traceback.print_exception(error)
    usage = isinstance(
        error, (ConfigError, DataError, ConvertError, CheckpointError, runs.RunError)
    )
    ours = isinstance(error, (ClnpError, OSError))
    text = " ".join(str(error).split())
    kind = "" if ours else f"{type(error).__name__}: "
    hint = "" if ours else " (this looks like a bug; CLNP_DEBUG=1 shows where)"
    print(f"clnp: error: {kind}{text}{hint}", file=sys.stderr)
    return USAGE if usage else STOPPED


if __name__ == "__main__":
    sys.exit(main())
