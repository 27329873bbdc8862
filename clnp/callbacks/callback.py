"""Events of learning, and their delivery to callbacks."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import ConfigError


class Callback:
    """Base of callbacks; every event does nothing by default.

    Any object with some of these methods is a callback; it need not derive from this class. The
    first argument is the learner, a `clnp.Learner` or one of `clnp.methods`, whose `reports` has
    the tasks learned so far. Fractions are between 0 and 1.

    Order of the events of a task: `on_task_begin`; batches and epochs of every grid point;
    `on_search`; epochs of fine-tuning; `on_task_end`. An exception propagates from `learn` with its
    own type and a note that names the callback. If it is raised before `on_task_end`, the learner
    is in its state before the task, so an exception is the way to stop; in `on_task_end` the task
    is already learned.
    """

    def on_task_begin(self, learner: Any, task_index: int, name: str, total_epochs: int) -> None:
        """A task begins.

        Arguments:
            task_index, name: index (from 0) and name of the task.
            total_epochs: number of epochs of all grid points and of fine-tuning.
        """

    def on_batch_end(self, learner: Any, loss: float, metric: float, seen: int, total: int) -> None:
        """Some batches are done; called a few times a second, and at the end of an epoch.

        Arguments:
            loss, metric: mean loss and metric over the epoch so far; the metric is NaN where it is
                no mean over examples.
            seen, total: number of examples so far, and in the epoch.
        """

    def on_epoch_end(self, learner: Any, record: Mapping[str, Any]) -> None:
        """An epoch is done.

        Arguments:
            record: "epoch" (from 0), "loss", "train_metric" (NaN where it is no mean over
                examples), "validation_metric", "lr". In training also "point" (index of the grid
                point), "points" (their number) and "done" (epochs done by all of them). In
                fine-tuning also "fine_tune" (True) and "round" (from 0). If workers train several
                points at a time, their epochs come in the order in which they end, without
                `on_batch_end`.
        """

    def on_resume(self, learner: Any, records: Sequence[Mapping[str, Any]]) -> None:
        """A task resumes; called after `on_task_begin`, once per saved grid point.

        Arguments:
            records: records of its epochs so far, as in `on_epoch_end`, which isn't called for
                them again.
        """

    def on_search(self, learner: Any, done: int, total: int) -> None:
        """The threshold search evaluated another network.

        Arguments:
            done, total: number of networks; total is 0 if it is not known.
        """

    def on_retry(self, learner: Any, trial: str, reason: str) -> None:
        """A trial in a worker failed and is run again (`Learner(workers=...)`).

        Arguments:
            trial: the grid point and its settings.
            reason: the error, in one line.
        """

    def on_task_end(self, learner: Any, report: Any) -> None:
        """A task is learned, tested and, with a `checkpoint_dir`, saved.

        Arguments:
            report: its `clnp.TaskReport`, already the last of `learner.reports`.
        """


EVENTS = tuple(name for name in vars(Callback) if name.startswith("on_"))


def check_callbacks(callbacks: Iterable[Any]) -> None:
    """Check the methods of callbacks.

    Raises:
        ConfigError: a class instead of an object, a method `on_...` that isn't an event, or one
            that can't be called with the event's arguments.
    """
    for callback in callbacks:
        if isinstance(callback, type):
            name = callback.__name__
            raise ConfigError(f"callbacks: expected an object, {name}(), got the class {name}")
        _check_names(callback)
        for event in EVENTS:
            _check_arguments(callback, event)


def notify(callbacks: Iterable[Any], event: str, learner: Any, *args: Any) -> None:
    """Call the event's method of every callback that has it, in order.

    An exception gets a note that names the callback.
    """
    for callback in callbacks:
        method = getattr(callback, event, None)
        if method is None:
            continue
        try:
            method(learner, *args)
        except Exception as error:
            _note(error, f"raised by the callback {type(callback).__name__} in {event}")
            raise


def settings_of(learner: Any) -> dict[str, Any]:
    """Return a learner's settings as plain data, which those of a method already are."""
    settings = learner.settings
    return dict(settings) if isinstance(settings, Mapping) else settings.to_json()


def alike(reports: Sequence[Any], task: int) -> list[bool]:
    """For each of the tasks 0..task, True if it has the metric of that task."""
    return [reports[j].metric == reports[task].metric for j in range(task + 1)]


def tuning_epochs(learner: Any, rounds: int | None = None) -> int:
    """Return the number of epochs of some rounds of fine-tuning; of all rounds by default."""
    tune = getattr(learner.settings, "tuning", None)  # other methods have none
    return int(tune.epochs * (tune.rounds if rounds is None else rounds)) if tune else 0


def epoch_of(learner: Any, record: Mapping[str, Any]) -> int:
    """Return the index of a record's epoch in its phase, counting on over fine-tuning rounds."""
    return int(record["epoch"]) + tuning_epochs(learner, record.get("round", 0))


def _check_names(callback: Any) -> None:
    for name in dir(callback):
        if not name.startswith("on_") or name in EVENTS:
            continue
        if callable(inspect.getattr_static(callback, name, None)):
            near = difflib.get_close_matches(name, EVENTS, n=1)
            hint = f"; rename it to {near[0]}" if near else ""
            raise ConfigError(
                f"callbacks: expected events ({', '.join(EVENTS)}), got the method {name} of "
                f"{type(callback).__name__}{hint}"
            )


def _check_arguments(callback: Any, event: str) -> None:
    method = getattr(callback, event, None)
    if method is None:
        return
    try:
        given = inspect.signature(method)
    except (TypeError, ValueError):  # a function in C has no signature
        return
    _, *expected = inspect.signature(getattr(Callback, event)).parameters
    try:
        given.bind(*expected)
    except TypeError as error:
        raise ConfigError(
            f"callbacks: expected {event}({', '.join(expected)}), got "
            f"{type(callback).__name__}.{event}{given}: {error}"
        ) from None


def _note(error: Exception, text: str) -> None:
    """Add a note as `error.add_note`, which Python 3.10 lacks; pytest and rich show it anyway."""
    error.__notes__ = [*getattr(error, "__notes__", ()), text]
