"""Random networks whose channels are cut, joined, gated and shuffled: the same function in both
modes, bits that stay over three tasks, and the same networks taken out.

CLNP_LONG_TESTS=1 takes 2,000 networks; CLNP_SEGMENTS=N takes N.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import clnp
from clnp.errors import ConvertError
from clnp.network.model import Model
from tests.clnp.cases import random_keep
from tests.clnp.conv_cases import randomise_norms

LONG = bool(os.environ.get("CLNP_LONG_TESTS"))
CASES = int(os.environ.get("CLNP_SEGMENTS", 2000 if LONG else 24))
FUZZ = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=not LONG and "CLNP_SEGMENTS" not in os.environ,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
SHAPE = (3, 5, 5)
Step = tuple[str, int, int, int]  # kind of step, form of it, indices of the values that it takes


class Scale(nn.Module):
    """A factor and an offset per channel, or per channel and pixel."""

    def __init__(self, channels: int, pixels: bool) -> None:
        super().__init__()
        rest = SHAPE[1:] if pixels else (1, 1)
        self.gamma = nn.Parameter(torch.rand(channels, *rest) + 0.5)
        self.beta = nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma + self.beta


class Segments(nn.Module):
    """Runs steps on a list of values [B, C, 5, 5], the first made of the input; all values together
    are read by the output layer.
    """

    def __init__(self, steps: list[Step], width: int, end: str) -> None:
        super().__init__()
        self.steps, self.end = steps, end
        self.stem = nn.Conv2d(SHAPE[0], width, 3, padding=1)
        self.parts = nn.ModuleDict()
        with torch.no_grad():  # the parts are made where their widths are known
            total = sum(v.shape[1] for v in self._values(torch.zeros(2, *SHAPE), make=True))
        pixels = 4 if end == "flatten" else 1
        self.out = nn.Conv2d(total, 3, 1) if end == "pixels" else nn.Linear(pixels * total, 3)
        self.aux = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Any:
        values = self._values(x, make=False)
        y = torch.cat(values, 1)
        if self.end == "pixels":
            return F.interpolate(self.out(y), scale_factor=2)
        if self.end == "flatten":
            return self.out(F.adaptive_avg_pool2d(y, 2).flatten(1))
        logits = self.out(y.mean((2, 3)))
        if self.end == "outputs":
            return {"aux": self.aux(values[0].mean((2, 3))), "logits": logits}
        return logits

    def _values(self, x: Tensor, make: bool) -> list[Tensor]:
        values = [self.stem(x)]
        for number, step in enumerate(self.steps):
            self._step(f"{number}", step, values, make)
        return values

    def _part(self, name: str, make: nn.Module | None) -> nn.Module:
        if make is not None:
            self.parts[name] = make
        return self.parts[name]

    def _step(self, name: str, step: Step, values: list[Tensor], make: bool) -> None:
        kind, form, first, second = step
        a, b = (values[-1 - i % min(len(values), 3)] for i in (first, second))
        c, other = a.shape[1], b.shape[1]
        part = [2, 4, 6, 8][form % 4]

        def layer(module: nn.Module | None) -> nn.Module:
            return self._part(name, module)

        if kind == "conv":
            values.append(layer(nn.Conv2d(c, part, 1, bias=form % 3 > 0) if make else None)(a))
        elif kind == "grouped":
            groups = next(g for g in (4, 3, 2, 1) if c % g == 0)
            new = nn.Conv2d(c, groups * (1 + form % 2), 3, 1, 1, groups=groups) if make else None
            values.append(F.silu(layer(new)(a)))
        elif kind == "depthwise":
            values.append(layer(nn.Conv2d(c, c, 3, 1, 1, groups=c) if make else None)(a))
        elif kind == "batch norm":
            values.append(torch.relu(layer(nn.BatchNorm2d(c) if make else None)(a)))
        elif kind == "group norm":
            groups = next((g for g in (2, 3, c) if c % g == 0), c)
            new = nn.GroupNorm(groups, c, affine=form % 2 == 0) if make and c > 1 else nn.Identity()
            values.append(layer(new if make else None)(a))
        elif kind == "cat":
            values.append(torch.cat([a, b], 1))
        elif kind == "split":
            cut = 1 + form % max(c - 1, 1)
            if c > 1:
                values.extend(a.split([cut, c - cut], 1))
        elif kind == "chunk":
            if c % 2 == 0:
                one, two = a.chunk(2, 1)
                values.append(one * torch.tanh(two) if form % 2 else one - two)
        elif kind == "glu":
            values.append(F.glu(a, 1) if c % 2 == 0 else -a)
        elif kind == "stride":
            values.append(a[:, form % 2 :: 2] if c > 1 else a)
        elif kind == "shuffle":
            groups = 2 if c % 2 == 0 else 1
            shape = (len(a), groups, c // groups, *SHAPE[1:])
            values.append(a.view(shape).transpose(1, 2).reshape(a.shape))
        elif kind == "sum":
            values.append([a + b, a * b, torch.maximum(a, b)][form % 3] if c == other else a.abs())
        elif kind == "gate":
            new = nn.Conv2d(other, 1 if form % 2 else c, 1) if make else None
            gate = torch.sigmoid(layer(new)(b if form % 3 else b.mean((2, 3), keepdim=True)))
            values.append(a * gate)
        elif kind == "scale":
            values.append(layer(Scale(c, form % 3 == 0) if make else None)(a))
        elif kind == "slopes":
            values.append(layer(nn.PReLU(c) if make else None)(a))
        else:
            values.append(F.max_pool2d(a, 3, 1, 1))


KINDS = (
    *("conv", "conv", "grouped", "depthwise", "batch norm", "group norm", "cat", "cat", "split"),
    *("chunk", "glu", "stride", "shuffle", "sum", "sum", "gate", "scale", "slopes", "pool"),
)
numbers = st.integers(0, 11)
programs = st.lists(
    st.tuples(st.sampled_from(KINDS), numbers, numbers, numbers), min_size=1, max_size=7
)
HEADS = ["multi", "single"]
ends = st.sampled_from(["mean", "flatten", "pixels", "outputs"])


def logits_of(result: Any) -> Tensor:
    found = result["logits"] if isinstance(result, dict) else result
    assert isinstance(found, Tensor)
    return found


def _keep(model: Model, generator: torch.Generator) -> dict[str, Tensor]:
    """Any channels; a task of a single head needs a new one that the head reads."""
    keep = random_keep(model, generator)
    read = [g.name for g in model.groups.read_by_head if g.prunable and model.free(g)]
    if model.head.kind == "single" and not any(len(keep[name]) for name in read):
        keep[read[-1]] = torch.arange(1)
    return keep


def learn_three(model: Model, x: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Three tasks of random weights and channels; every learned task keeps its bits."""
    logits: list[Tensor] = []
    for k in range(3):
        if model.head.kind == "single" and model.is_full:
            break
        model.begin_task(generator=generator)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            model.train()(x)
        keep = _keep(model, generator)
        pruned = model.eval().pruned_network(keep)(x)
        model.consolidate(keep)
        logits.append(model(x, task=k))
        assert torch.equal(pruned, logits[k])
        for task, expected in enumerate(logits):
            assert torch.equal(model.subnetwork(task, fresh=True)(x), expected)
            assert torch.equal(clnp.extract(model, task)(x), expected)
    return logits


