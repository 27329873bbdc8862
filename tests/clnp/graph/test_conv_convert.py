"""Conversion of convolutional networks: supported ones, their groups, and refusals."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import clnp
from clnp.errors import ConvertError, DataError
from clnp_kernels.nn import MaskedConv2d, PartialBatchNorm2d, PartialPerChannel
from tests.clnp.conv_cases import SHAPE, Block, Inverted, Plan, convert, plans, randomise_norms


@given(plans, st.integers(0, 2**30))
@settings(max_examples=60, deadline=None)
def test_conversion_keeps_the_function(plan: Plan, seed: int) -> None:
    torch.manual_seed(seed)
    net = randomise_norms(plan.build().double(), seed).eval()
    before = copy.deepcopy(net.state_dict())
    model = convert(net)
    x = torch.randn(5, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(model(x), net(x), rtol=1e-10, atol=1e-12)
    channels_last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(channels_last), net(x), rtol=1e-10, atol=1e-12)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


@given(plans, st.integers(0, 2**30))
@settings(max_examples=40, deadline=None)
def test_first_task_trains_like_the_dense_network(plan: Plan, seed: int) -> None:
    """Without frozen channels, gradients and statistics equal those of the plain network."""
    torch.manual_seed(seed)
    plan = Plan(plan.width, plan.blocks, plan.norm, False, plan.end)
    net = randomise_norms(plan.build().double(), seed).train()
    model = convert(net).train()
    model.begin_task()
    x = torch.randn(6, *SHAPE, dtype=torch.float64)
    y = torch.randint(3, (6,))
    losses = [F.cross_entropy(network(x), y) for network in (net, model)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-9, atol=1e-11)
    for loss in losses:
        loss.backward()
    for name, module in model.masked.items():
        if isinstance(module, PartialPerChannel):
            continue  # its shape differs from that of the dense weight
        dense = net.get_submodule(name)
        if dense.weight is not None:
            got, wanted = module.free_weight.grad, dense.weight.grad
            rows, columns = (t.get(name) for t in (model.groups.rows, model.groups.columns))
            wanted = wanted[rows] if rows else wanted
            wanted = wanted[:, columns] if columns else wanted
            torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-9)
        if isinstance(module, PartialBatchNorm2d):
            wanted = dense.running_var[rows] if rows else dense.running_var
            torch.testing.assert_close(module.free_var, wanted, rtol=1e-9, atol=1e-11)


def test_groups_of_residual_and_mobile_blocks() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        Block(6, 6, 1, norm=True),
        Inverted(6, excite=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 3),
    )
    groups = convert(net).groups
    stream = groups["0"]
    assert stream.size == 6
    assert stream.producers == ("0", "3.second.0", "4.body.7")
    assert stream.consumers == ("3.first.0", "4.body.0", "7")
    assert stream.carriers == ("1", "3.second.1", "4.body.8")
    wide = groups["4.body.0"]
    assert wide.producers == ("4.body.0", "4.body.6.up")
    assert wide.consumers == ("4.body.6.down", "4.body.7")
    assert wide.carriers == ("4.body.1", "4.body.3", "4.body.4")
    assert groups.reads["7"] == (("0", 4),)
    assert [group.name for group in groups.prunable] == [
        "0",
        "3.first.0",
        "4.body.0",
        "4.body.6.down",
    ]


def test_report_and_fused_layers(capsys: pytest.CaptureFixture[str]) -> None:
    net = Plan(4, ("depthwise",), True, True, "hidden").build()
    model = clnp.convert(net, torch.zeros(1, *SHAPE))
    printed = capsys.readouterr().out
    assert "0: Conv2d 3 -> 4, 3x3" in printed
    assert "1: BatchNorm of 4 channels, ReLU fused" in printed
    assert "depthwise Conv2d 4 -> 4, 3x3" in printed
    assert "dropout2d without weights" in printed
    assert isinstance(model.net.get_submodule("0"), MaskedConv2d)
    assert model.net.get_submodule("1").activation == "relu"


class Functional(nn.Module):
    """Functions instead of modules, and numbers as operands."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3, padding="same"), nn.Conv2d(5, 5, 3, padding=1)
        self.norm, self.out = nn.BatchNorm2d(5, momentum=None), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.a(x)), 2)
        x = x + 0.1 * F.hardswish(self.norm(self.b(x))) / 2
        x = F.dropout2d(F.avg_pool2d(x, 3, stride=1, padding=1), 0.1, self.training)
        return self.out(torch.mean(F.adaptive_max_pool2d(x, 2) - 1, dim=[-1, -2]))


