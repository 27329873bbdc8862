"""A command-line run: stream, network, learner; task by task into its folder, from where it was."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from .. import methods, models
from ..data import Stream, Task
from ..errors import CapacityError, ConfigError
from ..learner.learner import Learner
from ..network.conversion import convert
from ..parallel import Workers
from ..parallel.ranks import ALONE, Ranks
from ..parallel.world import world
from . import (
    checks,
    data_table,
    environment,
    report,
    results,
    run_folder,
    seeds_in_workers,
    torchrun,
)
from .config import Config
from .console import Reporter, log_file
from .defaults import NAMED
from .run_folder import Places
from .streams import make_stream


def make_net(config: Config, places: Places, stream: Stream) -> tuple[nn.Module, torch.Tensor]:
    """(a dense network for the stream's first task, an example batch), its weights seeded or from
    the file of weights.

    Raises:
        ConfigError: an unknown network, options that it doesn't have, weights that don't fit.
    """
    first = stream[0]
    shape, classes = first.sample_shape, first.num_classes
    net = models.make(config.net, classes, shape, seed=config.seeds[0], **config.net_arguments())
    if places.pretrained is not None:
        models.load_weights(net, places.pretrained, head=config.adopt)
    return net, torch.zeros(2, *shape)


def make_learner(
    config: Config,
    places: Places,
    stream: Stream,
    folder: Path | None = None,
    distributed: bool = False,
) -> Any:
    """A fresh network and its learner, which writes checkpoint and progress into `folder`.

    Raises:
        ConfigError, ConvertError: settings or a network that don't fit.
    """
    net, example = make_net(config, places, stream)
    if config.method != "clnp":
        arguments = config.method_arguments()
        return methods.make(config.method, net, example, checkpoint_dir=folder, **arguments)
    model = convert(net, example, verbose=False)
    arguments = {**config.learner_arguments(), "device": torchrun.device_of(config)}
    return Learner(
        model,
        checkpoint_dir=folder,
        workers=_workers(config, places),
        distributed=distributed,
        **arguments,
    )


def _workers(config: Config, places: Places) -> Workers:
    return Workers(places.workers, executor=places.executor, threads=config.threads)


def try_out(config: Config, places: Places, *, contents: bool = True) -> tuple[Config, Stream]:
    """Finds the data, builds the network and its learner, and forgets them: all that can be wrong
    is told before anything is deleted or written.

    Arguments:
        config, places: of a run.
        contents: read all data, too; False where that was done.

    Returns:
        the settings with what is found out from the data, and the stream of the first seed.

    Raises:
        ClnpError: whatever doesn't fit.
    """
    checks.check_settings(config.for_seed(config.seeds[0]), places)
    stream = make_stream(config.for_seed(config.seeds[0]), places)
    config = checks.found_out(config, stream)
    first = config.for_seed(config.seeds[0])
    checks.check_shapes(first, stream)
    make_learner(first, places, stream)
    if contents:
        checks.check_contents(first, stream)
    return config, stream


def run(
    root: Path,
    config: Config,
    places: Places,
    console: Console,
    *,
    overwrite: bool = False,
    ranks: Ranks = ALONE,
) -> bool:
    """Runs every seed of a configuration in `root`, going on where an earlier process stopped.

    Arguments:
        root: an empty or new folder, or the folder of a run with this configuration;
            `runs.check_free` was asked.
        config: validated.
        places: of data and weights.
        console: for the progress and the tables.
        overwrite: delete the run that is in `root` first.
        ranks: the processes of torchrun, of which this is the first; the others `follow`.

    Returns:
        whether every certificate holds.

    Raises:
        ClnpError: bad data, a full network, a damaged checkpoint; what was learned before is kept
            in the folder.
    """
    torch.set_num_threads(config.threads)
    config, stream = try_out(config, places)
    with run_folder.locked(root):
        prepare(root, config, places, overwrite=overwrite)
        ranks.tell((root, config, places))
        trials = seed_trials(root, config, places)
        if places.workers > 1 and len(trials) > 1:
            every = [*seeds_in_workers.run(run_alone, trials, places, console).values()]
        else:
            every = []
            for name, (folder, one, _) in trials.items():
                if len(trials) > 1:
                    report.show_line(console, f"{name} in {folder}")
                if every:
                    stream = make_stream(one, places)
                every.append(run_seed(folder, one, places, stream, console))
        summarise(root, config, every, console)
    return all(m["certificate"]["identical"] == m["certificate"]["tasks"] for m in every)


def prepare(root: Path, config: Config, places: Places, *, overwrite: bool = False) -> None:
    """Writes the settings of a run and of its seeds, over those of a run that is to be deleted."""
    if overwrite:
        run_folder.clear(root)
    run_folder.write_config(root, config, places)
    if len(config.seeds) > 1:
        for seed, folder in run_folder.seed_folders(root, config):
            run_folder.write_config(folder, config.for_seed(seed), places)


def seed_trials(root: Path, config: Config, places: Places) -> dict[str, seeds_in_workers.Trial]:
    """ "seed 3" -> (its folder, its settings, places), for every seed."""
    return {
        f"seed {seed}": (folder, config.for_seed(seed), places)
        for seed, folder in run_folder.seed_folders(root, config)
    }


def summarise(
    root: Path, config: Config, every: Sequence[dict[str, Any]], console: Console
) -> None:
    """Writes and prints what several seeds come to."""
    if len(every) > 1:
        report.show_summary(console, results.write_summary(root, every), every)
        folders = [folder for _, folder in run_folder.seed_folders(root, config)]
        seconds = [results.read_seconds(folder) for folder in folders]
        report.show_line(console, report.time_line(seconds))


def follow(ranks: Ranks) -> bool:
    """What the other processes of torchrun do while the first one runs: they learn along.

    Returns:
        False if the first one refused to run.

    Raises:
        ClnpError: as `run` does.
    """
    order = torchrun.order_of(ranks)
    if order is None:
        return False
    root, config, places = order
    torch.set_num_threads(config.threads)
    for folder, one, _ in seed_trials(root, config, places).values():
        stream = make_stream(one, places)
        learner = load_or_make(folder, one, places, stream)
        for index in range(len(learner.reports), len(stream)):
            _learn(learner, one, stream[index])
    return True


def _learn(learner: Any, config: Config, task: Task) -> None:
    learn = learner.adopt if config.adopt and not learner.reports else learner.learn
    learn(task)


def run_alone(folder: Path, config: Config, places: Places, console: Console) -> dict[str, Any]:
    """`run_seed` with a stream of its own."""
    return run_seed(folder, config, places, make_stream(config, places), console)


def run_seed(
    folder: Path, config: Config, places: Places, stream: Stream, console: Console
) -> dict[str, Any]:
    """Runs one seed in its folder, or what is left of it; its metrics. Raises as `run` does."""
    with log_file(folder / run_folder.LOG) as log:
        learner = load_or_make(folder, config, places, stream)
        learned = len(learner.reports)
        # Training examples of every task, for the costs.
        sizes = [stream[k].size("train") for k in range(learned)]
        reporter = Reporter(console, log, len(stream), learned)
        learner.callbacks.append(reporter)
        _note_environment(folder, reporter, resumed=learned > 0)
        if learned:
            reporter.say(f"going on after {learned} of {len(stream)} tasks")
        elif config.stream in NAMED:
            for line in data_table.lines(stream):
                reporter.say(line)
        with reporter.live(), _full_network(folder, learner, config, console, sizes):
            for index in range(learned, len(stream)):
                task = stream[index]
                _learn(learner, config, task)
                sizes.append(task.size("train"))
                _write(folder, learner, config, sizes)
        # A kill between the last checkpoint and its clean-up leaves the fits of a learned task.
        shutil.rmtree(folder / run_folder.PROGRESS, ignore_errors=True)
        metrics = _write(folder, learner, config, sizes, plots=True)
        for line in report.last_lines(metrics):
            reporter.say(line, quiet=True)
    report.show(console, metrics, results.seconds_of(learner))
    report.show_line(console, f"results: {folder}")
    return metrics


def load_or_make(folder: Path, config: Config, places: Places, stream: Stream) -> Any:
    """The learner of a run as its checkpoint has it, or a fresh one.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    path = folder / run_folder.CHECKPOINT
    joined = torchrun.are_joined()
    if not (world().tell(path.is_file()) if joined else path.is_file()):
        return make_learner(config, places, stream, folder, joined)
    device = torchrun.device_of(config)
    arguments: dict[str, Any] = {"device": device, "checkpoint_dir": folder}
    if config.method == "clnp":
        workers = _workers(config, places)
        learner: Any = Learner.load(
            path, tasks=stream, workers=workers, distributed=joined, **arguments
        )
    else:
        net, _ = make_net(config, places, stream)
        learner = methods.load(path, tasks=stream, net=net, **arguments)
    if len(learner.reports) > len(stream):
        raise ConfigError(
            f"{path}: holds {len(learner.reports)} tasks, wanted at most {len(stream)}"
        )
    return learner


@contextlib.contextmanager
def _full_network(
    folder: Path, learner: Any, config: Config, console: Console, sizes: list[int]
) -> Iterator[None]:
    """A network that fills up before the last task still gets its plots and tables for the tasks
    that it has.
    """
    try:
        yield
    except CapacityError:
        if learner.reports:
            metrics = _write(folder, learner, config, sizes, plots=True)
            report.show(console, metrics, results.seconds_of(learner))
        raise


def _write(
    folder: Path, learner: Any, config: Config, sizes: list[int], plots: bool = False
) -> dict[str, Any]:
    verdicts = learner.verify() if config.method == "clnp" else []
    costs = results.costs_of(learner, sizes)
    metrics = results.metrics_of(learner, config, verdicts, costs)
    results.write(folder, metrics, results.seconds_of(learner), costs)
    if plots:
        results.draw(folder, metrics)
    return metrics


def _note_environment(folder: Path, reporter: Reporter, resumed: bool) -> None:
    """Writes environment.json; says what changed since a run was begun, for the last bits may
    depend on it.
    """
    path = folder / "environment.json"
    now = environment.environment()
    before = run_folder.read_json(path) if resumed and path.is_file() else now
    changed = [key for key, value in now.items() if before.get(key) != value]
    if changed:
        reporter.say(
            f"note: {', '.join(changed)} changed since this run was begun (environment.json); the "
            "last bits of the "
            "numbers may depend on it"
        )
    else:
        run_folder.write_json(path, now)
