"""Forgetting a task of a run: its checkpoint, tables, plots and exported networks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

from ..learner.learner import Learner
from ..network.forgetting import Forgotten
from . import pages, results
from .run_folder import EXPORTS, METRICS, PAGE, PLOTS, TABLES, Run, RunFolder


def lines(gone: Forgotten, names: Sequence[str]) -> Iterator[str]:
    """Outcome of forgetting, in words.

    Arguments:
        gone: the outcome.
        names: of all tasks before, by index.
    """
    yield f"forgotten: {', '.join(f'task {k + 1} {names[k]}' for k in gone.tasks)}"
    parts = (("free again", gone.freed), ("set to zero, as no task reads them", gone.zeroed))
    for what, counts in parts:
        if counts:
            yield f"{_channels(counts)}: {what}"
    if gone.read:
        readers = ", ".join(f"task {k + 1} {names[k]}" for k in gone.readers)
        yield f"{_channels(gone.read)}: stay, read by {readers}; --cascade forgets these tasks too"
    else:
        yield "nothing of it is left in the network"


def _channels(counts: dict[str, int]) -> str:
    return "channels " + ", ".join(f"{name} {count}" for name, count in counts.items())


def rewrite(run: Run, learner: Learner, gone: Forgotten) -> None:
    """Writes the checkpoint, tables, plots and page of a run of one seed anew, without the
    forgotten tasks, and deletes their exported networks.
    """
    folder = run.folder
    learner.save(folder.checkpoint)
    shutil.rmtree(folder.progress, ignore_errors=True)
    for task in gone.tasks:
        for ending in EXPORTS:
            (folder.path / f"task-{task}.{ending}").unlink(missing_ok=True)
    shutil.rmtree(folder.path / PLOTS, ignore_errors=True)
    if not any(not report.forgotten for report in learner.reports):
        for name in (*TABLES, METRICS, PAGE):
            (folder.path / name).unlink(missing_ok=True)
        return
    sizes = [0 if r.data is None else r.data.splits["train"].size for r in learner.reports]
    results.record(run, learner, sizes, plots=True)


def rewrite_summary(folder: RunFolder) -> None:
    """Writes the summary of several seeds and the pages anew."""
    seeds = list(folder.seeds().values())
    done = [seed.read_metrics() for seed in seeds if (seed.path / METRICS).is_file()]
    if len(done) > 1:
        results.write_summary(folder, done)
    if done:
        for place in {*seeds, folder} if len(seeds) == len(done) else ():
            if place.page.is_file():
                pages.write(place)
