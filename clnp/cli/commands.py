"""The command line: `clnp run`, `compare`, `methods`, `info`, `tune`, `report`, `verify`, `forget`,
`export`.

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
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open

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
from . import build_config
from .arguments import FORMATS, STREAMS, USAGE, parse
from .options import SETTINGS
from .run_folder import PAGE, Run, RunError, RunFolder

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
            RunFolder(options.run).reading() if options.command == "report" else nullcontext(),
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
        run = Run(folder, *build_config.settings(options, folder))
        torchrun.check(ranks, run)
        folder.check_free(resume=options.resume, overwrite=options.overwrite)
        if options.resume and folder.is_run:
            folder.check_same(run.config)
        elif options.resume and not build_config.names_a_run(options):
            raise ConfigError(
                f"--resume: {folder} holds no run; name another --out, or the experiment to begin"
            )
        if options.tune:
            command_tune(parse(["tune"]))
        holds = experiment.carry_out(run, make_console(), overwrite=options.overwrite, ranks=ranks)
    return OK if holds else FAILED


def command_compare(options: argparse.Namespace) -> int:
    """`clnp compare`: one run folder per method, then one table; 3 if a method didn't finish."""
    from . import compare, torchrun
    from .console import make_console

    torchrun.check_alone("compare")
    _check_flags(options)
    folder = build_config.out_folder(options)
    plan = {}
    for name in compare.method_names(options.methods, options.set):
        below = folder.below(name)
        plan[name] = Run(below, *build_config.settings(options, below, name))
    compare.check_free(folder, plan, resume=options.resume, overwrite=options.overwrite)
    if options.tune:
        command_tune(parse(["tune"]))
    done = compare.carry_out(folder, plan, make_console(), overwrite=options.overwrite)
    return OK if done else STOPPED


def command_methods(options: argparse.Namespace) -> int:
    """`clnp methods`: names, descriptions, options and defaults."""
    from . import compare

    for line in compare.describe_methods():
        print(line)
    return OK


def command_info(options: argparse.Namespace) -> int:
    """`clnp info`: versions, hardware, and the implementation that serves each operator."""
    from .environment import info_lines

    print("\n".join(info_lines()))
    return OK


def command_tune(options: argparse.Namespace) -> int:
    """`clnp tune`: checks the GPU kernels on this GPU and measures them."""
    from clnp_kernels.errors import MissingImplementationError
    from clnp_kernels.tune.__main__ import command

    try:
        return command(options)
    except (MissingImplementationError, ValueError) as error:
        raise ConfigError(str(error)) from error


def command_report(options: argparse.Namespace) -> int:
    """`clnp report`: the tables again, from the files; and all of it as an HTML page."""
    from ..learner.numbers import numbers_of
    from . import compare, pages, report
    from .console import make_console

    console, folder = make_console(), RunFolder(options.run)
    if options.run.is_file():
        learner = _load(options.run)
        metrics, seconds, _ = numbers_of(learner)
        report.show(console, metrics, seconds)
        page = learner.report(options.html or folder.path.with_name(PAGE))
    else:
        if folder.is_comparison:
            if options.plots:
                compare.draw(folder)
            compare.show(folder, console)
        else:
            _report_run(folder, console, options.plots)
        page = pages.write(folder, options.html)
    report.show_line(console, f"page: {page}")
    return OK


def _report_run(folder: RunFolder, console: Console, plots: bool) -> None:
    from . import report, results

    done, seconds = [], []
    for run in folder.seeds().values():
        done.append(run.read_metrics())
        seconds.append(run.read_table("timing.csv"))
        report.show(console, done[-1], seconds[-1])
        if plots:
            results.draw(run, done[-1])
    if len(done) > 1:
        report.show_summary(console, results.summarise(done), done)
        report.show_line(console, report.time_line(seconds))


def command_verify(options: argparse.Namespace) -> int:
    """`clnp verify`: 0 if every task's logits are the bits that were recorded, else 1."""
    from . import report
    from .console import make_console

    console, tasks, identical = make_console(), 0, 0
    for seed, learner in _learners(options):
        verdicts = learner.verify()
        if seed:
            report.show_line(console, seed)
        report.show_verdicts(console, verdicts)
        tasks += len(verdicts)
        identical += sum(v.identical for v in verdicts)
    report.show_line(console, report.certificate_line({"tasks": tasks, "identical": identical}))
    return OK if tasks and tasks == identical else FAILED


