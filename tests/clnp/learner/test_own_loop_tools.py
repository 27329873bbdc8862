"""Parts of training loops, on a network that has a task behind it: whatever is done to it,
that task's logits are the same bits afterwards.
"""

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, parametrizations, parametrize
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import clnp
from clnp.errors import ConfigError
from tests.clnp.second_task import NETWORKS, OPTIMIZERS, Case, batch, frozen, same, second_task

each_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS)


@pytest.fixture(params=NETWORKS)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    found = second_task(request.param)
    assert sum(value.numel() for value in found.frozen.values()) > 0
    yield found
    found.check()


@pytest.fixture(params=NETWORKS)
def double_case(request: pytest.FixtureRequest) -> Iterator[Case]:
    found = second_task(request.param, torch.float64)
    yield found
    found.check()


@each_optimizer
def test_autocast(case: Case, kind: str) -> None:
    optimizer = OPTIMIZERS[kind](case.model.parameters())
    before = case.parameters()
    for seed in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = case.loss(seed)
        assert case.model.head.free_weight.dtype == torch.float32
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in case.model.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, case.parameters(), strict=True))


@each_optimizer
def test_gradient_scaler_with_clipping(case: Case, kind: str) -> None:
    """Scaled by a power of two, clipped after unscaling, one step skipped: as without scaling."""
    twin = copy.deepcopy(case)
    scaled = OPTIMIZERS[kind](case.model.parameters())
    plain = OPTIMIZERS[kind](twin.model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for seed in range(4):
        overflow = float("inf") if seed == 1 else 1.0
        scaled.zero_grad()
        scaler.scale(case.loss(seed) * overflow).backward()
        scaler.unscale_(scaled)
        clip_grad_norm_(case.model.parameters(), 0.5)
        scaler.step(scaled)
        scaler.update()
        plain.zero_grad()
        loss = twin.loss(seed)  # the skipped one too: it moves batch norms' statistics
        if seed != 1:
            loss.backward()
            clip_grad_norm_(twin.model.parameters(), 0.5)
            plain.step()
    assert scaler.get_scale() == 512.0
    same(case.parameters(), twin.parameters())


def test_accumulated_gradients_are_those_of_the_big_batch(double_case: Case) -> None:
    model = double_case.model.eval()  # a batch norm in training would see other batches
    x, y = batch(5, 24, torch.float64)
    F.cross_entropy(model(x), y).backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    for rows in torch.arange(24).split(6):
        (F.cross_entropy(model(x[rows]), y[rows]) / 4).backward()
    same(expected, [p.grad for p in model.parameters()], rtol=1e-10, atol=1e-14)


def test_clipping_sees_what_is_free(case: Case) -> None:
    case.loss().backward()
    gradients = [p.grad for p in case.model.parameters()]
    norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
    assert all(value.grad is None for value in case.model.buffers())
    torch.testing.assert_close(clip_grad_norm_(case.model.parameters(), 1e-3), norm)
    clipped = torch.stack([p.grad.norm() for p in case.model.parameters() if p.grad is not None])
    torch.testing.assert_close(clipped.norm(), torch.tensor(1e-3))


@pytest.mark.parametrize("buffers", [False, True])
def test_moving_average(case: Case, buffers: bool) -> None:
    """The average of what does not move is what it was, bit for bit."""
    model = case.model
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=buffers)
    weights = [p.detach().clone() for p in model.parameters()]
    for seed in range(3):
        case.step(optimizer, seed)
        average.update_parameters(model)
        now = case.parameters()
        weights = now if seed == 0 else [a.lerp(b, 0.3) for a, b in zip(weights, now, strict=True)]
    same(average.module.parameters(), weights)
    assert all(torch.equal(frozen(average.module)[k], v) for k, v in case.frozen.items())
    assert torch.equal(average(case.x, task=0), case.logits)
    model.load_state_dict(average.module.state_dict())
    case.step(optimizer)  # the optimizer still holds the network's parameters
    assert not torch.equal(model.head.free_weight, average.module.head.free_weight)


SCHEDULES: dict[str, Any] = {
    "StepLR": lambda o: StepLR(o, 2, 0.5),
    "OneCycleLR": lambda o: OneCycleLR(o, 0.05, total_steps=8, cycle_momentum=True),
    "CosineAnnealingLR": lambda o: CosineAnnealingLR(o, 6),
    "ReduceLROnPlateau": lambda o: ReduceLROnPlateau(o, factor=0.5, patience=0),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["AdamL1", "SGDL1"])
