"""The command line: `clnp run`, `compare`, `methods`, `info`, `report`, `verify`, `export`.

Exit codes: 0 done; 1 a certificate doesn't hold; 2 bad arguments, settings or data; 3 stopped in
the middle (network full, loss not finite, disk full, bug); 130 interrupted. Errors are one line on
stderr; with CLNP_DEBUG=1 the traceback too.

Each command imports rich and matplotlib itself, so that --help and complaints come quickly.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from ..errors import (
    CheckpointError,
    ClnpError,
    ConfigError,
    ConvertError,
    DataError,
    ExportError,
    SaveError,
    out_of_memory,
)
from ..learner.learner import Learner
from . import build_config, run_folder
from .arguments import FORMATS, STREAMS, USAGE, parse

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["STREAMS", "main"]

OK, FAILED, STOPPED, INTERRUPTED = 0, 1, 3, 130
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code.

    Arguments:
        arguments: the words after `clnp`; None takes those of the process.
    """
    try:
        options = parse(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    for stream in (sys.stdout, sys.stderr):
        # Names of files may hold what the output's encoding lacks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with (
            one_line_warnings(),
            run_folder.reading(options.run) if options.command == "report" else nullcontext(),
        ):
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


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Prints warnings of ours as one line, without a place in the code."""
    before = warnings.formatwarning

    def formatted(message: Any, category: type[Warning], *place: Any, **more: Any) -> str:
        if category.__module__.startswith("clnp"):
            return f"clnp: warning: {message}\n"
        return before(message, category, *place, **more)

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = before


def command_run(options: argparse.Namespace) -> int:
    """`clnp run`: checks everything that can be checked, then works."""
    from . import experiment, torchrun
    from .console import make_console

    with torchrun.joined() as ranks:
        if not ranks.main:
            return OK if experiment.follow(ranks) else USAGE
        _check_flags(options)
        folder = build_config.out_folder(options)
        config, places = build_config.settings(options, folder)
        torchrun.check(ranks, config, places)
        run_folder.check_free(folder, resume=options.resume, overwrite=options.overwrite)
        if options.resume and run_folder.is_run(folder):
            run_folder.check_same(folder, config)
        elif options.resume and not build_config.names_a_run(options):
            raise ConfigError(
                f"--resume: {folder} holds no run; name another --out, or the experiment to begin"
            )
        console, overwrite = make_console(), options.overwrite
        holds = experiment.run(folder, config, places, console, overwrite=overwrite, ranks=ranks)
    return OK if holds else FAILED


def command_compare(options: argparse.Namespace) -> int:
    """`clnp compare`: one run folder per method, then one table; 3 if a method didn't finish."""
    from . import compare, torchrun
    from .console import make_console

    torchrun.check_alone("compare")
    _check_flags(options)
    folder = build_config.out_folder(options)
    names = compare.method_names(options.methods, options.set)
    plan = {name: build_config.settings(options, folder / name, name) for name in names}
    compare.check_free(folder, plan, resume=options.resume, overwrite=options.overwrite)
    done = compare.run(folder, plan, make_console(), overwrite=options.overwrite)
    return OK if done else STOPPED


def command_methods(options: argparse.Namespace) -> int:
    """`clnp methods`: names, what they are, their options and defaults."""
    from . import compare

    for line in compare.describe_methods():
        print(line)
    return OK


def command_info(options: argparse.Namespace) -> int:
    """`clnp info`: versions, hardware, and which implementation serves each operator."""
    from . import info

    print("\n".join(info.lines()))
    return OK


def command_report(options: argparse.Namespace) -> int:
    """`clnp report`: the tables again, from the files; and all of it as an HTML page."""
    from . import compare, report
    from .console import make_console
    from .html import report as html_report

    console = make_console()
    if compare.is_compare(options.run):
        if options.plots:
            compare.draw(options.run)
        compare.show(options.run, console)
    else:
        _report_run(options, console)
    report.show_line(console, f"page: {html_report.write(options.run, options.html)}")
    return OK


def _report_run(options: argparse.Namespace, console: Console) -> None:
    """Prints the tables of a run's seeds."""
    from . import report, results

    config, _ = run_folder.read_config(options.run)
    every, times = [], []
    for seed, folder in run_folder.seed_folders(options.run, config):
        if len(config.seeds) > 1:
            report.show_line(console, f"seed {seed}")
        every.append(results.read(folder))
        times.append(results.read_seconds(folder))
        report.show(console, every[-1], times[-1])
        if options.plots:
            results.draw(folder, every[-1])
    if len(every) > 1:
        report.show_summary(console, results.summarise(every), every)
        report.show_line(console, report.time_line(times))