def command_forget(options: argparse.Namespace) -> int:
    """`clnp forget`: a task and what only it reads go out of a checkpoint or a run folder."""
    from . import forget, report
    from .console import make_console

    console, folder = make_console(), RunFolder(options.run)
    is_file = options.run.is_file()
    with nullcontext() if is_file else folder.locked():
        runs = [] if is_file else list(Run(folder, *folder.read_config()).seeds().values())
        for i, (seed, learner) in enumerate(_learners(options)):
            names = [task.name for task in learner.reports]
            gone = learner.forget(_task_of(learner, options), cascade=options.cascade)
            if is_file:
                learner.save(options.run)
            else:
                forget.rewrite(runs[i], learner, gone)
            for line in ([seed] if seed else []) + list(forget.lines(gone, names)):
                report.show_line(console, line)
        if not is_file:
            forget.rewrite_summary(folder)
    return OK


def command_export(options: argparse.Namespace) -> int:
    """`clnp export`: one task's network as a file that needs no clnp."""
    from . import export

    if not options.run.is_file() and len(runs := RunFolder(options.run).seeds()) > 1:
        seeds = ", ".join(map(str, runs.values()))
        raise ConfigError(f"RUN: expected one seed, one of {seeds}, got {options.run}")
    ((_, learner),) = _learners(options)
    task = _task_of(learner, options)
    ending = options.format or (options.out.suffix[1:] if options.out else "") or FORMATS[0]
    folder = options.run.parent if options.run.is_file() else options.run
    target = options.out or folder / f"task-{task}.{ending}"
    if target.suffix != f".{ending}" or ending not in FORMATS:
        endings = [options.format] if options.format else FORMATS
        raise ConfigError(
            f"--out: expected a file that ends in {' or '.join(f'.{e}' for e in endings)}, got "
            f"{target}"
        )
    if target.exists() and not options.overwrite:
        raise ConfigError(
            f"--out: {target} exists; replace it with --overwrite, or name another file"
        )
    print(export.write(learner, task, target, fold_batch_norm=options.fold_batch_norm))
    return OK


def _task_of(learner: Learner, options: argparse.Namespace) -> int:
    text, names = options.task, [report.name for report in learner.reports]
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    if text in names:
        return names.index(text)
    raise ConfigError(
        f"--task: expected 0 to {len(names) - 1} or a name, one of the tasks of {options.run} "
        f"({', '.join(names)}), got {text}"
    )


def _learners(options: argparse.Namespace) -> Iterator[tuple[str, Learner]]:
    """("seed 3", learner) of every seed of a run; ("", learner) of one seed or a checkpoint."""
    if options.run.is_file():
        learner = _load(options.run)
        if not isinstance(learner, Learner):
            _refuse_method(options, learner.settings["method"])
        # Another number of threads may round otherwise.
        for entry in learner.certificate.entries[-1:]:
            threads: Any = entry.conditions.get("threads")
            if SETTINGS["threads"].holds(threads):
                torch.set_num_threads(threads)
        yield "", learner
        return
    folder = RunFolder(options.run)
    config, _ = folder.read_config()
    if config.method != "clnp":
        _refuse_method(options, config.method)
    torch.set_num_threads(config.threads)
    device = config.device if options.command == "verify" else "cpu"
    for seed, run in folder.seeds(config).items():
        name = f"seed {seed}" if len(config.seeds) > 1 else ""
        yield name, Learner.load(run.checkpoint, device=device)


def _load(path: Path) -> Any:
    from ..methods import load

    kind = ""
    # `Learner.load` says what is wrong with a file.
    with suppress(SafetensorError, OSError), safe_open(str(path), framework="pt") as file:
        kind = (file.metadata() or {}).get("kind", "")
    return load(path) if kind == "method" else Learner.load(path)


def _refuse_method(options: argparse.Namespace, method: str) -> NoReturn:
    raise ConfigError(
        f"RUN: {options.command} applies to the method clnp only (got {options.run}, made by "
        f"{method})"
    )


COMMANDS = {
    "run": command_run,
    "compare": command_compare,
    "methods": command_methods,
    "info": command_info,
    "tune": command_tune,
    "report": command_report,
    "verify": command_verify,
    "forget": command_forget,
    "export": command_export,
}


def _check_flags(options: argparse.Namespace) -> None:
    for one, other in (("resume", "overwrite"), ("seed", "seeds")):
        if getattr(options, one) not in (None, False) and getattr(options, other):
            raise ConfigError(f"--{one} and --{other}: expected one of them, got both")
    for option in ("workers", "image_threads"):
        value = getattr(options, option)
        if value is not None and value < 1:
            name = option.replace("_", "-")
            raise ConfigError(f"--{name}: expected an integer >= 1, got {value}")


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
        error, (ConfigError, DataError, ConvertError, CheckpointError, ExportError, RunError)
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
