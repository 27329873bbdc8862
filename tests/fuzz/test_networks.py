"""Random networks full of aliases, views and operations in place: `convert` keeps their function in
both modes, or refuses them.

CLNP_LONG_TESTS=1 takes 10,000 networks.
"""

from __future__ import annotations

import operator
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import clnp
from clnp.errors import ConvertError
from clnp_kernels.nn import Dropout
from tests.clnp.conv_cases import randomise_norms

LONG = bool(os.environ.get("CLNP_LONG_TESTS"))
CASES = 10_000 if LONG else 300
FUZZ = settings(
    max_examples=CASES // 2,
    deadline=None,
    derandomize=not LONG,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
WIDTH = 4

Step = tuple[str, int, int, int]  # kind of step, form of it, indices of the values that it takes


def shuffled(a: Tensor) -> Tensor:
    return a.view(len(a), 2, WIDTH // 2, *a.shape[2:]).transpose(1, 2).reshape(a.shape)


# What makes a new value out of one (and a second).
NEW: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda a, b: torch.relu(a),
    lambda a, b: F.hardtanh(a, -2.0, 2.0),
    lambda a, b: a.sigmoid(),
    lambda a, b: a + b,
    lambda a, b: a * b,
    lambda a, b: a - b,
    lambda a, b: 0.5 * a + 1,
    lambda a, b: a.clone(),
    lambda a, b: torch.cat([a[:, 3:], a[:, :3]], 1),
    lambda a, b: torch.cat([a.chunk(2, 1)[0], b.chunk(2, 1)[1]], 1),
    lambda a, b: F.glu(torch.cat([a, b], 1), 1),
    lambda a, b: shuffled(a),
]
# Another name of the same numbers, always or in some cases.
ALIAS: list[Callable[[Tensor], Tensor]] = [
    lambda a: a,
    lambda a: a.view(a.size()),
    lambda a: a.contiguous(),
    lambda a: a.reshape(a.shape),
    lambda a: a.expand_as(a),
    lambda a: torch.flatten(a, 1, 1),
]
# Returns its first argument, which it changes.
INPLACE: list[Callable[[Tensor, Tensor], Tensor]] = [
    operator.iadd,
    operator.imul,
    operator.isub,
    lambda a, b: operator.itruediv(a, 2.0),
    lambda a, b: operator.iadd(a, 1.0),
    lambda a, b: a.relu_(),
    lambda a, b: torch.relu_(a),
    lambda a, b: a.mul_(b),
    lambda a, b: a.add_(b),
    lambda a, b: a.tanh_(),
    lambda a, b: F.relu(a, inplace=True),
    lambda a, b: F.leaky_relu(a, 0.3, True),
    lambda a, b: F.hardswish(a, inplace=True),
]


def zero_part(a: Tensor, b: Tensor) -> None:
    a[:, :2] = 0


def add_to_part(a: Tensor, b: Tensor) -> None:
    a[:, 0] += 1


# Changes that no value stands for.
HOSTILE: list[Callable[[Tensor, Tensor], Any]] = [
    zero_part,
    add_to_part,
    lambda a, b: a.zero_(),
    lambda a, b: a.copy_(b),
    lambda a, b: a.clamp_(-0.5, 0.5),
    lambda a, b: a.view(-1).relu_(),
    lambda a, b: a.chunk(2, 1)[1].mul_(0.5),
    lambda a, b: a.detach().relu_(),
    lambda a, b: a.data.mul_(2),
    lambda a, b: torch.add(a, b, out=a),
    lambda a, b: a.transpose(-1, 0).tanh_(),
    lambda a, b: a.transpose(-1, 1).tanh_(),
    lambda a, b: torch.squeeze(a.unsqueeze(-1)).sigmoid_(),
]
MODULES: list[Callable[[], nn.Module]] = [
    lambda: nn.ReLU(inplace=True),
    lambda: nn.ReLU(inplace=True),
    nn.ReLU,
    nn.GELU,
    lambda: nn.Dropout(0.4),
    lambda: nn.Dropout(0.4, inplace=True),
    nn.Identity,
]


class Program(nn.Module):
    """Runs a list of steps on a list of values, the input first; ends in a Linear of the last one.

    Arguments:
        steps: see `Step`.
        images: values are [B, 4, 3, 3], else [B, 4].
    """

    def __init__(self, steps: list[Step], images: bool) -> None:
        super().__init__()
        self.steps, self.images = steps, images
        self.out = nn.Linear(WIDTH, 3, bias=False)
        self.parts = nn.ModuleList(self._part(kind, form) for kind, form, _, _ in steps)

    def _part(self, kind: str, form: int) -> nn.Module | None:
        if kind == "layer" and self.images:
            return nn.Conv2d(WIDTH, WIDTH, 1, bias=form % 2 == 0)
        if kind == "layer":
            return nn.Linear(WIDTH, WIDTH, bias=form % 2 == 0)
        if kind == "norm":
            return nn.BatchNorm2d(WIDTH) if self.images else nn.BatchNorm1d(WIDTH)
        return MODULES[form % len(MODULES)]() if kind.startswith("module") else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for step, part in zip(self.steps, self.parts, strict=True):
            self._step(step, part, values)
        last = values[-1]
        return self.out(last.mean((2, 3)) if self.images else last)

    def _step(self, step: Step, part: nn.Module, values: list[Tensor]) -> None:
        kind, form, first, second = step
        # Recent values are taken more often, or most steps would be without effect.
        a, b = (values[-1 - i % min(len(values), 3)] for i in (first, second))
        if kind in ("layer", "norm", "module"):
            values.append(part(a))
        elif kind == "module statement":
            part(a)
        elif kind == "dropout":
            values.append(F.dropout(a, 0.3, self.training, inplace=form % 2 == 0))
        elif kind == "new":
            values.append(NEW[form % len(NEW)](a, b))
        elif kind == "alias":
            values.append(ALIAS[form % len(ALIAS)](a))
        elif kind == "in place":
            values.append(INPLACE[form % len(INPLACE)](a, b))
        elif kind == "statement":
            INPLACE[form % len(INPLACE)](a, b)
        else:
            HOSTILE[form % len(HOSTILE)](a, b)


KINDS = (
    *("layer", "layer", "layer", "norm", "module", "dropout", "new", "new", "alias", "alias"),
    *("in place", "in place", "in place", "statement", "statement", "module statement", "hostile"),
)
numbers = st.integers(0, 59)
programs = st.lists(st.tuples(st.sampled_from(KINDS), numbers, numbers, numbers), max_size=12)


class KeepAll(TorchFunctionMode):
    """Functional dropout that drops nothing, and copies or not as dropout does."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return self._kept(*args, **kwargs)
        return func(*args, **kwargs)

    def _kept(self, x: Tensor, p: float, training: bool, inplace: bool = False) -> Tensor:
        return x.clone() if training and not inplace else x


def trained(model: nn.Module) -> nn.Module:
    """A converted network in training mode, but for dropout."""
    model.train()
    for module in model.modules():
        if isinstance(module, Dropout):
            module.eval()
    return model


def check_equal(model: nn.Module, net: nn.Module, x: Tensor) -> None:
    with torch.no_grad(), KeepAll():
        expected, got = net(x.clone()), model(x)
    scale = float(expected.abs().max())
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-7 * scale, equal_nan=True)


def check_program(steps: list[Step], images: bool, seed: int) -> str:
    """Converts one network and compares; returns what happened."""
    torch.manual_seed(seed)
    shape = (WIDTH, 3, 3) if images else (WIDTH,)
    net = randomise_norms(Program(steps, images).double(), seed)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    example = torch.randn(2, *shape, dtype=torch.float64)
    before, random_state = example.clone(), torch.get_rng_state()
    try:
        model = clnp.convert(net, example, verbose=False)
    except ConvertError:
        model = None
    assert torch.equal(example, before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    if model is None:
        return "refused"
    x = torch.randn(7, *shape, dtype=torch.float64)
    check_equal(model.eval(), net.eval(), x)
    model.begin_task()
    check_equal(trained(model), net.train(), x)
    return "converted"


@pytest.mark.parametrize("images", [False, True])
def test_same_function_or_refused(images: bool) -> None:
    seen: Counter[str] = Counter()

    @given(programs, st.integers(0, 2**30))
    @FUZZ
    def same_or_refused(steps: list[Step], seed: int) -> None:
        seen[check_program(steps, images, seed)] += 1

    same_or_refused()
    assert seen["converted"] > seen["refused"], seen  # else it would show little
