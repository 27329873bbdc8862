"""Advice in error messages about data: followed, it makes valid data with the right labels."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from clnp.data import Task
from clnp.errors import DataError

WANTED = [0, 1, 2, 1, 0, 2]
T, N = torch.tensor(WANTED), np.array(WANTED)
X = torch.rand(6, 4)

# What came as y -> the labels that it means.
LABELS: dict[str, Any] = {
    "column": T[:, None],
    "column of floats": T[:, None].float(),
    "one-hot": torch.nn.functional.one_hot(T),
    "one-hot floats": torch.nn.functional.one_hot(T).double(),
    "floats": T.float(),
    "numpy column": N[:, None],
    "numpy column of floats": N[:, None].astype(float),
    "numpy one-hot": np.eye(3)[N],
    "numpy floats": N.astype(np.float32),
}


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        Task("t", *arguments, **options)
    return str(caught.value)


def expression(message: str) -> str:
    """Return the expression or the statements that a message advises."""
    found = re.search(r"(?:convert with|move with|in every split:|;) ([xy].*|classes, .*)", message)
    assert found, message
    return found[1].split("; or ")[0].removesuffix(" turns images into pixels in [0, 1]")


@pytest.mark.parametrize("kind", LABELS)
def test_advice_for_labels(kind: str) -> None:
    message = refused((X, LABELS[kind]), (X, T), (X, T))
    y = eval(expression(message), {"y": LABELS[kind]})
    task = Task("t", (X, y), (X, T), (X, T))
    assert task.tensors("train")[1].tolist() == WANTED


@pytest.mark.parametrize(
    "y",
    [
        torch.tensor([[1, 1, 0], [0, 1, 0]] * 3),
        torch.rand(6, 3),
        torch.rand(6),
        torch.zeros(6, 3).long(),
        torch.zeros(6, 1, 1).long(),
        torch.tensor([0.0, 1.0, torch.nan] * 2),
        np.eye(3)[N] * 2,
    ],
    ids=["several", "soft", "regression", "none", "cube", "NaN", "twice"],
)
def test_what_is_no_class_gets_no_advice(y: Any) -> None:
    message = refused((X, y), (X, T), (X, T))
    assert "Task(..., loss=" in message
    assert "argmax" not in message
    assert "long()" not in message


@pytest.mark.parametrize("offset", [1, -1, 3], ids=["from 1", "from -1", "from 3"])
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_advice_for_numbers(offset: int, step: int, kind: str) -> None:
    """Splits with different classes are numbered alike."""
    splits = [T, torch.tensor([2, 1, 2, 1, 2, 1]), torch.tensor([0, 0, 0, 2, 2, 2])]
    given = [offset + step * y for y in splits]
    if kind == "numpy":
        given = [y.numpy() for y in given]
    message = refused(*((X, y) for y in given))
    names = ("y_train", "y_validation", "y_test")
    scope = {"torch": torch, "np": np, **dict(zip(names, given, strict=True))}
    code = message.split("in every split: ")[1].split("; or keep")[0]
    exec(code, scope)
    task = Task("t", *((X, scope[name]) for name in names))
    assert [task.tensors(s)[1].tolist() for s in ("train", "validation", "test")] == [
        y.tolist() for y in splits
    ]
    if offset > 0:
        assert f"classes={offset + 2 * step + 1}" in message
        kept = Task("t", *((X, y) for y in given), classes=offset + 2 * step + 1)
        assert kept.tensors("train")[1].tolist() == given[0].tolist()


def test_advice_for_class_names() -> None:
    words = np.array(["cat", "dog", "bird"])[N]
    message = refused((X, words), (X, words), (X, words))
    scope = dict.fromkeys(("y_train", "y_validation", "y_test"), words) | {"np": np}
    exec(message.split("in every split: ")[1], scope)
    task = Task("t", *((X, scope[y]) for y in ("y_train", "y_validation", "y_test")))
    assert task.tensors("train")[1].tolist() == np.array([1, 2, 0])[N].tolist()


@pytest.mark.parametrize(
    "x",
    [
        torch.randint(0, 256, (6, 4), dtype=torch.uint8),
        torch.rand(6, 4).half(),
        np.arange(24, dtype=np.uint8).reshape(6, 4),
    ],
    ids=["uint8", "half", "numpy uint8"],
)
def test_advice_for_inputs(x: Any) -> None:
    message = refused((x, T), (X, T), (X, T))
    found = eval(expression(message), {"x": x})
    task = Task("t", (found, T), (X, T), (X, T))
    wanted = np.asarray(x).astype(np.float32) / (255 if "255" in message else 1)
    np.testing.assert_allclose(task.tensors("train")[0].numpy(), wanted)


class Labelled(Dataset[Any]):
    """Items with any labels; `transform` is a target_transform."""

    def __init__(self, labels: Any, transform: Any = None) -> None:
        self.labels, self.transform = labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, Any]:
        y = self.labels[i]
        return torch.full((4,), float(i)), self.transform(y) if self.transform else y


@pytest.mark.parametrize("kind", LABELS)
def test_advice_for_labels_of_items(kind: str) -> None:
    message = refused(Labelled(LABELS[kind]), (X, T), (X, T))
    assert "item 0" in message
    code = message.split("; return ")[1]
    repaired = Labelled(LABELS[kind], lambda y: eval(code, {"y": y}))
    task = Task("t", repaired, (X, T), (X, T))
    assert [task.items("train")[i][1].item() for i in range(6)] == WANTED


@pytest.mark.parametrize("y", [torch.tensor([1, 1, 0]), None, True, "cat", torch.rand(3), -1, 0.5])
def test_labels_of_items_that_are_no_class(y: Any) -> None:
    message = refused(Labelled([y]), (X, T), (X, T))
    assert "y of item 0" in message
    assert "argmax" not in message


def test_advice_for_numbers_of_items() -> None:
    task = Task("t", *(Labelled([3, 4, 6, 4]) for _ in range(3)))
    with pytest.raises(DataError, match="without gaps, got 3, 4, 6;") as caught:
        _ = task.num_classes
    code = str(caught.value).split("target_transform=")[1].split("; or")[0]
    task = Task("t", *(Labelled([3, 4, 6, 4], eval(code)) for _ in range(3)))
    assert task.num_classes == 3
    assert [task.items("test")[i][1].item() for i in range(4)] == [0, 1, 2, 1]
    assert "classes=7" in str(caught.value)
    assert Task("t", *(Labelled([3, 4, 6, 4]) for _ in range(3)), classes=7).num_classes == 7
