"""HAT: gates, masked gradients and the compensation of the slope, against the paper's formulas."""

from typing import Any

import pytest
import torch
from torch import nn

from clnp import methods
from clnp.errors import ConfigError
from clnp.methods import MethodLearner
from clnp.methods.hat import HAT
from clnp.methods.method import Batch
from clnp.methods.network import Heads
from tests.clnp.cases import blobs, mlp
from tests.clnp.conv_cases import SHAPE, Plan, patterns


def learner(net: nn.Module | None = None, shape: tuple[int, ...] = (12,), **options: Any) -> Any:
    torch.manual_seed(0)
    given = {"epochs": 6, "batch_size": 16, **options}
    return methods.make("hat", net or mlp([20, 9]), torch.zeros(2, *shape), **given)


def method_of(lt: MethodLearner) -> HAT:
    assert isinstance(lt.method, HAT)
    return lt.method


def test_tasks_are_learned_and_hardly_forgotten() -> None:
    lt = learner(mlp([60, 40]), epochs=10)
    for k in range(3):
        lt.learn(blobs(k))
    matrix = lt.accuracy_matrix
    assert (matrix.diagonal() > 0.9).all()
    assert (matrix[-1] > matrix.diagonal() - 0.05).all()


def test_gates_multiply_what_layers_read() -> None:
    """The network of a task, computed by hand."""
    lt = learner()
    lt.learn(blobs(0))
    lt.learn(blobs(1))
    method, x = method_of(lt), torch.randn(7, 12)
    net = method.net.net
    for task in range(2):
        gates = method.gates(task)
        a, b = gates["0"], gates["2"]
        hidden = torch.relu(net.get_submodule("0")(x)) * a
        hidden = torch.relu(net.get_submodule("2")(hidden)) * b
        heads = method.net.head
        assert isinstance(heads, Heads)
        expected = heads.layers[task](hidden)
        torch.testing.assert_close(lt.model(x, task=task), expected)


def test_gradients_are_scaled_by_the_least_of_both_sides() -> None:
    lt = learner()
    lt.learn(blobs(0))
    method = method_of(lt)
    method.net.add_task(3, None)
    method.task = 1
    method.begin(blobs(1))
    method.start_epoch(blobs(1), 0)
    method.slope = 3.0
    loss, _ = method.loss(Batch(torch.randn(8, 12), torch.arange(8) % 3, 1))
    method.net.zero_grad()
    loss.backward()
    layer = method.net.get_submodule("net.2")
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, nn.Parameter)
    assert isinstance(bias, nn.Parameter)
    assert weight.grad is not None
    assert bias.grad is not None
    before, before_bias = weight.grad.clone(), bias.grad.clone()
    e = method.embeddings["0"]
    assert e.grad is not None
    gate_before = e.grad.clone()
    method.adjust()
    used = method.used()
    for i in range(9):
        for j in range(20):
            least = min(float(used["2"][i]), float(used["0"][j]))
            expected = float(before[i, j]) * (1 - least)
            assert float(weight.grad[i, j]) == pytest.approx(expected, rel=1e-4, abs=1e-9)
    torch.testing.assert_close(bias.grad, before_bias * (1 - used["2"]))
    factor = 400 * (torch.cosh(3 * e) + 1) / (3 * (torch.cosh(e) + 1))
    torch.testing.assert_close(e.grad, gate_before * factor.detach())


def test_penalty_counts_what_no_earlier_task_uses() -> None:
    lt = learner(c=2.0)
    lt.learn(blobs(0))
    method = method_of(lt)
    method.net.add_task(3, None)
    method.task = 1
    method.begin(blobs(1))
    method.start_epoch(blobs(1), 0)
    method.slope = 1.5
    batch = Batch(torch.randn(8, 12), torch.arange(8) % 3, 1)
    free = torch.cat([1 - method.used()[name] for name in ("0", "2")])
    gates = torch.cat([torch.sigmoid(1.5 * method.embeddings[name]) for name in ("0", "2")])
    with_penalty = method.loss(batch)[0]
    method.o["c"] = 0.0
    penalty = with_penalty - method.loss(batch)[0]
    torch.testing.assert_close(penalty, 2 * (gates * free).sum() / free.sum())


def test_slope_grows_within_an_epoch() -> None:
    lt = learner(epochs=1, batch_size=20)
    slopes = []
    method = method_of(lt)
    step = method.step

    def watched(batch: Batch) -> Any:
        result = step(batch)
        slopes.append(method.slope)
        return result

    method.step = watched  # type: ignore[method-assign]
    lt.learn(blobs(0))
    least = 1 / 400
    assert slopes == pytest.approx([least + (400 - least) * k / 3 for k in range(4)])


@pytest.mark.parametrize("block", ["grown", "shuffled", "inverted", "residual"])
def test_any_network_that_converts(block: str) -> None:
    lt = learner(Plan(6, (block,), True, False, "flatten").build(), SHAPE, epochs=1)
    for k in range(2):
        lt.learn(patterns(k, rows=60))
    x = torch.randn(3, *SHAPE)
    assert lt.model(x, task=0).shape == (3, 3)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="optimizer: expected 'sgd' for method 'hat'"):
        learner(optimizer="adam")

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x)).cumsum(1))

    with pytest.raises(ConfigError, match=r"whose layers clnp\.convert takes"):
        learner(Odd())
