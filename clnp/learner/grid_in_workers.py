"""Training of grid points, and threshold searches of the candidates, in worker processes."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import TrialError
from ..objectives.metrics import Value
from ..parallel import Workers, kernels, tell
from ..pruning.search import Pruning
from .grid import GridPoint
from .grid_point import PointTrainer, Report, Trained


def fit(
    trainer: PointTrainer, workers: Workers, points: Sequence[int], report: Report
) -> dict[int, Trained]:
    """Train grid points side by side: number of the point -> its outcome.

    Raises:
        TrialError: some could not be trained; the others run to their ends first and are kept where
            there is a folder for them.
    """
    sent = _for_workers(trainer, workers)
    trials = {name_of(trainer.points, i): (sent, i) for i in points}

    def receive(trial: str, event: str, *args: Any) -> None:
        report(event, *((trial, *args) if event == "on_retry" else args))

    try:
        results = workers.run(_fit, trials, receive)
    except TrialError as error:
        advice = "; those that are trained are kept, learn() again trains the others only"
        if trainer.progress.folder is None:
            advice = "; with a checkpoint_dir those that are trained would be kept"
        raise TrialError(error.failures, error.results, advice) from error
    return {i: results[name_of(trainer.points, i)] for i in points}


def search(
    trainer: PointTrainer,
    workers: Workers,
    candidates: Mapping[int, Trained],
    floor: Value,
    report: Report,
) -> None:
    """Search the thresholds of the candidates, number of the point -> outcome, side by side.

    Raises:
        TrialError: a search failed.
    """
    sent = _for_workers(trainer, workers)
    names = {f"search of {name_of(trainer.points, i)}": t for i, t in candidates.items()}
    evaluated: Counter[str] = Counter()

    def receive(trial: str, event: str, *args: Any) -> None:
        if event == "on_search":
            evaluated[trial] = args[0]
            report(event, evaluated.total(), 0)
        elif event == "on_retry":
            report(event, trial, *args)

    results = workers.run(_search, {name: (sent, t, floor) for name, t in names.items()}, receive)
    for name, t in names.items():
        t.pruning = results[name]


def name_of(points: Sequence[GridPoint], i: int) -> str:
    """Name of a grid point in errors."""
    point = points[i]
    alphas = {f"{alpha:g}" for alpha in point.l1.values()}
    l1 = "".join(alphas)
    if len(alphas) > 1:
        l1 = ", ".join(f"{layer} {alpha:g}" for layer, alpha in point.l1.items())
    return f"grid point {i + 1} of {len(points)} (lr {point.lr:g}, l1 {l1})"


def _for_workers(trainer: PointTrainer, workers: Workers) -> PointTrainer:
    """The trainer without its test split, its tensors shared where that is possible."""
    task = copy.copy(trainer.task)
    object.__setattr__(task, "test", task.validation)
    return dataclasses.replace(trainer, task=workers.shared(task))


def _report(event: str, *args: Any) -> None:
    """Send an event to the parent process, but for batches: those of several points at once would
    make no sense to callbacks.
    """
    if event != "on_batch_end":
        tell(event, *args)


def _fit(trainer: PointTrainer, i: int) -> Trained:
    kernels.follow(trainer.model.device, trainer.kernels)
    return trainer.fit(i, _report)


def _search(trainer: PointTrainer, t: Trained, floor: Value) -> Pruning | None:
    kernels.follow(trainer.model.device, trainer.kernels)
    trainer.take(t)
    trainer.search(t, trainer.validation(), floor, _report)
    return t.pruning
