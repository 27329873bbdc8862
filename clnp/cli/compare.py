"""Several methods under one protocol: a run folder for each, one table, CSV files, plots."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .. import plots
from ..errors import ClnpError, ConfigError, TrialError, out_of_memory
from ..html.tables import Table
from ..methods import METHODS
from ..metrics import mean_std
from ..objectives.shown import Shown, common
from . import build_config, configurations, experiment, report, results, seeds_in_workers
from .config import differences
from .prepare import try_out
from .run_folder import Run, RunFolder, write_csv

# Column of the tables, key of a row, how a mean is written; None: as the metric is.
COLUMNS: tuple[tuple[str, str, Any], ...] = (
    ("ACC", "acc", None),
    ("forgetting", "forgetting", None),
    ("channels used (%)", "used", lambda v: f"{100 * v:.1f}"),
    ("training FLOP", "flops", lambda v: f"{v:.3g}"),
    ("examples", "examples", lambda v: f"{v:.3g}"),
    ("memory (MiB)", "peak_memory", lambda v: f"{v / (1 << 20):.1f}"),
    ("time (s)", "seconds", lambda v: f"{v:.1f}"),
)
ACCURACY = Shown()
Plan = Mapping[str, Run]


def method_names(text: str, sets: Sequence[str] | None) -> list[str]:
    """ "clnp,si" -> ["clnp", "si"].

    Raises:
        ConfigError: an unknown method, a repeated one, or a --set for none of them.
    """
    names = build_config.compared_methods(text)
    known = ["clnp", *METHODS]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ConfigError(f"--methods: expected some of {', '.join(known)}, got {text!r}")
    if len(set(names)) != len(names):
        raise ConfigError(f"--methods: expected each once, got {text!r}")
    others = [name for name in names if name != "clnp"]
    for item in sets or ():
        whose = item.partition("=")[0].rpartition(".")[0]
        if whose == "clnp" or not others:
            raise ConfigError(f"{build_config.NO_SET} (got {item!r})")
        if whose and whose not in names:
            raise ConfigError(f"--set: expected options of {', '.join(others)}, got {item!r}")
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


def check_free(folder: RunFolder, plan: Plan, *, resume: bool, overwrite: bool) -> None:
    """Checks that a comparison may begin in this folder. Nothing is written or deleted.

    Raises:
        ConfigError: it holds something else, a comparison that isn't to be resumed or overwritten,
            or runs with other settings.
    """
    if not folder.is_comparison:
        if folder.path.exists() and not folder.is_empty:
            raise ConfigError(
                f"--out: {folder} is not empty and holds no comparison; name another folder"
            )
        folder.check_free(resume=resume, overwrite=overwrite)
    elif not (resume or overwrite):
        raise ConfigError(
            f"--out: {folder} holds a comparison; continue it with --resume (other methods may be "
            "added), or replace it with --overwrite"
        )
    for run in plan.values():
        if resume and run.folder.is_run:
            run.folder.check_same(run.config)
    first, *others = [run.config for run in plan.values()]
    for config in others:
        changed = differences(first, config)
        unequal = [text for text in changed if text.split()[0] in ("--tasks", "--seeds")]
        if unequal:
            raise ConfigError(f"--resume: the methods' runs differ: {', '.join(unequal)}")


def carry_out(folder: RunFolder, plan: Plan, console: Console, *, overwrite: bool = False) -> bool:
    """Runs what is missing of every method and seed, then writes and prints the comparison.

    A seed of a method that fails is reported and left out of the table; the other seeds run, and
    what it learned stays in its folder.

    Arguments:
        folder: as `check_free` approved it.
        plan: method -> its run, with all seeds.
        console: for progress and tables.
        overwrite: run everything anew.

    Returns:
        whether all seeds of all methods finished.

    Raises:
        ClnpError: data, network or settings that don't fit, before anything is written.
    """
    missing = {name: run for name, run in plan.items() if overwrite or not _finished(run)}
    for k, (name, run) in enumerate(missing.items()):
        # All methods learn the same data, which is read once.
        missing[name] = try_out(run, contents=k == 0)[0]
    with folder.locked():
        known = folder.read_methods() if folder.is_comparison else []
        names = [*plan] if overwrite else [*known, *(name for name in plan if name not in known)]
        folder.write_methods(names)
        for name in plan:
            if name not in missing:
                report.show_line(console, f"method {name} finished before")
        failed = _run_missing(missing, console, overwrite)
        write(folder)
        show(folder, console)
    for name, text in failed.items():
        report.show_line(console, f"method {name} did not finish: {text}")
    return not failed


def _run_missing(plan: Plan, console: Console, overwrite: bool) -> dict[str, str]:
    """Runs the seeds of all methods; "method, seed S" -> reason why it did not finish."""
    with contextlib.ExitStack() as locks:
        seeds: dict[str, dict[str, Run]] = {}
        for name, run in plan.items():
            locks.enter_context(run.folder.locked())
            experiment.begin(run, overwrite=overwrite)
            seeds[name] = {f"{name}, {seed}": one for seed, one in run.seeds().items()}
        runs = {name: run for own in seeds.values() for name, run in own.items()}
        several = len(runs) > 1 and any(run.places.workers > 1 for run in plan.values())
        done, failed = (_in_workers if several else _one_by_one)(runs, console)
        for name, run in plan.items():
            if not any(seed in failed for seed in seeds[name]):
                experiment.summarise(run, [done[seed] for seed in seeds[name]], console)
    return failed


def _one_by_one(runs: Mapping[str, Run], console: Console) -> tuple[dict[str, Any], dict[str, str]]:
    """(metrics of runs of one seed, reasons why others did not finish)."""
    done, failed = {}, {}
    for name, run in runs.items():
        report.show_line(console, f"\nmethod {name}")
        torch.set_num_threads(run.config.threads)
        try:
            done[name] = experiment.run_alone(run, console)
        except Exception as error:
            if not isinstance(error, ClnpError) and not out_of_memory(error):
                raise
            failed[name] = " ".join(str(error).split())
            report.show_line(console, f"method {name} stopped: {failed[name]}")
    return done, failed


def _in_workers(runs: Mapping[str, Run], console: Console) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        return seeds_in_workers.run(experiment.run_alone, runs, console), {}
    except TrialError as error:
        return error.results, {name: failure.text for name, failure in error.failures.items()}


def _finished(run: Run) -> bool:
    return all(seed.folder.has_learned(run.config.tasks) for seed in run.seeds().values())


def seeds_of(folder: RunFolder) -> dict[tuple[str, int], tuple[RunFolder, bool]]:
    """(method, seed) -> (its folder, whether it learned all its tasks), of a comparison.

    Raises:
        RunError: a file of the comparison is missing or damaged.
    """
    found = {}
    for name in folder.read_methods():
        run = folder.below(name)
        if run.is_run:
            config, _ = run.read_config()
            for seed, one in run.seeds(config).items():
                found[name, seed] = (one, one.has_learned(config.tasks))
    return found


def rows_of(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """One row per method and seed that learned all its tasks: {"method", "seed", "acc", "bwt",
    "forgetting", "used" (mean over the layers of the share of channels used, None for other methods
    than CLNP), "flops", "examples", "peak_memory" (bytes), "seconds" (of everything)}.

    Raises:
        RunError: a file of the comparison is missing or damaged.
    """
    rows = []
    for (name, seed), (run, learned) in seeds_of(RunFolder(folder)).items():
        if not learned:
            continue
        metrics = run.read_metrics()
        used = [c["used"] / c["size"] for c in metrics["reports"][-1]["capacity"].values()]
        costs, seconds = run.read_table("cost.csv"), run.read_table("timing.csv")
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


def write(folder: RunFolder) -> None:
    """Writes methods.csv (a row per method), compare.csv (per method and seed), configurations.json
    and the plots. Raises OSError.
    """
    write_tables(folder.path, rows_of(folder))
    configurations.write(folder, learned_runs(folder))
    draw(folder)


def write_tables(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes compare.csv, the rows of `rows_of`, and methods.csv, their means. Raises OSError."""
    fields = [f"{key}_{part}" for key in KEYS for part in ("mean", "std")]
    write_csv(folder / "compare.csv", ("method", "seed", *KEYS), rows)
    write_csv(folder / "methods.csv", ("method", "seeds", *fields), summarise(rows))