def check_network(steps: list[Step], width: int, end: str, seed: int, head: str) -> str:
    """Convert, compare and learn; return what happened."""
    torch.manual_seed(seed)
    net = randomise_norms(Segments(steps, width, end).double(), seed)
    x = torch.randn(4, *SHAPE, dtype=torch.float64)
    try:
        model = clnp.convert(net, x[:1], verbose=False)
    except ConvertError as error:
        known = any(word in str(error) for word in REASONS)
        return "refused" if known else f"refused: {error}"
    for mode in (False, True):
        with torch.no_grad():
            expected, got = logits_of(net.train(mode)(x)), model.train(mode)(x)
        scale = float(expected.abs().max())
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10 * scale)
    model = clnp.convert(net.eval().float(), x[:1].float(), verbose=False)
    if head == "multi" or any(g.prunable for g in model.groups.read_by_head):
        model.set_head(head)
    x = x.float()
    logits = learn_three(model, x, torch.Generator().manual_seed(seed))
    fresh = clnp.Model.from_structure(model.structure())
    fresh.load_state_dict(model.state_dict())
    for task, expected in enumerate(logits):
        assert torch.equal(fresh(x, task=task), expected)
    for got, expected in zip(model.all_tasks(x), logits, strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * scale + 1e-6)
    return "converted"


# True reasons why some of these networks can't be pruned.
REASONS = (
    "depend on one another in a later layer",
    "nothing reads",
    "mixes channels",
    "can't be pruned",
)


def test_same_function_and_bits_that_stay() -> None:
    seen: Counter[str] = Counter()

    @given(programs, st.integers(2, 8), ends, st.integers(0, 2**30), st.sampled_from(HEADS))
    @FUZZ
    def same_and_staying(steps: list[Step], width: int, end: str, seed: int, head: str) -> None:
        seen[check_network(steps, width, end, seed, head)] += 1

    same_and_staying()
    assert set(seen) <= {"converted", "refused"}  # with a true reason
    assert seen["converted"] > 2 * seen["refused"], seen  # else it would show little


EXPORTED: list[list[Step]] = [
    [("group norm", 1, 0, 0), ("gate", 1, 0, 0), ("gate", 0, 0, 0)],
    [("gate", 1, 0, 0), ("split", 1, 0, 0), ("shuffle", 0, 1, 0)],
    [("grouped", 1, 0, 0), ("scale", 0, 0, 0), ("cat", 0, 0, 1), ("stride", 1, 0, 0)],
    [("conv", 3, 0, 0), ("glu", 0, 0, 0), ("slopes", 0, 0, 0), ("chunk", 1, 0, 0)],
]


@pytest.mark.parametrize("number", range(len(EXPORTED)))
def test_exported_networks_are_the_same(number: int, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(number)
    net = randomise_norms(Segments(EXPORTED[number], 8, "mean"), number)
    x = torch.randn(4, *SHAPE)
    model = clnp.convert(net, x, verbose=False)
    logits = learn_three(model, x, torch.Generator().manual_seed(number))
    narrow = clnp.extract(model, 1)
    clnp.export(narrow, tmp_path / "n.safetensors", x)
    assert torch.equal(clnp.load_network(tmp_path / "n.safetensors")(x), logits[1])
    clnp.export(narrow, tmp_path / "n.onnx", x)
    session = runtime.InferenceSession(tmp_path / "n.onnx")
    (got,) = session.run(["logits"], {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), logits[1], rtol=1e-4, atol=1e-4)
