"""AdamL1 and SGDL1 as optimizers: options, state, closures, schedulers, GradScaler."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clnp_kernels import ops
from clnp_kernels.nn import MaskedLinear
from clnp_kernels.optim import SGDL1, AdamL1

TWINS = {
    "adam": (AdamL1, torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    "adam up": (AdamL1, torch.optim.Adam, {"lr": 0.01, "maximize": True}),
    "sgd": (SGDL1, torch.optim.SGD, {"lr": 0.01}),
    "momentum": (SGDL1, torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "dampening": 0.5}),
    "nesterov": (SGDL1, torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
}
twins = pytest.mark.parametrize("twin", TWINS)
ours = pytest.mark.parametrize("kind", [AdamL1, SGDL1])


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()


def loss_of(model: nn.Module, seed: int) -> Tensor:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return model(x).pow(2).mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def same(one: nn.Module, other: nn.Module) -> None:
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@twins
def test_is_torchs_optimizer(twin: str) -> None:
    mine, theirs, options = TWINS[twin]
    one, other = net(), net()
    train(one, mine(one.parameters(), **options), 6)
    train(other, theirs(other.parameters(), **options), 6)
    same(one, other)


@twins
def test_scheduler_and_rate_as_tensor(twin: str) -> None:
    mine, theirs, options = TWINS[twin]
    models = [net(), net(), net()]
    rate = torch.tensor(options["lr"], dtype=torch.float64)
    optimizers = [
        mine(models[0].parameters(), **options),
        theirs(models[1].parameters(), **options),
        mine(models[2].parameters(), **{**options, "lr": rate}),
    ]
    for model, optimizer in zip(models, optimizers, strict=True):
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
        for step in range(4):
            train(model, optimizer, 1, step)
            scheduler.step()
    same(models[0], models[1])
    same(models[0], models[2])


@twins
def test_state_dict_round_trip(twin: str) -> None:
    mine, _, options = TWINS[twin]
    model = net()
    optimizer = mine(model.parameters(), l1=0.01, **options)
    train(model, optimizer, 3)
    copied = copy.deepcopy(model)
    other = mine(copied.parameters(), lr=123.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.param_groups[0]["l1"] == 0.01
    train(model, optimizer, 3, 3)
    train(copied, other, 3, 3)
    for a, b in zip(model.parameters(), copied.parameters(), strict=True):
        assert torch.equal(a, b)


@ours
def test_groups_have_their_own_l1(kind: Any) -> None:
    model = net()
    groups = [{"params": model[0].parameters(), "l1": 0.5}, {"params": model[2].parameters()}]
    optimizer = kind(groups, lr=0.01)
    before = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all((model[0].weight != before[0].weight).flatten())
    assert (model[0].weight.abs() <= before[0].weight.abs().clamp(min=0.01)).all()
    assert torch.equal(model[2].weight, before[2].weight)


@ours
def test_closure(kind: Any) -> None:
    one, other = net(), net()
    optimizer = kind(one.parameters(), lr=0.01)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(one, 0)
        loss.backward()
        return loss

    assert torch.equal(optimizer.step(closure), loss_of(other, 0))
    train(other, kind(other.parameters(), lr=0.01), 1)
    same(one, other)


@ours
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "dampening": 0.5}])
def test_grad_scaler(kind: Any, options: dict[str, float]) -> None:
    """A step with an infinite gradient is skipped, as if it had not been."""
    options = options if kind is SGDL1 else {}
    one, other = net().float(), net().float()
    scaled = kind(one.parameters(), lr=0.01, l1=0.01, **options)
    plain = kind(other.parameters(), lr=0.01, l1=0.01, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    for step in range(5):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        scaled.zero_grad()
        scaler.scale(one(x).pow(2).mean() * (float("inf") if step == 0 else 1.0)).backward()
        scaler.step(scaled)
        scaler.update()
        if step > 0:
            plain.zero_grad()
            other(x).pow(2).mean().backward()
            plain.step()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)
        assert torch.isfinite(a).all()


@ours
def test_parameters_without_gradient_and_mixed_dtypes(kind: Any) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    params = [nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in dtypes]
    lonely = nn.Parameter(torch.ones(2))
    optimizer = kind([*params, lonely], lr=0.1, l1=0.1)
    optimizer.step()
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert torch.equal(lonely, torch.ones(2))
    assert all((param < 1).all() for param in params)


@ours
def test_sparse_gradients_are_refused(kind: Any) -> None:
    embedding = nn.Embedding(4, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match=r"^param.grad: expected a dense.*, got torch.sparse_coo"):
        kind(embedding.parameters(), lr=0.1).step()


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        (AdamL1, {"lr": -1.0}, "^lr: expected .*, got -1.0"),
        (AdamL1, {"lr": torch.zeros(2)}, "^lr.shape: expected"),
        (AdamL1, {"lr": torch.tensor(-1.0)}, "^lr: expected .*, got -1.0"),
        (SGDL1, {"lr": torch.tensor(float("nan"))}, "^lr: expected .*, got nan"),
        (AdamL1, {"betas": 0.9}, "^betas: expected two.*, got 0.9"),
        (SGDL1, {"dampening": float("nan")}, "^dampening: expected .*, got nan"),
        (SGDL1, {"l1": float("inf")}, "^l1: expected .*, got inf"),
        (AdamL1, {"betas": (0.9, 1.0)}, r"^betas\[1\]: expected .*, got 1.0"),
        (AdamL1, {"betas": (0.9,)}, r"^betas: expected two.*, got \(0.9,\)"),
        (AdamL1, {"eps": -1.0}, "^eps: expected .*, got -1.0"),
        (AdamL1, {"l1": float("nan")}, "^l1: expected .*, got nan"),
        (AdamL1, {"weight_decay": -1.0}, "^weight_decay: expected .*, got -1.0"),
        (SGDL1, {"momentum": -1.0}, "^momentum: expected .*, got -1.0"),
        (SGDL1, {"nesterov": True}, "^nesterov=True: expected .*, got momentum=0.0"),
        (SGDL1, {"l1": -0.1}, "^l1: expected .*, got -0.1"),
    ],
)
def test_bad_options(kind: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        kind(net().parameters(), **options)
    optimizer = kind(net().parameters())
    with pytest.raises(ValueError, match=match):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], **options})


@ours
def test_options_of_another_type(kind: Any) -> None:
    for options, match in (
        ({"lr": torch.tensor(1)}, "^lr.dtype: expected .*, got torch.int64"),
        ({"l1": torch.tensor(0.1)}, "^l1: expected .*, got tensor"),
        ({"l1": None}, "^l1: expected .*, got None"),
        ({"weight_decay": "no"}, "^weight_decay: expected .*, got 'no'"),
    ):
        with pytest.raises(TypeError, match=match):
            kind(net().parameters(), **options)


def l1_groups(model: nn.Sequential) -> list[dict[str, Any]]:
    return [{"params": model[0].parameters(), "l1": 0.05}, {"params": model[2].parameters()}]


@twins
@pytest.mark.parametrize("execution", [{}, {"foreach": True}, {"foreach": False}], ids=str)
def test_a_state_of_torchs_goes_on_here(twin: str, execution: dict[str, bool]) -> None:
    """Options and moments come from the state, l1 from the group that takes it."""
    mine, theirs, options = TWINS[twin]
    one = net()
    groups = [{"params": layer.parameters()} for layer in (one[0], one[2])]
    groups[1]["lr"] = 0.03
    before = theirs(groups, **options, **execution)
    train(one, before, 3)
    other = copy.deepcopy(one)
    fresh = mine(l1_groups(other), lr=123.0, l1=0.07)
    fresh.load_state_dict(copy.deepcopy(before.state_dict()))  # torch does not copy moments
    assert [group["l1"] for group in fresh.param_groups] == [0.05, 0.07]
    assert [group["lr"] for group in fresh.param_groups] == [options["lr"], 0.03]
    for group in fresh.param_groups:
        group["l1"] = 0.0
    train(one, before, 3, 3)
    train(other, fresh, 3, 3)
    same(one, other)


def saved(optimizer: torch.optim.Optimizer) -> Any:
    """The state after a file."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file)