def command_verify(options: argparse.Namespace) -> int:
    """`clnp verify`: 0 if every task's logits are the bits that were recorded, else 1."""
    from . import report
    from .console import make_console

    console = make_console()
    config, _ = run_folder.read_config(options.run)
    _check_clnp(options, config.method)
    torch.set_num_threads(config.threads)
    tasks = identical = 0
    for seed, folder in run_folder.seed_folders(options.run, config):
        verdicts = Learner.load(folder / run_folder.CHECKPOINT, device=config.device).verify()
        if len(config.seeds) > 1:
            report.show_line(console, f"seed {seed}")
        report.show_table(console, report.verdict_table(verdicts))
        tasks += len(verdicts)
        identical += sum(v.identical for v in verdicts)
    report.show_line(console, report.certificate_line({"tasks": tasks, "identical": identical}))
    return OK if tasks and tasks == identical else FAILED


def command_export(options: argparse.Namespace) -> int:
    """`clnp export`: one task's network as a file that needs no clnp."""
    from . import export

    config, _ = run_folder.read_config(options.run)
    _check_clnp(options, config.method)
    if len(config.seeds) > 1:
        folders = ", ".join(
            str(folder) for _, folder in run_folder.seed_folders(options.run, config)
        )
        raise ConfigError(f"RUN: {options.run} holds several seeds, wanted one of {folders}")
    ending = options.format or (options.out.suffix[1:] if options.out else "") or FORMATS[0]
    target = options.out or options.run / f"task-{options.task}.{ending}"
    if target.suffix != f".{ending}" or ending not in FORMATS:
        raise ConfigError(
            f"--out: got {target}, wanted a file that ends in "
            + (f".{options.format}" if options.format else " or ".join(f".{f}" for f in FORMATS))
        )
    if target.exists() and not options.overwrite:
        raise ConfigError(
            f"--out: {target} exists; replace it with --overwrite, or name another file"
        )
    learner = Learner.load(options.run / run_folder.CHECKPOINT)
    if not 0 <= options.task < len(learner.reports):
        raise ConfigError(
            f"--task: got {options.task}, wanted 0 to {len(learner.reports) - 1}, the tasks of "
            f"{options.run}"
        )
    print(export.write(learner, options.task, target, fold_batch_norm=options.fold_batch_norm))
    return OK


COMMANDS = {
    "run": command_run,
    "compare": command_compare,
    "methods": command_methods,
    "info": command_info,
    "report": command_report,
    "verify": command_verify,
    "export": command_export,
}


def _check_flags(options: argparse.Namespace) -> None:
    for one, other in (("resume", "overwrite"), ("seed", "seeds")):
        if getattr(options, one) not in (None, False) and getattr(options, other):
            raise ConfigError(f"--{one} and --{other}: got both, wanted one")
    for option in ("workers", "image_threads"):
        value = getattr(options, option)
        if value is not None and value < 1:
            name = option.replace("_", "-")
            raise ConfigError(f"--{name}: got {value}, wanted at least 1")


def _check_clnp(options: argparse.Namespace, method: str) -> None:
    if method != "clnp":
        raise ConfigError(
            f"RUN: {options.run} was made by the method {method}; {options.command} is for clnp"
        )


def _interrupted(options: argparse.Namespace) -> int:
    if options.command in ("run", "compare"):
        words = " ".join([options.command, *getattr(options, "words", [])])
        print(
            f"\nclnp: stopped; go on with: clnp {words} --resume --out "
            f"{build_config.out_folder(options)}",
            file=sys.stderr,
        )
    return INTERRUPTED


def _complain(error: Exception) -> int:
    """One line on stderr; the exit code that goes with the error."""
    if os.environ.get("CLNP_DEBUG"):
        traceback.print_exception(error)
    usage = isinstance(
        error,
        (ConfigError, DataError, ConvertError, CheckpointError, ExportError, run_folder.RunError),
    )
    refused = out_of_memory(error)
    ours = refused or isinstance(error, (ClnpError, OSError))
    text = " ".join(str(error).split())
    kind = "" if ours else f"{type(error).__name__}: "
    hint = "" if ours else " (this looks like a bug; CLNP_DEBUG=1 shows where)"
    if isinstance(error, SaveError) or getattr(error, "errno", None) in FULL:
        usage, hint = False, "; once there is room, go on with --resume"
    elif refused:
        usage, hint = True, "; memory ran out, take a smaller network"
    print(f"clnp: error: {kind}{text}{hint}", file=sys.stderr)
    return USAGE if usage else STOPPED


if __name__ == "__main__":
    sys.exit(main())
