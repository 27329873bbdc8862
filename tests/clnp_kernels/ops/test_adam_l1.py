"""adam_l1: against torch.optim.Adam, with L1 by autograd, special values, bad arguments."""

from typing import Any

import pytest
import torch
from torch import Tensor

from clnp_kernels import ops, optim
from tests.oracles import DTYPES, assert_accurate, joined

# no element, one, an odd number, more than one piece of work, a matrix
SHAPES = [(0,), (1,), (37,), (70001,), (30, 7)]
OPTIONS = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}


class Run:
    """Parameters and the state of Adam, stepped by adam_l1."""

    def __init__(self, params: list[Tensor], **options: Any) -> None:
        self.params = [param.clone() for param in params]
        self.exp_avgs = [torch.zeros_like(param) for param in params]
        self.exp_avg_sqs = [torch.zeros_like(param) for param in params]
        self.steps = [torch.zeros(()) for _ in params]
        self.options = {"l1": [0.0] * len(params), "maximize": False, **OPTIONS, **options}

    def step(self, grads: list[Tensor], **options: Any) -> None:
        lists = (self.params, grads, self.exp_avgs, self.exp_avg_sqs, self.steps)
        ops.adam_l1(*lists, **{**self.options, **options})

    def state(self) -> list[Tensor]:
        return [*self.params, *self.exp_avgs, *self.exp_avg_sqs, *self.steps]