def learned_runs(folder: str | os.PathLike[str]) -> list[tuple[RunFolder, dict[str, Any]]]:
    """(folder, metrics) of the runs that learned all their tasks. Raises RunError."""
    runs = seeds_of(RunFolder(folder)).values()
    return [(run, run.read_metrics()) for run, learned in runs if learned]


def draw(folder: RunFolder) -> None:
    """Draws the plots of a comparison anew. Raises OSError."""
    rows = rows_of(folder)
    matrices, metric = matrices_of(folder), metric_of(folder)
    if matrices and metric:
        means = plots.mean_accuracies(matrices, metric)
        plots.save(means, folder.plots / "mean_accuracy.png")
        plots.save(plots.accuracy_against_cost(rows, metric), folder.plots / "cost.png")


def metric_of(folder: RunFolder) -> Shown | None:
    """The metric of all tasks of all finished runs; None where they differ."""
    runs = [run.read_metrics() for run, learned in seeds_of(folder).values() if learned]
    return common([report for metrics in runs for report in metrics["reports"]])


def matrices_of(folder: RunFolder) -> dict[str, list[Any]]:
    """Method -> the accuracy matrix of each of its seeds that learned all tasks."""
    matrices: dict[str, list[Any]] = {}
    for (name, _), (run, learned) in seeds_of(folder).items():
        if learned:
            matrices.setdefault(name, []).append(run.read_metrics()["accuracy_matrix"])
    return matrices


