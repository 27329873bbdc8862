"""The events of learning, and how callbacks are told of them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import ConfigError


class Callback:
    """Base of callbacks: every event does nothing until a subclass says otherwise.

    Any object with some of these methods is a callback; it need not derive from this class. The
    first argument is the learner, a `clnp.Learner` or one of `clnp.methods`, whose `reports`
    holds the tasks learned so far. Fractions are between 0 and 1.

    The events of a task come in this order: `on_task_begin`; for every grid point its batches and
    epochs; `on_search`; the epochs of fine-tuning; `on_task_end`. An exception leaves `learn` with
    its own type and a note that names the callback. Before `on_task_end` the learner is then as it
    was before the task, so raising is the way to stop; in `on_task_end` the task is learned.
    """

    def on_task_begin(self, learner: Any, task_index: int, name: str, total_epochs: int) -> None:
        """A task begins.

        Arguments:
            task_index, name: of the task; the first one is 0.
            total_epochs: of all grid points and of fine-tuning together.
        """

    def on_batch_end(
        self, learner: Any, loss: float, correct: float, seen: int, total: int
    ) -> None:
        """Some batches are done; told a few times a second, and after the last one of an epoch.

        Arguments:
            loss, correct: mean loss and fraction classified correctly, over the epoch so far.
            seen, total: examples of the epoch, so far and in all.
        """

    def on_epoch_end(self, learner: Any, record: Mapping[str, Any]) -> None:
        """An epoch is done.

        Arguments:
            record: "epoch" (from 0), "loss", "train_accuracy", "validation_accuracy", "lr"; of
                training also "point" and "points", the number of the grid point and how many there
                are, and "done", the epochs that all of them have behind them; of fine-tuning
                "fine_tune", True, and "round", from 0. Where workers train several points at a
                time their epochs come as they end, and `on_batch_end` is not told.
        """

    def on_resume(self, learner: Any, records: Sequence[Mapping[str, Any]]) -> None:
        """A task goes on where an earlier process stopped; told after `on_task_begin`, for every
        grid point that was saved.

        Arguments:
            records: of its epochs so far, as in `on_epoch_end`, which is not told of them again.
        """

    def on_search(self, learner: Any, done: int, total: int) -> None:
        """The threshold search evaluated another network.

        Arguments:
            done, total: networks; total is 0 where it is not known.
        """

    def on_retry(self, learner: Any, trial: str, reason: str) -> None:
        """Something that ran in a worker failed and is tried again (`Learner(workers=...)`).

        Arguments:
            trial: what it was: the grid point and its settings.
            reason: the error, in one line.
        """

    def on_task_end(self, learner: Any, report: Any) -> None:
        """A task is learned, tested and, with a `checkpoint_dir`, saved.

        Arguments:
            report: its `clnp.TaskReport`, by now the last of `learner.reports`.
        """


EVENTS = tuple(name for name in vars(Callback) if name.startswith("on_"))


def check_callbacks(callbacks: Iterable[Any]) -> None:
    """Refuses callbacks that could not hear what they are meant to hear.

    Raises:
        ConfigError: a class instead of an object, a method `on_...` that is no event, or one that
            can't be called with the event's arguments.
    """
    for callback in callbacks:
        if isinstance(callback, type):
            name = callback.__name__
            raise ConfigError(f"callbacks: got the class {name}, wanted an object: {name}()")
        _check_names(callback)
        for event in EVENTS:
            _check_arguments(callback, event)


def notify(callbacks: Iterable[Any], event: str, learner: Any, *args: Any) -> None:
    """Tells every callback that has a method for the event, in order. What one of them raises gets
    a note that names it.
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
    """A learner's settings as plain data; of a method they are that already."""
    settings = learner.settings
    return dict(settings) if isinstance(settings, Mapping) else settings.to_json()


def tuning_epochs(learner: Any, rounds: int | None = None) -> int:
    """Epochs of so many rounds of fine-tuning; of all of them by default."""
    tune = settings_of(learner).get("fine_tune")
    if not tune:
        return 0
    return int(tune["epochs"] * (tune["rounds"] if rounds is None else rounds))


def epoch_of(learner: Any, record: Mapping[str, Any]) -> int:
    """The number of a record's epoch within its phase: rounds of fine-tuning are counted on."""
    return int(record["epoch"]) + tuning_epochs(learner, record.get("round", 0))


def _check_names(callback: Any) -> None:
    for name in dir(callback):
        if not name.startswith("on_") or name in EVENTS:
            continue
        if callable(inspect.getattr_static(callback, name, None)):
            near = difflib.get_close_matches(name, EVENTS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(
                f"callbacks: {type(callback).__name__} has a method {name}, which is no event"
                f"{hint} The events are {', '.join(EVENTS)}"
            )


def _check_arguments(callback: Any, event: str) -> None:
    method = getattr(callback, event, None)
    if method is None:
        return
    try:
        given = inspect.signature(method)
    except (TypeError, ValueError):  # made in C: it will be seen when it is called
        return
    _, *wanted = inspect.signature(getattr(Callback, event)).parameters
    try:
        given.bind(*wanted)
    except TypeError as error:
        raise ConfigError(
            f"callbacks: {type(callback).__name__}.{event}{given} can't be called as "
            f"{event}({', '.join(wanted)}): {error}"
        ) from None


def _note(error: Exception, text: str) -> None:
    """`error.add_note`, which Python 3.10 has not; there pytest and rich show the note all the
    same.
    """
    error.__notes__ = [*getattr(error, "__notes__", ()), text]
