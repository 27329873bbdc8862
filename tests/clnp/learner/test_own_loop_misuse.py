"""Misuse of the calls around a training loop of one's own: the right result, or an error of `clnp`
before anything has changed.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import clnp
from clnp.errors import ClnpError, ConfigError, DataError
from clnp.network.model import Model
from clnp_kernels.optim import AdamL1
from tests.clnp.cases import blobs, convert, mlp

TASK = blobs(0)
X, Y = TASK.train  # type: ignore[misc]


def begun(net: nn.Module | None = None) -> Model:
    torch.manual_seed(0)
    model = convert(net or mlp([24, 24]))
    clnp.begin_task(model)
    return model


def train(model: Model, steps: int = 30) -> AdamL1:
    optimizer = AdamL1(clnp.parameter_groups(model, 1e-4), lr=0.01)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
    return optimizer


def learned() -> Model:
    model = begun()
    train(model)
    clnp.prune(model, TASK.train, TASK.validation, margin=0.05)
    clnp.consolidate(model)
    return model


class Items(Dataset[Any]):
    """Items made by a function of their index."""

    def __init__(self, make: Callable[[int], Any], length: int = len(X)) -> None:
        self.make, self.length = make, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(X, Y, strict=True))


PAIRS = r"expected \(x, y\) or a torch Dataset of such pairs, got "
SPLITS: dict[str, tuple[Any, str]] = {
    "loader": (lambda: DataLoader(TensorDataset(X, Y)), r"DataLoader.*pass the loader's \.dataset"),
    "generator": (lambda: (pair for pair in zip(X, Y, strict=True)), "got generator.*torch.cat"),
    "None": (lambda: None, "got NoneType"),
    "x alone": (lambda: X, "got Tensor"),
    "three tensors": (lambda: (X, Y, Y), f"{PAIRS}3 elements"),
    "no tensors": (lambda: (), f"{PAIRS}0 elements"),
    "empty tensors": (
        lambda: (X[:0], Y[:0]),
        r"x: expected at least one sample, got shape \[0, 12\]",
    ),
    "without a length": (lambda: Stream(), "without items or without a length"),
    "empty set": (lambda: Items(lambda i: (X[i], 0), 0), "without items"),
    "dictionaries": (
        lambda: Items(lambda i: {"x": X[i], "y": Y[i]}),
        f"{PAIRS}items of type dict of 2; wrap the Dataset",
    ),
    "three of an item": (lambda: TensorDataset(X, Y, Y), f"{PAIRS}items of type tuple of 3; wrap"),
    "no pairs": (lambda: Items(lambda i: X[i]), f"{PAIRS}items of type Tensor; wrap"),
    "a class too many": (
        lambda: Items(lambda i: (X[i], 7)),
        "expected labels from 0 to 2, .*got 7 at index 0",
    ),
    "numbers for classes": (
        lambda: (X, Y.float()),
        r"y: expected integer labels .*got float32; convert with y\.long\(\)",
    ),
    "rows for classes": (lambda: (X, F.one_hot(Y)), r"argmax\(1\)"),
    "items that fail": (lambda: Items(lambda i: (X[i], [0, 1, 2][i])), "item 3 can't be read"),
}


@pytest.mark.parametrize("which", ["train", "validation"])
@pytest.mark.parametrize("name", SPLITS)
def test_splits_that_are_none_are_refused(name: str, which: str) -> None:
    make, message = SPLITS[name]
    model = begun()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    splits = {"train": TASK.train, "validation": TASK.validation, which: make()}
    with pytest.raises(DataError, match=f"(?s){which}.*{message}"):
        clnp.prune(model, **splits)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


BEGINS: list[tuple[str, list[Any]]] = [
    ("classes", [0, -1, 2.5, "3", True]),
    ("generator", [5, torch.Generator, "cpu"]),
    ("most_new", [5, [1, 2], {"0": 0}, {"0": -1}, {"0": 2.5}, {"0": "a"}, {"x": 1}]),
]


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BEGINS for value in values]
)
def test_arguments_of_begin_task_are_checked_first(name: str, value: Any) -> None:
    model = learned()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError, match=rf"^{name}\b.*: expected .*, got "):
        clnp.begin_task(model, **{name: value})
    assert not model.in_task
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    clnp.begin_task(model)


@pytest.mark.parametrize(
    "use",
    [
        lambda: clnp.consolidate(begun(), name=5),  # type: ignore[arg-type]
        lambda: clnp.prune(begun(), TASK.train, TASK.validation, metric="f9"),
        lambda: clnp.prune(begun(), TASK.train, TASK.validation, metric=5),
        lambda: clnp.prune(begun(), TASK.train, TASK.validation, margin=float("nan")),
        lambda: clnp.prune(None, TASK.train, TASK.validation),  # type: ignore[arg-type]
        lambda: clnp.prune(torch.compile(begun()), TASK.train, TASK.validation),  # type: ignore[arg-type]
        lambda: clnp.parameter_groups(begun(), float("nan")),
        lambda: clnp.parameter_groups(begun(), [0.1]),
        lambda: convert(mlp([8])).predict(X),
        lambda: learned().predict(X, 5),  # type: ignore[arg-type]
        lambda: learned()(X, task="0"),
        lambda: clnp.Certificate().record(learned(), X[:, :3]),
        lambda: clnp.Certificate().record(learned(), None),  # type: ignore[arg-type]
    ],
)
def test_other_misuse_is_refused(use: Callable[[], Any]) -> None:
    with pytest.raises(ClnpError, match=r"expected .*got "):
        use()


def outcome(around: Callable[[], Any]) -> tuple[dict[str, Any], Model]:
    """The state after a task and in the next one, each call within `around()`."""
    torch.manual_seed(0)
    model = convert(mlp([24, 24]))
    with around():
        clnp.begin_task(model)
    train(model)
    with around():
        clnp.prune(model, TASK.train, TASK.validation, margin=0.05)
    train(model, 2)
    with around():
        clnp.consolidate(model)
        clnp.begin_task(model)
    train(model, 2)
    x = X.clone().requires_grad_()
    model(x, task=0).sum().backward()
    assert x.grad is not None
    return model.state_dict(), model


@pytest.mark.parametrize(
    "around",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        torch.enable_grad,
    ],
    ids=["no_grad", "inference_mode", "autocast", "enable_grad"],
)
def test_what_is_around_a_call_does_not_matter(around: Callable[[], Any]) -> None:
    wanted, _ = outcome(torch.enable_grad)
    got, model = outcome(around)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[key], value) for key, value in wanted.items())
    assert not any(p.is_inference() for p in [*model.parameters(), *model.buffers()])


def test_gradients_do_not_pass_into_the_next_task() -> None:
    torch.manual_seed(0)
    model = convert(mlp([24, 24]))
    for _ in range(2):
        F.cross_entropy(model(X), Y).backward()  # accumulated, and no step taken
        clnp.begin_task(model)
        assert all(p.grad is None for p in model.parameters())
        F.cross_entropy(model(X), Y).backward()
        model.cancel_task()


def test_a_first_task_that_failed_can_be_begun_again() -> None:
    model = begun()
    with torch.no_grad():
        model.layer_weight("2")[0, 0] = torch.nan
    model.cancel_task()
    clnp.begin_task(model)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    train(model)
    clnp.prune(model, TASK.train, TASK.validation, margin=0.05)
    clnp.consolidate(model)


def test_a_batch_of_one_in_batch_norm_tells_the_way_out() -> None:
    model = begun(
        nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    ).train()
    with pytest.raises(
        ValueError,
        match=r"^x\.shape: expected more than one value .*, got \[1, .*batch; drop_last=True",
    ):
        model(X[:1])
    assert torch.isfinite(model.eval()(X[:1])).all()
