"""Several methods under one protocol: a run folder for each, one table, CSV files, plots."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from .. import plots
from ..errors import ClnpError, ConfigError, TrialError, out_of_memory
from ..methods import METHODS
from ..metrics import mean_std
from . import (
    build_config,
    configurations,
    experiment,
    report,
    results,
    run_folder,
    seeds_in_workers,
)
from .config import Config, differences
from .run_folder import Places

FORMAT = "clnp-compare"
FILE = "compare.json"
# Column of the tables, key of a row, how a mean is written.
COLUMNS = (
    ("ACC (%)", "acc", lambda v: f"{100 * v:.2f}"),
    ("forgetting (%)", "forgetting", lambda v: f"{100 * v:.2f}"),
    ("channels used (%)", "used", lambda v: f"{100 * v:.1f}"),
    ("training FLOP", "flops", lambda v: f"{v:.3g}"),
    ("examples", "examples", lambda v: f"{v:.3g}"),
    ("memory (MiB)", "peak_memory", lambda v: f"{v / (1 << 20):.1f}"),
    ("time (s)", "seconds", lambda v: f"{v:.1f}"),
)
Plan = Mapping[str, tuple[Config, Places]]
Trials = Mapping[str, seeds_in_workers.Trial]


def method_names(text: str, sets: Sequence[str] | None) -> list[str]:
    """ "clnp,si" -> ["clnp", "si"].

    Raises:
        ConfigError: an unknown method, one that is there twice, or a --set for none of them.
    """
    names = build_config.compared_methods(text)
    known = ["clnp", *METHODS]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ConfigError(f"--methods: got {text!r}, wanted some of {', '.join(known)}")
    if len(set(names)) != len(names):
        raise ConfigError(f"--methods: got {text!r}, wanted each once")
    others = [name for name in names if name != "clnp"]
    for item in sets or ():
        whose = item.partition("=")[0].rpartition(".")[0]
        if whose == "clnp" or not others:
            raise ConfigError(f"--set: got {item!r}, but clnp's settings have options of their own")
        if whose and whose not in names:
            raise ConfigError(f"--set: got {item!r}, wanted options of {', '.join(others)}")
    return names


def describe_methods() -> list[str]:
    """All methods and their options, as lines of text."""
    lines = ["clnp: continual learning via neural pruning; its settings are options of clnp run"]
    for name, info in METHODS.items():
        lines.append(f"{name}: {info.description}")
        for key, option in info.options.items():
            default = json.dumps(option.default)
            lines.append(f"  --set {key}={default}  {option.meaning} ({option.values.expected})")
    return lines


def is_compare(folder: Path) -> bool:
    """Was a comparison begun in this folder?"""
    return (folder / FILE).is_file()


def check_free(folder: Path, plan: Plan, *, resume: bool, overwrite: bool) -> None:
    """May a comparison begin in this folder? Nothing is written or deleted.

    Raises:
        ConfigError: it holds something else, a comparison that isn't to be resumed or overwritten,
            or runs with other settings.
    """
    if not is_compare(folder):
        if folder.exists() and not run_folder.is_empty(folder):
            raise ConfigError(
                f"--out: {folder} is not empty and holds no comparison; name another folder"
            )
        run_folder.check_free(folder, resume=resume, overwrite=overwrite)
    elif not (resume or overwrite):
        raise ConfigError(
            f"--out: {folder} holds a comparison; continue it with --resume (other methods may be "
            "added), or replace it with --overwrite"
        )
    for name, (config, _) in plan.items():
        if resume and run_folder.is_run(folder / name):
            run_folder.check_same(folder / name, config)
    first, *others = [config for config, _ in plan.values()]
    for config in others:
        odd = [d for d in differences(first, config) if d.split()[0] in ("--tasks", "--seeds")]
        if odd:
            raise ConfigError(f"--resume: the methods' runs differ: {', '.join(odd)}")


def run(folder: Path, plan: Plan, console: Console, *, overwrite: bool = False) -> bool:
    """Runs what is missing of every method and seed, then writes and prints the comparison.

    A seed of a method that fails is reported and left out of the table; the other seeds run, and
    what it learned stays in its folder.

    Arguments:
        folder: as `check_free` approved it.
        plan: method -> (settings with all seeds, places).
        console: for progress and tables.
        overwrite: run everything anew.

    Returns:
        whether all seeds of all methods finished.

    Raises:
        ClnpError: data, network or settings that don't fit, before anything is written.
    """
    missing = {
        name: both
        for name, both in plan.items()
        if overwrite or not _finished(folder / name, both[0])
    }
    for k, (name, (config, places)) in enumerate(missing.items()):
        # All methods learn the same data, which is read once.
        missing[name] = (experiment.try_out(config, places, contents=k == 0)[0], places)
    with run_folder.locked(folder):
        known = run_folder.read_json(folder / FILE)["methods"] if is_compare(folder) else []
        names = [*plan] if overwrite else [*known, *(name for name in plan if name not in known)]
        run_folder.write_json(folder / FILE, {"format": FORMAT, "methods": names})
        for name in plan:
            if name not in missing:
                report.show_line(console, f"method {name} finished before")
        failed = _carry_out(folder, missing, console, overwrite)
        write(folder)
        show(folder, console)
    for name, text in failed.items():
        report.show_line(console, f"method {name} did not finish: {text}")
    return not failed


def _carry_out(folder: Path, plan: Plan, console: Console, overwrite: bool) -> dict[str, str]:
    """Runs the seeds of all methods; "method, seed S" -> why it did not finish."""
    with contextlib.ExitStack() as locks:
        trials: dict[str, seeds_in_workers.Trial] = {}
        own: dict[str, list[str]] = {}
        for name, (config, places) in plan.items():
            locks.enter_context(run_folder.locked(folder / name))
            experiment.prepare(folder / name, config, places, overwrite=overwrite)
            seeds = experiment.seed_trials(folder / name, config, places)
            own[name] = [f"{name}, {seed}" for seed in seeds]
            trials |= dict(zip(own[name], seeds.values(), strict=True))
        several = len(trials) > 1 and any(places.workers > 1 for _, places in plan.values())
        done, failed = (_side_by_side if several else _one_by_one)(trials, console)
        for name, (config, _) in plan.items():
            if not any(trial in failed for trial in own[name]):
                every = [done[trial] for trial in own[name]]
                experiment.summarise(folder / name, config, every, console)
    return failed


def _one_by_one(trials: Trials, console: Console) -> tuple[dict[str, Any], dict[str, str]]:
    """(metrics of the trials, why others did not finish)."""
    done, failed = {}, {}
    for name, (folder, config, places) in trials.items():
        report.show_line(console, f"\nmethod {name}")
        torch.set_num_threads(config.threads)
        try:
            done[name] = experiment.run_alone(folder, config, places, console)
        except Exception as error:
            if not isinstance(error, ClnpError) and not out_of_memory(error):
                raise
            failed[name] = " ".join(str(error).split())
            report.show_line(console, f"method {name} stopped: {failed[name]}")
    return done, failed


def _side_by_side(trials: Trials, console: Console) -> tuple[dict[str, Any], dict[str, str]]:
    """The same in workers."""
    places = next(iter(trials.values()))[2]
    try:
        return seeds_in_workers.run(experiment.run_alone, trials, places, console), {}
    except TrialError as error:
        return error.results, {name: failure.text for name, failure in error.failures.items()}


def _finished(folder: Path, config: Config) -> bool:
    """Has every seed of a method learned all its tasks?"""
    return all(_has_learned(below, config) for _, below in run_folder.seed_folders(folder, config))


def _has_learned(folder: Path, config: Config) -> bool:
    path = folder / run_folder.METRICS
    return path.is_file() and bool(run_folder.read_json(path)["tasks_learned"] == config.tasks)


def runs_of(folder: Path) -> dict[tuple[str, int], tuple[Path, bool]]:
    """(method, seed) -> (its folder, whether it learned all its tasks), of a comparison.

    Raises:
        RunError: a file of the comparison is missing or damaged.
    """
    found = {}
    for name in run_folder.read_json(folder / FILE)["methods"]:
        if run_folder.is_run(folder / name):
            config, _ = run_folder.read_config(folder / name)
            for seed, below in run_folder.seed_folders(folder / name, config):
                found[name, seed] = (below, _has_learned(below, config))
    return found


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """One row per method and seed that learned all its tasks: {"method", "seed", "acc", "bwt",
    "forgetting", "used" (mean over the layers of the share of channels used, None for other methods
    than CLNP), "flops", "examples", "peak_memory" (bytes), "seconds" (of everything)}.

    Raises:
        RunError: a file of the comparison is missing or damaged.
    """
    rows = []
    for (name, seed), (below, learned) in runs_of(folder).items():
        if not learned:
            continue
        metrics = results.read(below)
        used = [c["used"] / c["size"] for c in metrics["reports"][-1]["capacity"].values()]
        costs, seconds = results.read_costs(below), results.read_seconds(below)
        rows.append(
            {
                "method": name,
                "seed": seed,
                **{key: metrics[key] for key in results.SUMMARIES},
                "used": sum(used) / len(used) if used else None,
                **metrics["cost"],
                "peak_memory": max(row["peak_memory"] for row in costs),
                "seconds": sum(row["total"] for row in seconds),
            }
        )
    return rows


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per method: {"method", "seeds", and "KEY_mean", "KEY_std" of every number}, the
    deviation with n - 1 and None for one seed.
    """
    table = []
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        line: dict[str, Any] = {"method": name, "seeds": len(own)}
        for key in KEYS:
            spread = mean_std([row[key] for row in own])
            line |= {f"{key}_mean": spread["mean"], f"{key}_std": spread["std"]}
        table.append(line)
    return table


