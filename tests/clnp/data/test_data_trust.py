"""Data is identified by its content: other data under a learned task's name is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset

import clnp
from clnp import methods
from clnp.data import Images, Task
from clnp.data.fingerprint import TaskData
from clnp.data.task import task_data
from clnp.errors import CheckpointError, DataError
from clnp.files.checkpoint import read, write
from clnp.learner import learned_data
from tests.clnp.cases import blobs, convert, mlp
from tests.clnp.data.test_items import SPLITS, Noisy, learner

LOADS = {"clnp": clnp.Learner.load, "method": methods.load}
NAMES = ("cat", "dog", "bird")
Pair = tuple[Tensor, Tensor]


def with_split(task: Task, split: str, change: Callable[[Tensor, Tensor], Any]) -> Task:
    x, y = task.split(split)
    return dataclasses.replace(task, **{split: change(x.clone(), y.clone())})


def flipped(x: Tensor, y: Tensor) -> Pair:
    y[17] = (y[17] + 1) % 3
    return x, y


def nudged(x: Tensor, y: Tensor) -> Pair:
    x[31, 5] = torch.nextafter(x[31, 5], torch.tensor(9.0))
    return x, y


def renumbered(x: Tensor, y: Tensor) -> Pair:
    return x, (y + 1) % 3


CHANGES: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "one label": (flipped, "other labels"),
    "all labels": (renumbered, "other labels"),
    "one bit of one input": (nudged, "other inputs"),
    "both": (lambda x, y: nudged(*flipped(x, y)), "other inputs and other labels"),
    "order": (lambda x, y: (x.flip(0), y.flip(0)), "the same examples in another order"),
    "size": (lambda x, y: (x[:-1], y[:-1]), "79 examples instead of 80"),
    "columns": (lambda x, y: (x.flip(1), y), "other inputs"),
}


@pytest.fixture(scope="module", params=LOADS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a load function and the file of a learner of two tasks."""
    folder = tmp_path_factory.mktemp(request.param)
    lt = learner(request.param)
    for k in range(2):
        lt.learn(dataclasses.replace(blobs(k), class_names=NAMES))
    lt.save(folder / "file")
    return LOADS[request.param], folder / "file"


def again() -> list[Task]:
    return [dataclasses.replace(blobs(k), class_names=NAMES) for k in range(2)]


def test_the_same_data_is_taken(saved: Any) -> None:
    load, file = saved
    lt = load(file, tasks=again())
    report = lt.learn(blobs(2))
    assert not np.isnan(report.row).any()
    # Names that were not told before, or are not told now, are no difference.
    load(file, tasks=[blobs(0), blobs(1)])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("change", CHANGES)
def test_other_data_of_the_same_name_is_refused(saved: Any, change: str, split: str) -> None:
    load, file = saved
    tasks = again()
    tasks[1] = with_split(tasks[1], split, CHANGES[change][0])
    with pytest.raises(DataError) as caught:
        load(file, tasks=tasks)
    difference = f"{split}: {CHANGES[change][1]}; pass the same data"
    assert f"tasks[1]: expected 'blobs-1' as it was learned, got {difference}" in str(caught.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("dog", "cat", "bird"), "another order of classes: dog, cat, bird instead of cat"),
        (("cat", "dog", "fish"), "other class names: cat, dog, fish instead of cat"),
    ],
)
def test_other_class_names_are_refused(saved: Any, names: tuple[str, ...], message: str) -> None:
    load, file = saved
    tasks = again()
    tasks[0] = dataclasses.replace(tasks[0], class_names=names)
    with pytest.raises(DataError, match=message):
        load(file, tasks=tasks)


def test_files_without_fingerprints_say_so(saved: Any, tmp_path: Path) -> None:
    load, file = saved
    kind = "learner" if load == clnp.Learner.load else "method"
    tensors, data = read(file, kind)
    for report in data["reports"]:
        del report["data"]
    write(tmp_path / "older", kind, tensors, data)
    load(tmp_path / "older")
    with pytest.raises(
        CheckpointError, match=r"expected fingerprints of its data.*load without tasks"
    ):
        load(tmp_path / "older", tasks=again())


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("which", LOADS)
@pytest.mark.parametrize("split", SPLITS)
def test_a_fit_on_other_data_is_not_gone_on_with(which: str, split: str, tmp_path: Path) -> None:
    """A saved fit of the task in training belongs to all of the task's data."""

    class Stopper:
        def on_epoch_end(self, *_: Any) -> None:
            raise StoppedError

    class Listener:
        resumed = 0

        def on_resume(self, *_: Any) -> None:
            self.resumed += 1

    for task, resumed in ((blobs(0), 1), (with_split(blobs(0), split, nudged), 0)):
        folder = tmp_path / str(resumed)
        heard = Listener()
        torch.manual_seed(0)
        if which == "clnp":
            lt: Any = clnp.Learner(convert(mlp([20])), epochs=2, checkpoint_dir=folder)
        else:
            options: dict[str, Any] = {"head": "multi", "epochs": 2, "checkpoint_dir": folder}
            lt = methods.make("finetune", mlp([20]), torch.zeros(1, 12), **options)
        lt._progress.interval = 0.0
        lt.callbacks = [Stopper()]
        with pytest.raises(StoppedError):
            lt.learn(blobs(0))
        lt.callbacks = [heard]
        lt.learn(task)
        assert heard.resumed == resumed


