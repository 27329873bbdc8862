"""In-place operations: converted to the same function, or refused with their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clnp
from clnp.errors import ConvertError
from tests.clnp.cases import mlp

Forward = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """Three layers without biases, and a given forward."""

    def __init__(self, forward: Forward, **parts: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False)
        self.out, self.run = nn.Linear(12, 3, bias=False), forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def statement(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y.relu_()
    return net.out(y)


def gate(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y.mul_(torch.sigmoid(net.b(x)))
    return net.out(y)


def second_name(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    z = y
    z += net.b(y)
    return net.out(z * y)


def read_again(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.out(net.part(y) + y)


def view_of_one_shape(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    z = y.view(y.shape)
    z *= net.b(y)
    z -= 1
    z /= 2
    return net.out(y * z)


def residual_of_the_input(net: Any, x: Tensor) -> Tensor:
    y = net.a(torch.relu_(x))
    y += x
    return net.out(y.tanh_())


def functional(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    F.leaky_relu(y, 0.2, True)
    z = F.hardtanh(input=y, inplace=True)
    return net.out(y * net.b(z))


def functional_dropout(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    z = F.dropout(y, 0.3, net.training, inplace=True)
    return net.out(z * y)


def copy_before(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    z = y.clone()
    y.relu_()
    return net.out(z * y)


def unread(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    z = net.b(y)
    y[:, 0] = 0
    y.view(-1).clamp_(0)
    return net.out(z)


CONVERTED: dict[str, Callable[[], nn.Module]] = {
    "statement": lambda: Net(statement),
    "gate": lambda: Net(gate),
    "second name": lambda: Net(second_name),
    "module read again": lambda: Net(read_again, part=nn.ReLU(inplace=True)),
    "dropout read again": lambda: Net(read_again, part=nn.Dropout(0.5, inplace=True)),
    "functional dropout": lambda: Net(functional_dropout),
    "view of one shape": lambda: Net(view_of_one_shape),
    "the input": lambda: Net(residual_of_the_input),
    "functional": lambda: Net(functional),
    "copied before": lambda: Net(copy_before),
    "never read": lambda: Net(unread),
    "first layer": lambda: nn.Sequential(nn.ReLU(inplace=True), *mlp([8], bias=False)),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_same_function(name: str) -> None:
    net = CONVERTED[name]().double()
    example = torch.randn(2, 12, dtype=torch.float64)
    before = example.clone()
    model = clnp.convert(net, example, verbose=False)
    assert torch.equal(example, before)
    x = torch.randn(9, 12, dtype=torch.float64)
    torch.testing.assert_close(model.eval()(x), net.eval()(x.clone()), rtol=1e-12, atol=1e-12)


def test_dropout_in_place_drops_what_is_read_again() -> None:
    model = clnp.convert(CONVERTED["dropout read again"](), torch.zeros(2, 12), verbose=False)
    model.train()
    seen: list[Tensor] = []
    model.net.get_submodule("out").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.randn(200, 12)
    model.net(x)
    dropped, values = seen[0], model.net.get_submodule("a")(x)
    zero = dropped == 0  # both terms of the sum are dropped together
    assert 0.4 < float(zero.double().mean()) < 0.6
    torch.testing.assert_close(dropped[~zero], (4 * values)[~zero])


def wide_view(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y.view(-1, 3, 4).relu_()
    return net.out(y)


def assigned(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y[:, :2] = 0
    return net.out(y)


def added_to_a_part(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y[:, :2] += 1
    return net.out(y)


def copied_into(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y.copy_(net.b(x))
    return net.out(y)


def into_out(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    torch.sigmoid(net.b(x), out=y)
    return net.out(y)


def halves(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    left, _ = y.chunk(2, 1)
    left.relu_()
    return net.out(y)


def detached(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y.detach().relu_()
    return net.out(y)


def data(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y.data.relu_()
    return net.out(y)


def data_replaced(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y.data = torch.relu(y)
    return net.out(y)


def after_dropout(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    z = net.part(y)
    z.relu_()
    return net.out(z + y)


def after_contiguous(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y.contiguous().relu_()
    return net.out(y)


def own_weight(net: Any, x: Tensor) -> Tensor:
    net.a.weight.data.clamp_(-0.1, 0.1)
    return net.out(net.a(x))


def own_buffer(net: Any, x: Tensor) -> Tensor:
    net.part.num_batches_tracked.add_(1)
    return net.out(net.a(x))


REFUSED: dict[str, tuple[Forward, str]] = {
    "view of another shape": (wide_view, r"'relu_' changes a value in place that 'out' reads"),
    "part": (assigned, r"'setitem' assigns to a part of 'a'.*'out' reads"),
    "added to a part": (added_to_a_part, r"assigns to a part of 'a'|changes a value in place"),
    "copied into": (copied_into, r"'copy_'"),
    "out=": (into_out, r"'sigmoid'"),
    "halves": (halves, r"'relu_' changes a value in place that 'out' reads"),
    "detached": (detached, r"'detach'"),
    "data": (data, r"getattr"),
    "data replaced": (data_replaced, r"sets the attribute 'data' of a tensor"),
    "same in evaluation only": (after_dropout, r"'relu_' changes.*'add' reads.*some modes only"),
    "same in some formats": (after_contiguous, r"'relu_' changes.*'out' reads"),
    "weight": (own_weight, r"'clamp_' changes 'a.weight' in place"),
    "buffer": (own_buffer, r"changes 'part.num_batches_tracked'"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("zero", [False, True])
def test_refused_by_place(name: str, zero: bool) -> None:
    """Also if weights of zero hide the difference."""
    forward, message = REFUSED[name]
    part = nn.BatchNorm1d(12) if name == "buffer" else nn.Dropout(0.5)
    net = Net(forward, part=part)
    if zero:
        nn.init.zeros_(net.a.weight)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ConvertError, match=message):
        clnp.convert(net, torch.zeros(2, 12), verbose=False)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
