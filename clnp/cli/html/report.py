"""`report.html`: a run, several seeds, a comparison of methods, or a learner as one page that needs
nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ... import plots
from ...files.atomic import write_text
from ...plots.svg import Picture, picture
from .. import compare, report, results
from ..config import Config, option
from ..console import counted
from ..run_folder import PAGE, RunFolder
from . import tables
from .page import percent, render


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


def write_learner_report(learner: Any, path: str | Path) -> Path:
    """Writes the page of a learner: accuracies, capacity, tasks, grids, costs, settings, plots.

    Arguments:
        learner: a `clnp.Learner`, or one of `clnp.methods`, with at least one learned task.
        path: the file, or a folder, which gets report.html.

    Returns:
        the file.

    Raises:
        ConfigError: no task has been learned. OSError: the file can't be written.
    """
    metrics, seconds, costs = results.numbers_of(learner)
    path = Path(path)
    path = path / PAGE if path.is_dir() else path
    text = _page(
        metrics,
        seconds,
        costs,
        title=f"{metrics['config']['method']}: {counted(metrics['tasks_learned'], 'task')}",
        subtitle=f"seed {metrics['config']['seeds'][0]}",
        settings=results.settings_of(learner),
        machine={},
    )
    write_text(path, text)
    return path


def run_page(folder: RunFolder) -> str:
    """The page of a run of one seed."""
    config, _ = folder.read_config()
    return _page(
        folder.read_metrics(),
        folder.read_table("timing.csv"),
        folder.read_table("cost.csv"),
        title=_title(config),
        subtitle=f"{folder.path.resolve().name}, seed {config.seeds[0]}",
        settings=_settings(config),
        machine=_machine(folder),
    )


def _page(
    metrics: Mapping[str, Any],
    seconds: Sequence[Mapping[str, Any]],
    costs: Sequence[Mapping[str, Any]],
    **parts: Any,
) -> str:
    """The page of one learner; `parts` are title, subtitle, settings and machine."""
    reports = metrics["reports"]
    names = [r["name"] for r in reports]
    return render(
        "run.html",
        facts=_facts(metrics, seconds),
        names=names,
        differing=[names[k] for k in metrics["certificate"]["differing"]],
        metrics=metrics,
        certificate=metrics["certificate"],
        accuracy=tables.accuracies(metrics),
        tasks=tables.tasks(metrics),
        grids=[(r["name"], tables.grid(r["grid"])) for r in reports if len(r["grid"]) > 1],
        inferred=tables.inferred(metrics),
        channels=tables.channels(metrics),
        reuses=tables.reuse(metrics),
        costs=tables.costs(costs, seconds),
        **_pictures([metrics]),
        **parts,
    )


def seeds_page(folder: RunFolder, *, linked: bool) -> str:
    """The page of a run of several seeds: means and deviations; `linked` to the seeds' pages."""
    config, _ = folder.read_config()
    seeds = [*folder.seeds(config).values()]
    numbers = [seed.read_metrics() for seed in seeds]
    summary = results.summarise(numbers)
    facts = [
        _fact("mean accuracy, task given", _percent_spread(summary["acc"])),
        _fact("mean forgetting", report.number(summary["forgetting"]["mean"])),
        _fact("seeds", str(len(numbers))),
        *_certificate(summary["certificate"]),
    ]
    pictures: list[Picture] = []
    if len({metrics["tasks_learned"] for metrics in numbers}) == 1:
        drawn = _pictures(numbers)
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
    cells = [
        [line["method"], str(line["seeds"]), *(c.replace("+-", "±") for c in compare.cells(line))]
        for line in lines
    ]
    columns = ("method", "seeds", *(title for title, _, _ in compare.COLUMNS))
    pictures = []
    if rows:
        matrices = compare.matrices_of(folder)
        pictures = [
            picture(
                lambda: plots.mean_accuracies(matrices),
                "Mean test accuracy after each task, a line per method",
            ),
            picture(
                lambda: plots.accuracy_against_cost(rows),
                "Accuracy at the end against training operations and against time",
            ),
        ]
    facts = [_fact("methods", str(len(names)))]
    if lines:
        best = max(lines, key=lambda line: line["acc_mean"])
        facts += [
            _fact(f"highest mean accuracy, {best['method']}", f"{percent(best['acc_mean'])} %"),
        ]
    stream = next(iter(configs.values())).stream if configs else "no method has finished"
    return render(
        "overview.html",
        title=f"{stream}: {counted(len(names), 'method')}",
        subtitle=folder.path.resolve().name,
        facts=facts,
        heading="Methods, the task given, mean ± standard deviation over seeds",
        table=tables.Table(columns, cells),
        links=_links([folder.below(name) for name in names], linked),
        pictures=pictures,
        settings={name: _settings(config) for name, config in configs.items()},
        machine={},
    )


