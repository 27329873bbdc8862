"""A command-line run: task by task into its folder, going on from where it was."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console

from ..data import Stream, Task
from ..errors import CapacityError, TrainingError
from ..parallel.ranks import ALONE, Ranks
from . import report, results, seeds_in_workers, summary
from .console import Reporter, log_file
from .environment import environment
from .prepare import load_or_make, try_out
from .run_folder import Run
from .streams import make_stream


def carry_out(run: Run, console: Console, *, overwrite: bool = False, ranks: Ranks = ALONE) -> bool:
    """Runs every seed of a configuration, going on where an earlier process stopped.

    Arguments:
        run: its folder passed `RunFolder.check_free`, and `check_same` where it holds a run.
        console: for the progress and the tables.
        overwrite: delete the run that is in the folder first.
        ranks: the processes of torchrun, of which this is the first; the others `follow`.

    Returns:
        whether every certificate holds.

    Raises:
        ClnpError: bad data, a full network, a damaged checkpoint; what was learned before is kept
            in the folder.
    """
    torch.set_num_threads(run.config.threads)
    run, stream = try_out(run)
    with run.folder.locked():
        begin(run, overwrite=overwrite)
        ranks.from_first(run)
        seeds = run.seeds()
        if run.places.workers > 1 and len(seeds) > 1:
            done = [*seeds_in_workers.run(run_alone, seeds, console).values()]
        else:
            done = []
            for name, seed in seeds.items():
                if len(seeds) > 1:
                    report.show_line(console, f"{name} in {seed.folder}")
                if done:
                    stream = make_stream(seed.config, seed.places)
                done.append(run_seed(seed, stream, console))
        summarise(run, done, console)
    return all(m["certificate"]["identical"] == m["certificate"]["tasks"] for m in done)


def begin(run: Run, *, overwrite: bool = False) -> None:
    """Writes the settings of a run and of its seeds, over those of a run that is to be deleted."""
    if overwrite:
        run.folder.clear()
    for one in (run, *run.seeds().values()):
        one.folder.write_config(one.config, one.places)


def summarise(run: Run, done: Sequence[dict[str, Any]], console: Console) -> None:
    """Writes and prints the mean of several seeds, given the metrics of each."""
    if len(done) > 1:
        report.show_summary(console, results.write_summary(run.folder, done), done)
        seconds = [seed.folder.read_table("timing.csv") for seed in run.seeds().values()]
        report.show_line(console, report.time_line(seconds))


def follow(ranks: Ranks) -> bool:
    """Learns along in the other processes of torchrun while the first one runs.

    Returns:
        False if the first one refused to run.

    Raises:
        ClnpError: as `carry_out` does.
    """
    try:
        run: Run = ranks.from_first()
    except TrainingError:  # the first one refused, for a reason that it gave
        return False
    torch.set_num_threads(run.config.threads)
    for seed in run.seeds().values():
        stream = make_stream(seed.config, seed.places)
        learner = load_or_make(seed, stream)
        for index in range(len(learner.reports), len(stream)):
            _learn(learner, seed, stream[index])
    return True


def _learn(learner: Any, run: Run, task: Task) -> None:
    learn = learner.adopt if run.config.adopt and not learner.reports else learner.learn
    learn(task)


def run_alone(run: Run, console: Console) -> dict[str, Any]:
    """`run_seed` with a stream of its own."""
    return run_seed(run, make_stream(run.config, run.places), console)


def run_seed(run: Run, stream: Stream, console: Console) -> dict[str, Any]:
    """Runs one seed, or what is left of it; its metrics. Raises as `carry_out` does."""
    with log_file(run.folder.log) as log:
        learner = load_or_make(run, stream)
        learned = len(learner.reports)
        # Training examples of each task, for the costs.
        sizes = [stream[k].size("train") for k in range(learned)]
        reporter = Reporter(console, log, len(stream), learned)
        learner.callbacks.append(reporter)
        _note_environment(run, reporter, resumed=learned > 0)
        if learned:
            reporter.say(f"going on after {learned} of {len(stream)} tasks")
        else:
            for line in summary.lines(run.config, stream, learner):
                reporter.say(line)
        try:
            with reporter:
                for task in (stream[index] for index in range(learned, len(stream))):
                    _learn(learner, run, task)
                    sizes.append(task.size("train"))
                    results.record(run, learner, sizes)
        except CapacityError:
            # The tasks that a full network has get their plots and tables.
            if learner.reports:
                metrics = results.record(run, learner, sizes, plots=True)
                report.show(console, metrics, results.seconds_of(learner))
            raise
        # A kill between the last checkpoint and its clean-up leaves the fits of a learned task.
        shutil.rmtree(run.folder.progress, ignore_errors=True)
        metrics = results.record(run, learner, sizes, plots=True)
        for line in report.last_lines(metrics):
            reporter.say(line, quiet=True)
    report.show(console, metrics, results.seconds_of(learner))
    report.show_line(console, f"results: {run.folder}")
    return metrics


def _note_environment(run: Run, reporter: Reporter, resumed: bool) -> None:
    """Writes environment.json; says what changed since a run was begun, for the last bits may
    depend on it.
    """
    now = environment()
    before = (run.folder.read_environment() if resumed else None) or now
    changed = [key for key, value in now.items() if before.get(key) != value]
    if changed:
        reporter.say(
            f"note: {', '.join(changed)} changed since this run was begun (environment.json); the "
            "last bits of the numbers may depend on it"
        )
    else:
        run.folder.write_environment(now)
