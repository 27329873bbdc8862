"""Grid points in worker processes: the bits of one process, progress, kills, and what is kept."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import clnp
from clnp.data import Task
from clnp.errors import ConfigError, TrialError
from tests.clnp.cases import blobs, convert, mlp
from tests.clnp.conv_cases import patterns
from tests.clnp.parallel.test_fanout import LONG

GRID: dict[str, Any] = {
    "head": "single",
    "epochs": 4,
    "batch_size": 32,
    "margin": 0.05,
    "grid": {"l1": [0.0, 1e-3], "lr": [0.01, 0.02]},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def learner(net: nn.Module | None = None, **settings: Any) -> clnp.Learner:
    torch.manual_seed(0)
    model = convert(net or mlp([40, 30], dropout=0.1))
    return clnp.Learner(model, **{**GRID, **settings})


def told(report: clnp.TaskReport) -> dict[str, Any]:
    return {**report.to_json(), "seconds": 0}


def same(a: clnp.Learner, b: clnp.Learner) -> bool:
    mine, other = a.model.state_dict(), b.model.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[k], other[k]) for k in mine)


class Heard:
    """Keeps the events of epochs and retries."""

    def __init__(self) -> None:
        self.wanted = True
        self.epochs: list[dict[str, Any]] = []
        self.retries: list[tuple[str, str]] = []
        self.searched: list[int] = []

    def on_epoch_end(self, lt: clnp.Learner, record: dict[str, Any]) -> None:
        self.epochs.append(dict(record))

    def on_search(self, lt: clnp.Learner, done: int, total: int) -> None:
        self.searched.append(done)

    def on_retry(self, lt: clnp.Learner, trial: str, reason: str) -> None:
        self.retries.append((trial, reason))


def test_the_bits_are_those_of_one_process(two: clnp.Workers) -> None:
    heard = Heard()
    alone, many = learner(), learner(workers=two, callbacks=[heard])
    for k in range(2):
        assert told(alone.learn(blobs(k))) == told(many.learn(blobs(k)))
        assert sum(row["candidate"] for row in many.reports[k].grid) > 1
    assert same(alone, many)
    assert all(verdict.identical for verdict in many.verify())
    for point in range(4):
        own = [record["epoch"] for record in heard.epochs if record["point"] == point]
        assert own == [*range(4), *range(4)]
    assert [record["done"] for record in heard.epochs] == [*range(1, 17), *range(1, 17)]
    assert heard.searched
    assert heard.retries == []


def test_convolutions_and_batch_norms_travel(two: clnp.Workers) -> None:
    """Batch norms, channels_last and fine-tuning, with something frozen in the second task."""
    net = [
        nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(96, 3),
        )
        for _ in range(2)
    ]
    net[1].load_state_dict(net[0].state_dict())
    settings = {"epochs": 3, "head": "multi", "fine_tune": {"epochs": 1, "lr": 1e-3}}
    settings["margin"] = 0.2
    pair = []
    for module, workers in zip(net, (1, two), strict=True):
        model = clnp.convert(module, torch.zeros(2, *patterns(0).sample_shape), verbose=False)
        pair.append(clnp.Learner(model, workers=workers, **{**GRID, **settings}))
    for k in range(2):
        assert told(pair[0].learn(patterns(k))) == told(pair[1].learn(patterns(k)))
    assert same(*pair)


@LONG
def test_a_worker_that_is_killed_costs_nothing(two: clnp.Workers) -> None:
    class Killer(Heard):
        def on_epoch_end(self, lt: clnp.Learner, record: dict[str, Any]) -> None:
            if not self.epochs:
                multiprocessing.active_children()[0].kill()
            super().on_epoch_end(lt, record)

    killer = Killer()
    alone, many = learner(), learner(workers=two, callbacks=[killer])
    assert told(alone.learn(blobs(0))) == told(many.learn(blobs(0)))
    assert same(alone, many)
    assert len(killer.retries) == 1
    name, reason = killer.retries[0]
    assert name.startswith("grid point ")
    assert " of 4 (lr 0.0" in name
    assert reason.startswith("its process was ended by SIGKILL")


class Unlucky(torch.utils.data.Dataset[Any]):
    """A data set that can't be read while a file is there, but in the process that read first."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.x, self.targets = task.train  # type: ignore[misc]
        self.folder = folder

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> Any:
        if multiprocessing.parent_process() is not None and (self.folder / "broken").exists():
            try:
                (self.folder / "first").mkdir()
                self.folder = self.folder / "first"
            except FileExistsError:
                raise OSError("the disk is gone") from None
        return self.x[i], self.targets[i]


