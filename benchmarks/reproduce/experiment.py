"""Experiments and their runs: a run folder of `clnp` per contender and seed."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine
from benchmarks.reproduce.finished import MACHINE, Run
from benchmarks.reproduce.tables import Tables
from clnp.cli import build_config
from clnp.cli import experiment as command
from clnp.cli.arguments import parse
from clnp.cli.config import Config
from clnp.cli.run_folder import METRICS, Places, RunFolder, read_json, write_json
from clnp.cli.run_folder import Run as CommandRun
from clnp.errors import CapacityError, ClnpError


@dataclass(frozen=True)
class Contender:
    """One line of a table or curve of a figure.

    Attributes:
        words: options of `clnp run`.
        changes: further options, which replace those of `words` that they name.
        method: "clnp" or a key of `clnp.methods.METHODS`.
        until_full: the tasks are more than fit: running out of channels ends the run, as intended.
        data: further options, about the data; --quick, which has other data, leaves them out.
    """

    words: str = ""
    method: str = "clnp"
    until_full: bool = False
    data: str = ""
    changes: str = ""


@dataclass(frozen=True)
class Experiment:
    """A table or figure.

    Attributes:
        name: of the command.
        title: one line.
        runs: folder that its runs share with other experiments on the same data.
        stream: experiment of `clnp run`.
        contenders: name -> contender.
        write: (folder for CSV files and plots, numbers of the runs) writes them.
        quick_stream, quick: stream and further options of --quick.
        more: further numbers of a run, for its line in runs.csv.
    """

    name: str
    title: str
    runs: str
    stream: str
    contenders: Mapping[str, Contender]
    write: Callable[[Path, Tables], None]
    quick_stream: str
    quick: str
    more: Callable[[Run], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Options:
    """Choices of the command line.

    Attributes:
        seeds: which.
        quick: the small problem.
        only: contenders; () takes all.
        words: further options of `clnp run`, for every contender.
    """

    seeds: Sequence[int] = (0,)
    quick: bool = False
    only: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


def settings_of(
    experiment: Experiment, contender: Contender, seed: int, folder: Path, options: Options
) -> tuple[Config, Places]:
    """The settings of one run. Raises ConfigError where they make no sense."""
    stream = experiment.quick_stream if options.quick else experiment.stream
    more = experiment.quick if options.quick else contender.data
    last = [*options.words, "--seed", str(seed), "--out", str(folder), "--resume"]
    parsed = overlaid(stream, contender.words, contender.changes, more, last)
    return build_config.settings(parsed, folder, contender.method)


def overlaid(stream: str, *layers: str | Sequence[str]) -> argparse.Namespace:
    """The options of `clnp run STREAM` in layers, of which the later replace the earlier."""
    result: dict[str, Any] = {}
    for layer in layers:
        words = shlex.split(layer) if isinstance(layer, str) else layer
        given = vars(parse(["run", stream, *words]))
        result |= {name: value for name, value in given.items() if value is not None}
    return argparse.Namespace(**{**given, **result})


def carry_out(experiment: Experiment, out: Path, options: Options, console: Console) -> list[str]:
    """Runs what is missing of all contenders and seeds; returns what went wrong, a line each.

    A run that another process is busy with is passed over, so that the same command may be started
    several times side by side.
    """
    problems = []
    for seed in options.seeds:
        for name, contender in wanted(experiment, options).items():
            folder = folder_of(experiment, out, name, seed)
            try:
                _carry_out(experiment, contender, seed, folder, options, console)
            except ClnpError as error:
                problems.append(f"{name}, seed {seed}: {' '.join(str(error).split())}")
                console.print(problems[-1], markup=False, highlight=False)
    return problems


def _carry_out(
    experiment: Experiment,
    contender: Contender,
    seed: int,
    folder: Path,
    options: Options,
    console: Console,
) -> None:
    config, places = settings_of(experiment, contender, seed, folder, options)
    run = RunFolder(folder)
    run.check_free(resume=True, overwrite=False)
    if run.is_run:
        run.check_same(config)
        if run.has_learned(config.tasks):
            return
    console.print(f"\n{experiment.name}: {folder}", markup=False, highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MACHINE).is_file():
        write_json(folder / MACHINE, machine.facts(config.device))
    try:
        command.carry_out(CommandRun(run, config, places), console)
    except CapacityError:
        if not contender.until_full:
            raise


def wanted(experiment: Experiment, options: Options) -> dict[str, Contender]:
    """The contenders that the options choose."""
    return {n: c for n, c in experiment.contenders.items() if not options.only or n in options.only}


def folder_of(experiment: Experiment, out: Path, contender: str, seed: int) -> Path:
    """The run folder of a contender and seed."""
    return out / experiment.runs / contender / f"seed-{seed}"


def found(experiment: Experiment, out: Path) -> list[Run]:
    """All runs of an experiment that have learned a task, also those of earlier calls."""
    done = []
    for name in experiment.contenders:
        for folder in sorted((out / experiment.runs / name).glob("seed-*")):
            if (folder / METRICS).is_file():
                done.append(Run.read(name, int(folder.name.removeprefix("seed-")), folder))
    return done


def write_settings(folder: Path, experiment: Experiment, done: Sequence[Run]) -> None:
    """settings.json: the exact configuration of each contender, with machine and date of its runs.

    Runs of an earlier call, or of another machine, that are not in `done` keep their places. A run
    whose configuration is not its contender's has its own.
    """
    path = folder / "settings.json"
    earlier = read_json(path)["contenders"] if path.is_file() else {}
    contenders: dict[str, Any] = {}
    for name in experiment.contenders:
        own = {run.seed: _settings(run) for run in done if run.contender == name}
        before = earlier.get(name, {"runs": []})
        known = {run["seed"]: {"config": before["config"], **run} for run in before["runs"]} | own
        if known:
            contenders[name] = _about([known[seed] for seed in sorted(known)])
    data = {"experiment": experiment.name, "title": experiment.title, "contenders": contenders}
    write_json(path, data)


def _settings(run: Run) -> dict[str, Any]:
    environment = json.loads((run.folder / "environment.json").read_text())
    config = run.metrics["config"]  # its threads, not those of the process
    facts = {**run.machine, "threads": config["threads"], "environment": environment}
    return {"seed": run.seed, "config": {**config, "seeds": [run.seed]}, **facts}


def _about(own: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One configuration for all runs of a contender, but for those that differ."""
    shared = {**own[0]["config"], "seeds": [run["seed"] for run in own]}
    alike = [{**run["config"], "seeds": shared["seeds"]} == shared for run in own]
    short = [{key: value for key, value in run.items() if key != "config"} for run in own]
    rows = zip(own, short, alike, strict=True)
    return {"config": shared, "runs": [brief if same else run for run, brief, same in rows]}
