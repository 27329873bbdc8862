"""The grid points of a task as trials in workers: their training, and the threshold searches of the
candidates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import TrialError
from ..parallel import tell
from .grid import GridPoint

if TYPE_CHECKING:
    from ..pruning.search import Pruning
    from ..training.score import Value
    from .task_run import TaskRun, Trained


def fit(run: TaskRun, points: Sequence[int]) -> dict[int, Trained]:
    """Trains grid points side by side: number of the point -> what came of it.

    Raises:
        TrialError: some could not be trained; the others run to their ends first and are kept where
            there is a folder for them.
    """
    trials = {name_of(run.points, i): (run, i) for i in points}

    def heard(trial: str, event: str, *args: Any) -> None:
        if event == "on_epoch_end":
            run.epoch_end(*args)
        elif event == "on_retry":
            run.call(event, trial, *args)

    try:
        results = run.workers.run(_fit, trials, heard)
    except TrialError as error:
        advice = "; those that are trained are kept, learn() again trains the others only"
        if run.progress.folder is None:
            advice = "; with a checkpoint_dir those that are trained would be kept"
        raise TrialError(error.failures, error.results, advice) from error
    return {i: results[name_of(run.points, i)] for i in points}


def search(
    run: TaskRun, trained: Sequence[Trained], chosen: Sequence[Trained], floor: Value
) -> None:
    """Searches the thresholds of the candidates side by side.

    Raises:
        TrialError: a search failed.
    """
    numbers = [next(i for i, t in enumerate(trained) if t is candidate) for candidate in chosen]
    names = [f"search of {name_of(run.points, i)}" for i in numbers]
    evaluated: Counter[str] = Counter()

    def heard(trial: str, event: str, *args: Any) -> None:
        if event == "on_search":
            evaluated[trial] = args[0]
            run.call(event, evaluated.total(), 0)
        elif event == "on_retry":
            run.call(event, trial, *args)

    trials = {name: (run, t, floor) for name, t in zip(names, chosen, strict=True)}
    results = run.workers.run(_search, trials, heard)
    for name, t in zip(names, chosen, strict=True):
        t.pruning = results[name]


def told(event: str, *args: Any) -> None:
    """What a worker's run calls instead of callbacks. Batches of several points at once would make
    no sense to them.
    """
    if event != "on_batch_end":
        tell(event, *args)


def name_of(points: Sequence[GridPoint], i: int) -> str:
    """What errors call a grid point."""
    point = points[i]
    alphas = {f"{alpha:g}" for alpha in point.l1.values()}
    if len(alphas) > 1:
        told = ", ".join(f"{layer} {alpha:g}" for layer, alpha in point.l1.items())
    else:
        told = "".join(alphas)
    return f"grid point {i + 1} of {len(points)} (lr {point.lr:g}, l1 {told})"


def _fit(run: TaskRun, i: int) -> Trained:
    return run.fit(i)


def _search(run: TaskRun, t: Trained, floor: Value) -> Pruning | None:
    run.take(t)
    run.search(t, floor)
    return t.pruning
