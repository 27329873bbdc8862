"""Scalars and settings of a run in TensorBoard's files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..metrics import inferred_means, known_mean
from .callback import Callback, alike, epoch_of, settings_of, tuning_epochs

EPOCH = ("loss", "train_metric", "validation_metric", "lr")
TASK = ("test", "validation", "validation_before")
MEAN = "metric/mean"


class TensorBoardLogger(Callback):
    """Write event files for `tensorboard --logdir LOG_DIR`.

    Run "epochs" has epoch/loss, epoch/train_metric, epoch/validation_metric and epoch/lr, with
    the epochs of all tasks as steps; a grid has one run per point, "epochs/point-K". Run "tasks"
    has the tasks as steps, from 0: metric/mean over the tasks so far of its metric; metric/J on
    every task J, a level line if nothing is forgotten; inferred/MEASURE_by_RULE, accuracies with
    inferred tasks; task/test, task/validation and task/validation_before of the new task; fractions
    capacity/used_GROUP and capacity/reused_GROUP per group of channels; seconds/PHASE; and the
    settings as hyper-parameters.

    A resumed run continues in the same folder; repeated steps replace those of an earlier process.

    Arguments:
        log_dir: folder of the files, created if missing.

    Raises:
        ConfigError: tensorboard is not installed.
    """

    def __init__(self, log_dir: str | Path) -> None:
        self.log_dir = Path(log_dir)
        self._make = _writer_class()
        self._writers: dict[str, Any] = {}
        self._steps: dict[str, int] = {}

    def on_epoch_end(self, learner: Any, record: Mapping[str, Any]) -> None:
        """Write the scalars of an epoch."""
        run = "epochs"
        if record.get("points", 1) > 1:
            run = f"epochs/point-{record['point']}"
        step = _epochs_before(learner, record) + epoch_of(learner, record)
        writer = self._writer(run, step)
        for name in EPOCH:
            if record[name] == record[name]:  # a metric that is no mean over examples is NaN
                writer.add_scalar(f"epoch/{name}", record[name], step)
        writer.flush()

    def on_task_end(self, learner: Any, report: Any) -> None:
        """Write the scalars of a task."""
        step = report.task
        known = "tasks" in self._writers
        writer = self._writer("tasks", step)
        if not known:
            _add_settings(writer, settings_of(learner))
        for name, value in _scalars(report, alike(learner.reports, step)).items():
            if value == value:  # metrics of tasks without data are NaN
                writer.add_scalar(name, value, step)
        writer.flush()

    def close(self) -> None:
        """Close the files; another event opens new ones."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _writer(self, run: str, step: int) -> Any:
        """A new writer hides what an earlier process or a failed attempt wrote from `step` on."""
        if step <= self._steps.get(run, -1) and run in self._writers:
            self._writers.pop(run).close()
        if run not in self._writers:
            self._writers[run] = self._make(str(self.log_dir / run), purge_step=step)
        self._steps[run] = step
        return self._writers[run]


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"TensorBoardLogger: expected tensorboard to be installed ({error}); "
            'pip install "clnp[tensorboard]"'
        ) from error
    return SummaryWriter


def _epochs_before(learner: Any, record: Mapping[str, Any]) -> int:
    """Steps before this phase, by the settings alone, so that a resumed run has the same."""
    settings = learner.settings
    fit = int(settings["epochs"] if isinstance(settings, Mapping) else settings.training_epochs)
    task = fit + tuning_epochs(learner)
    return len(learner.reports) * task + (fit if record.get("fine_tune") else 0)


def _scalars(report: Any, alike: Sequence[bool]) -> dict[str, float]:
    """Numbers of a task; `alike` are the tasks so far of its metric."""
    values = {MEAN: known_mean([v for v, own in zip(report.row, alike, strict=True) if own])}
    values |= {f"metric/{j}": value for j, value in enumerate(report.row)}
    values |= {f"task/{name}": getattr(report, name) for name in TASK}
    for rule, means in inferred_means(report.inferred).items():
        for measure, mean in means.items():
            values[f"inferred/{measure}_by_{rule}"] = math.nan if mean is None else mean
    for group, counts in report.capacity.items():
        for part in ("used", "reused"):
            values[f"capacity/{part}_{group}"] = counts[part] / counts["size"]
    return values | {f"seconds/{phase}": value for phase, value in report.seconds.items()}


def _add_settings(writer: Any, settings: Mapping[str, Any]) -> None:
    """`SummaryWriter.add_hparams` would open a second file, and TensorBoard stop at the first."""
    from torch.utils.tensorboard.summary import hparams

    plain = {
        name: value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
        for name, value in settings.items()
    }
    for summary in hparams(plain, {MEAN: None}):
        writer.file_writer.add_summary(summary)