def show(folder: RunFolder, console: Console) -> None:
    """Prints the table of a comparison."""
    rows = rows_of(folder)
    for (name, seed), (_, learned) in seeds_of(folder).items():
        if not learned:
            report.show_line(console, f"not finished, and not in the table: {name}, seed {seed}")
    if not rows:
        report.show_line(console, "no method has finished")
        return
    lines = summarise(rows)
    title = f"Methods, the task given, {spread_of([line['seeds'] for line in lines])}"
    report.show_table(console, title, table_of(lines, metric_of(folder)))
    report.show_line(console, f"results: {folder}")


def table_of(lines: Sequence[Mapping[str, Any]], metric: Shown | None = ACCURACY) -> Table:
    """The lines of `summarise` as a table; `metric` is that of all tasks, if there is one."""
    rows = [[line["method"], str(line["seeds"]), *cells(line, metric)] for line in lines]
    return Table(("method", "seeds", *titles(metric)), rows)


def titles(metric: Shown | None = ACCURACY) -> list[str]:
    """The titles of the columns under which `cells` are."""
    unit = f" ({metric.unit})" if metric and metric.unit else ""
    return [title if text else f"{title}{unit}" for title, _, text in COLUMNS]


def spread_of(seeds: Sequence[float]) -> str:
    """A caption for the numbers of `cells`, given the seeds of each method."""
    counts = sorted({round(n) for n in seeds})
    if counts[-1] == 1:
        return "one seed each, so no deviation"
    text = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    return f"mean +- standard deviation (n - 1) over n = {text} seeds"


def cells(line: Mapping[str, Any], metric: Shown | None = ACCURACY) -> list[str]:
    """A method's cells under `COLUMNS`, from its line of `summarise`."""
    number = (metric or ACCURACY).number
    return [_cell(line, key, text or number) for _, key, text in COLUMNS]


def _cell(line: Mapping[str, Any], key: str, text: Any) -> str:
    mean, std = line[f"{key}_mean"], line[f"{key}_std"]
    if mean is None:
        return "n/a"
    # Counts that are the same for every seed need no deviation.
    return text(mean) + (f" +- {text(std)}" if std else "")