def test_schedulers(kind: str, schedule: str) -> None:
    """Without a penalty the steps are those of torch's optimizer under the same scheduler."""
    case, twin = (second_task("linear", torch.float64) for _ in range(2))
    theirs = {"AdamL1": torch.optim.Adam, "SGDL1": torch.optim.SGD}[kind]
    more = {"momentum": 0.9} if kind == "SGDL1" else {}
    optimizers = [
        OPTIMIZERS[kind](case.model.parameters(), l1=0.0),
        theirs(twin.model.parameters(), lr=optimizer_rate(kind), **more),
    ]
    rates = []
    for one, optimizer in zip((case, twin), optimizers, strict=True):
        scheduler = SCHEDULES[schedule](optimizer)
        rates.append([])
        for seed in range(6):
            one.step(optimizer, seed)
            scheduler.step(*([1.0] if schedule == "ReduceLROnPlateau" else []))
            group = optimizer.param_groups[0]
            rates[-1].append((group["lr"], group.get("momentum"), group.get("betas")))
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 1
    if schedule == "OneCycleLR":
        assert len({rate[1:] for rate in rates[0]}) > 1
    same(case.parameters(), twin.parameters(), rtol=1e-8, atol=1e-12)
    case.check()


def optimizer_rate(kind: str) -> float:
    return OPTIMIZERS[kind]([nn.Parameter(torch.zeros(1))]).defaults["lr"]


@each_optimizer
def test_groups_of_parameters(case: Case, kind: str) -> None:
    model = case.model
    head = list(model.head.parameters())
    rest = [p for p in model.parameters() if all(p is not h for h in head)]
    optimizer = OPTIMIZERS[kind]([{"params": rest, "lr": 0.0}, {"params": head}])
    before = [p.detach().clone() for p in rest]
    case.step(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, rest, strict=True))
    assert model.head.free_weight.abs().sum() > 0


@each_optimizer
def test_optimizer_state(case: Case, kind: str) -> None:
    optimizer = OPTIMIZERS[kind](case.model.parameters())
    for seed in range(2):
        case.step(optimizer, seed)
    twin = copy.deepcopy(case)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    other = OPTIMIZERS[kind](twin.model.parameters(), lr=123.0)
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for seed in range(2, 4):
        case.step(optimizer, seed)
        twin.step(other, seed)
    assert all(map(torch.equal, case.parameters(), twin.parameters()))
    twin.check()


def test_weight_decay_reaches_what_is_free_only(case: Case) -> None:
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1, weight_decay=5.0)
    before = case.parameters()
    for parameter in case.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    same(case.parameters(), [0.5 * p for p in before])


def test_parametrized_weights_train_and_have_to_be_put_in_place(case: Case) -> None:
    model = case.model
    name = list(model.masked_layers)[-1]
    layer = model.masked_layers[name]
    parametrizations.weight_norm(layer, "free_weight")
    optimizer = OPTIMIZERS["AdamL1"](model.parameters())
    before = case.parameters()
    case.step(optimizer)
    assert all(not torch.equal(a, b) for a, b in zip(before, case.parameters(), strict=True))
    with pytest.raises(ConfigError, match=f"free_weight of '{name}'.*remove_parametrizations"):
        clnp.consolidate(model)
    parametrize.remove_parametrizations(layer, "free_weight")


def test_functional_call_and_functional_gradients(case: Case) -> None:
    model = case.model.eval()
    x, y = batch(3)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(values: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, values, (x,)), y)

    gradients = torch.func.grad(loss)(parameters)
    F.cross_entropy(model(x), y).backward()
    assert gradients.keys() == parameters.keys()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(gradients[name], parameter.grad)


def test_gradient_checkpointing(case: Case) -> None:
    model = case.model.eval()  # in training it runs a batch norm twice, as with torch's own
    x, y = batch(3)
    F.cross_entropy(model(x), y).backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    F.cross_entropy(checkpoint(model, x, use_reentrant=False), y).backward()
    assert all(map(torch.equal, expected, [p.grad for p in model.parameters()]))


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "pickle"],
)
def test_copies_and_pickles(case: Case, copied: Any) -> None:
    """As a process that is spawned gets the network."""
    twin = copied(case.model)
    assert torch.equal(twin(case.x, task=0), case.logits)
    assert torch.equal(twin(case.x), case.model(case.x))
    optimizer = OPTIMIZERS["AdamW"](twin.parameters())
    before = case.parameters()
    F.cross_entropy(twin(case.x), batch(99)[1]).backward()
    optimizer.step()
    assert all(map(torch.equal, before, case.parameters()))
    case.check(twin)
