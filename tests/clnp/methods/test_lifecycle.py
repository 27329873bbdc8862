"""Every method learns, resumes bit by bit, saves, and refuses what it can't do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from clnp import methods
from clnp.data import Task
from clnp.errors import CheckpointError, ConfigError, DataError, TrainingError
from clnp.methods import METHODS, MethodLearner
from tests.clnp.cases import blobs, mlp

NAMES = list(METHODS)
QUICK: dict[str, Any] = {"epochs": 6, "lr": 0.01, "batch_size": 16}
# What small data needs: options that are made for many more steps.
OWN: dict[str, dict[str, Any]] = {
    "ewc": {"strength": 10.0, "fisher_examples": 0},
    "packnet": {"tasks": 3},
    "hat": {"lr": 0.2, "epochs": 12},
    "er": {"buffer": 40},
    "derpp": {"buffer": 40},
    "sparcl": {"sparsity": 0.5, "optimizer": "adam", "keep_gradients": 0.5, "buffer": 40},
    "co2l": {"buffer": 40},
    "sparcl-ewc": {"sparsity": 0.5, "optimizer": "adam", "keep_gradients": 0.5, "strength": 10.0},
    "sparcl-co2l": {"sparsity": 0.5, "optimizer": "adam", "keep_gradients": 0.5, "buffer": 40},
    "esacl": {"sparsity": 0.5, "sdp_lr": 1.0, "epochs": 8},
    "esacl-ewc": {"sparsity": 0.5, "strength": 0.1, "sdp_lr": 1.0, "epochs": 8},
    "esacl-co2l": {"sparsity": 0.5, "sdp_lr": 1.0, "keep": 0.7, "epochs": 8, "buffer": 40},
}


class KilledError(Exception):
    """Stands in for a kill."""


class KillAfter:
    """Stops a run after so many epochs of a task."""

    def __init__(self, task: int, epochs: int) -> None:
        self.task, self.epochs, self.seen = task, epochs, 0

    def on_task_begin(self, learner: MethodLearner, index: int, *_: Any) -> None:
        self.seen = 0 if index == self.task else -100

    def on_epoch_end(self, learner: MethodLearner, record: dict[str, Any]) -> None:
        self.seen += 1
        if self.seen == self.epochs:
            raise KilledError


def make(name: str, net: nn.Module | None = None, **settings: Any) -> MethodLearner:
    torch.manual_seed(0)
    net = net or mlp([40, 30], dropout=0.1)
    return methods.make(
        name, net, torch.zeros(1, 12), **{"head": "multi", **QUICK, **OWN.get(name, {}), **settings}
    )


def learn_all(learner: MethodLearner, tasks: Sequence[Task]) -> None:
    for task in tasks:
        learner.learn(task)


def numbers(learner: MethodLearner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner._tensors().items()}


def assert_same(a: MethodLearner, b: MethodLearner) -> None:
    """All that the two remember is equal, bit for bit, and so is all that they report but times."""
    assert [(r.row, r.history) for r in a.reports] == [(r.row, r.history) for r in b.reports]
    untimed = [[{**c, "seconds": 0} for c in lt.cost] for lt in (a, b)]
    assert untimed[0] == untimed[1]
    first, second = numbers(a), numbers(b)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        same = torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(second[name]))
        assert same, f"{name} differs by {float((tensor - second[name]).abs().max())}"


@pytest.mark.parametrize("head", ["single", "multi"])
@pytest.mark.parametrize("name", NAMES)
def test_two_tasks_are_learned(name: str, head: str) -> None:
    lt = make(name, head=head)
    for k in range(2):
        report = lt.learn(blobs(k))
        assert report.test == report.row[k] > 0.85
        assert len(report.history) == lt.shared.epochs
        assert report.capacity == {}
    R = lt.accuracy_matrix
    assert R.shape == (2, 2)
    assert np.isnan(R[0, 1])
    for cost in lt.cost:
        assert cost["flops"] > 0
        assert 0 < cost["examples"] <= 2 * lt.shared.epochs * 80
        assert cost["peak_memory"] > 0
        assert cost["seconds"] > 0
    x, y = blobs(0).test
    assert (
        lt.evaluate((x, y), task=0) == R[1, 0] == (lt.predict(x, task=0).label == y).float().mean()
    )
    assert torch.equal(lt.model(x, task=0).argmax(1), lt.predict(x, 0).label)
    assert lt.verify() == []


@pytest.mark.parametrize("head", ["single", "multi"])
@pytest.mark.parametrize("name", NAMES)
def test_networks_of_one_layer_and_without_biases(name: str, head: str) -> None:
    """Where the only layer is a head nothing is shared; without biases an optimizer is empty."""
    for net in (nn.Linear(12, 3), mlp([10], bias=False)):
        lt = make(name, net, head=head, epochs=1)
        for k in range(2):
            assert 0 <= lt.learn(blobs(k)).test <= 1


@pytest.mark.parametrize("kill", [(0, 3), (1, 4)], ids=["first", "second"])
@pytest.mark.parametrize("name", NAMES)
def test_a_killed_run_resumes_bit_by_bit(name: str, kill: tuple[int, int], tmp_path: Path) -> None:
    tasks, few = [blobs(0), blobs(1)], {"epochs": 5}
    whole = make(name, **few)
    learn_all(whole, tasks)

    killed = make(name, **few, checkpoint_dir=tmp_path, callbacks=[KillAfter(*kill)])
    killed._progress.interval = 0.0
    with pytest.raises(KilledError):
        learn_all(killed, tasks)
    assert list((tmp_path / "progress").iterdir())

    if (tmp_path / "checkpoint.safetensors").exists():
        again = methods.load(tmp_path, tasks=tasks, checkpoint_dir=tmp_path)
    else:
        again = make(name, **few, checkpoint_dir=tmp_path)
    learn_all(again, tasks[len(again.reports) :])
    assert_same(whole, again)
    assert not (tmp_path / "progress").exists()


@pytest.mark.parametrize("name", ["scratch", "joint", "si", "packnet", "sparcl", "esacl-co2l"])
def test_an_interrupted_task_leaves_the_learner_as_it_was(name: str) -> None:
    lt, other = make(name), make(name)
    for each in (lt, other):
        each.learn(blobs(0))
    lt.callbacks.append(KillAfter(1, 2))
    before = numbers(lt)
    with pytest.raises(KilledError):
        lt.learn(blobs(5))
    after = numbers(lt)
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(after[key])), key
    lt.callbacks.clear()
    for each in (lt, other):
        each.learn(blobs(1))
    assert_same(lt, other)


@pytest.mark.parametrize("name", ["scratch", "derpp", "esacl-co2l"])
def test_save_and_load(name: str, tmp_path: Path) -> None:
    tasks = [blobs(0), blobs(1)]
    lt = make(name)
    lt.learn(tasks[0])
    lt.save(tmp_path / "m.safetensors")
    again = methods.load(tmp_path / "m.safetensors", tasks=tasks)
    assert again.settings == lt.settings
    x = tasks[0].test[0]
    assert torch.equal(lt.model(x, 0), again.model(x, 0))
    assert_same(lt, again)
    for each in (lt, again):
        each.learn(tasks[1])
    assert_same(lt, again)


def test_optimizer_is_carried_on_if_asked() -> None:
    runs = [make("finetune", head="single", reset_optimizer=reset) for reset in (True, False)]
    for lt in runs:
        lt.learn(blobs(0))
        lt.learn(blobs(1))
    steps = [max(float(v) for k, v in numbers(lt).items() if k.endswith("|step")) for lt in runs]
    assert steps[1] == 2 * steps[0] > 0


@pytest.mark.parametrize("name", NAMES)
def test_unknown_options_are_refused_by_name(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^method '{name}': expected .*batch_size.*, got \['strenth'\]"
    ):
        make(name, strenth=1.0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ewc", {"strength": -1.0}, "strength: expected a number >= 0, got -1.0"),
        ("ewc", {"fisher": "full"}, "fisher: expected one of exact, .*got 'full'"),
        ("si", {"xi": 0}, "xi: expected a number > 0, got 0"),
        ("si", {"c": True}, "c: .*got True"),
        ("er", {"buffer": 0}, "buffer: expected an integer >= 1, got 0"),
        ("esacl", {"sparsity": 1.5}, "sparsity: .*<= 1, got 1.5"),
        ("esacl", {"keep": 0.0}, "keep: .*got 0.0"),
        ("superposition", {"keys": "real"}, "keys: .*got 'real'"),
        ("finetune", {"epochs": 0}, "epochs: .*got 0"),
        ("finetune", {"optimizer": "lion"}, "optimizer: .*got 'lion'"),
        ("finetune", {"head": "none"}, "head: .*got 'none'"),
        ("finetune", {"momentum": 1.0}, "momentum: .*got 1.0"),
    ],
)
def test_bad_values_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(name, **options)


def test_unknown_method() -> None:
    with pytest.raises(ConfigError, match=r"^method: expected one of \['finetune', .*, got 'lwf'"):
        methods.make("lwf", mlp([4]), torch.zeros(1, 12))


def test_networks_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"ends in a torch\.nn\.Linear"):
        methods.make("finetune", nn.Sequential(nn.Flatten()), torch.zeros(1, 12))
    with pytest.raises(ConfigError, match=r"expected a dense torch\.nn\.Module, got list"):
        methods.make("finetune", [], torch.zeros(1, 12))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected a batch"):
        methods.make("finetune", mlp([4]), torch.zeros(12))


def test_tasks_that_do_not_fit() -> None:
    lt = make("finetune", head="single")
    with pytest.raises(DataError, match="the network was made for"):
        lt.learn(blobs(0, inputs=5))
    with pytest.raises(
        DataError, match="train: expected labels from 0 to 2, as the head has, got 3"
    ):
        lt.learn(blobs(0, classes=4))
    with pytest.raises(DataError, match=r"expected a clnp\.data\.Task"):
        lt.learn([1])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="none yet"):
        lt.predict(torch.zeros(1, 12))


def test_a_loss_that_explodes_is_told() -> None:
    lt = make("finetune", lr=1e30)
    with pytest.raises(TrainingError, match="the loss became"):
        lt.learn(blobs(0))
    assert lt.reports == []


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    lt = make("finetune", checkpoint_dir=tmp_path)
    lt.learn(blobs(0))
    with pytest.raises(
        ConfigError,
        match=r"^checkpoint_dir: expected a folder without another .*continue with .*load",
    ):
        make("finetune", checkpoint_dir=tmp_path)
    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(
        DataError, match=r"^tasks\[0\]: expected the learned task 'blobs-0', got 'blobs-3'"
    ):
        methods.load(file, tasks=[blobs(3)])
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(CheckpointError):
        methods.load(file)


def test_joint_needs_the_earlier_data_again(tmp_path: Path) -> None:
    lt = make("joint")
    lt.learn(blobs(0))
    lt.save(tmp_path / "m.safetensors")
    again = methods.load(tmp_path / "m.safetensors")
    with pytest.raises(
        DataError, match=r"^tasks: expected the data of the 1 learned tasks .*, got 0; pass it: "
    ):
        again.learn(blobs(1))


class Strange(nn.Module):
    """A network that can't be written as data."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 20) / 4)
        self.out = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(x @ self.weight))


