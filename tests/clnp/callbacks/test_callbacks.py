"""Callbacks: events, refusals, and the two loggers."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import clnp
from clnp import methods
from clnp.callbacks import EVENTS, Callback, CSVLogger, TensorBoardLogger
from clnp.callbacks.callback import settings_of
from clnp.errors import ConfigError
from tests.clnp.cases import blobs, convert, mlp

GRID = {"grid": {"lr": [5e-3, 1e-2]}, "fine_tune": {"epochs": 2, "lr": 1e-3}}


class StopError(Exception):
    """Simulates a killed process."""


class StopAfter(Callback):
    """Raise in a given event, at its n-th call."""

    def __init__(self, event: str, times: int = 1) -> None:
        self.left = times
        setattr(self, event, self.count)

    def count(self, *_: Any) -> None:
        self.left -= 1
        if not self.left:
            raise StopError("enough")


def learner(**settings: Any) -> clnp.Learner:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"epochs": 3, "lr": 5e-3, "margin": 0.05, "batch_size": 32}
    return clnp.Learner(convert(mlp([24])), **{**defaults, **settings})


def learn(lt: clnp.Learner, tasks: int) -> None:
    """Learn the missing tasks up to a number."""
    for k in range(len(lt.reports), tasks):
        lt.learn(blobs(k))


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def keys(folder: Path) -> list[tuple[str, ...]]:
    names = ("task", "phase", "point", "epoch")
    return [tuple(row[name] for name in names) for row in read(folder / "epochs.csv")]


# The protocol


def test_the_order_of_events() -> None:
    heard: list[str] = []

    def hear(event: str) -> Any:
        return lambda *_: heard.append(event)

    listener = SimpleNamespace(**{event: hear(event) for event in EVENTS})
    learner(callbacks=[listener], **GRID).learn(blobs(0))
    order = [e for e, before in zip(heard, ["", *heard], strict=False) if e != before]
    epochs = [e for e in order if e not in ("on_batch_end", "on_search")]
    assert order[0] == "on_task_begin"
    assert order[-1] == "on_task_end"
    assert set(order) == set(EVENTS) - {"on_resume", "on_retry"}
    assert epochs.count("on_epoch_end") == 2 * 3 + 2
    assert order.index("on_search") > 2 * 2 * 3


def test_a_method_tells_its_callbacks_too(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    lt = methods.make("finetune", mlp([24]), torch.zeros(1, 12), epochs=2, callbacks=[logger])
    report = lt.learn(blobs(0))
    assert keys(tmp_path) == [("0", "fit", "0", "0"), ("0", "fit", "0", "1")]
    assert float(read(tmp_path / "tasks.csv")[0]["test"]) == report.test
    lt.callbacks.append(SimpleNamespace(on_epoch_ends=print))
    with pytest.raises(ConfigError, match="rename it to on_epoch_end"):
        lt.learn(blobs(1))


class Misspelt:
    def on_epoch_ends(self, learner: Any, record: Any) -> None:
        raise AssertionError


class Foreign:
    def on_train_epoch_start(self, trainer: Any) -> None:
        raise AssertionError


class WithoutLearner:
    def on_epoch_end(self, record: Any) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (Misspelt(), r"got the method on_epoch_ends of Misspelt; rename it to on_epoch_end$"),
        (Foreign(), r"\(on_task_begin, on_batch_end, .* on_train_epoch_start of Foreign$"),
        (WithoutLearner(), r"expected on_epoch_end\(learner, record\), .*on_epoch_end\(record"),
        (Callback, r"expected an object, Callback\(\), got the class Callback"),
    ],
)
def test_a_wrong_callback_is_refused_before_any_work(callback: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        learner(callbacks=[callback])
    lt = learner()
    lt.callbacks.append(callback)
    with pytest.raises(ConfigError, match=message):
        lt.learn(blobs(0))
    assert not lt.reports


def test_other_objects_and_attributes_are_fine() -> None:
    learner(epochs=1, callbacks=[object(), SimpleNamespace(on_gpu=True)]).learn(blobs(0))


def test_an_exception_names_the_callback_and_keeps_its_type() -> None:
    lt = learner(callbacks=[StopAfter("on_epoch_end", 2)])
    with pytest.raises(StopError, match="enough") as caught:
        lt.learn(blobs(0))
    assert caught.value.__notes__ == ["raised by the callback StopAfter in on_epoch_end"]
    assert not lt.reports


# CSV


def test_csv_files_hold_every_epoch_and_task(tmp_path: Path) -> None:
    lt = learner(callbacks=[CSVLogger(tmp_path / "log")], **GRID)
    reports = [lt.learn(blobs(k)) for k in range(2)]
    epochs = [("fit", str(p), str(e)) for p in range(2) for e in range(3)]
    epochs += [("fine_tune", "0", str(e)) for e in range(2)]
    assert keys(tmp_path / "log") == [(str(k), *key) for k in range(2) for key in epochs]
    rows = read(tmp_path / "log" / "epochs.csv")
    for report in reports:
        chosen = next(i for i, point in enumerate(report.grid) if point["chosen"])
        own = [
            {name: float(row[name]) for name in ("epoch", "loss", "lr", "validation_metric")}
            for row in rows
            if row["name"] == report.name and (row["phase"], row["point"]) == ("fit", str(chosen))
        ]
        assert own == [{name: record[name] for name in own[0]} for record in report.history]
    tasks = read(tmp_path / "log" / "tasks.csv")
    for row, report in zip(tasks, reports, strict=True):
        assert float(row["test"]) == report.test
        assert int(row["used_0"]) == report.capacity["0"]["used"]
        assert float(row["mean"]) == pytest.approx(sum(report.row) / len(report.row))
        assert float(row["seconds_total"]) == report.seconds["total"]
        both = report.inferred["energy"]["class_incremental"]
        assert float(row["class_incremental_by_energy"]) == pytest.approx(sum(both) / len(both))
    assert [row["metric_1"] for row in tasks] == ["", str(reports[1].row[1])]


@pytest.mark.parametrize("event", ["on_epoch_end", "on_task_end"])
@pytest.mark.parametrize("times", [2, 4, 8])
def test_csv_files_after_a_resume_are_those_of_an_undisturbed_run(
    tmp_path: Path, event: str, times: int
) -> None:
    """Stopped before or after any event, each row exists once and is the same."""
    if event == "on_task_end" and times > 3:
        pytest.skip("there are three tasks")
    names = ("whole", "before", "after")
    whole = learner(callbacks=[CSVLogger(tmp_path / "whole")], **GRID)
    learn(whole, 3)
    for name in names[1:]:
        folder = tmp_path / name
        callbacks = [CSVLogger(folder), StopAfter(event, times)]
        lt = learner(
            callbacks=callbacks[:: 1 if name == "after" else -1], checkpoint_dir=folder, **GRID
        )
        lt._progress.interval = 0.0
        with pytest.raises(StopError):
            learn(lt, 3)
        log = folder / "epochs.csv"
        log.write_text(log.read_text() + "2,blo")  # a line cut short
        tasks = [blobs(k) for k in range(3)]
        if (folder / "checkpoint.safetensors").is_file():
            lt = clnp.Learner.load(folder, tasks=tasks, checkpoint_dir=folder)
        else:
            lt = learner(checkpoint_dir=folder, **GRID)
        lt.callbacks = [CSVLogger(folder)]
        lt.callbacks[0].sync(lt)
        learn(lt, 3)
        assert (folder / "epochs.csv").read_bytes() == (
            tmp_path / "whole" / "epochs.csv"
        ).read_bytes()
        told = [
            {k: v for k, v in row.items() if not k.startswith("seconds")}
            for file in (folder, tmp_path / "whole")
            for row in read(file / "tasks.csv")
        ]
        assert told[:3] == told[3:]


def test_rows_of_another_run_are_dropped(tmp_path: Path) -> None:
    lt = learner(callbacks=[CSVLogger(tmp_path)], **GRID)
    for k in range(2):
        lt.learn(blobs(k))
    learner(epochs=2, callbacks=[CSVLogger(tmp_path)]).learn(blobs(0))
    assert keys(tmp_path) == [("0", "fit", "0", "0"), ("0", "fit", "0", "1")]
    assert len(read(tmp_path / "tasks.csv")) == 1


def test_csv_files_that_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"expected a folder, got the file .*file"):
        CSVLogger(tmp_path / "file")
    for text in ("a,b\n1,2\n", "no table"):
        (tmp_path / "epochs.csv").write_text(text + "\n")
        with pytest.raises(ConfigError, match="not written by CSVLogger"):
            CSVLogger(tmp_path)


# TensorBoard


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """{tag: {step: value}} as TensorBoard reads a run's folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    found: dict[str, dict[int, float]] = {}
    for tag in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(tag)]
        assert len(set(steps)) == len(steps), tag
        found[tag] = {event.step: event.value for event in events.Scalars(tag)}
    return found


