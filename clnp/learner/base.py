"""Base of `clnp.Learner` and of the learners of the other methods: the life of a task around its
training, files, accuracy matrix, events.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ..callbacks import ProgressBar, check_callbacks, notify
from ..callbacks.callback import settings_of
from ..data.batches import seed_for, seeded
from ..data.names import counted
from ..data.task import Task
from ..errors import ConfigError, memory_needed
from ..files.atomic import write_text
from ..objectives.objective import Objective
from ..objectives.shown import Shown
from ..parallel.ranks import ALONE, Ranks, sharing
from .agreement import SharedProgress
from .checks import check_device, check_new
from .learned_data import Tests
from .numbers import numbers_of
from .report import TaskReport, matrix_of

CHECKPOINT = "checkpoint.safetensors"


class BaseLearner(ABC):
    """Trains one network on task after task; what all learners share.

    Arguments:
        device: device of the network and its batches.
        callbacks: objects with any of the methods of `clnp.callbacks.Callback`.
        progress_bar: show a progress bar on standard error; None: where it is a terminal or a
            notebook.

    Attributes:
        reports: one `TaskReport` per learned task.
        objective: loss and metric of the task in training, or of the last one.
        checkpoint_dir: folder of the checkpoint and of the progress of the task in training, or
            None.

    Raises:
        ConfigError: an unknown device; a callback with a method `on_...` that is no event.
    """

    load_call: ClassVar[str]  # the call that loads a checkpoint, for errors

    def __init__(
        self, device: str | torch.device, callbacks: Iterable[Any], progress_bar: bool | None = None
    ) -> None:
        self.device = check_device(device)
        self.callbacks = list(callbacks)
        check_callbacks(self.callbacks)
        self.progress_bar = progress_bar
        self._bar: ProgressBar | None = None  # while a task is learned
        self.reports: list[TaskReport] = []
        self.objective = Objective()
        self.ranks: Ranks = ALONE
        self._tests = Tests()

    def __repr__(self) -> str:
        names = ", ".join(repr(report.name) for report in self.reports)
        return f"{type(self).__name__}({len(self.reports)} learned: {names or 'none'})"

    def report(self, path: str | Path) -> Path:
        """Write the results as one HTML page: accuracies, capacity, tasks, grids, costs, settings.

        Arguments:
            path: the file, or a folder, which gets report.html.

        Returns:
            the file. Where processes share the work, the first one writes it.

        Raises:
            ConfigError: no task has been learned.
            OSError: the file can't be written.
        """
        # Templates and figures take most of a second to import.
        from ..html.page import PAGE
        from ..html.run import learner_page

        metrics, seconds, costs = numbers_of(self)
        method, seed = metrics["config"]["method"], metrics["config"]["seeds"][0]
        path = Path(path)
        path = path if path.suffix else path / PAGE
        if not self.ranks.main:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        page = learner_page(
            metrics,
            seconds,
            costs,
            title=f"{method}: {counted(len(self.reports), 'task')}",
            subtitle=f"seed {seed}",
            settings=settings_of(self),
            machine={},
        )
        write_text(path, page)
        return path

    # Steps that a learner defines

    @abstractmethod
    def save(self, path: str | Path) -> None:
        """Write the learner into one file."""

    @abstractmethod
    def verify(self) -> list[Any]:
        """Compare the logits of learned tasks with those recorded."""

    @abstractmethod
    def costs(self, sizes: Sequence[int]) -> list[dict[str, Any]]:
        """Cost of every learned task: {"flops", "examples", "peak_memory", "seconds"}.

        Arguments:
            sizes: training examples of each task.
        """

    @abstractmethod
    def _check(self, task: Task, plan: Any) -> tuple[Task, int]:
        """Refuse a task that does not fit; return it ready to read, and its number of outputs."""

    @abstractmethod
    def _objective_of(self, task: Task, outputs: int, plan: Any) -> Objective:
        """Loss and metric of a checked task. Raises ConfigError where they do not fit."""

    @abstractmethod
    def _snapshot(self) -> Any:
        """A copy of everything that learning a task changes."""

    @abstractmethod
    def _undo(self, before: Any, index: int) -> None:
        """Return to a snapshot taken before task `index`."""

    @abstractmethod
    def _learn(self, task: Task, index: int, outputs: int, plan: Any) -> TaskReport:
        """Train, test and report one task."""

    # The life of a task

    def _run(self, task: Task, plan: Any, seed: int, batch_size: int) -> TaskReport:
        """Learn a task, or leave the learner as it was before the call."""
        given, index = task, len(self.reports)
        with self.ranks.together("checking the task"):
            check_new(self.reports, task)
            task, outputs = self._check(task, plan)
            self.objective = self._objective_of(task, outputs, plan)
            check_callbacks(self.callbacks)
        before = self._snapshot()
        try:
            # Datasets may draw random numbers whenever they are read.
            with (
                self._shown(),
                sharing(self.ranks),
                seeded(seed_for(seed, index), self.device),
                memory_needed(f"task {task.name!r}", batch_size),
            ):
                report = self._learn(task, index, outputs, plan)
        except BaseException:
            self._undo(before, index)
            self._tests.cut(index)
            raise
        self._tests.keep(index, given, task)
        self.reports.append(report)
        if self.checkpoint_dir is not None:
            with self.ranks.together("writing the checkpoint"):
                self.save(self.checkpoint_dir / CHECKPOINT)
            self._progress.clear()
        self._call("on_task_end", report)
        return report

    def _use_folder(self, folder: str | Path | None, source: Path | None) -> None:
        """Keep checkpoint and progress in a folder; refuse one that holds another learner than the
        file `source`.
        """
        self.checkpoint_dir = None if folder is None else Path(folder)
        progress = None if self.checkpoint_dir is None else self.checkpoint_dir / "progress"
        self._progress = SharedProgress(progress, self.ranks)
        if self.checkpoint_dir is None:
            return
        file = self.checkpoint_dir / CHECKPOINT
        if file.exists() and (source is None or not file.samefile(source)):
            raise ConfigError(
                f"checkpoint_dir: expected a folder without another learner, got {file}; continue "
                f"with {self.load_call}, or name another folder"
            )

    # Results

    @property
    def accuracy_matrix(self) -> np.ndarray:
        """R [T, T] float64: R[i, j] is the metric of task j (accuracy, unless it names another) on
        its test split after learning task i; NaN above the diagonal.
        """
        return matrix_of(self.reports)

    @property
    def shown(self) -> Shown:
        """Name and unit of the metric of the task in training, or of the last one."""
        return Shown.of(self.objective.metric)

    def _call(self, event: str, *args: Any) -> None:
        """Call the callbacks, on the first rank; what one of them computes, it computes alone."""
        if self.ranks.main:
            with sharing(ALONE):
                bar = [] if self._bar is None else [self._bar]
                notify([*self.callbacks, *bar], event, self, *args)

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """Show the progress bar inside, if enabled."""
        bar = ProgressBar() if self.ranks.main and self.progress_bar is not False else None
        if bar is None or not (self.progress_bar or bar.visible):
            yield
            return
        try:
            with bar:
                self._bar = bar
                yield
        finally:
            self._bar = None


def checkpoint_file(path: str | Path) -> Path:
    """The checkpoint at a path: the file itself, or the one in a folder."""
    path = Path(path)
    return path / CHECKPOINT if path.is_dir() else path
