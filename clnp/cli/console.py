"""Progress of a run: a bar on a terminal, plain lines elsewhere, and all lines in log.txt."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .. import metrics
from ..callbacks import Callback
from ..callbacks.callback import epoch_of, tuning_epochs
from ..data.names import counted
from ..html.text import MOST_LAYERS

# Seconds between two lines about epochs where the output is no terminal.
QUIET = 10.0


def make_console() -> Console:
    """The console of all commands; where the output is no terminal, lines may be long."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


class Reporter(Callback):
    """Callbacks of a `Learner` that show its progress.

    Arguments:
        console: where to.
        log: an open text file that gets every line, with the time; None for no log.
        tasks: in the whole run, for the time left.
        learned: tasks that were learned before (a resumed run).
    """

    def __init__(self, console: Console, log: TextIO | None, tasks: int, learned: int = 0) -> None:
        self.console, self.log, self.tasks = console, log, tasks
        self.task, self.name = learned, ""
        self.epochs, self.epoch = 1, 0
        # The clock of the time left starts at the first batch: imports come only once.
        self.begun: float | None = None
        self.before, self.spoke = float(learned), 0.0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.row = self.bar.add_task("starting", total=tasks, completed=learned, numbers="")
        self.points: dict[int, Any] = {}  # grid point in training -> its row

    @contextmanager
    def live(self) -> Iterator[Reporter]:
        """Shows the bar for as long as the block runs."""
        with self.bar:
            yield self

    def say(self, text: str, quiet: bool = False) -> None:
        """One line for the log and, unless `quiet`, for the console."""
        if self.log is not None:
            self.log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
            self.log.flush()
        if not quiet:
            self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def on_task_begin(self, learner: Any, task_index: int, name: str, total_epochs: int) -> None:
        """Starts a task; `total_epochs` counts those of all grid points and of fine-tuning."""
        self.task, self.name, self.epochs, self.epoch = task_index, name, max(1, total_epochs), 0
        self.say(f"task {task_index + 1}/{self.tasks} {name}: {counted(total_epochs, 'epoch')}")
        self._show("")

    def on_batch_end(
        self, learner: Any, loss: float, correct: float, seen: int, total: int
    ) -> None:
        """Moves the bar: `seen` of `total` samples of the epoch."""
        part = seen / max(1, total)
        if self.begun is None:
            self.begun, self.before = time.monotonic(), self._done(part)
        self._show(f"loss {loss:.3f} accuracy {100 * correct:.1f} %", part)

    def on_epoch_end(self, learner: Any, record: Mapping[str, Any]) -> None:
        """Logs an epoch; on a console that is no terminal at most every ten seconds."""
        self.epoch = self._count(learner, record)
        if self.begun is None:  # workers report no batches
            self.begun, self.before = time.monotonic(), self._done()
        point = ""
        if record.get("points", 1) > 1:
            point = f" (grid point {record['point'] + 1}/{record['points']})"
            self._show_point(record, learner.settings.epochs)
        text = (
            f"task {self.task + 1}/{self.tasks} epoch {self.epoch}/{self.epochs}{point}: loss "
            f"{record['loss']:.4f}, "
            f"train {100 * record['train_accuracy']:.2f} %, validation "
            f"{100 * record['validation_accuracy']:.2f} %"
        )
        now = time.monotonic()
        speak = not self.console.is_terminal and now - self.spoke >= QUIET
        if speak:
            self.spoke = now
            text += f", {self._left()} left"
        self.say(text, quiet=not speak)
        self._show(
            f"loss {record['loss']:.3f} validation {100 * record['validation_accuracy']:.1f} %"
        )

    def _count(self, learner: Any, record: Mapping[str, Any]) -> int:
        """Epochs of the task that are behind, those before a resume too."""
        if isinstance(learner.settings, dict):  # of another method, which has one point
            return int(record["epoch"] + 1)
        if record.get("fine_tune"):
            return self.epochs - tuning_epochs(learner) + epoch_of(learner, record) + 1
        return int(record["done"])

    def on_task_end(self, learner: Any, report: Any) -> None:
        """Shows the accuracy of a task and the channels that it claimed."""
        self.task, self.epoch = self.task + 1, 0
        before, after = 100 * report.validation_before, 100 * report.validation
        pruned = f" -> {after:.2f} % by pruning; {claimed(report.capacity)}"
        self.say(
            f"task {self.task}/{self.tasks} {report.name}: test {100 * report.test:.2f} %, "
            f"{not_given(report.inferred)}"
            f"validation {before:.2f} %{pruned if report.capacity else ''}; "
            f"{report.seconds['total']:.1f} s"
        )
        self._show("")

    def on_search(self, learner: Any, done: int, total: int) -> None:
        """Show the progress of the threshold search: networks evaluated, `total` 0 if unknown."""
        text = f"search {done}" + (f"/{total}" if total else "")
        self._show(text)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.spoke >= QUIET:
            self.spoke = now
            networks = f"{done}/{total} networks" if total else counted(done, "network")
            self.say(f"task {self.task + 1}/{self.tasks} search {networks} tried")

    def on_retry(self, learner: Any, trial: str, reason: str) -> None:
        """Show that a trial failed in a worker."""
        self.say(f"{trial} failed: {reason}; trying again")

    def _show(self, numbers: str, part: float = 0.0) -> None:
        if self.bar.disable:
            return
        epoch = (
            f" epoch {min(self.epoch + 1, self.epochs)}/{self.epochs}"
            if self.task < self.tasks
            else ""
        )
        self.bar.update(
            self.row,
            completed=self._done(part),
            numbers=numbers,
            description=f"task {min(self.task + 1, self.tasks)}/{self.tasks}{epoch}",
        )

    def _show_point(self, record: Mapping[str, Any], epochs: int) -> None:
        """Shows a row for each grid point in training; workers train several at a time."""
        number, done = record["point"], record["epoch"] + 1
        if number not in self.points:
            name = f"  grid point {number + 1}/{record['points']}"
            self.points[number] = self.bar.add_task(name, total=epochs, numbers="")
        row = self.points[number]
        validation = f"validation {100 * record['validation_accuracy']:.1f} %"
        self.bar.update(row, completed=done, numbers=f"loss {record['loss']:.3f} {validation}")
        if done == epochs:
            self.bar.remove_task(self.points.pop(number))

    def _done(self, part: float = 0.0) -> float:
        return self.task + min(1.0, (self.epoch + part) / self.epochs)

    def _left(self) -> str:
        done = self._done() - self.before
        if self.begun is None or done <= 0:
            return "unknown time"
        seconds = (time.monotonic() - self.begun) * (self.tasks - self._done()) / done
        minutes, seconds = divmod(round(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def not_given(inferred: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """ "task not given 91.20 %, ": task and label right, by entropy, over all tasks; nothing where
    there is one task or nothing was measured.
    """
    if len(inferred.get("entropy", {}).get("task", ())) < 2:
        return ""
    mean = metrics.inferred_means(inferred)["entropy"]["class_incremental"]
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