def test_other_networks_are_loaded_into_what_is_passed(tmp_path: Path) -> None:
    lt = make("ewc", Strange())
    lt.learn(blobs(0))
    lt.save(tmp_path / "m.safetensors")
    with pytest.raises(
        ConfigError, match=r"^net: expected the network, .*got None; pass it: .*net="
    ):
        methods.load(tmp_path / "m.safetensors")
    again = methods.load(tmp_path / "m.safetensors", net=Strange())
    assert_same(lt, again)


class Lazy(Dataset[Any]):
    """Items made when asked."""

    def __init__(self, split: tuple[Tensor, Tensor]) -> None:
        self.x, self.y = split
        self.classes: Sequence[int] = range(3)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.x[i], int(self.y[i])


@pytest.mark.parametrize("name", ["ewc", "joint", "sparcl", "esacl"])
def test_lazy_data_sets_give_the_numbers_of_tensors(name: str) -> None:
    task = blobs(0)
    lazy = Task("blobs-0", *(Lazy(task.split(s)) for s in ("train", "validation", "test")), 3)
    rows = []
    for one in (task, lazy):
        lt = make(name, mlp([40, 30]))
        rows.append(lt.learn(one).test)
    assert min(rows) > 0.85


def test_tasks_with_other_numbers_of_classes() -> None:
    for name in ("er", "derpp", "joint", "scratch"):
        lt = make(name)
        lt.learn(blobs(0, classes=2))
        lt.learn(blobs(1, classes=5, rows=300))
        assert lt.model(torch.zeros(2, 12), task=0).shape == (2, 2)
        assert lt.model(torch.zeros(2, 12), task=1).shape == (2, 5)
        assert lt.accuracy_matrix[1].min() > 0.8, name


