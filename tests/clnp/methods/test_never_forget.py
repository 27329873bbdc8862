"""Methods that claim not to forget: earlier tasks' logits keep every bit, whatever trains later."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as rules
from hypothesis import strategies as st
from torch import Tensor, nn

from clnp import methods
from clnp.data import Task
from clnp.errors import CapacityError, CapacityWarning
from clnp.methods import MethodLearner
from clnp.methods.method import Batch, Method
from clnp.methods.packnet import PackNet
from clnp_kernels.optim import SGDL1, AdamL1
from tests.clnp.cases import blobs, mlp

NEVER = ("packnet", "wsn", "supsup", "scratch")

Optimizer = Callable[[Iterable[Any]], torch.optim.Optimizer]
# Every way in which a step moves a weight whose gradient is 0.
OPTIMIZERS: dict[str, Optimizer] = {
    "adam": lambda p: torch.optim.Adam(p, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, weight_decay=0.5),
    "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam_l1": lambda p: AdamL1(p, l1=0.01),
    "sgd_l1": lambda p: SGDL1(p, momentum=0.9, l1=0.01, weight_decay=0.1),
}


class Instances(nn.Module):
    """Statistics that are not a batch norm's: of instances, and of a power iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 4, 3)
        self.norm = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
        self.middle = nn.utils.parametrizations.spectral_norm(nn.Linear(40, 9))
        self.out = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x[:, None])))
        return self.out(torch.relu(self.middle(x.flatten(1))))


def normed(momentum: float | None) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (3, 2, 2)),
        nn.Conv2d(3, 6, 2),
        nn.BatchNorm2d(6, momentum=momentum),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6, 8, bias=False),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: mlp([20, 9], dropout=0.2),
    "batch norm": lambda: normed(0.1),
    "cumulative": lambda: normed(None),
    "other statistics": Instances,
}
X = blobs(7).test[0]  # type: ignore[index]


def learner(name: str, network: str = "plain", **settings: Any) -> MethodLearner:
    torch.manual_seed(0)
    own = {"tasks": 3} if name == "packnet" else {}
    quick = {"epochs": 2, "lr": 0.02, "batch_size": 40}
    return methods.make(name, NETWORKS[network](), X[:1], **{**quick, **own, **settings})


def assert_nothing_moves(lt: MethodLearner, tasks: Iterable[Task]) -> None:
    """Learns the tasks; what the network says as an earlier one keeps its bits."""
    known: list[Tensor] = []
    for task in tasks:
        lt.learn(task)
        known.append(lt.model(X, len(known)).clone())
        for k, logits in enumerate(known):
            assert torch.equal(lt.model(X, k), logits), f"task {k}"