@twins
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "file", "tensor rate"])
def test_a_copy_takes_the_same_steps(twin: str, way: str) -> None:
    mine, _, options = TWINS[twin]
    if way == "tensor rate":
        options = {**options, "lr": torch.tensor(options["lr"])}
    model = net()
    optimizer = mine(l1_groups(model), **options)
    train(model, optimizer, 3)
    if way == "deepcopy":
        copied, other = copy.deepcopy((model, optimizer))
    elif way == "pickle":
        copied, other = pickle.loads(pickle.dumps((model, optimizer)))
    else:
        copied = copy.deepcopy(model)
        other = mine(l1_groups(copied), lr=7.0)
        other.load_state_dict(saved(optimizer))
    assert getattr(other, "_step_supports_amp_scaling", False)
    for one, its in ((model, optimizer), (copied, other)):
        train(one, its, 3, 3)
    for a, b in zip(model.parameters(), copied.parameters(), strict=True):
        assert torch.equal(a, b)


@ours
@pytest.mark.parametrize("trained", [True, False])
def test_a_state_that_lacks_options(kind: Any, trained: bool) -> None:
    """As of an older version: what is missing stays as it is in the group."""
    model = net()
    optimizer = kind(l1_groups(model), lr=0.01, l1=0.3)
    if trained:
        train(model, optimizer, 1)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        for name in set(group) - {"params", "lr"}:
            del group[name]
    other = kind(l1_groups(model), lr=0.5, l1=0.4, weight_decay=0.25, maximize=True)
    other.load_state_dict(state)
    for group, l1 in zip(other.param_groups, (0.05, 0.4), strict=True):
        kept = {name: group[name] for name in ("lr", "l1", "weight_decay", "maximize")}
        assert kept == {"lr": 0.01, "l1": l1, "weight_decay": 0.25, "maximize": True}
    train(model, other, 1)


