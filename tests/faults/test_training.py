"""Faults while a task is learned end in a clear error, and the learner is as it was: it
then learns the task as if nothing had happened.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import clnp
from clnp.data import Task
from clnp.errors import DataError, TrainingError, out_of_memory
from clnp.learner.learner import Learner
from clnp.pruning.search import ThresholdSearch
from clnp.training.fit import Fit
from tests.clnp.cases import blobs, convert, mlp

SETTINGS: dict[str, Any] = {"head": "single", "epochs": 2, "lr": 0.01, "batch_size": 32}


def learner(folder: Path | None = None) -> Learner:
    """A learner that has learned one task."""
    torch.manual_seed(0)
    made = Learner(convert(mlp([24])), checkpoint_dir=folder, **SETTINGS)
    made.learn(blobs(0))
    return made


def state(made: Learner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in made.model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Tensor]:
    """Return the state after two tasks without disturbance."""
    made = learner()
    made.learn(blobs(1))
    return state(made)


@pytest.fixture
def disturbed(
    undisturbed: dict[str, Tensor], tmp_path: Path
) -> Iterator[Callable[..., pytest.ExceptionInfo[Any]]]:
    """disturbed(error, task) -> what was raised; the learner is then as before, and learns."""
    made = learner(tmp_path)

    def attempt(error: type[Exception], task: Task | None = None) -> Any:
        before, reports = state(made), len(made.reports)
        with pytest.raises(error) as caught:
            made.learn(task or blobs(1))
        assert same(state(made), before)
        assert len(made.reports) == len(made.certificate) == reports
        assert all(verdict.identical for verdict in made.verify())
        assert not list(tmp_path.rglob("*.tmp"))
        return caught

    yield attempt
    made.learn(blobs(1))
    assert same(state(made), undisturbed)
    assert same(state(Learner.load(tmp_path)), undisturbed)


# Memory

NO_MEMORY = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    "cpu": RuntimeError("DefaultCPUAllocator: not enough memory: you tried 8 bytes"),
    "numpy": MemoryError("Unable to allocate 8 bytes"),
}


@pytest.mark.parametrize("kind", NO_MEMORY)
def test_no_memory_for_a_batch(kind: str, disturbed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step, steps = Fit._step, 0

    def refused(self: Fit, *args: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise NO_MEMORY[kind]
        return step(self, *args)

    monkeypatch.setattr(Fit, "_step", refused)
    caught = disturbed(TrainingError)
    assert caught.match("memory ran out.*batch_size below 32")
    assert caught.value.__cause__ is NO_MEMORY[kind]


def test_no_memory_in_the_search(disturbed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ThresholdSearch, "run", lambda *_: torch.empty(1 << 60))
        assert disturbed(TrainingError).match("memory ran out")


def test_what_is_no_lack_of_memory() -> None:
    assert not out_of_memory(RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert out_of_memory(caught.value)


# Numbers that are none


def test_loss_is_nan(disturbed: Any) -> None:
    x, y = blobs(1).train
    huge = Task("huge", (x / x.abs().max() * 3e38, y), (x, y), (x, y), classes=3)
    assert disturbed(TrainingError, huge).match("the loss became (nan|inf).*lower lr")


def test_weights_that_only_the_last_step_spoils(
    disturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every loss of the epoch is finite."""
    steps = Fit._steps

    def spoiled(self: Fit, *args: Any) -> Any:
        yield from steps(self, *args)
        with torch.no_grad():
            self.moving[0][0, 0] = float("nan")

    with monkeypatch.context() as patch:
        patch.setattr(Fit, "_steps", spoiled)
        assert disturbed(TrainingError).match("a weight is no longer finite in epoch 1")


class Items(Dataset[Any]):
    """A data set that makes its items on access, with possible failures."""

    def __init__(self, task: Task, odd: Callable[[Tensor], Tensor] | None = None) -> None:
        self.x, self.targets = task.train
        self.odd = odd

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        x = self.x[i]
        # Item 0 is looked at when a task is made.
        return (self.odd(x) if self.odd and i == 57 else x), int(self.targets[i])


def nan_item(x: Tensor) -> Tensor:
    return torch.full_like(x, float("nan"))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_items_that_are_nan(split: str, disturbed: Any) -> None:
    parts: dict[str, Any] = dict.fromkeys(("train", "validation", "test"), Items(blobs(1)))
    parts[split] = Items(blobs(1), nan_item)
    caught = disturbed(DataError, Task("odd", **parts, classes=3))
    assert caught.match(
        rf"task 'odd', {split}: x of item 57: expected finite numbers, got nan at index \[0\]"
    )


@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_activity_that_is_no_number(value: float) -> None:
    """Adopted without a training step, which would find it."""
    net = mlp([24])
    with torch.no_grad():
        net[0].weight[3] = value
        net[0].weight[3, 1:] = 0
    made = Learner(convert(net), head="single")
    with pytest.raises(TrainingError, match=r"^(activity of '0'|evaluation): expected .*, got NaN"):
        made.adopt(blobs(0))
    assert not made.reports


# Data sets that fail


def test_a_data_set_that_raises(disturbed: Any) -> None:
    """The data set's own error is the cause of a DataError that names split and item."""

    def gone(x: Tensor) -> Tensor:
        raise FileNotFoundError("image-57.png")

    items = Items(blobs(1))
    task = Task("odd", Items(blobs(1), gone), items, items, classes=3)
    caught = disturbed(DataError, task)
    assert caught.match("task 'odd', train: item 57 can't be read: FileNotFoundError: image-57")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


class FromWorker(Items):
    """Items of which one comes from a worker process that is killed."""

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if i != 57:
            return super().__getitem__(i)
        return next(iter(DataLoader(Killed(), num_workers=1)))


class Killed(Dataset[Any]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of fork beside threads
def test_a_loader_whose_worker_dies(disturbed: Any) -> None:
    items = Items(blobs(1))
    task = Task("odd", FromWorker(blobs(1)), items, items, classes=3)
    assert disturbed(DataError, task).match("item 57.*(exited unexpectedly|killed by signal)")


def test_images_that_vanish(tmp_path: Path) -> None:
    """Files are read by threads on access."""
    image = pytest.importorskip("PIL.Image")
    for name, shade in (("dark", 30), ("light", 220)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(12):
            picture = image.new("RGB", (8, 8), (shade, shade, shade + i))
            picture.save(tmp_path / "data" / name / f"{i}.png")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    model = clnp.convert(net, torch.zeros(1, 3, 8, 8), verbose=False)
    made = Learner(model, head="multi", epochs=1)
    task = clnp.data.folder_task(tmp_path / "data", image_size=8)
    before = state(made)
    for path in (tmp_path / "data" / "light").glob("*.png"):
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="can't be read as an image"):
        made.learn(task)
    assert same(state(made), before)


# The disk


def test_a_checkpoint_that_can_not_be_written(
    tmp_path: Path, undisturbed: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task is learned anyway, and can be saved once there is space."""
    made = learner(tmp_path)
    old = (tmp_path / "checkpoint.safetensors").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    made._progress.folder = None  # which would be full first
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(clnp.SaveError, match=r"No space left.*make room"):
            made.learn(blobs(1))
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == old
    assert len(made.reports) == 2
    made.save(tmp_path / "checkpoint.safetensors")
    assert same(state(Learner.load(tmp_path)), undisturbed)
