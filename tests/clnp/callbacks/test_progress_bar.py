"""The progress bar of a learner: shown where somebody sees it, gone afterwards."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

import clnp
from clnp import methods
from clnp.callbacks import ProgressBar
from clnp.callbacks import progress_bar as module
from clnp.errors import ConfigError
from clnp.learner import base
from tests.clnp.cases import blobs, convert, mlp


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120)


def learner(**settings: object) -> clnp.Learner:
    return clnp.Learner(convert(mlp([20])), epochs=2, margin=0.05, **settings)  # type: ignore[arg-type]


def shown(monkeypatch: pytest.MonkeyPatch, console: Console) -> io.StringIO:
    """Lets learners show their bars on a console; its text."""
    monkeypatch.setattr(base, "ProgressBar", lambda: ProgressBar(console))
    assert isinstance(console.file, io.StringIO)
    return console.file


def test_a_terminal_shows_the_task_and_its_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, terminal())
    lt = learner(fine_tune={"epochs": 1})
    lt.learn(blobs(0))
    assert "task 1 blobs-0, epoch" in text.getvalue()
    assert lt._bar is None


def test_the_line_of_a_task() -> None:
    """Epochs of training and of fine-tuning are counted on."""
    bar = module.ProgressBar(terminal())
    lt = learner(fine_tune={"epochs": 1})
    bar.on_task_begin(lt, 0, "a", 3)
    bar.on_batch_end(lt, 1.5, 0.25, 8, 16)
    row = bar._bar.tasks[0]
    assert (row.description, row.completed) == ("task 1 a, epoch 1/3", 0.5)
    assert row.fields["numbers"] == "loss 1.500, accuracy 25.0 %"
    last = {"epoch": 0, "loss": 1.0, "validation_metric": 0.5, "fine_tune": True, "round": 0}
    bar.on_epoch_end(lt, last)
    assert (row.description, row.completed) == ("task 1 a, epoch 3/3", 3)
    bar.on_search(lt, 1, 0)
    assert row.fields["numbers"] == "pruning, 1 network evaluated"


def test_nothing_is_shown_where_nobody_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, Console(file=io.StringIO()))
    learner().learn(blobs(0))
    assert text.getvalue() == ""


@pytest.mark.parametrize("wanted", [True, False])
def test_the_argument_decides(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    text = shown(monkeypatch, terminal())
    lt = methods.make("finetune", mlp([8]), blobs(0).train[0][:2], epochs=1, progress_bar=wanted)
    lt.learn(blobs(0))
    assert bool(text.getvalue()) == wanted


def test_an_error_takes_the_bar_away(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop:
        def on_epoch_end(self, learner: object, record: object) -> None:
            raise ConfigError("enough")

    console = terminal()
    shown(monkeypatch, console)
    lt = learner(callbacks=[Stop()])
    with pytest.raises(ConfigError, match="enough"):
        lt.learn(blobs(0))
    assert lt._bar is None
    assert console._live_stack == [] if hasattr(console, "_live_stack") else True


def test_resumed_epochs_count() -> None:
    bar = module.ProgressBar(terminal())
    with bar:
        bar.on_task_begin(None, 0, "a", 4)
        bar.on_resume(None, [{"epoch": 0}, {"epoch": 1}])
        assert bar._done == 2