@pytest.fixture
def optimizer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods train with the optimizer named by the parameter."""
    made = OPTIMIZERS[request.param]
    monkeypatch.setattr(
        Method, "optimizer_over", lambda self, named: made([{"params": list(named.values())}])
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS, indirect=True)
@pytest.mark.parametrize("head", ["single", "multi"])
@pytest.mark.usefixtures("optimizer")
def test_no_optimizer_moves_what_is_frozen(head: str) -> None:
    """Moments are carried on, which is what moves weights without a gradient."""
    lt = learner("packnet", "batch norm", head=head, reset_optimizer=False)
    assert_nothing_moves(lt, [blobs(k) for k in range(3)])


@pytest.mark.parametrize("reset", [True, False], ids=["fresh", "carried"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", NEVER)
def test_no_statistics_move(name: str, network: str, reset: bool) -> None:
    lt = learner(name, network, head="multi", reset_optimizer=reset)
    assert_nothing_moves(lt, [blobs(k) for k in range(3)])


@given(
    sgd=st.booleans(),
    momentum=st.sampled_from([0.0, 0.5, 0.99]),
    reset=st.booleans(),
    single=st.booleans(),
    keep=st.sampled_from([0.0, 0.2, 0.6]),
    retrain=st.sampled_from([0.0, 0.5, 1.0]),
    network=st.sampled_from(list(NETWORKS)),
    seed=st.integers(0, 100),
)
@rules(max_examples=8, deadline=None)
def test_packnet_never_forgets(
    sgd: bool,
    momentum: float,
    reset: bool,
    single: bool,
    keep: float,
    retrain: float,
    network: str,
    seed: int,
) -> None:
    lt = learner(
        "packnet",
        network,
        optimizer="sgd" if sgd else "adam",
        momentum=momentum,
        reset_optimizer=reset,
        head="single" if single else "multi",
        keep=keep,
        retrain=retrain,
        seed=seed,
    )
    assert_nothing_moves(lt, [blobs(seed + k) for k in range(3)])


@pytest.mark.parametrize("optimizer", OPTIMIZERS, indirect=True)
@pytest.mark.usefixtures("optimizer")
def test_a_packnet_step_moves_this_tasks_weights_alone() -> None:
    """Moments that are not 0, a gradient everywhere, and whatever the optimizer adds."""
    lt = learner("packnet", "batch norm", head="single", reset_optimizer=False, retrain=0.5)
    lt.learn(blobs(0))
    method = lt.method
    assert isinstance(method, PackNet)
    before: dict[str, Tensor] = {}
    pruned: list[bool] = []
    step = method.step

    def watched(batch: Batch) -> tuple[Tensor, Tensor]:
        for values in method.optimizer.state.values():
            for entry, value in values.items():
                if entry != "step" and isinstance(value, Tensor):
                    value.fill_(1.0)
        before.update({n: t.clone() for n, t in lt.net.state_dict().items()})
        result = step(batch)
        pruned.append(method._pruned())
        for name, now in lt.net.state_dict().items():
            owner = method.memory.get(f"owner.{name}")
            if owner is None:
                assert torch.equal(now, before[name]), name
                continue
            mine = (owner == 2) | (owner == 0) & (not pruned[-1])
            assert torch.equal(now[~mine], before[name][~mine]), name
            assert not bool(now[owner == 0].any()) or not pruned[-1], name
        return result

    method.step = watched  # type: ignore[method-assign]
    lt.learn(blobs(1))
    assert set(pruned) == {False, True}
    for name, tensor in before.items():
        if f"owner.{name}" in method.memory:
            assert not torch.equal(lt.net.state_dict()[name], tensor), f"{name} was not trained"


@pytest.mark.parametrize("name", NEVER)
def test_what_breaks_later_reaches_no_earlier_task(name: str) -> None:
    """Not even NaN in all that a later task owns."""
    lt = learner(name, head="multi")
    lt.learn(blobs(0))
    known = lt.model(X, 0)
    lt.learn(blobs(1))
    with torch.no_grad():
        for key, p in lt.net.shared_parameters().items():
            owner = lt.method.memory.get(f"owner.{key}")
            if name == "scratch":
                p.fill_(torch.nan)
            elif owner is not None:
                p.masked_fill_(owner != 1, torch.nan)
    assert torch.equal(lt.model(X, 0), known)


@pytest.mark.parametrize("frozen", [(True, False, False), (False, True, False)])
def test_what_the_user_freezes_or_frees_between_tasks(frozen: tuple[bool, ...]) -> None:
    lt = learner("packnet", "batch norm", head="multi", reset_optimizer=False)
    conv, norm = lt.net.get_submodule("net.1"), lt.net.get_submodule("net.6")
    start = conv.get_parameter("weight").clone()
    known: list[Tensor] = []
    for k, still in enumerate(frozen):
        conv.requires_grad_(not still)
        norm.requires_grad_(not still)
        lt.learn(blobs(k))
        known.append(lt.model(X, k))
        assert all(torch.equal(lt.model(X, j), known[j]) for j in range(k + 1))
    # What came frozen is the first task's for ever.
    assert torch.equal(conv.get_parameter("weight"), start) == frozen[0]


def test_packnet_goes_on_after_loading(tmp_path: Path) -> None:
    tasks = [blobs(k) for k in range(3)]
    lt = learner("packnet", "cumulative", head="multi", reset_optimizer=False)
    for task in tasks[:2]:
        lt.learn(task)
    known = [lt.model(X, k) for k in range(2)]
    lt.save(tmp_path / "m.safetensors")
    again = methods.load(tmp_path / "m.safetensors", tasks=tasks, net=normed(None))
    for each in (lt, again):
        each.learn(tasks[2])
        assert all(torch.equal(each.model(X, k), known[k]) for k in range(2))
    assert torch.equal(lt.model(X, 2), again.model(X, 2))


@pytest.mark.parametrize(
    ("options", "room"), [({"tasks": 2}, 2), ({"keep": 1.0}, 1), ({"keep": 1e-6}, 0)]
)
def test_packnet_without_room_says_so(options: dict[str, Any], room: int) -> None:
    lt = learner("packnet", head="single", **options)
    for k in range(room):
        lt.learn(blobs(k))
    with pytest.raises(CapacityError, match=f"task {room} would get none.*more tasks"):
        lt.learn(blobs(room))
    assert len(lt.reports) == room
    several = learner("packnet", head="multi", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as long as there is room nothing is said
        for k in range(room):
            several.learn(blobs(k))
    known = [several.model(X, k) for k in range(room)]
    with pytest.warns(CapacityWarning, match="learned by its head alone"):
        report = several.learn(blobs(room))
    assert 0 <= report.validation <= 1
    assert all(torch.equal(several.model(X, k), known[k]) for k in range(room))


def test_a_tensor_of_one_weight_is_no_trouble() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 1), nn.ReLU(), nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))
    lt = methods.make("packnet", nn.Sequential(*net, nn.Linear(1, 3)), X[:1], tasks=4, epochs=2)
    assert_nothing_moves(lt, [blobs(k) for k in range(3)])
    assert all(bool(torch.isfinite(p).all()) for p in lt.net.parameters())


def test_scratch_starts_without_old_moments() -> None:
    lt = learner("scratch", reset_optimizer=False, head="single")
    lt.learn(blobs(0))
    steps = max(float(v["step"]) for v in lt.method.optimizer.state.values())
    lt.learn(blobs(1))
    assert max(float(v["step"]) for v in lt.method.optimizer.state.values()) == steps
