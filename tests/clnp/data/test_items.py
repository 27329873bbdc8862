"""Data sets: every item is checked before training, and read no more often than needed."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset

import clnp
from clnp import methods
from clnp.data import Task, batches
from clnp.data.check import check_tasks, ready
from clnp.data.items import Items
from clnp.data.task import task_data
from clnp.errors import ConfigError, DataError, DataWarning
from tests.clnp.cases import blobs, convert, mlp

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"epochs": 2, "lr": 0.01, "batch_size": 32, "margin": 0.05}


class Counted(Dataset[Any]):
    """Count reads per item; `odd` maps rows to other items."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, odd: dict[int, Any] | None = None) -> None:
        self.x, self.y, self.odd = x, y, odd or {}
        self.reads: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> Any:
        self.reads[i] += 1
        if i in self.odd:
            if isinstance(self.odd[i], Exception):
                raise self.odd[i]
            return self.odd[i]
        return self.x[i], int(self.y[i])


class Noisy(Counted):
    """Items drawn from the global generators."""

    def __getitem__(self, i: int) -> Any:
        x, y = super().__getitem__(i)
        return x + torch.randn(()) + float(np.random.randn()) + random.random(), y


def of(kind: type[Counted] = Counted, seed: int = 0, **options: Any) -> Task:
    task = blobs(seed)
    return Task(task.name, *(kind(*task.tensors(s)) for s in SPLITS), **options)


SPLITS = ("train", "validation", "test")