def logged(folder: Path, **settings: Any) -> clnp.Learner:
    logger = TensorBoardLogger(folder)
    lt = learner(callbacks=[logger], **settings)
    for k in range(2):
        lt.learn(blobs(k))
    logger.close()
    return lt


def test_tensorboard_files_hold_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    lt = logged(tmp_path, fine_tune={"epochs": 2, "lr": 1e-3})
    epochs, tasks = scalars(tmp_path / "epochs"), scalars(tmp_path / "tasks")
    losses = [record["loss"] for report in lt.reports for record in report.history]
    trained = [0, 1, 2, 5, 6, 7]
    assert list(epochs["epoch/loss"]) == list(range(10))
    assert [epochs["epoch/loss"][step] for step in trained] == pytest.approx(losses)
    R = lt.accuracy_matrix
    assert tasks["metric/0"] == pytest.approx({0: R[0, 0], 1: R[1, 0]})
    assert tasks["metric/1"] == pytest.approx({1: R[1, 1]})
    assert tasks["metric/mean"] == pytest.approx({0: R[0, 0], 1: R[1].mean()})
    capacity = lt.reports[1].capacity["0"]
    assert tasks["capacity/used_0"][1] == pytest.approx(capacity["used"] / capacity["size"])
    assert tasks["task/validation"][1] == pytest.approx(lt.reports[1].validation)
    assert tasks["seconds/total"][0] > 0
    known = lt.reports[1].inferred["entropy"]["task"]
    assert tasks["inferred/task_by_entropy"][1] == pytest.approx(sum(known) / 2)


