"""`report.html`: a run, several seeds, or a comparison of methods as one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .. import plots
from ..data.names import counted
from ..files.atomic import write_text
from ..html import tables
from ..html.page import render
from ..html.run import certificate_facts, fact, learner_page, percent_spread, pictures_of
from ..html.text import number
from ..objectives.shown import Shown, common
from ..plots.svg import Picture, picture
from . import compare, results
from .config import Config, option
from .run_folder import PAGE, RunFolder


def write(folder: RunFolder, target: Path | None = None) -> Path:
    """Writes the page of a run folder or a comparison. Those of its seeds or methods that have a
    page are linked to.

    Arguments:
        folder: of `clnp run` or `clnp compare`.
        target: the file; default: report.html in the folder. Elsewhere it has no links.

    Returns:
        the file.

    Raises:
        RunError, ConfigError: no such run, or damaged. OSError: the file can't be written.
    """
    if folder.is_comparison:
        text = comparison_page(folder, linked=target is None)
    elif len(folder.read_config()[0].seeds) > 1:
        text = seeds_page(folder, linked=target is None)
    else:
        text = run_page(folder)
    path = folder.page if target is None else target
    write_text(path, text)
    return path


def run_page(folder: RunFolder) -> str:
    """The page of a run of one seed."""
    config, _ = folder.read_config()
    return learner_page(
        folder.read_metrics(),
        folder.read_table("timing.csv"),
        folder.read_table("cost.csv"),
        title=_title(config),
        subtitle=f"{folder.path.resolve().name}, seed {config.seeds[0]}",
        settings=_settings(config),
        machine=_machine(folder),
    )


def seeds_page(folder: RunFolder, *, linked: bool) -> str:
    """The page of a run of several seeds: means and deviations; `linked` to the seeds' pages."""
    config, _ = folder.read_config()
    seeds = [*folder.seeds(config).values()]
    numbers = [seed.read_metrics() for seed in seeds]
    summary = results.summarise(numbers)
    metric = common([report for metrics in numbers for report in metrics["reports"]])
    means = (
        [
            fact(f"mean {metric.name}, task given", _spread(metric, summary["acc"])),
            fact("mean forgetting", number(summary["forgetting"]["mean"])),
        ]
        if metric
        else []
    )
    facts = [*means, fact("seeds", str(len(numbers))), *certificate_facts(summary["certificate"])]
    pictures: list[Picture] = []
    if len({metrics["tasks_learned"] for metrics in numbers}) == 1:
        drawn = pictures_of(numbers)
        pictures = [p for name in ("mean_accuracy", "capacity") if (p := drawn[name])]
    return render(
        "overview.html",
        title=_title(config),
        subtitle=f"{folder.path.resolve().name}, {len(numbers)} seeds",
        facts=facts,
        heading="Seeds",
        table=tables.seeds(summary, numbers),
        links=_links(seeds, linked),
        pictures=pictures,
        settings={"all": _settings(config)},
        machine=_machine(seeds[0]),
    )


def comparison_page(folder: RunFolder, *, linked: bool) -> str:
    """The page of a comparison of methods; `linked` to the methods' pages."""
    rows = compare.rows_of(folder)
    lines = compare.summarise(rows)
    names = [line["method"] for line in lines]
    configs = {name: folder.below(name).read_config()[0] for name in names}
    pictures = []
    metric = compare.metric_of(folder)
    if rows and metric:
        matrices, name = compare.matrices_of(folder), metric.name
        pictures = [
            picture(
                lambda: plots.mean_accuracies(matrices, metric or Shown()),
                f"Mean test {name} after each task, a line per method",
            ),
            picture(
                lambda: plots.accuracy_against_cost(rows, metric or Shown()),
                f"Mean {name} at the end against training operations and against time",
            ),
        ]
    facts = [fact("methods", str(len(names)))]
    if lines and metric:
        best = max(lines, key=lambda line: metric.sign * line["acc_mean"])
        value = metric.text(best["acc_mean"])
        facts += [fact(f"best mean {metric.name}, {best['method']}", value)]
    stream = next(iter(configs.values())).stream if configs else "no method has finished"
    return render(
        "overview.html",
        title=f"{stream}: {counted(len(names), 'method')}",
        subtitle=folder.path.resolve().name,
        facts=facts,
        heading="Methods, the task given, mean ± standard deviation over seeds",
        table=compare.table_of(lines, metric),
        links=_links([folder.below(name) for name in names], linked),
        pictures=pictures,
        settings={name: _settings(config) for name, config in configs.items()},
        machine={},
    )


def _spread(metric: Shown, value: Mapping[str, Any]) -> str:
    """ "98.43 ± 0.04 %" of {"mean", "std"}."""
    if metric.percent:
        return percent_spread(value)
    deviation = "" if value["std"] is None else f" ± {metric.number(value['std'])}"
    return f"{metric.number(value['mean'])}{deviation} {metric.unit}".strip()


def _links(runs: Sequence[RunFolder], linked: bool) -> list[str]:
    """Address of the page in each sub-folder, "" where there is none."""
    return [f"{quote(r.name)}/{PAGE}" if linked and r.page.is_file() else "" for r in runs]


def _title(config: Config) -> str:
    return config.stream if config.method == "clnp" else f"{config.stream}, {config.method}"


def _settings(config: Config) -> dict[str, Any]:
    """The settings by their options on the command line, without those that say nothing."""
    values = {option(name): value for name, value in config.as_dict().items()}
    return {name: value for name, value in values.items() if value not in (None, [])}


def _machine(folder: RunFolder) -> dict[str, Any]:
    return tables.machine(folder.read_environment() or {})
