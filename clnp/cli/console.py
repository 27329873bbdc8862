"""Progress of a run: a bar on a terminal, plain lines elsewhere, and all lines in log.txt."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from .. import metrics
from ..callbacks.progress_bar import ProgressBar, networks, numbers_of, shown_of
from ..data.names import counted
from ..html.text import MOST_LAYERS
from ..objectives.shown import Shown

# Seconds between two lines about epochs where the output is no terminal.
QUIET = 10.0


def make_console() -> Console:
    """The console of all commands; where the output is no terminal, lines may be long."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


class Reporter(ProgressBar):
    """The progress of a whole run: a bar on a terminal, and lines about epochs and tasks.

    Arguments:
        console: where to.
        log: an open text file that gets every line, with the time; None for no log.
        tasks: in the whole run, for the time left.
        learned: tasks that were learned before (a resumed run).
    """

    def __init__(self, console: Console, log: TextIO | None, tasks: int, learned: int = 0) -> None:
        super().__init__(console)
        self.log, self.tasks, self.task = log, tasks, learned
        # The clock of the time left starts at the first batch: imports come only once.
        self.begun: float | None = None
        self.before, self.spoke = float(learned), 0.0
        self.points: dict[int, Any] = {}  # grid point in training -> its row
        self._bar.disable = not console.is_terminal
        self._bar.update(
            self._row, description="starting", total=tasks, completed=learned, visible=True
        )

    def say(self, text: str, quiet: bool = False) -> None:
        """One line for the log and, unless `quiet`, for the console."""
        if self.log is not None:
            self.log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
            self.log.flush()
        if not quiet:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def on_task_begin(self, learner: Any, task_index: int, name: str, total_epochs: int) -> None:
        """Starts a task; `total_epochs` counts those of all grid points and of fine-tuning."""
        self._at(task_index, total_epochs)
        self.say(f"{self._name} {name}: {counted(total_epochs, 'epoch')}")
        self._show("")

    def on_batch_end(self, learner: Any, loss: float, metric: float, seen: int, total: int) -> None:
        """Moves the bar: `seen` of `total` samples of the epoch."""
        self._start_clock(seen / max(1, total))
        super().on_batch_end(learner, loss, metric, seen, total)

    def on_epoch_end(self, learner: Any, record: Mapping[str, Any]) -> None:
        """Logs an epoch; on a console that is no terminal at most every ten seconds."""
        super().on_epoch_end(learner, record)
        self._start_clock(0.0)  # workers report no batches
        point, shown = "", shown_of(learner)
        if record.get("points", 1) > 1:
            point = f" (grid point {record['point'] + 1}/{record['points']})"
            self._show_point(record, learner.settings.training_epochs, shown)
        text = (
            f"{self._name} epoch {int(self._done)}/{self._epochs}{point}: loss "
            f"{record['loss']:.4f}, {_train(record, shown)}validation "
            f"{shown.text(record['validation_metric'])}"
        )
        speak = self._may_speak()
        self.say(f"{text}, {self._left()} left" if speak else text, quiet=not speak)

    def on_task_end(self, learner: Any, report: Any) -> None:
        """Shows the metric of a task and the channels that it claimed."""
        shown = report.shown
        pruned = f" -> {shown.text(report.validation)} by pruning; {claimed(report.capacity)}"
        name = "" if shown.name == Shown().name else f"{shown.name} "
        self.say(
            f"task {self.task + 1}/{self.tasks} {report.name}: {name}test "
            f"{shown.text(report.test)}, {not_given(report.inferred)}"
            f"validation {shown.text(report.validation_before)}"
            f"{pruned if report.capacity else ''}; "
            f"{report.seconds['total']:.1f} s"
        )
        self._at(self.task + 1, 0)
        self._show("")

    def on_search(self, learner: Any, done: int, total: int) -> None:
        """Show the progress of the threshold search: networks evaluated, `total` 0 if unknown."""
        super().on_search(learner, done, total)
        if self._may_speak():
            self.say(f"task {self.task + 1}/{self.tasks} search {networks(done, total)} tried")

    def on_retry(self, learner: Any, trial: str, reason: str) -> None:
        """Show that a trial failed in a worker."""
        self.say(f"{trial} failed: {reason}; trying again")

    def _at(self, task: int, epochs: int) -> None:
        self.task, self._epochs, self._done = task, epochs, 0.0
        self._name = f"task {min(task + 1, self.tasks)}/{self.tasks}"

    def _may_speak(self) -> bool:
        """True where the output is no terminal, if the last line is ten seconds ago."""
        now = time.monotonic()
        speak = not self.console.is_terminal and now - self.spoke >= QUIET
        self.spoke = now if speak else self.spoke
        return speak

    def _show_point(self, record: Mapping[str, Any], epochs: int, shown: Shown) -> None:
        """Shows a row for each grid point in training; workers train several at a time."""
        number, done = record["point"], record["epoch"] + 1
        if number not in self.points:
            name = f"  grid point {number + 1}/{record['points']}"
            self.points[number] = self._bar.add_task(name, total=epochs, numbers="")
        self._bar.update(self.points[number], completed=done, numbers=numbers_of(record, shown))
        if done == epochs:
            self._bar.remove_task(self.points.pop(number))

    def _completed(self, part: float) -> float:
        return self.task + min(1.0, (self._done + part) / max(1, self._epochs))

    def _start_clock(self, part: float) -> None:
        if self.begun is None:
            self.begun, self.before = time.monotonic(), self._completed(part)

    def _left(self) -> str:
        done = self._completed(0.0) - self.before
        if self.begun is None or done <= 0:
            return "unknown time"
        seconds = (time.monotonic() - self.begun) * (self.tasks - self._completed(0.0)) / done
        minutes, seconds = divmod(round(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _train(record: Mapping[str, Any], shown: Shown) -> str:
    """ "train 91.20 %, ", or nothing where the metric is no mean over examples."""
    value = record["train_metric"]
    return "" if math.isnan(value) else f"train {shown.text(value)}, "


def not_given(inferred: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """ "task not given 91.20 %, ": task and label right, by the first rule, over all tasks; nothing
    where there is one task or nothing was measured.
    """
    rule = next(iter(inferred), "")
    if len(inferred.get(rule, {}).get("task", ())) < 2:
        return ""
    mean = metrics.inferred_means(inferred)[rule]["class_incremental"]
    return "" if mean is None else f"task not given {100 * mean:.2f} %, "


def claimed(capacity: Mapping[str, Mapping[str, int]]) -> str:
    """ "channels used fc1 30/600 (+12), fc2 ..."; all layers in one number where there are many."""
    if len(capacity) <= MOST_LAYERS:
        layers = (f"{name} {c['used']}/{c['size']} (+{c['new']})" for name, c in capacity.items())
        return f"channels used {', '.join(layers)}"
    used, size, new = (sum(c[k] for c in capacity.values()) for k in ("used", "size", "new"))
    return f"channels used {used}/{size} (+{new}) in {len(capacity)} layers"


@contextmanager
def log_file(path: Path) -> Iterator[TextIO]:
    """log.txt, opened to append: a resumed run goes on in the same log. Raises OSError."""
    with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
        yield file
