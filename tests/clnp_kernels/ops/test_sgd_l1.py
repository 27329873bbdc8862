"""sgd_l1: against torch.optim.SGD, with L1, special values, bad arguments."""

from typing import Any

import pytest
import torch
from torch import Tensor

from clnp_kernels import ops
from tests.oracles import DTYPES, assert_accurate, joined

SHAPES = [(0,), (1,), (37,), (70001,), (30, 7)]
VARIANTS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.5, "weight_decay": 0.1, "maximize": True},
]
DEFAULTS = {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0}


def randoms(dtype: torch.dtype, generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def torchs(
    params: list[Tensor], grads: list[list[Tensor]], l1: float, **options: Any
) -> list[Tensor]:
    """Parameters after torch.optim.SGD with the penalty's subgradient added to the gradients."""
    leaves = [param.clone().requires_grad_() for param in params]
    sgd = torch.optim.SGD(leaves, lr=0.1, **options)
    sign = -1 if options.get("maximize") else 1
    for step in grads:
        for leaf, grad in zip(leaves, step, strict=True):
            leaf.grad = grad + sign * l1 * leaf.detach().sign()
        sgd.step()
    return [leaf.detach() for leaf in leaves]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("l1", [0.0, 0.05])
@pytest.mark.parametrize("dtype", DTYPES)
def test_is_sgd(
    dtype: torch.dtype, l1: float, variant: dict[str, Any], generator: torch.Generator
) -> None:
    params = randoms(dtype, generator)
    grads = [randoms(dtype, generator) for _ in range(4)]
    ours = [param.clone() for param in params]
    buffers = [torch.zeros_like(param) for param in params]
    options = {**DEFAULTS, "maximize": False, **variant}
    for count, step in enumerate(grads, 1):
        first = [count == 1] * len(params)
        ops.sgd_l1(ours, step, buffers, lr=0.1, l1=[l1] * len(params), first=first, **options)
        double = [[g.double() for g in s] for s in grads[:count]]
        exact = torchs([p.double() for p in params], double, l1, **variant)
        theirs = torchs(params, grads[:count], l1, **variant)
        assert_accurate(joined(ours), joined(theirs), joined(exact))


def test_scale_and_found_inf(generator: torch.Generator) -> None:
    params, grads = randoms(torch.float32, generator), randoms(torch.float32, generator)
    options = {**DEFAULTS, "momentum": 0.9, "maximize": False, "lr": 0.1, "l1": [0.1] * 5}
    results = []
    for scale in (None, torch.tensor(1024.0)):
        ours, buffers = [p.clone() for p in params], [torch.zeros_like(p) for p in params]
        scaled = [g if scale is None else g * scale for g in grads]
        ops.sgd_l1(ours, scaled, buffers, grad_scale=scale, found_inf=torch.zeros(()), **options)
        ops.sgd_l1(ours, scaled, buffers, found_inf=torch.ones(()), **options)
        results.append([*ours, *buffers])
    for plain, with_scale in zip(*results, strict=True):
        assert torch.equal(plain, with_scale)


def test_strides(generator: torch.Generator) -> None:
    param, grad = (torch.randn(30, 7, generator=generator) for _ in range(2))
    options = {**DEFAULTS, "momentum": 0.9, "maximize": False, "lr": 0.1, "l1": [0.1]}
    plain, buffer = param.clone(), torch.zeros(30, 7)
    strided, wide = param.t().contiguous().t(), torch.zeros(30, 14)[:, ::2]
    for _ in range(3):
        ops.sgd_l1([plain], [grad], [buffer], **options)
        ops.sgd_l1([strided], [grad.t().contiguous().t()], [wide], **options)
    assert torch.equal(plain, strided)
    assert torch.equal(buffer, wide)


def test_opcheck(generator: torch.Generator) -> None:
    params, grads = randoms(torch.float32, generator), randoms(torch.float32, generator)
    buffers = [torch.zeros_like(param) for param in params]
    rest = (
        [False] * 5,
        [torch.tensor(0.1)] * 5,
        [0.1] * 5,
        0.9,
        0.0,
        False,
        0.0,
        False,
        None,
        None,
    )
    checks = ("test_schema", "test_faketensor")
    op = torch.ops.clnp_kernels.sgd_l1.default
    torch.library.opcheck(op, (params, grads, buffers, *rest), test_utils=checks)


ONE = torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        ({"grads": []}, ValueError, r"^len\(grads\): expected 1.*, got 0"),
        ({"momentum_buffers": []}, ValueError, r"^len\(momentum_buffers\): expected .*, got 0"),
        ({"momentum_buffers": [torch.zeros(2)]}, ValueError, r"^momentum_buffers\[0\]\.shape"),
        ({"first": []}, ValueError, r"^len\(first\): expected .*, got 0"),
        ({"l1": [float("nan")]}, ValueError, r"^l1\[0\]: expected .*, got nan"),
        ({"momentum": -0.1}, ValueError, "^momentum: expected .*, got -0.1"),
        ({"lr": -1.0}, ValueError, "^lr: expected .*, got -1.0"),
    ],
)
def test_bad_arguments(change: dict[str, Any], kind: type[Exception], match: str) -> None:
    lists = {name: [ONE.clone()] for name in ("params", "grads", "momentum_buffers")}
    good = {**lists, **DEFAULTS, "momentum": 0.9, "maximize": False, "lr": 0.1, "l1": [0.0]}
    with pytest.raises(kind, match=match):
        ops.sgd_l1(**{**good, **change})


@pytest.mark.parametrize("name", ["grads", "momentum_buffers", "first", "lr", "l1"])
def test_direct_calls_are_safe(name: str, compiled: None) -> None:
    """Without the Python checks the C++ ones raise: nothing is read out of bounds."""
    good: dict[str, Any] = {
        key: [torch.zeros(3)] for key in ("params", "grads", "momentum_buffers")
    }
    good |= {"first": [True], "lr": [torch.tensor(0.1)], "l1": [0.0], **DEFAULTS, "momentum": 0.9}
    good |= {"maximize": False, "grad_scale": None, "found_inf": None}
    torch.ops.clnp_kernels.sgd_l1(**good)
    with pytest.raises(RuntimeError, match="expected"):
        torch.ops.clnp_kernels.sgd_l1(**{**good, name: []})
