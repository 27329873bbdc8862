"""A command-line run: stream, network, learner; task by task into its folder, from where it was."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from clnp.cli import environment, report, results, runs
from clnp.cli.config import Config
from clnp.cli.console import Reporter, log_file
from clnp.convert import convert
from clnp.data import PermutedDigits, PermutedMNIST, Stream
from clnp.errors import CapacityError, ConfigError
from clnp.learner import Learner
from clnp.models import mlp


def make_stream(config: Config, data_root: str | None) -> Stream:
    """The stream of tasks of a configuration with one seed. Raises DataError where its data isn't
    found.
    """
    seed = config.seeds[0]
    if config.stream == "permuted-digits":
        return PermutedDigits(config.tasks, seed)
    return PermutedMNIST(data_root, config.tasks, seed)


def make_learner(config: Config, stream: Stream, folder: Path, callbacks: list[Any]) -> Learner:
    """A fresh network and its learner, which writes checkpoint and progress into `folder`."""
    first = stream[0]
    inputs = first.sample_shape[0]
    net = mlp(
        inputs,
        config.width,
        config.depth,
        first.num_classes,
        dropout=config.dropout,
        seed=config.seeds[0],
    )
    model = convert(net, torch.zeros(2, inputs), verbose=False)
    arguments = config.learner_arguments()
    return Learner(model, checkpoint_dir=folder, callbacks=callbacks, **arguments)


def run(
    root: Path,
    config: Config,
    data_root: str | None,
    console: Console,
    *,
    overwrite: bool = False,
) -> bool:
    """Runs every seed of a configuration in `root`, going on where an earlier process stopped.

    Arguments:
        root: an empty or new folder, or the folder of a run with this configuration;
            `runs.check_free` was asked.
        config: validated.
        data_root: folder of the data files, or None.
        console: for the progress and the tables.
        overwrite: delete the run that is in `root` first.

    Returns:
        whether every certificate holds.

    Raises:
        ClnpError: bad data, a full network, a damaged checkpoint; what was learned before is kept
            in the folder.
    """
    torch.set_num_threads(config.threads)
    # Data is found before anything is deleted or written.
    stream = make_stream(config.for_seed(config.seeds[0]), data_root)
    with runs.locked(root):
        if overwrite:
            runs.clear(root)
        runs.write_config(root, config, data_root)
        every: list[dict[str, Any]] = []
        for seed, folder in runs.seed_folders(root, config):
            if len(config.seeds) > 1:
                console.print(
                    f"seed {seed} in {folder}", markup=False, highlight=False, soft_wrap=True
                )
                runs.write_config(folder, config.for_seed(seed), data_root)
            one = config.for_seed(seed)
            if every:
                stream = make_stream(one, data_root)
            every.append(run_seed(folder, one, stream, console))
        if len(every) > 1:
            report.show_summary(console, results.write_summary(root, every), every)
    return all(m["certificate"]["identical"] == m["certificate"]["tasks"] for m in every)


def run_seed(folder: Path, config: Config, stream: Stream, console: Console) -> dict[str, Any]:
    """Runs one seed in its folder, or what is left of it; its metrics. Raises as `run` does."""
    with log_file(folder / runs.LOG) as log:
        learner = load_or_make(folder, config, stream)
        learned = len(learner.reports)
        reporter = Reporter(console, log, len(stream), learned)
        learner.callbacks.append(reporter)
        _note_environment(folder, reporter, resumed=learned > 0)
        if learned:
            reporter.say(f"going on after {learned} of {len(stream)} tasks")
        with reporter.live(), _full_network(folder, learner, config, console):
            for index in range(learned, len(stream)):
                learner.learn(stream[index])
                _write(folder, learner, config)
        # A kill between the last checkpoint and its clean-up leaves the fits of a learned task.
        shutil.rmtree(folder / runs.PROGRESS, ignore_errors=True)
        metrics = _write(folder, learner, config, plots=True)
        for line in (report.numbers_line(metrics), report.certificate_line(metrics["certificate"])):
            reporter.say(line, quiet=True)
    report.show(console, metrics, results.seconds_of(learner))
    report.show_line(console, f"results: {folder}")
    return metrics


def load_or_make(folder: Path, config: Config, stream: Stream) -> Learner:
    """The learner of a run as its checkpoint has it, or a fresh one.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    path = folder / runs.CHECKPOINT
    if not path.is_file():
        return make_learner(config, stream, folder, [])
    learner = Learner.load(path, tasks=stream, device=config.device, checkpoint_dir=folder)
    if len(learner.reports) > len(stream):
        raise ConfigError(
            f"{path}: holds {len(learner.reports)} tasks, wanted at most {len(stream)}"
        )
    return learner


@contextlib.contextmanager
def _full_network(
    folder: Path, learner: Learner, config: Config, console: Console
) -> Iterator[None]:
    """A network that fills up before the last task still gets its plots and tables for the tasks
    that it has.
    """
    try:
        yield
    except CapacityError:
        if learner.reports:
            metrics = _write(folder, learner, config, plots=True)
            report.show(console, metrics, results.seconds_of(learner))
        raise


def _write(folder: Path, learner: Learner, config: Config, plots: bool = False) -> dict[str, Any]:
    metrics = results.metrics_of(learner, config, learner.verify())
    results.write(folder, metrics, results.seconds_of(learner))
    if plots:
        results.draw(folder, metrics)
    return metrics


def _note_environment(folder: Path, reporter: Reporter, resumed: bool) -> None:
    """Writes environment.json; says what changed since a run was begun, for the last bits may
    depend on it.
    """
    path = folder / "environment.json"
    now = environment.environment()
    before = runs.read_json(path) if resumed and path.is_file() else now
    changed = [key for key, value in now.items() if before.get(key) != value]
    if changed:
        reporter.say(
            f"note: {', '.join(changed)} changed since this run was begun (environment.json); the "
            "last bits of the "
            "numbers may depend on it"
        )
    else:
        runs.write_json(path, now)