def randoms(dtype: torch.dtype, generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def torchs(
    params: list[Tensor], grads: list[list[Tensor]], l1: float, **options: Any
) -> list[Tensor]:
    """Parameters after torch.optim.Adam with the penalty's subgradient added to the gradients."""
    leaves = [param.clone().requires_grad_() for param in params]
    lr, beta1, beta2 = OPTIONS["lr"], OPTIONS["beta1"], OPTIONS["beta2"]
    rest = {"eps": OPTIONS["eps"], "weight_decay": OPTIONS["weight_decay"], **options}
    # fused: the others turn float16 into NaN where the second moment underflows
    adam = torch.optim.Adam(leaves, lr=lr, betas=(beta1, beta2), fused=True, **rest)
    for step in grads:
        for leaf, grad in zip(leaves, step, strict=True):
            # maximize turns the sign of the gradient, not of the penalty
            sign = -1 if options.get("maximize") else 1
            leaf.grad = grad + sign * l1 * leaf.detach().sign()
        adam.step()
    return [leaf.detach() for leaf in leaves]


@pytest.mark.parametrize("options", [{}, {"maximize": True}, {"weight_decay": 0.0}])
@pytest.mark.parametrize("l1", [0.0, 0.05])
@pytest.mark.parametrize("dtype", DTYPES)
def test_is_adam(
    dtype: torch.dtype, l1: float, options: dict[str, Any], generator: torch.Generator
) -> None:
    params = randoms(dtype, generator)
    grads = [randoms(dtype, generator) for _ in range(5)]
    run = Run(params, l1=[l1] * len(params), **options)
    for count, step in enumerate(grads, 1):
        run.step(step)
        assert all(float(number) == count for number in run.steps)
        exact = torchs([p.double() for p in params],
                       [[g.double() for g in s] for s in grads[:count]], l1, **options)  # fmt: skip
        theirs = torchs(params, grads[:count], l1, **options)
        assert_accurate(joined(run.params), joined(theirs), joined(exact))


def test_l1_is_the_penalty_of_autograd(generator: torch.Generator) -> None:
    alphas = [0.0, 0.1, 0.01, 0.5, 0.003]
    params = randoms(torch.float64, generator)
    params[2][:5] = 0.0
    leaves = [param.clone().requires_grad_() for param in params]
    adam = torch.optim.Adam(leaves, lr=1e-2)
    run = Run(params, l1=alphas, weight_decay=0.0, beta2=0.999)
    for _ in range(4):
        grads = randoms(torch.float64, generator)
        adam.zero_grad()
        losses = [
            (leaf * grad).sum() + alpha * leaf.abs().sum()
            for leaf, grad, alpha in zip(leaves, grads, alphas, strict=True)
        ]
        torch.stack(losses).sum().backward()
        adam.step()
        run.step(grads)
    for our, their in zip(run.params, leaves, strict=True):
        torch.testing.assert_close(our, their.detach(), rtol=1e-12, atol=1e-14)


def test_zero_has_no_sign() -> None:
    run = Run([torch.zeros(3)], l1=[1.0])
    run.step([torch.zeros(3)])
    assert torch.equal(run.params[0], torch.zeros(3))


def test_strides(generator: torch.Generator) -> None:
    param = torch.randn(30, 7, generator=generator, dtype=torch.float64)
    grad = torch.randn(30, 7, generator=generator, dtype=torch.float64)
    plain, strided = Run([param], l1=[0.1]), Run([param], l1=[0.1])
    strided.params = [param.t().contiguous().t()]
    strided.exp_avgs = [torch.zeros(30, 14, dtype=torch.float64)[:, ::2]]
    for _ in range(3):
        plain.step([grad])
        strided.step([grad.t().contiguous().t()])
    for ours, want in zip(strided.state(), plain.state(), strict=True):
        torch.testing.assert_close(ours, want, rtol=0, atol=0)
    expanded = Run([param], l1=[0.1])
    expanded.step([torch.ones((), dtype=torch.float64).expand(30, 7)])
    plain = Run([param], l1=[0.1])
    plain.step([torch.ones(30, 7, dtype=torch.float64)])
    assert torch.equal(expanded.params[0], plain.params[0])


def test_scale_and_found_inf(generator: torch.Generator) -> None:
    params, grads = randoms(torch.float32, generator), randoms(torch.float32, generator)
    plain, scaled = Run(params, l1=[0.1] * 5), Run(params, l1=[0.1] * 5)
    plain.step(grads)
    scale = torch.tensor(1024.0)
    scaled.step([grad * scale for grad in grads], grad_scale=scale, found_inf=torch.zeros(1))
    before = [tensor.clone() for tensor in scaled.state()]
    for ours, want in zip(before, plain.state(), strict=True):
        assert torch.equal(ours, want)
    scaled.step([grad * float("inf") for grad in grads], found_inf=torch.ones(1))
    for after, want in zip(scaled.state(), before, strict=True):
        assert torch.equal(after, want)


def test_a_rate_for_each_tensor(generator: torch.Generator) -> None:
    """Numbers and tensors; the same as one call for each."""
    params, grads = randoms(torch.float32, generator), randoms(torch.float32, generator)
    rates = [0.1 if i % 2 else torch.tensor(0.02) for i in range(len(params))]
    together = Run(params)
    together.step(grads, lr=rates)
    for i, rate in enumerate(rates):
        alone = Run(params[i : i + 1])
        alone.step(grads[i : i + 1], lr=rate)
        assert torch.equal(alone.params[0], together.params[i])


@pytest.mark.parametrize("kind", [optim.AdamL1, optim.SGDL1])
def test_groups_of_other_rates_are_one_call(
    kind: Any, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """So that a captured step has one launch, with a tensor as rate of each group."""
    lists: list[list[Any]] = []
    leaves = [p.requires_grad_() for p in randoms(torch.float32, generator)]
    for leaf in leaves:
        leaf.grad = torch.ones_like(leaf)
    before = [leaf.detach().clone() for leaf in leaves]
    rates = [torch.tensor(0.1), torch.tensor(0.02)]
    groups = [{"params": leaves[i::2], "lr": rate} for i, rate in enumerate(rates)]
    optimizer = kind(groups)
    name = "adam_l1" if kind is optim.AdamL1 else "sgd_l1"
    step = getattr(ops, name)
    monkeypatch.setattr(
        ops, name, lambda *args, **rest: (lists.append(args[0]), step(*args, **rest))
    )
    optimizer.step()
    assert [len(params) for params in lists] == [len(leaves)]
    for i, (leaf, old) in enumerate(zip(leaves, before, strict=True)):
        torch.testing.assert_close(old - leaf.detach(), rates[i % 2].expand_as(old))


def test_rate_as_tensor(generator: torch.Generator) -> None:
    params, grads = randoms(torch.float32, generator), randoms(torch.float32, generator)
    number, tensor = Run(params), Run(params)
    number.step(grads, lr=0.25)
    for rate in (torch.tensor(0.25), torch.tensor([0.25], dtype=torch.float64)):
        tensor = Run(params)
        tensor.step(grads, lr=rate)
        assert torch.equal(tensor.params[3], number.params[3])


def test_opcheck(generator: torch.Generator) -> None:
    run, grads = Run(randoms(torch.float32, generator)), randoms(torch.float32, generator)
    lists = (run.params, grads, run.exp_avgs, run.exp_avg_sqs, run.steps)
    numbers = ([0.1] * 5, 0.9, 0.99, 1e-8, 0.0, False, None, None)
    checks = ("test_schema", "test_faketensor")
    op = torch.ops.clnp_kernels.adam_l1.default
    torch.library.opcheck(
        op, (*lists, [torch.tensor(0.1)] * len(lists[0]), *numbers), test_utils=checks
    )


def test_nothing_to_do() -> None:
    Run([]).step([])


ONE = torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        ({"grads": [ONE, ONE]}, ValueError, r"^len\(grads\): expected 1.*, got 2"),
        ({"grads": [torch.zeros(4)]}, ValueError, r"^grads\[0\]\.shape: expected .*, got \[4\]"),
        (
            {"grads": [ONE.double()]},
            TypeError,
            r"^grads\[0\]\.dtype: expected .*, got torch.float64",
        ),
        (
            {"grads": [ONE.to_sparse()]},
            TypeError,
            r"^grads\[0\]: expected .*, got torch.sparse_coo",
        ),
        ({"exp_avgs": [torch.zeros(3, device="meta")]}, ValueError, r"^exp_avgs\[0\]\.device"),
        ({"steps": [torch.zeros((), dtype=torch.int64)]}, TypeError, r"^steps\[0\]: expected"),
        ({"steps": []}, ValueError, r"^len\(steps\): expected .*, got 0"),
        ({"l1": [-1.0]}, ValueError, r"^l1\[0\]: expected .*, got -1.0"),
        ({"l1": []}, ValueError, r"^len\(l1\): expected .*, got 0"),
        ({"lr": float("nan")}, ValueError, "^lr: expected .*, got nan"),
        ({"lr": torch.zeros(2)}, ValueError, r"^lr\.shape: expected .*, got \[2\]"),
        ({"lr": [torch.zeros(2)]}, ValueError, r"^lr\[0\]\.shape: expected .*, got \[2\]"),
        ({"lr": [-1.0]}, ValueError, r"^lr\[0\]: expected .*, got -1"),
        ({"lr": [0.1, 0.1]}, ValueError, r"^len\(lr\): expected 1, .*, got 2"),
        ({"grad_scale": 2.0}, TypeError, "^grad_scale: expected a torch.Tensor, got float"),
        ({"beta1": 1.0}, ValueError, "^beta1: expected .*, got 1.0"),
        ({"eps": -1.0}, ValueError, "^eps: expected .*, got -1.0"),
        ({"weight_decay": float("inf")}, ValueError, "^weight_decay: expected .*, got inf"),
    ],
)
def test_bad_arguments(change: dict[str, Any], kind: type[Exception], match: str) -> None:
    lists = {name: [ONE.clone()] for name in ("params", "grads", "exp_avgs", "exp_avg_sqs")}
    good = {**lists, "steps": [torch.zeros(())], "l1": [0.0], "maximize": False, **OPTIONS}
    with pytest.raises(kind, match=match):
        ops.adam_l1(**{**good, **change})


@pytest.mark.parametrize("name", ["grads", "exp_avgs", "exp_avg_sqs", "steps", "lr", "l1"])
def test_direct_calls_are_safe(name: str, compiled: None) -> None:
    """Without the Python checks the C++ ones raise: nothing is read out of bounds."""
    good: dict[str, Any] = {key: [torch.zeros(3)] for key in ("params", "grads", "exp_avgs")}
    good |= {"exp_avg_sqs": [torch.zeros(3)], "steps": [torch.zeros(())], "lr": [torch.tensor(0.1)]}
    good |= {"l1": [0.0], "beta1": 0.9, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0.0}
    good |= {"maximize": False, "grad_scale": None, "found_inf": None}
    torch.ops.clnp_kernels.adam_l1(**good)
    bad = [1.0, 2.0] if name == "l1" else [torch.zeros(2)]
    for wrong in (bad, []):
        with pytest.raises(RuntimeError, match="expected"):
            torch.ops.clnp_kernels.adam_l1(**{**good, name: wrong})