def learner(which: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    if which == "clnp":
        return clnp.Learner(convert(mlp([20])), head="multi", **{**QUICK, **settings})
    return methods.make(
        "finetune", mlp([20]), torch.zeros(1, 12), head="multi", epochs=2, batch_size=32
    )


# Every item is checked before anything trains


NAN = torch.zeros(12)
NAN[3] = torch.nan
LABEL = "expected an integer class label from 0"
FIRST = "expected [12] float32 as in the first item"
ODD: dict[str, tuple[Any, str]] = {
    "None": (None, "item 7: expected (x, y), got NoneType"),
    "triple": ((torch.zeros(12), 0, 0), "item 7: expected (x, y), got 3 values"),
    "no tensor": (("image", 0), "x of item 7: expected a tensor, got str"),
    "x is None": ((None, 0), "x of item 7: expected a tensor, got NoneType"),
    "y is None": ((torch.zeros(12), None), f"y of item 7: {LABEL}, got None"),
    "size": ((torch.zeros(11), 0), f"x of item 7: {FIRST}, got [11] float32"),
    "rank": ((torch.zeros(3, 4), 0), f"x of item 7: {FIRST}, got [3, 4] float32"),
    "dtype": ((torch.zeros(12).double(), 0), f"x of item 7: {FIRST}, got [12] float64"),
    "bytes": ((torch.zeros(12, dtype=torch.uint8), 0), "x of item 7: expected float32"),
    "NaN": ((NAN, 0), "x of item 7: expected finite numbers, got nan at index [3]"),
    "Inf": ((torch.full((12,), torch.inf), 0), "finite numbers, got inf at index [0]"),
    "label": ((torch.zeros(12), 9), "got 9 at index"),
    "negative": ((torch.zeros(12), -1), f"y of item 7: {LABEL}, got -1"),
    "several": ((torch.zeros(12), torch.tensor([1, 1])), f"y of item 7: {LABEL}, got shape [2]"),
    "error": (KeyError("lost"), "item 7 can't be read: KeyError: 'lost'"),
    "file": (OSError("image file is truncated"), "item 7 can't be read: OSError"),
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", ODD)
def test_an_odd_item_is_found_before_training(kind: str, split: str) -> None:
    odd, message = ODD[kind]
    source = blobs(0)
    parts = {s: Counted(*source.tensors(s)) for s in SPLITS}
    parts[split] = Counted(*source.tensors(split), odd={7: odd})
    task = Task("t", **parts, classes=3)
    heard: list[int] = []
    listener = type("Listener", (), {"on_task_begin": lambda *_: heard.append(1)})()
    for which in ("clnp", "method"):
        lt = learner(which)
        lt.callbacks.append(listener)
        with pytest.raises(DataError) as caught:
            lt.learn(task)
        assert f"task 't', {split}" in str(caught.value)
        assert message in str(caught.value)
        assert heard == []
    with pytest.raises(DataError) as caught:
        check_tasks([task])
    assert message in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing_but_the_time(workers: int) -> None:
    """Batches, order and random draws are the same in workers, and errors are DataErrors."""
    source = blobs(0).tensors("train")
    items = Items(Noisy(*source), num_workers=workers)
    chunks = [[3, 1], [2], [9, 8, 7]]
    state = torch.get_rng_state(), random.getstate()
    found = list(items.batches(chunks, seed=5))
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1] == random.getstate()
    wanted = list(Items(Noisy(*source)).batches(chunks, seed=5))
    for (x, y), (x0, y0) in zip(found, wanted, strict=True):
        assert torch.equal(x, x0)
        assert torch.equal(y, y0)
    bad = Items(Counted(*source, odd={8: ValueError("torn")}), "task 't', test", workers)
    with pytest.raises(DataError, match=r"task 't', test: item 8 can't be read: ValueError: torn"):
        list(bad.batches(chunks))


class Ends(Counted):
    def __getitem__(self, i: int) -> Any:
        if torch.utils.data.get_worker_info() is not None:
            import os

            os._exit(1)
        return super().__getitem__(i)


def test_a_worker_that_ends_is_a_data_error() -> None:
    items = Items(Ends(*blobs(0).tensors("train")), "task 't', train", num_workers=1)
    with pytest.raises(DataError, match="task 't', train: a process that reads items ended"):
        list(items.batches([[0, 1]]))


def test_learning_with_workers_gives_the_same_bits() -> None:
    found = []
    for workers in (0, 2):
        lt = learner("clnp", epochs=1)
        lt.learn(of(Noisy, num_workers=workers, cache_bytes=0, classes=3))
        found.append(lt.model.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


# Reading


@pytest.mark.parametrize("which", ["clnp", "method"])
def test_items_are_read_at_most_twice(which: str) -> None:
    """Validation items once (the first and last few twice), training items twice."""
    lt = learner(which, epochs=5)
    for k in range(2):
        task = of(seed=k, classes=3)
        lt.learn(task)
        for split in SPLITS:
            reads = task.split(split).reads.copy()
            reads[0] -= 1  # when the task was made
            assert len(reads) == task.size(split)
            assert max(reads.values()) <= 2
        reads = task.validation.reads
        assert max(reads.values()) <= 2
        assert sum(n == 1 for n in reads.values()) >= len(reads) - 9


def test_a_limit_of_memory_is_kept() -> None:
    task = of(classes=3, cache_bytes=0)
    made = ready(task)
    assert all(isinstance(made.split(s), Items) for s in SPLITS)
    bytes_of = {s: task.size(s) * 12 * 4 for s in SPLITS}
    made = ready(of(classes=3, cache_bytes=bytes_of["validation"]))
    assert [isinstance(made.split(s), tuple) for s in SPLITS] == [False, True, False]


def test_kept_items_are_those_of_the_data_set() -> None:
    task = of(classes=3)
    made, source = ready(task), blobs(0)
    for split in SPLITS:
        for got, wanted in zip(made.split(split), source.split(split), strict=True):
            assert torch.equal(got, wanted)


def test_training_items_that_change_are_never_kept() -> None:
    task = of(Noisy, classes=3)
    assert isinstance(ready(task).train, Items)
    assert task_data(task).splits["train"].random
    # One item in forty that changes now and then is found too.
    rare = type("Rare", (Counted,), {"__getitem__": lambda self, i: rarely(self, i)})
    assert isinstance(ready(of(rare, classes=3)).train, Items)
    assert isinstance(ready(of(rare, classes=3, fixed_items=True)).train, tuple)


def rarely(data: Counted, i: int) -> Any:
    x, y = data.x[i], int(data.y[i])
    return (x + torch.rand(()) if i == 2 else x), y


def test_a_pass_in_order_repeats_and_a_shuffled_one_does_not() -> None:
    items = Items(Noisy(*blobs(0).tensors("train")))
    first, again = (torch.cat([x for x, _ in batches.batches(items, 30, CPU)]) for _ in range(2))
    assert torch.equal(first, again)
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(7)
        orders.append(torch.cat([x for x, _ in batches.batches(items, 30, CPU, generator)]))
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_numpy_items_are_taken() -> None:
    source = blobs(0)
    odd = {i: (source.train[0][i].numpy(), np.int32(source.train[1][i])) for i in range(1, 80, 2)}
    task = Task("t", Counted(*source.train, odd=odd), source.validation, source.test)
    assert torch.equal(ready(task).train[0], source.train[0])
    assert learner("clnp").learn(task).test > 0.3


# A whole stream


def test_streams_are_checked_as_a_whole() -> None:
    check_tasks([blobs(0), blobs(1)])
    images = torch.zeros(6, 3, 8, 8), torch.arange(6) % 3
    cases: list[tuple[list[Any], str]] = [
        (
            [blobs(0), Task("images", images, images, images)],
            r"expected sample_shape .* got \(3, 8, 8\)",
        ),
        (
            [blobs(0), blobs(1, dtype=torch.float64)],
            "expected dtype torch.float32 .* got torch.float64",
        ),
        ([blobs(0), blobs(1), blobs(0)], r"tasks\[2\]: expected .* got 'blobs-0' as in tasks\[0\]"),
        ([blobs(0), blobs(1).train], r"tasks\[1\]: expected a clnp.data.Task, got tuple"),
    ]
    for tasks, message in cases:
        with pytest.raises(DataError, match=message):
            check_tasks(tasks)


@pytest.mark.parametrize("which", ["clnp", "method"])
def test_a_name_is_learned_once(which: str) -> None:
    lt = learner(which)
    lt.learn(blobs(0))
    with pytest.raises(DataError, match=r"expected a new name, got .blobs-0"):
        lt.learn(blobs(0))
    assert len(lt.reports) == 1


def test_classes_without_training_examples_are_told() -> None:
    x, y = blobs(0).train
    few = x[y < 2], y[y < 2]
    task = Task("t", few, (x, y), few)
    with pytest.warns(
        DataWarning, match=r"validation: expected classes of the train split, got class 2"
    ):
        check_tasks([task])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_tasks([task])  # once is enough


def test_a_long_pass_is_no_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("clnp.data.scan.PATIENCE", 0.0)
    task_data(of(classes=3))
    told = capsys.readouterr().err
    assert "task 'blobs-0', validation" in told
    assert "80 of 80 items checked" in told


# What data sets say of themselves


class Told(Counted):
    """Items with torchvision's attributes."""

    def __init__(self, *args: Any, classes: Any = None, targets: Any = None) -> None:
        super().__init__(*args)
        if classes is not None:
            self.classes = classes
        if targets is not None:
            self.targets = targets


def told(classes: Any, shift: int = 0, *, targets: bool = True) -> Task:
    source = blobs(0)
    return Task(
        "t",
        *(
            Told(*source.tensors(s), classes=classes,
                 targets=(source.tensors(s)[1] + shift).tolist() if targets else None)
            for s in SPLITS
        ),
    )  # fmt: skip


NAMES = ["cat", "dog", "bird"]


def test_items_count_not_what_is_said_of_them() -> None:
    """`targets` are 10 to 12, with a target_transform to 0 to 2."""
    task = told([f"class {i}" for i in range(13)], shift=10)
    assert task.num_classes == 3
    assert task_data(task).class_names is None
    assert learner("clnp").learn(task).test > 0.3


@pytest.mark.parametrize(
    ("classes", "options", "wanted"),
    [
        (NAMES, {}, tuple(NAMES)),
        (NAMES, {"targets": False}, tuple(NAMES)),
        ([*NAMES, "fish"], {}, (*NAMES, "fish")),
        ([*NAMES, "fish"], {"targets": False}, None),
        (NAMES, {"shift": 1}, None),
        ([0, 1, 2], {}, None),
        (["cat", "cat", "dog"], {}, None),
        (NAMES[:2], {}, None),
    ],
)
def test_class_names_are_taken_where_the_items_confirm_them(
    classes: Any, options: Any, wanted: Any
) -> None:
    data = task_data(told(classes, **options))
    assert data.class_names == wanted
    assert data.classes == len(wanted or NAMES)


def test_class_names_of_parts() -> None:
    task = told(NAMES)
    parts = [Subset(Subset(task.split(s), range(60)), range(5, 50, 2)) for s in SPLITS]
    assert task_data(Task("parts", *parts)).class_names == tuple(NAMES)


def test_splits_with_other_classes_are_refused() -> None:
    task, other = told(NAMES), told([*NAMES[1:], NAMES[0]])
    with pytest.raises(DataError, match=r"expected the classes of .* got others"):
        task_data(Task("t", task.train, task.validation, other.test))


@pytest.mark.parametrize(
    ("names", "classes", "message"),
    [
        ("abc", None, "distinct"),
        (["a", "a", "b"], None, "distinct"),
        (["a", 1, "b"], None, "distinct"),
        (["a", "b"], 3, "classes=3, got 2"),
        (["a", "b"], None, "since classes=2, got 2"),
    ],
)
def test_bad_class_names(names: Any, classes: Any, message: str) -> None:
    source = blobs(0)
    with pytest.raises(DataError, match=message):
        Task("t", source.train, source.validation, source.test, classes, names)


@pytest.mark.parametrize("which", ["clnp", "method"])
def test_class_names_reach_reports_and_predictions(which: str, tmp_path: Any) -> None:
    source = blobs(0)
    named = Task("a", source.train, source.validation, source.test, class_names=NAMES)
    lt = learner(which)
    assert lt.learn(named).class_names == tuple(NAMES)
    assert lt.learn(blobs(1)).class_names is None
    lt.save(tmp_path / "file")
    load = clnp.Learner.load if which == "clnp" else methods.load
    for each in (lt, load(tmp_path / "file")):
        assert each.reports[0].class_names == tuple(NAMES)
        found = each.predict(source.test[0], task=0)
        assert found.names == [NAMES[k] for k in found.label.tolist()]
        assert found.task.tolist() == [0] * len(found.label)
        assert torch.equal(found.label, each.model(source.test[0].clone(), task=0).argmax(1))
        assert each.predict(source.test[0], task=1).names == [None] * len(source.test[1])
    if which == "clnp":
        guessed, label = lt.model.predict(source.test[0], "entropy")
        found = lt.predict(source.test[0], rule="entropy")
        assert torch.equal(found.task, guessed)
        assert torch.equal(found.label, label)
        assert [n is None for n in found.names] == (guessed == 1).tolist()


class Sequences(torch.nn.Module):
    """Logits [B, T, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def test_methods_refuse_logits_of_another_rank() -> None:
    x = torch.zeros(2, 5, 4)
    assert clnp.convert(Sequences(), x, verbose=False)(x).shape == (2, 5, 3)
    with pytest.raises(ConfigError, match=r"expected logits \[B, C\]"):
        methods.make("finetune", Sequences(), x, head="multi")