KEYS = ("acc", "bwt", "forgetting", "used", "flops", "examples", "peak_memory", "seconds")


def write(folder: Path) -> None:
    """Writes methods.csv (a row per method), compare.csv (per method and seed), configurations.json
    and the plots. Raises OSError.
    """
    write_tables(folder, rows_of(folder))
    configurations.write(folder, learned_runs(folder))
    draw(folder)


def write_tables(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes compare.csv, the rows of `rows_of`, and methods.csv, what they come to. Raises
    OSError.
    """
    fields = [f"{key}_{part}" for key in KEYS for part in ("mean", "std")]
    results.write_csv(folder / "compare.csv", ("method", "seed", *KEYS), rows)
    results.write_csv(folder / "methods.csv", ("method", "seeds", *fields), summarise(rows))


def learned_runs(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """(folder, metrics) of the runs that learned all their tasks. Raises RunError."""
    return [(below, results.read(below)) for below, done in runs_of(folder).values() if done]


def draw(folder: Path) -> None:
    """Draws the plots of a comparison anew. Raises OSError."""
    rows = rows_of(folder)
    matrices = matrices_of(folder, rows)
    if matrices:
        plots.save(plots.mean_accuracies(matrices), folder / "plots" / "mean_accuracy.png")
        plots.save(plots.accuracy_against_cost(rows), folder / "plots" / "cost.png")


def matrices_of(folder: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Method -> the accuracy matrix of each of its seeds, for the rows of `rows_of`."""
    matrices: dict[str, list[Any]] = {}
    every = runs_of(folder)
    for row in rows:
        below, _ = every[row["method"], row["seed"]]
        matrices.setdefault(row["method"], []).append(results.read(below)["accuracy_matrix"])
    return matrices


def show(folder: Path, console: Console) -> None:
    """Prints the table of a comparison."""
    rows = rows_of(folder)
    for (name, seed), (_, learned) in runs_of(folder).items():
        if not learned:
            report.show_line(console, f"not finished, and not in the table: {name}, seed {seed}")
    if not rows:
        report.show_line(console, "no method has finished")
        return
    lines = summarise(rows)
    table = report.new_table(
        f"Methods, the task given, {spread_of([line['seeds'] for line in lines])}"
    )
    for column in ("method", "seeds", *(title for title, _, _ in COLUMNS)):
        table.add_column(column, justify="left" if column == "method" else "right")
    for line in lines:
        table.add_row(escape(line["method"]), str(line["seeds"]), *cells(line))
    report.show_table(console, table)
    report.show_line(console, f"results: {folder}")


def spread_of(seeds: Sequence[float]) -> str:
    """A caption for the numbers of `cells`, given the seeds of each method."""
    counts = sorted({round(n) for n in seeds})
    if counts[-1] == 1:
        return "one seed each, so no deviation"
    text = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    return f"mean +- standard deviation (n - 1) over n = {text} seeds"


def cells(line: Mapping[str, Any]) -> list[str]:
    """What stands in a method's `COLUMNS`, from its line of `summarise`."""
    return [_cell(line, key, text) for _, key, text in COLUMNS]


def _cell(line: Mapping[str, Any], key: str, text: Any) -> str:
    mean, std = line[f"{key}_mean"], line[f"{key}_std"]
    if mean is None:
        return "n/a"
    # Counts that are the same for every seed need no deviation.
    return text(mean) + (f" +- {text(std)}" if std else "")