class Reshaped(Functional):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.adaptive_avg_pool2d(self.norm(self.b(F.elu(self.a(x)))), (1, 1))
        return self.out(torch.squeeze(x))


class Squeezed(Functional):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.b(F.hardtanh(self.a(x), 0.0, 2.0)))
        return self.out(x.mean((2, 3), keepdim=True).reshape(x.shape[0], -1))


class Borrowed(Functional):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.conv2d(self.a(x), self.b.weight, padding=2).mean((2, 3)))


class Concatenated(Functional):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.out(torch.cat([x[:, 1:], x[:, :1]], 1).mean((2, 3))[:, :5])


@pytest.mark.parametrize("make", [Functional, Reshaped, Squeezed, Borrowed, Concatenated])
def test_functional_networks(make: type[nn.Module]) -> None:
    net = randomise_norms(make().double()).eval()
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(convert(net)(x), net(x), rtol=1e-10, atol=1e-12)


class Unread(Functional):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.out(torch.cat([x[:, :3], x[:, :2]], 1).mean((2, 3)))


class Broadcast(Functional):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.out((x * x.mean((1,), keepdim=True)).mean((2, 3)))


def ended(*layers: nn.Module, width: int = 8) -> nn.Sequential:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


def halves() -> nn.Conv2d:
    return nn.Conv2d(8, 8, 1, groups=2)


REFUSED = {
    "one norm for all": (
        lambda: ended(nn.Conv2d(3, 8, 1), nn.GroupNorm(1, 8)),
        "'group_norm'.*mixes channels.*use a norm of several groups",
    ),
    "one unit": (
        lambda: ended(nn.Conv2d(3, 8, 1), halves(), nn.ChannelShuffle(2), halves()),
        "'0': its 8 channels depend on one another",
    ),
    "local response": (
        lambda: ended(nn.Conv2d(3, 8, 1), nn.LocalResponseNorm(2)),
        r"'1' \(LocalResponseNorm\).*mixes channels",
    ),
    "unread channels": (Unread, r"nothing reads the outputs of \('a',\), or some of them"),
    "no statistics": (
        lambda: ended(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, track_running_stats=False)),
        "'1'.*expected track_running_stats=True, got False",
    ),
    "mean over channels": (Broadcast, "'mean'.*works along the channels, axis 1; it mixes"),
    "softmax": (lambda: ended(nn.Conv2d(3, 8, 1), nn.Softmax(dim=1)), "mixes channels"),
    "no linear end": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten()),
        r"expected a Linear layer .* got '1' \(flatten\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_layer_and_the_reason(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ConvertError, match=message):
        convert(make())


def test_example_of_the_wrong_shape_names_where() -> None:
    net = Plan(4, (), False, False, "mean").build()
    with pytest.raises(ConvertError, match=r"example_input of shape \[2, 1, 8, 8\].*'0' .*fails"):
        clnp.convert(net, torch.zeros(2, 1, 8, 8), verbose=False)


def test_images_of_the_wrong_shape_are_refused() -> None:
    model = convert(Plan(4, (), False, False, "mean").build())
    for shape in [(2, 1, 8, 8), (2, 3, 9, 8), (3, 8, 8)]:
        with pytest.raises(DataError, match=r"expected shape \[B, 3, 8, 8\]"):
            model(torch.zeros(shape))