def test_paper_composition_of_joint_batches() -> None:
    lt = make("joint", first=20, others=4, epochs=1)
    for k in range(3):
        lt.learn(blobs(k))
    generator = torch.Generator().manual_seed(0)
    drawn = list(lt.method.batches(blobs(2), 0, generator))
    assert len(drawn) == 4  # the first task's 80 examples, 20 at a time, run out first
    for batch in drawn:
        assert isinstance(batch.task, Tensor)
        assert batch.task.bincount().tolist() == [20, 4, 4]


@pytest.mark.parametrize("name", NAMES)
def test_convolutional_networks_with_batch_norm(name: str, tmp_path: Path) -> None:
    """They train, keep their statistics, and come back from a file."""
    g = torch.Generator().manual_seed(0)
    tasks = []
    for k in range(2):
        x, y = torch.randn(40, 2, 4, 4, generator=g), torch.arange(40) % 3
        tasks.append(Task(f"images-{k}", (x, y), (x, y), (x, y), classes=3))
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(24, 3)
    )
    options = {**QUICK, **OWN.get(name, {}), "epochs": 2}
    lt = methods.make(name, net, torch.zeros(1, 2, 4, 4), head="multi", **options)
    for task in tasks:
        lt.learn(task)
    lt.save(tmp_path / "m.safetensors")
    again = methods.load(tmp_path / "m.safetensors", tasks=tasks)
    assert_same(lt, again)
    x = tasks[0].test[0]  # type: ignore[index]
    for k in range(2):
        assert torch.equal(lt.model(x, k), again.model(x, k))
        assert bool(torch.isfinite(lt.model(x, k)).all())
