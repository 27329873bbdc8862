"""The activity that layers add up on the way is that of a reduction of what their readers see."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import clnp
from clnp.network.model import Model
from clnp.pruning import activity as pruning_activity
from clnp.pruning.activity import channels_of, read_activity
from clnp.training.evaluation import evaluating
from clnp_kernels import ops

CPU = torch.device("cpu")


class Branches(nn.Module):
    """Two layers read one output, one a sum, one behind dropout, one behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.left, self.right = nn.Conv2d(5, 6, 1), nn.Conv2d(5, 6, 3, padding=1)
        self.deep, self.drop = nn.Conv2d(6, 7, 3, groups=1), nn.Dropout2d(0.5)
        self.wide, self.inner, self.head = nn.Conv2d(7, 4, 2), nn.Linear(36, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.left(x) + self.right(x))
        x = self.wide(self.drop(torch.relu(self.deep(x))))
        return self.head(torch.relu(self.inner(x.flatten(1))))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 7), nn.Linear(7, 3))


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(9, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


# network, shape of an example, readers whose input is reduced apart
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "mlp": (mlp, (9,), set()),
    "normed": (normed, (9,), set()),
    "branches": (Branches, (3, 6, 6), {"deep", "inner"}),
}


def converted(name: str, tasks: int) -> tuple[Model, Tensor]:
    torch.manual_seed(0)
    make, shape, _ = CASES[name]
    x = torch.randn(40, *shape)
    model = clnp.convert(make(), x[:2], verbose=False)
    for _ in range(tasks):
        model.begin_task()
        model.consolidate({g.name: torch.arange(2) for g in model.groups.prunable})
    model.begin_task()
    return model, x


def reduced_apart(model: Model, x: Tensor) -> dict[str, Tensor]:
    """Means of what readers see, in float64, by hooks."""
    means: dict[str, Tensor] = {}
    readers = [name for group in model.groups.prunable for name in group.consumers]
    for name in readers:

        def hook(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            value, dim = channels_of(model, name, args[0])
            means[name] = value.double().abs().movedim(dim, 0).flatten(1).mean(1)

        model.net.get_submodule(name).register_forward_pre_hook(hook)
    with evaluating(model):
        model.net(x)
    return means


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("tasks", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_activity_of_the_layers_is_that_of_their_readers(
    name: str, tasks: int, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = converted(name, tasks)
    if channels_last and x.dim() == 4:
        model, x = (
            model.to(memory_format=torch.channels_last),
            x.to(memory_format=torch.channels_last),
        )
    want = reduced_apart(copy.deepcopy(model), x)
    apart: list[str] = []
    look = pruning_activity.channels_of
    monkeypatch.setattr(
        pruning_activity, "channels_of", lambda m, n, v: (apart.append(n), look(m, n, v))[1]
    )
    got = read_activity(model, (x, torch.zeros(40, dtype=torch.int64)), CPU)
    assert set(apart) == CASES[name][2]
    assert got.keys() == want.keys()
    for reader in want:
        torch.testing.assert_close(got[reader], want[reader], rtol=1e-6, atol=1e-9)
    assert all("forward" not in vars(module) for module in model.masked.values())


@contextlib.contextmanager
def apart_of_every_reader(
    model: Model, source: str, readers: list[str], add: Any
) -> Iterator[None]:
    """Stands for `_measured`: reduces the input of every reader apart."""
    with contextlib.ExitStack() as stack:
        for reader in readers:
            stack.enter_context(pruning_activity._reduced(model, source, [reader], add))
        yield


def test_the_fused_sums_are_those_of_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit on the CPU, so no threshold moves with the way of measuring."""
    for name in CASES:
        model, x = converted(name, 1)
        split = (x, torch.zeros(40, dtype=torch.int64))
        fused = read_activity(model, split, CPU)
        with monkeypatch.context() as patch:
            patch.setattr(pruning_activity, "_measured", apart_of_every_reader)
            apart = read_activity(model, split, CPU)
        for reader in fused:
            assert torch.equal(fused[reader], apart[reader]), (name, reader)


def test_a_failure_leaves_the_network_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = converted("mlp", 0)
    split = (x, torch.zeros(40, dtype=torch.int64))

    def fail(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no")

    with monkeypatch.context() as patch:
        patch.setattr(ops, "masked_linear", fail)
        with pytest.raises(RuntimeError, match="no"):
            read_activity(model, split, CPU)
    assert all("forward" not in vars(module) for module in model.masked.values())
    assert model.training
