"""Refusals of networks that conversion would change or can't trace, with the correct reason."""

from __future__ import annotations

import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clnp
from clnp.errors import ConvertError
from tests.clnp.cases import Functional, blobs, mlp

EXAMPLE = torch.zeros(2, 12)
IMAGES = torch.zeros(2, 3, 8, 8)


def refuse(net: nn.Module, message: str, example: Tensor = EXAMPLE) -> None:
    with pytest.raises(ConvertError, match=message):
        clnp.convert(net, example, verbose=False)


def normed() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2)),
        *(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)),
    )


def images(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


# Tied parameters and buffers


def test_tied_parameters_and_buffers() -> None:
    net = mlp([12, 12])
    net[2].weight = net[0].weight
    refuse(net, r"'0.weight' and '2.weight' are one tensor \(tied\)")
    net = mlp([12, 12])
    net[2].bias = net[0].bias
    refuse(net, "'0.bias' and '2.bias' are one tensor")
    net = normed()
    net[5].running_mean = net[1].running_mean
    refuse(net, "'1.running_mean' and '5.running_mean' are one tensor")


def test_memory_that_parameters_share() -> None:
    net = mlp([12, 12])
    net[2].weight = nn.Parameter(net[0].weight.data.t())
    refuse(net, "'0.weight' and '2.weight' are one tensor")
    net = mlp([12, 12])
    flat = torch.randn(2 * 144)  # side by side in one storage
    net[0].weight = nn.Parameter(flat[:144].view(12, 12))
    net[2].weight = nn.Parameter(flat[144:].view(12, 12))
    x = torch.randn(4, 12)
    assert torch.equal(clnp.convert(net, EXAMPLE, verbose=False)(x), net(x))


# Modes


class KeptInEvaluation(nn.Sequential):
    def train(self, mode: bool = True) -> KeptInEvaluation:
        super().train(mode)
        self[1].eval()
        return self


@pytest.mark.parametrize("index", [1, 3])
@pytest.mark.parametrize("training", [False, True])
def test_modules_in_another_mode(index: int, training: bool) -> None:
    net = normed().train(training)
    net[index].train(not training)
    refuse(net, rf"'{index}' \(.*\) is in .* mode, the network in .*call net.train\(\)")
    assert net[index].training is not training


def test_train_that_leaves_modules_out() -> None:
    refuse(KeptInEvaluation(*normed()).eval(), r"'1' \(BatchNorm1d\) stays in evaluation mode")
    net = normed().eval()
    net[3].train = types.MethodType(lambda self, mode=True: self, net[3])
    refuse(net, r"'3' \(Dropout\) stays in evaluation mode after net.train\(True\)")


def test_a_mode_without_effect_is_no_matter() -> None:
    net = normed()
    net[0].eval(), net[2].eval()
    assert clnp.convert(net, EXAMPLE, verbose=False).training


# What can't be copied, or has no numbers


def with_attribute(value: Any) -> nn.Module:
    net = mlp([8])
    net[0].extra = value
    return net


def named(name: str) -> nn.Module:
    net = nn.Sequential()
    net.add_module(name, nn.Linear(12, 4))
    net.add_module("last", nn.Linear(4, 3))
    return net


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return mlp([8])


def hooked_weight() -> nn.Module:
    net = mlp([8])
    net[0].weight.register_hook(lambda grad: 0 * grad)
    return net


def own_forward() -> nn.Module:
    net = mlp([8])
    net[0].forward = lambda x: 2 * x[:, :8]
    return net


ODD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "lock": (lambda: with_attribute(threading.Lock()), r"'0' \(Linear\): its attribute 'extra'"),
    "features": (lambda: with_attribute(mlp([8])(EXAMPLE)), r"attribute 'extra' \(Tensor\)"),
    "colon": (lambda: named("a:b"), "module 'a:b': expected a name"),
    "underscores": (lambda: named("__a"), "module '__a': expected a name"),
    "name in torch.fx": (lambda: named("graph"), "module 'graph': expected a name"),
    "keyword": (lambda: named("lambda"), "module 'lambda': expected a name"),
    "self": (lambda: named("self"), "module 'self': expected a name"),
    "meta": (on_meta, "'0.weight' is on the meta device"),
    "gradient hook": (hooked_weight, "its weight has gradient hooks"),
    "forward of its own": (own_forward, r"'0' \(Linear\) has a forward in its instance attributes"),
    "lazy": (
        lambda: nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3)),
        "'0.weight' has no shape yet.*; run the network on one batch",
    ),
    "two dtypes": (lambda: nn.Sequential(*mlp([8])[:2], nn.Linear(8, 3).double()), "float64"),
}


