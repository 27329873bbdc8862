"""Conversion: the same function, or a refusal that names the layer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import clnp
from clnp.errors import ConvertError
from clnp_kernels.nn import MaskedLinear
from tests.clnp.cases import Functional, InputResidual, Residual, mlp

NETS = {
    "sequential": lambda: mlp([16, 8]),
    "no bias": lambda: mlp([16, 8], bias=False),
    "deep": lambda: mlp([5, 6, 7, 8, 9], dropout=0.3),
    "functional": Functional,
    "residual": Residual,
    "input residual": InputResidual,
    "linear": lambda: nn.Linear(12, 3),
    "nested": lambda: nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 7)), nn.GELU(), nn.Linear(7, 3)
    ),
    "parameter in forward": lambda: Parameterful(),
    "activation at the end": lambda: nn.Sequential(nn.Linear(12, 8), nn.ReLU()),
    "log-softmax": lambda: nn.Sequential(
        nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 3), nn.LogSoftmax(dim=1)
    ),
    "leaky": lambda: nn.Sequential(
        nn.Linear(12, 7), nn.LeakyReLU(0.2), nn.Linear(7, 3), nn.Identity()
    ),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_function(name: str, dtype: torch.dtype) -> None:
    net = NETS[name]().to(dtype).eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    model = clnp.convert(net, torch.zeros(2, 12, dtype=dtype), verbose=False)
    x = torch.randn(33, 12, dtype=dtype)
    assert torch.equal(model(x), net(x))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_training_gradients_equal_those_of_the_dense_network() -> None:
    net = Functional().eval()
    model = clnp.convert(net, torch.zeros(2, 12), verbose=False)
    x, y = torch.randn(20, 12), torch.randint(3, (20,))
    F.cross_entropy(net(x), y).backward()
    F.cross_entropy(model(x), y).backward()
    assert torch.equal(model.layer_weight("first").grad, net.first.weight.grad)
    assert torch.equal(model.layer_weight("block.0").grad, net.block[0].weight.grad)
    assert torch.equal(model.layer_weight("out").grad, net.out.weight.grad)


def test_names_and_report(capsys: pytest.CaptureFixture[str]) -> None:
    model = clnp.convert(Functional(), torch.zeros(2, 3, 4))
    assert model.layer_names == ["first", "block.0", "out"]
    printed = capsys.readouterr().out
    assert "first: Linear 12 -> 16, ReLU fused" in printed
    assert "out: output layer with 3 classes, becomes the head" in printed
    assert isinstance(model.net.get_submodule("block.0"), MaskedLinear)
    assert model.net.get_submodule("block.0").activation == "relu"


def test_functional_dropout_follows_the_mode() -> None:
    model = clnp.convert(Functional().train(), torch.zeros(2, 12), verbose=False)
    x = torch.randn(8, 12)
    assert model.training
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_shared_activation_module() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(12, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.act = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.act(self.b(self.act(self.a(x)))))

    net = Shared()
    model = clnp.convert(net, torch.zeros(2, 12), verbose=False)
    x = torch.randn(7, 12)
    assert torch.equal(model(x), net(x))


def test_groups_of_a_residual_network() -> None:
    model = clnp.convert(Residual(), torch.zeros(2, 12), verbose=False)
    stream = model.groups["stem"]
    assert stream.producers == ("stem", "outer")
    assert stream.consumers == ("inner", "out")
    assert model.groups["inner"].consumers == ("outer",)
    assert not model.groups.only_feeds_head()


class TwiceUsed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.fc(self.fc(x)))


class Parameterful(TwiceUsed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.linear(x, self.fc.weight))


class DataDependent(TwiceUsed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.fc(x) if x.sum() > 0 else x)


class AlwaysDropout(TwiceUsed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.dropout(self.fc(x), 0.5))


class TwoOutputs(TwiceUsed):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.fc(x)
        return h, self.out(h)


class ModeDependent(TwiceUsed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.fc(x)) if self.training else self.fc(x))


class Softmaxed(TwiceUsed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.log_softmax(self.fc(x), dim=1))


class Joined(TwiceUsed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.cat([self.fc(x)[:, :6], x[:, 6:]], dim=1))


def hooked() -> nn.Module:
    net = mlp([8])
    net[0].register_forward_hook(lambda *_: None)
    return net


def frozen() -> nn.Module:
    net = mlp([8])
    net[0].requires_grad_(False)
    return net


REFUSED = {
    "shared layer": (TwiceUsed, "'fc'.*called twice"),
    "control flow on data": (DataDependent, "can't be traced"),
    "dropout in evaluation": (AlwaysDropout, "evaluation mode too"),
    "tuple": (TwoOutputs, "output: expected the name or position of the logits"),
    "depends on the mode": (ModeDependent, "different paths in training"),
    "softmax inside": (Softmaxed, "mixes hidden channels"),
    "unread channels": (Joined, "nothing reads the outputs"),
    "layer norm of images": (
        lambda: nn.Sequential(
            *(nn.Linear(12, 8), nn.Unflatten(1, (8, 1, 1)), nn.LayerNorm([8, 1, 1])),
            *(nn.Flatten(), nn.Linear(8, 3)),
        ),
        "in '2' \\(layer_norm\\).*over channels and other axes at once",
    ),
    "conv": (
        lambda: nn.Sequential(nn.Unflatten(1, (1, 12)), nn.Conv1d(1, 2, 3)),
        "expected a Linear layer that gives the logits at its end",
    ),
    "no layer at the end": (
        lambda: nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8)),
        "'1' follows the output layer '0'",
    ),
    "spectral norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(12, 3))),
        "parametrized",
    ),
    "hooks": (hooked, "has hooks"),
    "frozen": (frozen, "requires_grad=False"),
    "softmax at the end": (
        lambda: nn.Sequential(nn.Linear(12, 3), nn.Softmax(dim=1)),
        "must return logits",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_reason(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ConvertError, match=message):
        clnp.convert(make(), torch.zeros(2, 12), verbose=False)


@pytest.mark.parametrize(
    ("net", "example", "message"),
    [
        ("text", torch.zeros(2, 12), "torch.nn.Module"),
        (mlp([8]), [1.0], "expected a tensor"),
        (mlp([8]), torch.zeros(12), r"batch \[B"),
        (mlp([8]), torch.zeros(0, 12), "B >= 1"),
        (mlp([8]), torch.zeros(2, 13), r"shape \[2, 13\]"),
        (mlp([8]), torch.zeros(2, 12, dtype=torch.int64), "int64"),
    ],
)
def test_bad_arguments(net: nn.Module, example: torch.Tensor, message: str) -> None:
    with pytest.raises(ConvertError, match=message):
        clnp.convert(net, example, verbose=False)


def test_converting_twice_is_refused() -> None:
    model = clnp.convert(mlp([8]), torch.zeros(2, 12), verbose=False)
    with pytest.raises(ConvertError, match="already"):
        clnp.convert(model, torch.zeros(2, 12))