# Fingerprints


def data_of(x: Tensor, y: Tensor) -> TaskData:
    return task_data(Task("t", (x, y), (x, y), (x, y), classes=5))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_change_of_a_value_shows(data: st.DataObject) -> None:
    rows = data.draw(st.integers(2, 9))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    x = torch.arange(rows * 6).view(rows, 2, 3).to(dtype)
    y = torch.arange(rows) % 3
    before = data_of(x, y)
    assert before.differences(data_of(x.clone(), y.clone())) == []
    # Memory layout is no content.
    assert before.differences(data_of(x.transpose(1, 2).contiguous().transpose(1, 2), y)) == []
    i, j, k = (data.draw(st.integers(0, n - 1)) for n in x.shape)
    changed = x.clone()
    changed[i, j, k] = -1
    assert before.differences(data_of(changed, y)) == [f"{s}: other inputs" for s in SPLITS]
    labels = y.clone()
    labels[i] = 4
    assert before.differences(data_of(x, labels)) == [f"{s}: other labels" for s in SPLITS]
    order = torch.tensor(data.draw(st.permutations(range(rows))))
    wanted = [f"{s}: the same examples in another order" for s in SPLITS]
    same = torch.equal(order, torch.arange(rows))
    assert before.differences(data_of(x[order], y[order])) == ([] if same else wanted)


class Plain(Dataset[Any]):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> Any:
        return self.x[i], self.y[i]


class Own(Noisy):
    """Draws from its own generator, which is never seeded."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.generator = np.random.default_rng()

    def __getitem__(self, i: int) -> Any:
        return self.x[i] + float(self.generator.normal()), int(self.y[i])


def test_data_sets_are_known_by_their_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clnp.data.scan.MOST_ROWS", 7)
    source = blobs(0)

    def of(kind: Any, change: Any = lambda x, y: (x, y), **options: Any) -> TaskData:
        splits = (kind(*change(*map(torch.clone, source.tensors(s)))) for s in SPLITS)
        return task_data(Task("t", *splits, classes=3, **options))

    plain = of(Plain)
    assert plain.differences(task_data(source)) == []
    assert plain.differences(of(Plain, nudged)) == [f"{s}: other inputs" for s in SPLITS]
    assert plain.differences(of(Plain, flipped)) == [f"{s}: other labels" for s in SPLITS]
    # What is drawn from the global generators is drawn with fixed seeds, whoever reads.
    noisy = of(Noisy)
    assert noisy.splits["train"].random
    assert noisy.differences(of(Noisy, num_workers=2)) == []
    assert noisy.differences(of(Noisy, lambda x, y: (x + 1, y))) == [
        f"{s}: other inputs" for s in SPLITS
    ]
    # What can't be repeated is left out, and says so.
    own = of(Own)
    assert own.splits["train"].inputs == ""
    assert own.differences(of(Own)) == []
    assert own.differences(of(Own, flipped)) == [f"{s}: other labels" for s in SPLITS]


def test_images_are_known_by_their_pixels_whatever_augmentation_draws() -> None:
    pixels = torch.arange(10 * 3 * 6 * 6).remainder(251).to(torch.uint8).view(10, 3, 6, 6)
    labels = torch.arange(10) % 2
    constants = (0.5,) * 3, (0.5,) * 3

    def of(pixels: Tensor, augment: bool = True) -> TaskData:
        images = Images(pixels, labels, constants, augment=augment)
        plain = Images(pixels, labels, constants)
        return task_data(Task("t", images, plain, plain))

    state = torch.get_rng_state()
    data = of(pixels)
    assert data.differences(of(pixels)) == []
    assert torch.equal(state, torch.get_rng_state())
    changed = pixels.clone()
    changed[4, 1, 2, 3] += 1
    assert data.differences(of(changed)) == [f"{s}: other inputs" for s in SPLITS]
    assert data.differences(of(pixels, augment=False)) == [
        "train: inputs are drawn at random no more"
    ]


def test_fingerprints_are_json() -> None:
    data = task_data(dataclasses.replace(blobs(0), class_names=NAMES))
    assert TaskData.from_json(json.loads(json.dumps(data.to_json()))) == data


# Rows of the accuracy matrix


def test_earlier_tests_are_read_again_only_if_the_network_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lt = learner("clnp", infer_tasks=False)
    lt.learn(blobs(0))
    measured: list[Any] = []
    measure = learned_data.measured
    monkeypatch.setattr(
        learned_data, "measured", lambda *args: measured.append(1) or measure(*args)
    )
    row = lt.learn(blobs(1)).row
    assert len(measured) == 1
    assert row[0] == lt.reports[0].test
    # A network that moved is measured, not believed.
    with torch.no_grad():
        for layer in lt.model.masked_layers.values():
            layer.active_weight.zero_()
    row = lt.learn(blobs(2)).row
    assert len(measured) == 4
    assert row[0] < lt.reports[0].test