def test_what_is_trained_is_kept_when_other_points_fail(two: clnp.Workers, tmp_path: Path) -> None:
    task = blobs(0)
    data = Unlucky(task, tmp_path)
    whole = Task(task.name, data, task.validation, task.test, classes=3, cache_bytes=0)
    heard = Heard()
    many = learner(workers=two, checkpoint_dir=tmp_path / "run", callbacks=[heard])
    (tmp_path / "broken").touch()
    with pytest.raises(TrialError) as caught:
        many.learn(whole)
    text = str(caught.value)
    assert text.startswith("3 of 4 failed: grid point ")
    assert "OSError: the disk is gone" in text
    assert text.endswith("are kept, learn() again trains the others only")
    assert len(heard.retries) == 3
    assert not many.reports
    assert not many.model.in_task
    (tmp_path / "broken").unlink()
    trained = {record["point"] for record in heard.epochs}
    heard.epochs.clear()
    report = many.learn(whole)
    assert trained | {record["point"] for record in heard.epochs} == {0, 1, 2, 3}
    assert trained.isdisjoint(record["point"] for record in heard.epochs)
    alone = learner()
    assert told(alone.learn(whole)) == told(report)
    assert same(alone, many)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["checkpoint.safetensors"]


def test_a_run_that_is_stopped_goes_on_with_what_is_missing(
    two: clnp.Workers, tmp_path: Path
) -> None:
    class Stop(Heard):
        def on_epoch_end(self, lt: clnp.Learner, record: dict[str, Any]) -> None:
            super().on_epoch_end(lt, record)
            if record["epoch"] == 3 and self.wanted:
                self.wanted = False
                raise KeyboardInterrupt

    stop = Stop()
    many = learner(workers=two, checkpoint_dir=tmp_path, callbacks=[stop])
    with pytest.raises(KeyboardInterrupt):
        many.learn(blobs(0))
    assert two._executor is None
    files = sorted(p.name for p in (tmp_path / "progress").glob("point-*"))
    assert files
    stop.epochs.clear()
    many.workers = clnp.Workers(1)  # any number of workers goes on
    report = many.learn(blobs(0))
    done = {int(name[6]) for name in files}
    assert done.isdisjoint(record["point"] for record in stop.epochs)
    assert done | {record["point"] for record in stop.epochs} == {0, 1, 2, 3}
    alone = learner()
    assert told(alone.learn(blobs(0))) == told(report)
    assert same(alone, many)


def test_data_that_can_not_be_sent_is_refused(two: clnp.Workers) -> None:
    class Local(Unlucky):
        pass

    task = blobs(0)
    data = Local(task, Path("nowhere"))
    local = Task("local", data, task.validation, task.test, classes=3, cache_bytes=0)
    many = learner(workers=two)
    with pytest.raises(ConfigError, match="can't be sent to a worker process"):
        many.learn(local)
    assert not many.model.in_task
    assert learner().learn(local).test > 0.5


def test_a_single_point_needs_no_worker() -> None:
    before = multiprocessing.active_children()
    learner(workers=4, grid=None, lr=0.01).learn(blobs(0))
    assert multiprocessing.active_children() == before