@pytest.mark.parametrize("name", ODD)
def test_refused_before_the_copy(name: str) -> None:
    make, message = ODD[name]
    refuse(make(), message)


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_spectral_norms(norm: Callable[[nn.Module], nn.Module]) -> None:
    net = mlp([8])
    norm(net[0])
    refuse(net, r"spectral norm changes its own state.*remove_")


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_weight_norm_by_hook() -> None:
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    nn.utils.weight_norm(net[0])
    x = torch.randn(4, 12, dtype=torch.float64)
    model = clnp.convert(net, EXAMPLE.double(), verbose=False)
    torch.testing.assert_close(model(x), net(x), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("inside", [False, True])
def test_torchscript(inside: bool) -> None:
    net: nn.Module = torch.jit.trace(mlp([8]), EXAMPLE)
    refuse(nn.Sequential(net) if inside else net, "is TorchScript, whose forward can't be traced")


def test_compiled_networks_are_unwrapped() -> None:
    net = mlp([8])
    model = clnp.convert(torch.compile(net), EXAMPLE, verbose=False)
    assert model.layer_names == ["0", "2"]
    x = torch.randn(4, 12)
    assert torch.equal(model(x), net(x))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (EXAMPLE.double(), "expected torch.float32, as '0.weight', got torch.float64"),
        (EXAMPLE.to("meta"), "expected a tensor on cpu, as '0.weight', got meta"),
        (EXAMPLE.to_sparse(), "dense tensor of floating-point"),
        (EXAMPLE.to(torch.complex64), "floating-point numbers.* got torch.complex64"),
    ],
)
def test_examples_that_do_not_fit(example: Tensor, message: str) -> None:
    refuse(mlp([8]), message, example)


def test_examples_that_do() -> None:
    net, x = mlp([8]), torch.randn(4, 12)
    for example in (EXAMPLE.clone().requires_grad_(), torch.full((1, 12), torch.nan)):
        assert torch.equal(clnp.convert(net, example, verbose=False)(x), net(x))
    with torch.inference_mode():
        model = clnp.convert(net, torch.zeros(2, 12), verbose=False)
    F.cross_entropy(model(x), torch.zeros(4, dtype=torch.int64)).backward()
    assert not any(p.is_inference() for p in model.parameters())


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_even_kernels_that_keep_the_size() -> None:
    net = images(nn.Conv2d(3, 8, 4, padding="same")).double().eval()
    model = clnp.convert(net, IMAGES.double(), verbose=False)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(model(x), net(x), rtol=1e-12, atol=1e-12)


def test_a_head_alone_learns() -> None:
    model = clnp.convert(nn.Linear(12, 3), EXAMPLE, verbose=False)
    learner = clnp.Learner(model, head="multi", epochs=2)
    learner.learn(blobs(0))
    with pytest.warns(clnp.CapacityWarning):
        learner.learn(blobs(1))
    assert all(verdict.identical for verdict in learner.verify())


# True reasons


class Given(Functional):
    """A given forward, between layers of one width."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__(width=12)
        self.square, self.last, self.run = nn.Linear(12, 12), nn.Linear(12, 3), forward
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def constant(net: Any, x: Tensor) -> Tensor:
    return net.last(net.square(x) * torch.arange(12.0))


def without_gradient(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = net.square(x)
    return net.last(y)


def in_half(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu"):
        y = net.square(x)
    return net.last(y)


def counted(net: Any, x: Tensor) -> Tensor:
    net.calls += 1
    return net.last(net.square(x) * min(1.0, net.calls / 10))


def other_number(net: Any, x: Tensor) -> Tensor:
    return net.last(net.square(x) * (0.5 if net.training else 1.0))


def batch_of_two(net: Any, x: Tensor) -> Tensor:
    return net.last(net.square(x).view(2, 12))


FORWARDS = {
    "constant": (constant, "constants per channel, which channels of later tasks lack"),
    "no_grad": (without_gradient, "'square'.*runs under torch.no_grad"),
    "autocast": (in_half, "'square'.*runs under torch.autocast"),
    "counts its calls": (counted, "'mul'.*arguments differ.*from call to call"),
    "number of the mode": (other_number, "'mul'.*arguments differ between training"),
    "size of the batch": (batch_of_two, "batches of any size"),
    "probabilities": (lambda n, x: F.softmax(n.last(x), -1), "must return logits.*remove it"),
    "batches side by side": (
        lambda n, x: n.last(torch.cat([n.square(x), x], 0)),
        "'cat'.*makes a larger batch",
    ),
    "precision": (lambda n, x: n.last(n.square(x).to(torch.float64).float()), r"\(to\)"),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_reasons_of_forwards(name: str) -> None:
    forward, message = FORWARDS[name]
    refuse(Given(forward), message)


def test_what_forward_keeps_does_not_matter() -> None:
    def keeps(net: Any, x: Tensor) -> Tensor:
        net.seen = net.square(x) + torch.ones(12)
        return net.last(net.square2(x))

    net = Given(keeps)
    net.square2 = nn.Linear(12, 12)
    x = torch.randn(4, 12)
    assert torch.equal(clnp.convert(net, EXAMPLE, verbose=False).eval()(x), net.eval()(x))


REASONS: dict[str, tuple[nn.Module, str]] = {
    "softmax over channels": (nn.Softmax(1), r"\(softmax\).*mixes channels"),
    "norm over all": (nn.LayerNorm([8, 6, 6]), r"\(layer_norm\).*channels and other axes at once"),
}


@pytest.mark.parametrize("name", REASONS)
def test_reasons_of_modules(name: str) -> None:
    module, message = REASONS[name]
    refuse(images(nn.Conv2d(3, 8, 3), module), rf"in '1' {message}", IMAGES)


def test_one_value_on_both_sides() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.square(x)
        return net.last(y * y + y)

    net, x = Given(forward), torch.randn(5, 12)
    assert torch.equal(clnp.convert(net, EXAMPLE, verbose=False)(x), net(x))