def test_tensorboard_shows_the_settings(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    lt = logged(tmp_path, epochs=1)
    events = EventAccumulator(str(tmp_path / "tasks")).Reload()
    data = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    given = HParamsPluginData.FromString(data).session_start_info.hparams
    assert set(given) == set(settings_of(lt))
    assert given["margin"].number_value == 0.05
    assert given["head"].string_value == "multi"
    assert given["fine_tune"].string_value == "auto"


def test_tensorboard_after_a_resume_has_every_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    logged(tmp_path / "whole", **GRID)
    folder = tmp_path / "parts"
    logger = TensorBoardLogger(folder)
    lt = learner(callbacks=[logger, StopAfter("on_epoch_end", 11)], checkpoint_dir=folder, **GRID)
    with pytest.raises(StopError):
        learn(lt, 2)
    logger.close()
    time.sleep(1.1)  # TensorBoard's files are told apart by process and second
    logger = TensorBoardLogger(folder)
    lt = clnp.Learner.load(folder, tasks=[blobs(0)], checkpoint_dir=folder, callbacks=[logger])
    lt.learn(blobs(1))
    logger.close()
    for run in ("epochs", "epochs/point-0", "epochs/point-1", "tasks"):
        whole, parts = scalars(tmp_path / "whole" / run), scalars(folder / run)
        for values in (whole, parts):
            for tag in [tag for tag in values if tag.startswith("seconds")]:
                del values[tag]
        assert whole == parts


def test_a_repeated_task_takes_the_place_of_the_attempt_that_failed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    logger = TensorBoardLogger(tmp_path)
    lt = learner(callbacks=[logger, StopAfter("on_epoch_end", 3)])
    with pytest.raises(StopError):
        lt.learn(blobs(0))
    lt.learn(blobs(0))
    logger.close()
    losses = [record["loss"] for record in lt.reports[0].history]
    assert list(scalars(tmp_path / "epochs")["epoch/loss"].values()) == pytest.approx(losses)


def test_without_tensorboard_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r'pip install "clnp\[tensorboard\]"'):
        TensorBoardLogger(tmp_path)
