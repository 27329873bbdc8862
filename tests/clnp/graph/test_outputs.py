"""Networks of several outputs, and output layers that are sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clnp
from clnp.errors import ConvertError
from tests.clnp.cases import random_keep
from tests.clnp.conv_cases import SHAPE, patterns, randomise_norms


class Named(NamedTuple):
    logits: Tensor
    aux_logits: Tensor | None


@dataclass
class Result:
    logits: Tensor
    hidden: Tensor


class Net(nn.Module):
    """Two output layers on a body, and what to return of them."""

    def __init__(self, returned: Callable[[Net, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.more = nn.Sequential(nn.Conv2d(8, 6, 3, 2, 1), nn.ReLU(inplace=True))
        self.main, self.aux = nn.Conv2d(6, 3, 1), nn.Conv2d(8, 3, 1)
        self.returned = returned

    def forward(self, x: Tensor) -> Any:
        return self.returned(self, self.body(x), x)

    def large(self, y: Tensor) -> Tensor:
        return F.interpolate(self.main(self.more(y)), size=SHAPE[1:], mode="bilinear")


def modal(net: Net, y: Tensor, x: Tensor) -> Any:
    """As the networks of torchvision with auxiliary heads: a tensor in evaluation mode."""
    logits = net.large(y)
    return Named(logits, F.relu(net.aux(y), inplace=True)) if net.training else logits


STRUCTURES: dict[str, tuple[Any, str | int | None]] = {
    "one name": (lambda net, y, x: {"out": net.large(y)}, None),
    "an auxiliary name": (lambda net, y, x: {"aux": net.aux(y), "out": net.large(y)}, None),
    "by name": (lambda net, y, x: {"b": net.aux(y), "a": net.large(y)}, "a"),
    "by position": (lambda net, y, x: (net.aux(y), net.large(y)), 1),
    "one of a list": (lambda net, y, x: [net.large(y)], None),
    "a data class": (lambda net, y, x: Result(net.large(y), y), "logits"),
    "in one mode only": (modal, None),
    "a name where a mode has none": (modal, "logits"),
}


def main_of(result: Any, output: str | int | None) -> Tensor:
    if isinstance(result, Tensor):
        return result
    if isinstance(result, Result | Named):
        return result.logits
    return result["out" if output is None else output] if isinstance(result, dict) else result[-1]


def three_tasks_stay(model: Any, shape: tuple[int, ...] = SHAPE) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, *shape, generator=generator)
    logits: list[Tensor] = []
    for k in range(3):
        model.begin_task(generator=generator)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
        model.train()(x)
        model.eval().consolidate(random_keep(model, generator))
        logits.append(model(x, task=k))
        for task, expected in enumerate(logits):
            assert torch.equal(model.subnetwork(task, fresh=True)(x), expected)


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_logits_of_a_structure_are_kept(name: str) -> None:
    returned, output = STRUCTURES[name]
    torch.manual_seed(0)
    net = randomise_norms(Net(returned)).double()
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    model = clnp.convert(net, x, output=output, verbose=False)
    for mode in (False, True):
        expected, got = main_of(net.train(mode)(x), output), model.train(mode)(x)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    three_tasks_stay(clnp.convert(net.float(), x.float(), output=output, verbose=False))


def test_the_report_names_what_is_left_out() -> None:
    net = Net(lambda net, y, x: {"aux": net.aux(y), "out": net.large(y)})
    model = clnp.convert(net, torch.zeros(1, *SHAPE), verbose=False)
    assert ("aux", "another output of the network, left out") in model.conversion.left_alone
    assert "aux" not in model.masked


@pytest.mark.parametrize(
    ("returned", "output", "text"),
    [
        (lambda net, y, x: (net.large(y), net.aux(y)), None, r"one of \[0, 1\], which"),
        (lambda net, y, x: {"a": net.large(y), "b": y}, None, r"one of \['a', 'b'\], which"),
        (lambda net, y, x: {"a": net.large(y)}, "c", r"expected one of \['a'\], got 'c'"),
        (lambda net, y, x: (net.large(y),), 1, r"expected one of \[0\], got 1"),
        (lambda net, y, x: {"aux": net.large(y)}, None, r"one of \['aux'\], which"),
        (lambda net, y, x: net.large(y), 1.5, "expected a name, a position or None, got 1.5"),
    ],
)
def test_an_unclear_output_is_refused(returned: Any, output: Any, text: str) -> None:
    with pytest.raises(ConvertError, match="output: .*" + text):
        clnp.convert(Net(returned), torch.zeros(1, *SHAPE), output=output, verbose=False)


def test_a_change_in_place_by_an_auxiliary_head_is_seen() -> None:
    def changed(net: Net, y: Tensor, x: Tensor) -> Any:
        view = y.view(len(y), 8, -1)
        aux = view.mul_(2)  # not an ancestor of the result, but it changes what is read below
        return {"out": net.large(y), "aux": aux}

    with pytest.raises(ConvertError, match=r"changes a value in place that .* reads afterwards"):
        clnp.convert(Net(changed), torch.zeros(1, *SHAPE), verbose=False)


class Sum(nn.Module):
    """A sum of output layers of several inputs."""

    def __init__(self, pixels: bool, parts: int = 2, bias: bool = True) -> None:
        super().__init__()
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 4 + i, 3, padding=1), nn.ReLU()) for i in range(parts)
        )
        self.pixels = pixels
        self.heads = nn.ModuleList(
            nn.Conv2d(4 + i, 3, 1, bias=bias or i > 0)
            if pixels
            else nn.Linear(4 + i, 3, bias or i > 0)
            for i in range(parts)
        )

    def forward(self, x: Tensor) -> Tensor:
        values = [body(x) for body in self.body]
        values = values if self.pixels else [v.mean((2, 3)) for v in values]
        parts = [head(v) for head, v in zip(self.heads, values, strict=True)]
        result = parts[0]
        for part in parts[1:]:
            result = result + part
        return result * 2


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("pixels", [True, False])
def test_a_sum_of_output_layers_is_one(pixels: bool, parts: int, bias: bool) -> None:
    torch.manual_seed(0)
    net = Sum(pixels, parts, bias).double()
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    model = clnp.convert(net, x, verbose=False)
    torch.testing.assert_close(model(x), net(x), rtol=1e-10, atol=1e-12)
    assert model.groups.head == "heads.0"
    assert len(model.groups.read_by_head) == parts
    three_tasks_stay(clnp.convert(net.float(), x.float(), verbose=False))


def test_a_sum_over_fewer_pixels_is_refused() -> None:
    def broadcast(net: Net, y: Tensor, x: Tensor) -> Tensor:
        return net.aux(y) + net.main(net.more(y).mean((2, 3), keepdim=True))

    with pytest.raises(ConvertError, match=r"outputs of its own, .* joined with \['main'\]"):
        clnp.convert(Net(broadcast), torch.zeros(1, *SHAPE), verbose=False)


def test_a_learner_learns_a_network_of_several_outputs() -> None:
    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.out, self.aux = nn.Linear(192, 16), nn.Linear(16, 3), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.body(x.flatten(1)).relu()
            return {"out": self.out(y), "aux": self.aux(y)}

    model = clnp.convert(Classes(), torch.zeros(1, *SHAPE), verbose=False)
    learner = clnp.Learner(model, epochs=1, lr=1e-3, margin=0.3)
    for seed in range(2):
        learner.learn(patterns(seed, rows=30))
    assert all(verdict.identical for verdict in learner.verify())


def test_training_of_a_sum_moves_all_its_parts() -> None:
    torch.manual_seed(0)
    model = clnp.convert(Sum(True), torch.zeros(1, *SHAPE), verbose=False)
    model.begin_task()
    before = model.head.free_weight.detach().clone()
    x = torch.randn(4, *SHAPE)
    model(x).square().mean().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    moved = (model.head.free_weight - before).abs().sum(0)
    assert moved.shape == (9,)
    assert bool((moved > 0).all())