def _links(runs: Sequence[RunFolder], linked: bool) -> list[str]:
    """Address of the page in each sub-folder, "" where there is none."""
    return [f"{quote(r.name)}/{PAGE}" if linked and r.page.is_file() else "" for r in runs]


def _pictures(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Picture | None]:
    """The figures of one seed or several; None where there is nothing to draw."""
    first = seeds[0]["reports"]
    capacities = [[r["capacity"] for r in m["reports"]] for m in seeds]
    curves = [r["history"] for r in first]
    inferred = [r.get("inferred") for r in first]
    drawn: dict[str, Picture | None] = {
        "mean_accuracy": picture(
            lambda: plots.mean_accuracy([m["accuracy_matrix"] for m in seeds]),
            "Mean test accuracy after each task, and accuracy on the task just learned",
        ),
        "capacity": None,
        "training": None,
        "inferred_accuracy": None,
    }
    if capacities[0][0]:
        drawn["capacity"] = picture(
            lambda: plots.capacity(capacities),
            "Share of each layer's channels that is reused, idle, new and free after each task",
        )
    if any(curves):
        drawn["training"] = picture(
            lambda: plots.training_curves(curves), "Loss and accuracy over the epochs of all tasks"
        )
    if len(first) > 1 and all(inferred):
        drawn["inferred_accuracy"] = picture(
            lambda: plots.inferred_accuracy(seeds[0]["accuracy_matrix"], inferred),
            "Mean accuracy after each task with the task given and without",
        )
    return drawn


def _facts(
    metrics: Mapping[str, Any], seconds: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    facts = [
        _fact("mean accuracy, task given", f"{percent(metrics['acc'])} %"),
        _fact("mean forgetting", report.number(metrics["forgetting"])),
        _fact("tasks learned", str(metrics["tasks_learned"])),
        *_certificate(metrics["certificate"]),
    ]
    last = metrics["reports"][-1]["capacity"]
    if last:
        used, size = (sum(c[k] for c in last.values()) for k in ("used", "size"))
        facts.append(_fact("channels used", f"{percent(used / size, 1)} %"))
    both = metrics.get("inferred", {}).get("entropy", {}).get("class_incremental")
    if both is not None and metrics["tasks_learned"] > 1:
        facts.append(_fact("task and label, task not given", f"{percent(both)} %"))
    if seconds:
        facts.append(_fact("time", f"{sum(row['total'] for row in seconds) / 60:.1f} min"))
    return facts


def _certificate(certificate: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not certificate["tasks"]:
        return []
    bad = certificate["identical"] != certificate["tasks"]
    value = f"{certificate['identical']} of {certificate['tasks']}"
    return [_fact("tasks bit-identical", value, bad)]


def _fact(label: str, value: str, bad: bool = False) -> dict[str, Any]:
    return {"label": label, "value": value.replace(" %", "\N{NO-BREAK SPACE}%"), "bad": bad}


def _percent_spread(value: Mapping[str, Any]) -> str:
    """ "98.43 ± 0.04 %" of {"mean", "std"}."""
    deviation = "" if value["std"] is None else f" ± {percent(value['std'])}"
    return f"{percent(value['mean'])}{deviation} %"


def _title(config: Config) -> str:
    return config.stream if config.method == "clnp" else f"{config.stream}, {config.method}"


def _settings(config: Config) -> dict[str, Any]:
    """The settings by their options on the command line, without those that say nothing."""
    values = {option(name): value for name, value in config.as_dict().items()}
    return {name: value for name, value in values.items() if value not in (None, [])}


def _machine(folder: RunFolder) -> dict[str, Any]:
    return tables.machine(folder.read_environment() or {})
