"""A progress bar of the task in training, for a terminal or a notebook."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..data.names import counted
from ..objectives.shown import Shown
from .callback import Callback, epoch_of, tuning_epochs

if TYPE_CHECKING:
    from rich.console import Console


class ProgressBar(Callback):
    """Shows task, epoch, loss, metric and time left on one line while a task is learned.

    Learners use it by default where standard error is a terminal or a notebook shows it
    (`progress_bar=None`). It is a context manager: the bar is gone where the block ends, whatever
    ends it.

    Arguments:
        console: a `rich.console.Console`; None: standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        from rich import console as consoles
        from rich import progress

        self.console = console or consoles.Console(stderr=True)
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.fields[numbers]}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._row = self._bar.add_task("", numbers="", visible=False)
        self._name, self._epochs, self._done = "", 1, 0.0

    @property
    def visible(self) -> bool:
        """True in a terminal or a notebook."""
        return self.console.is_terminal or self.console.is_jupyter

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._bar.stop()

    def on_task_begin(self, learner: Any, task_index: int, name: str, total_epochs: int) -> None:
        """Start the bar of a task."""
        self._name, self._epochs, self._done = f"task {task_index + 1} {name}", total_epochs, 0.0
        self._bar.reset(self._row, total=max(total_epochs, 1), visible=True)
        self._show("")

    def on_resume(self, learner: Any, records: Sequence[Mapping[str, Any]]) -> None:
        """Count the epochs of an earlier process."""
        self._done += len(records)

    def on_batch_end(self, learner: Any, loss: float, metric: float, seen: int, total: int) -> None:
        """Move within the epoch."""
        shown = shown_of(learner)
        text = "" if math.isnan(metric) else f", {shown.name} {shown.text(metric, 1)}"
        self._show(f"loss {loss:.3f}{text}", seen / max(total, 1))

    def on_epoch_end(self, learner: Any, record: Mapping[str, Any]) -> None:
        """Move to the next epoch."""
        if record.get("fine_tune"):
            before = self._epochs - tuning_epochs(learner)
            self._done = before + epoch_of(learner, record) + 1
        else:
            self._done = record.get("done", record["epoch"] + 1)
        self._show(numbers_of(record, shown_of(learner)))

    def on_search(self, learner: Any, done: int, total: int) -> None:
        """Show how many networks the threshold search has evaluated."""
        self._show(f"pruning, {networks(done, total)} evaluated")

    def _show(self, numbers: str, part: float = 0.0) -> None:
        at, epoch = self._name, min(int(self._done) + 1, max(self._epochs, 1))
        if self._epochs:
            at += f", epoch {epoch}/{self._epochs}"
        done = self._completed(part)
        self._bar.update(self._row, completed=done, description=at, numbers=numbers)

    def _completed(self, part: float) -> float:
        return min(self._done + part, self._epochs)


def networks(done: int, total: int) -> str:
    """ "7/90 networks" of a search, or "7 networks" where `total` is 0."""
    return f"{done}/{total} networks" if total else counted(done, "network")


def numbers_of(record: Mapping[str, Any], shown: Shown) -> str:
    """Loss and validation metric of an epoch."""
    return f"loss {record['loss']:.3f}, validation {shown.text(record['validation_metric'], 1)}"


def shown_of(learner: Any) -> Shown:
    """Name and unit of the metric of the task in training."""
    found = getattr(learner, "shown", None)
    return found if isinstance(found, Shown) else Shown()
