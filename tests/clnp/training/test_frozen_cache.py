"""Looking up the activations of frozen channels gives what computing them gives."""

from typing import Any

import pytest
import torch
from torch import nn

import clnp
from clnp.data import Task
from clnp.errors import ConfigError
from clnp.objectives import Objective
from clnp.training.evaluation import accuracy, evaluating
from clnp.training.frozen_cache import FrozenActivations, deterministic_layers
from clnp.training.validation import Validation
from tests.clnp import conv_cases
from tests.clnp.cases import Residual, blobs, convert, mlp, random_keep
from tests.clnp.conv_cases import Plan

FAST: dict[str, Any] = {"epochs": 3, "lr": 0.01, "margin": 0.1, "batch_size": 32}
CONV = Plan(6, ("plain",), False, False, "hidden")
NORMED = Plan(6, ("residual",), True, False, "hidden")


class Dropping(nn.Sequential):
    def __init__(self) -> None:
        layers = [nn.Linear(12, 9), nn.ReLU(), nn.Dropout(0.5)]
        super().__init__(nn.Dropout(0.2), *layers, nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))


def after_two_tasks(net: nn.Module, head: str = "multi") -> clnp.Model:
    is_image = any(isinstance(m, nn.Conv2d) for m in net.modules())
    model = conv_cases.convert(net, head) if is_image else convert(net, head=head)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        model.begin_task(generator=generator)
        model.consolidate(random_keep(model, generator))
    model.begin_task(generator=generator)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", ["single", "multi"])
@pytest.mark.parametrize(
    "make",
    [lambda: mlp([20, 15]), Residual, CONV.build, NORMED.build],
    ids=["mlp", "sum", "conv", "norm"],
)
def test_logits_gradients_and_statistics(make: Any, head: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = after_two_tasks(make(), head).train()
    shape = model.graph.nodes[0].attrs["shape"][1:]
    x = torch.randn(50, *shape)
    if dtype == torch.float32:  # no autocast, so that rounding can be told from mistakes
        model, x = model.double(), x.double()
    cache = FrozenActivations(model, (x, torch.zeros(50, dtype=torch.int64)), dtype)
    assert cache
    rows = torch.tensor([3, 49, 0, 7, 7, 12])
    results = []
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for looked_up in (False, True):
        model.load_state_dict(before)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            if looked_up:
                with cache.looked_up():
                    cache.rows = rows
                    logits = model.net(x[rows])
            else:
                logits = model.net(x[rows])
        logits.double().square().sum().backward()
        statistics = [t.clone() for t in model.running_statistics()]
        results.append([logits, *(p.grad for p in model.parameters()), *statistics])
    tolerance = (
        {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    )
    for computed, cached in zip(*results, strict=True):
        if computed is None:
            assert cached is None
        else:
            torch.testing.assert_close(cached, computed, **tolerance)
    assert not any(
        layer.skip_active for name, layer in model.masked_layers.items() if name in cache.names
    )


@pytest.mark.parametrize("make", [Dropping, NORMED.build], ids=["dropout", "norm"])
def test_accuracy_of_a_network_in_evaluation_mode(make: Any) -> None:
    torch.manual_seed(0)
    model = after_two_tasks(make())
    rows = 2300  # more than two batches
    x = torch.randn(rows, *model.graph.nodes[0].attrs["shape"][1:])
    with evaluating(model):
        y = model(x).argmax(dim=-1)
    y[::3] += 1
    cache = FrozenActivations(model, (x, y), torch.float32, training=False)
    assert cache.names[0] == model.layer_names[0]
    assert len(cache.names) > 1
    model.train()
    validation = Validation((x, y), Objective(), model.device)
    before = [t.clone() for t in model.running_statistics()]
    assert float(cache.measured(validation)) == accuracy(model, (x, y), model.device)
    assert float(cache.measured(validation)) == pytest.approx(2 / 3, abs=1e-3)
    assert all(torch.equal(*pair) for pair in zip(before, model.running_statistics(), strict=True))
    assert model.training
    empty = FrozenActivations(model, None, torch.float32, training=False)
    assert float(empty.measured(validation)) == float(cache.measured(validation))


def test_only_what_is_the_same_in_every_epoch_is_kept() -> None:
    net = nn.Sequential(
        nn.Linear(12, 8),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.Dropout(0.5),
        nn.Linear(8, 8),
        nn.Linear(8, 3),
    )
    graph = clnp.convert(net, torch.zeros(2, 12), verbose=False).graph
    assert deterministic_layers(graph) == ["0", "2"]
    model = after_two_tasks(net)
    x, y = torch.randn(9, 12), torch.zeros(9, dtype=torch.int64)
    assert FrozenActivations(model, (x, y), torch.float32).names == ["0", "2"]
    one = 9 * model.masked_layers["0"].active_out * 4
    assert FrozenActivations(model, (x, y), torch.float32, budget=one).names == ["0"]
    assert "0" not in FrozenActivations(model, (x, y), torch.float32, budget=one - 1).names
    assert not FrozenActivations(model, torch.utils.data.TensorDataset(x, y), torch.float32)
    assert not FrozenActivations(model, None, torch.float32)
    assert not FrozenActivations(convert(mlp([4])), (x, y), torch.float32)


def test_training_with_and_without_agrees_and_the_setting_is_checked() -> None:
    reports = []
    for cache in ("auto", "off"):
        torch.manual_seed(0)
        lt = clnp.Learner(convert(mlp([30, 20])), cache=cache, **FAST)
        lt.learn(blobs(0))
        reports.append(lt.learn(blobs(1)))
        assert all(verdict.identical for verdict in lt.verify())
    losses = [[record["loss"] for record in report.history] for report in reports]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    with pytest.raises(ConfigError, match=r"cache: .*got 'yes'"):
        clnp.Learner(convert(mlp([4])), cache="yes")


def test_a_task_with_one_example_in_the_last_batch() -> None:
    task = blobs(1, rows=99)
    assert len(task.tensors("train")[1]) == 33
    lt = clnp.Learner(convert(mlp([30, 20])), **FAST)
    lt.learn(blobs(0))
    seen = []

    class Sizes:
        def on_epoch_end(self, learner: clnp.Learner, record: dict[str, Any]) -> None:
            seen.append(record["train_metric"])

    lt.callbacks.append(Sizes())
    lt.learn(Task(task.name, task.train, task.validation, task.test, classes=3))
    assert len(seen) == 3