def test_steps_counted_in_numbers_and_buffers_that_are_none() -> None:
    """As torch has saved them."""
    model, other = net(), net()
    theirs = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, theirs, 2)
    state = copy.deepcopy(theirs.state_dict())
    for values in state["state"].values():
        values["step"] = int(values["step"])
    other.load_state_dict(model.state_dict())
    adam = AdamL1(other.parameters())
    adam.load_state_dict(state)
    train(model, theirs, 2, 2)
    train(other, adam, 2, 2)
    same(model, other)

    sgd = SGDL1(other.parameters(), momentum=0.9)
    state = sgd.state_dict()
    state["state"] = {i: {"momentum_buffer": None} for i in range(4)}
    sgd.load_state_dict(state)
    train(other, sgd, 2)


def altered(kind: Any, change: Any) -> Any:
    """A state of ours after a step, changed."""
    model = net()
    options = {"momentum": 0.9} if kind is SGDL1 else {}
    optimizer = kind(model.parameters(), lr=0.01, **options)
    train(model, optimizer, 1)
    state = copy.deepcopy(optimizer.state_dict())
    change(state)
    return state


def moments(state: Any, entry: str, value: Any) -> None:
    state["state"][1][entry] = value


@pytest.mark.parametrize(
    ("kind", "change", "match"),
    [
        (
            AdamL1,
            lambda s: moments(s, "exp_avg", torch.zeros(4)),
            r"^state\[1\]\['exp_avg'\].shape",
        ),
        (AdamL1, lambda s: moments(s, "step", torch.zeros(2)), r"^state\[1\]\['step'\].shape"),
        (AdamL1, lambda s: moments(s, "max_exp_avg_sq", torch.zeros(5)), "another optimizer's"),
        (
            AdamL1,
            lambda s: s["state"][1].pop("exp_avg"),
            r"^state\[1\]: expected .*, got \['exp_avg_sq'",
        ),
        (AdamL1, lambda s: s["param_groups"][0].update(l1=-1.0), "^l1: expected .*, got -1.0"),
        (
            AdamL1,
            lambda s: s["param_groups"][0].update(lr=float("nan")),
            "^lr: expected .*, got nan",
        ),
        (
            AdamL1,
            lambda s: s["param_groups"][0].update(amsgrad=True),
            "amsgrad'.: expected .*, got True",
        ),
        (
            AdamL1,
            lambda s: s["param_groups"][0].update(decoupled_weight_decay=True, weight_decay=0.1),
            "decoupled_weight_decay'.: expected False.*, got True with weight_decay=0.1",
        ),
        (
            SGDL1,
            lambda s: moments(s, "momentum_buffer", torch.zeros(5, 2)),
            "boundary .* has moved",
        ),
        (SGDL1, lambda s: moments(s, "momentum_buffer", 1.0), "shape: expected .*, got float"),
        (SGDL1, lambda s: s["param_groups"][0].update(nesterov=True, dampening=0.5), "^nesterov"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(kind: Any, change: Any, match: str) -> None:
    """The optimizer then goes on as if nothing had been loaded."""
    state, one, other = altered(kind, change), net(), net()
    optimizer, untouched = (kind(m.parameters(), lr=0.01, l1=0.1) for m in (one, other))
    for model, each in ((one, optimizer), (other, untouched)):
        train(model, each, 1)
    with pytest.raises(ValueError, match=match):
        optimizer.load_state_dict(state)
    for model, each in ((one, optimizer), (other, untouched)):
        train(model, each, 1, 1)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@ours
@pytest.mark.parametrize("theirs", [torch.optim.Adagrad, torch.optim.NAdam, torch.optim.Rprop])
def test_states_of_other_optimizers_are_refused(kind: Any, theirs: Any) -> None:
    model = net()
    optimizer = theirs(model.parameters(), lr=0.01)
    train(model, optimizer, 1)
    with pytest.raises(ValueError, match=r"^state\[0\]: expected .*start with a fresh one"):
        kind(model.parameters()).load_state_dict(optimizer.state_dict())


@ours
def test_a_state_from_before_the_boundary_moved_is_refused(kind: Any) -> None:
    layer = MaskedLinear(6, 5)
    optimizer = kind(layer.parameters(), lr=0.1, **({"momentum": 0.9} if kind is SGDL1 else {}))
    layer(torch.randn(4, 6)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    layer.freeze(torch.arange(2), torch.arange(3))
    layer.reset_free_parameters()
    with pytest.raises(ValueError, match="boundary between frozen and free channels has moved"):
        kind(layer.parameters()).load_state_dict(state)


@ours
def test_a_group_that_is_added_takes_the_defaults(kind: Any) -> None:
    model = net()
    optimizer = kind(model[0].parameters(), lr=0.01, l1=0.2)
    optimizer.add_param_group({"params": model[2].parameters()})
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "l1": 0.0, "lr": 0.5})
    assert [(g["lr"], g["l1"]) for g in optimizer.param_groups] == [
        (0.01, 0.2),
        (0.01, 0.2),
        (0.5, 0.0),
    ]
    train(model, optimizer, 1)


def test_groups_of_other_rates_and_l1_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    groups = [{"params": [p], "l1": 0.1 * i} for i, p in enumerate(model.parameters())]
    groups[-1]["lr"] = 0.5
    optimizer = AdamL1(groups, lr=0.01)
    apart = [
        AdamL1([{**group, "params": [copy.deepcopy(p) for p in group["params"]]}], lr=0.01)
        for group in groups
    ]
    calls = []
    step = ops.adam_l1

    def counted(*args: Any, **options: Any) -> None:
        calls.append(options["l1"])
        step(*args, **options)

    monkeypatch.setattr(ops, "adam_l1", counted)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert calls == [[group["l1"] for group in groups]]
    for other, parameter in zip(apart, model.parameters(), strict=True):
        (alone,) = other.param_groups[0]["params"]
        alone.grad = torch.ones_like(alone)
        other.step()
        assert torch.equal(alone, parameter)


@ours
def test_a_state_is_loaded_again_and_again(kind: Any) -> None:
    """torch adds to an optimizer's defaults what its groups do not have, when it loads a state."""
    model = net()
    optimizer = kind(model.parameters(), lr=0.01)
    train(model, optimizer, 2)
    for _ in range(3):
        groups = optimizer.state_dict()["param_groups"]
        plain = {**optimizer.state_dict(), "param_groups": [dict(group) for group in groups]}
        for group in plain["param_groups"]:
            group.pop("differentiable", None)
            group.pop("l1")
        optimizer.load_state_dict(plain)
        train(model, optimizer, 1)
