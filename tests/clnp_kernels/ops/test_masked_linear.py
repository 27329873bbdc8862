"""masked_linear: values, gradients, exactness, transforms, bad arguments."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from clnp_kernels import ops
from tests import oracles
from tests.oracles import DTYPES, SHAPES, Arguments, assert_accurate, random_arguments

OPS = torch.ops.clnp_kernels
ACTIVATIONS = ("none", "relu")
# MKL chooses its way by size and by alignment: values that it computes alike must be equal
EXACT = (torch.float32, torch.bfloat16, torch.float64)


def call(arguments: Arguments, **options: Any) -> Any:
    return ops.masked_linear(*arguments, **options)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values(
    shape: str, dtype: torch.dtype, bias: bool, activation: str, generator: torch.Generator
) -> None:
    arguments = random_arguments(shape, dtype, bias, generator)
    exact = oracles.masked_linear(arguments.to(torch.float64), activation)
    y, activity = call(arguments, activation=activation, activity=True)
    assert_accurate(y, oracles.masked_linear(arguments, activation), exact)
    assert torch.equal(y, call(arguments, activation=activation))
    sums = y.double().abs().sum(0)
    assert activity.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(activity.double(), sums, rtol=1e-6, atol=0)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(
    shape: str,
    dtype: torch.dtype,
    bias: bool,
    activation: str,
    full: bool,
    generator: torch.Generator,
) -> None:
    arguments = random_arguments(shape, dtype, bias, generator)
    rows, active_in, _, active_out, _ = SHAPES[shape]
    grad_y = torch.randn(rows, active_out + SHAPES[shape][4], generator=generator).to(dtype)
    # The ReLU is open where the float64 oracle's is: its decision is not what is tested here.
    y = call(arguments, activation=activation)

    def gradients(arguments: Arguments, ours: bool) -> list[Tensor]:
        leaves = [None if t is None else t.detach().clone() for t in arguments]
        wanted = [t for t in (leaves[0], leaves[2], leaves[4]) if t is not None]
        for leaf in wanted:
            leaf.requires_grad_()
        args, grad = Arguments(*leaves), grad_y.to(leaves[0].dtype)
        if ours:
            out = call(args, activation=activation, full_input_grad=full)
        else:
            out = oracles.masked_linear(args, "none")
            grad = grad.masked_fill(y <= 0, 0) if activation == "relu" else grad
        return list(torch.autograd.grad(out, wanted, grad))

    exact = gradients(arguments.to(torch.float64), False)
    torchs, ours = gradients(arguments, False), gradients(arguments, True)
    if not full:
        assert not ours[0][:, :active_in].any()
        exact[0], torchs[0], ours[0] = (g[0][:, active_in:] for g in (exact, torchs, ours))
    # Restricted, the input's gradient is that of the free outputs only for free inputs: the same
    # numbers.
    for our, their, true in zip(ours, torchs, exact, strict=True):
        assert_accurate(our, their, true)


@pytest.mark.parametrize("lead", [(5,), (2, 3), ()])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", EXACT)
def test_nothing_frozen_is_linear(
    dtype: torch.dtype, bias: bool, lead: tuple[int, ...], generator: torch.Generator
) -> None:
    x = torch.randn(*lead, 77, generator=generator).to(dtype)
    weight = torch.randn(50, 77, generator=generator).to(dtype)
    b = torch.randn(50, generator=generator).to(dtype) if bias else None
    none = None if b is None else b[:0]
    y = ops.masked_linear(x, weight[:0, :0], weight, none, b)
    dense = F.linear(x.reshape(-1, 77), weight, b).reshape(*lead, 50)
    assert torch.equal(y, dense)
    y = ops.masked_linear(x, weight[:0, :0], weight, none, b, activation="relu")
    assert torch.equal(y, dense.relu())


def test_no_interference(generator: torch.Generator) -> None:
    arguments = random_arguments("wide", torch.float32, True, generator)
    before = call(arguments, activation="relu")
    active_in, active_out = arguments.active_weight.shape[1], arguments.active_weight.shape[0]
    for poison in (float("nan"), float("inf")):
        free_weight = torch.full_like(arguments.free_weight, poison)
        x = arguments.x.clone()
        x[:, active_in:] = poison
        poisoned = arguments._replace(x=x, free_weight=free_weight)
        after = call(poisoned, activation="relu")
        assert torch.equal(after[:, :active_out], before[:, :active_out])


def test_relu_keeps_nan() -> None:
    x = torch.tensor([[float("nan")], [-1.0]])
    y = ops.masked_linear(x, x[:0, :0], torch.ones(1, 1), activation="relu")
    assert y[0].isnan().all()
    assert y[1] == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides(dtype: torch.dtype, generator: torch.Generator) -> None:
    arguments = random_arguments("odd", dtype, True, generator)
    tensors = [t for t in arguments if t is not None]
    transposed = [t.t().contiguous().t() if t.ndim == 2 else t for t in tensors]
    spread = [torch.stack([t, t], -1)[..., 0] for t in tensors]
    want = oracles.masked_linear(arguments, "relu")
    exact = oracles.masked_linear(arguments.to(torch.float64), "relu")
    for strided in (transposed, spread):
        y = call(Arguments(*strided), activation="relu")
        assert_accurate(y, want, exact)
    row = arguments.x[:1].expand(4, -1)
    y = call(arguments._replace(x=row))
    assert_accurate(y, *(oracles.masked_linear(arguments.to(d)._replace(x=row.to(d)), "none")
                         for d in (dtype, torch.float64)))  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_expanded_gradient(activation: str, generator: torch.Generator) -> None:
    arguments = random_arguments("odd", torch.float64, True, generator)
    weight = arguments.free_weight.requires_grad_()
    y = call(arguments, activation=activation)
    (ours,) = torch.autograd.grad(y.sum(), weight)
    (want,) = torch.autograd.grad(oracles.masked_linear(arguments, activation).sum(), weight)
    torch.testing.assert_close(ours, want)


@pytest.mark.parametrize("lead", [(2, 3), (4,), (), (2, 0)])
def test_leading_dimensions(lead: tuple[int, ...], generator: torch.Generator) -> None:
    arguments = random_arguments("odd", torch.float64, True, generator)
    x = torch.randn(*lead, arguments.x.shape[1], generator=generator, dtype=torch.float64)
    y, activity = call(arguments._replace(x=x), activity=True)
    rows = oracles.masked_linear(arguments._replace(x=x.reshape(-1, x.shape[-1])), "none")
    torch.testing.assert_close(y, rows.reshape(*lead, -1) if rows.numel() else y)
    assert y.shape == (*lead, rows.shape[1])
    torch.testing.assert_close(activity, rows.abs().sum(0))


class Log(TorchDispatchMode):
    """Names of our operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "clnp_kernels":
            self.names.append(func.__name__.split(".")[0].removeprefix("masked_linear_"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("needs", "names"),
    [("x", ["dgrad"]), ("weight", ["wgrad"]), ("x weight", ["dgrad", "wgrad"]), ("bias", [])],
)
def test_only_what_is_needed(needs: str, names: list[str], generator: torch.Generator) -> None:
    x, active, weight, active_bias, bias = random_arguments("odd", torch.float32, True, generator)
    assert bias is not None
    leaves = {"x": x, "weight": weight, "bias": bias}
    wanted = [leaves[name].requires_grad_() for name in needs.split()]
    y = ops.masked_linear(x, active, weight, active_bias, bias)
    with Log() as log:
        torch.autograd.grad(y, wanted, torch.ones_like(y))
    assert log.names == names


@pytest.mark.parametrize("full", [False, True])
def test_frozen_gets_no_gradient(full: bool, generator: torch.Generator) -> None:
    arguments = random_arguments("odd", torch.float32, True, generator)
    for tensor in arguments:
        assert tensor is not None
        tensor.requires_grad_()
    y, activity = call(arguments, activity=True, full_input_grad=full)
    assert not activity.requires_grad
    y.sum().backward()
    assert arguments.active_weight.grad is None
    assert arguments.active_bias is not None
    assert arguments.active_bias.grad is None


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(activation: str, bias: bool, full: bool, generator: torch.Generator) -> None:
    """Restricted, the gradient of the free inputs is the true one, as no other output sees them."""
    x, active, weight, active_bias, free_bias = random_arguments(
        "odd", torch.float64, bias, generator
    )
    split = 0 if full else active.shape[1]
    inputs = [x[:, split:].requires_grad_(), weight.requires_grad_()]
    if free_bias is not None:
        inputs.append(free_bias.requires_grad_())

    def function(free: Tensor, weight: Tensor, free_bias: Tensor | None = None) -> Any:
        given = torch.cat([x[:, :split].detach(), free], 1)
        options = {"activation": activation, "full_input_grad": full}
        return ops.masked_linear(given, active, weight, active_bias, free_bias, **options)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_second_gradient_restricted(generator: torch.Generator) -> None:
    """The gradient of the (restricted) gradient is what autograd finds for its formula."""
    arguments = random_arguments("odd", torch.float64, True, generator)
    active_in, active_out = arguments.active_weight.shape[1], arguments.active_weight.shape[0]
    x, weight = arguments.x.requires_grad_(), arguments.free_weight.requires_grad_()
    (grad_x,) = torch.autograd.grad(call(arguments).pow(2).sum(), x, create_graph=True)
    (ours,) = torch.autograd.grad(grad_x.pow(2).sum(), weight)
    free = 2 * oracles.masked_linear(arguments, "none")[:, active_out:]
    (want,) = torch.autograd.grad((free @ weight[:, active_in:]).pow(2).sum(), weight)
    torch.testing.assert_close(ours, want)


def samples(name: str, generator: torch.Generator) -> tuple[Any, ...]:
    x, active, free, active_bias, free_bias = random_arguments(
        "odd", torch.float32, True, generator
    )
    grad_y = torch.randn(7, 12, generator=generator)
    return {
        "fwd": (x, active, free.requires_grad_(), active_bias, free_bias, "relu", True),
        "relu_grad": (grad_y, grad_y.roll(1), 3, True),
        "dgrad": (grad_y[:, 3:], free, active.shape[1]),
        "wgrad": (grad_y[:, 3:], x, True),
    }[name]


# opcheck itself looks at .grad of tensors that are no leaves
@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("name", ["fwd", "relu_grad", "dgrad", "wgrad"])
def test_opcheck(name: str, generator: torch.Generator) -> None:
    op = getattr(OPS, f"masked_linear_{name}").default
    torch.library.opcheck(op, samples(name, generator))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_compile(activation: str, generator: torch.Generator) -> None:
    arguments = random_arguments("odd", torch.float32, True, generator)
    weight = arguments.free_weight.requires_grad_()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    results = []
    for function in (call, compiled):
        y, activity = function(arguments, activation=activation, activity=True)
        results.append((y, activity, *torch.autograd.grad(y.pow(2).sum(), weight)))
    for eager, traced in zip(*results, strict=True):
        assert torch.equal(eager, traced)


def test_autocast(generator: torch.Generator) -> None:
    arguments = random_arguments("even", torch.float32, True, generator)
    for tensor in (arguments.x, arguments.free_weight, arguments.free_bias):
        assert tensor is not None
        tensor.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = call(arguments)
        want = oracles.masked_linear(arguments, "none")
        double = call(arguments.to(torch.float64))
    assert y.dtype == torch.bfloat16
    assert double.dtype == torch.float64
    torch.testing.assert_close(y, want)
    y.float().sum().backward()
    assert arguments.x.grad is not None
    assert arguments.x.grad.dtype == arguments.free_weight.grad.dtype == torch.float32


def test_func(generator: torch.Generator) -> None:
    arguments = random_arguments("odd", torch.float64, True, generator)

    def loss(weight: Tensor, x: Tensor, ours: bool = True) -> Tensor:
        args = arguments._replace(x=x, free_weight=weight)
        y = call(args, activation="relu") if ours else oracles.masked_linear(args, "relu")
        return y.pow(2).sum()

    x, weight = arguments.x, arguments.free_weight
    for transform in (torch.func.grad, torch.func.jacrev):
        torch.testing.assert_close(
            transform(loss)(weight, x), transform(lambda w, x: loss(w, x, False))(weight, x)
        )
    rows = x[:, None]
    per_row = torch.func.vmap(torch.func.grad(loss), (None, 0))
    want = torch.stack([torch.func.grad(loss)(weight, row) for row in rows])
    torch.testing.assert_close(per_row(weight, rows), want)
    many = torch.stack([weight, 2 * weight], 1)
    both = torch.func.vmap(loss, (1, None))(many, x)
    torch.testing.assert_close(both, torch.stack([loss(weight, x), loss(2 * weight, x)]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_backward_operators(shape: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    """relu_grad exactly; dgrad and wgrad by the rule, also from a slice of columns."""
    x, active, free, _, _ = random_arguments(shape, dtype, False, generator)
    (active_out, active_in), rows = active.shape, x.shape[0]
    grad_y = torch.randn(rows, active_out + free.shape[0], generator=generator).to(dtype)
    y = torch.randn(grad_y.shape, generator=generator).to(dtype).relu()
    grad_z, grad_bias = ops.masked_linear_relu_grad(grad_y, y, active_out)
    kept = torch.where(y > 0, grad_y, torch.zeros_like(grad_y))[:, active_out:]
    assert torch.equal(grad_z, kept)
    assert_accurate(grad_bias, kept.sum(0), kept.double().sum(0))
    part = grad_y[:, active_out:]
    grad_x = ops.masked_linear_dgrad(part, free, active_in)
    assert not grad_x[:, :active_in].any()
    inner = free[:, active_in:]
    assert_accurate(grad_x[:, active_in:], part @ inner, part.double() @ inner.double())
    grad_weight, grad_bias = ops.masked_linear_wgrad(part, x)
    assert_accurate(grad_weight, part.t() @ x, part.double().t() @ x.double())
    assert_accurate(grad_bias, part.sum(0), part.double().sum(0))


BAD = {
    "x.shape": {"x": torch.zeros(2, 6)},
    "x": {"x": [[0.0] * 5]},
    "x.dtype": {"x": torch.zeros(2, 5, dtype=torch.int64)},
    "active_weight.shape": {"active_weight": torch.zeros(2, 6)},
    "active_weight.dtype": {"active_weight": torch.zeros(2, 3, dtype=torch.float64)},
    "free_weight.shape": {"free_weight": torch.zeros(4)},
    "active_bias": {"active_bias": None},
    "free_bias": {"free_bias": None},
    "free_bias.shape": {"free_bias": torch.zeros(3)},
    "active_bias.shape": {"active_bias": torch.zeros(4)},
    "active_weight.device": {"active_weight": torch.zeros(2, 3, device="meta")},
    "activation": {"activation": "gelu"},
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_arguments(argument: str) -> None:
    good: dict[str, Any] = {
        "x": torch.zeros(2, 5),
        "active_weight": torch.zeros(2, 3),
        "free_weight": torch.zeros(4, 5),
        "active_bias": torch.zeros(2),
        "free_bias": torch.zeros(4),
    }
    ops.masked_linear(**good)
    kind = TypeError if argument in ("x", "x.dtype", "active_weight.dtype") else ValueError
    with pytest.raises(kind, match=f"^{argument}: expected .*, got "):
        ops.masked_linear(**{**good, **BAD[argument]})


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("fwd", (torch.zeros(2, 6), torch.zeros(2, 3), torch.zeros(4, 5), None, None)),
        ("fwd", (torch.zeros(2, 5), torch.zeros(2, 6), torch.zeros(4, 5), None, None)),
        ("fwd", (torch.zeros(5), torch.zeros(2, 3), torch.zeros(4, 5), None, None)),
        ("fwd", (torch.zeros(2, 5), torch.zeros(2, 3), torch.zeros(4, 5), torch.zeros(1), None)),
        ("dgrad", (torch.zeros(2, 5), torch.zeros(4, 5), 3)),
        ("dgrad", (torch.zeros(2, 4), torch.zeros(4, 5), 6)),
        ("dgrad", (torch.zeros(2, 4), torch.zeros(4, 5), -1)),
        ("wgrad", (torch.zeros(2, 4), torch.zeros(3, 5), True)),
        ("relu_grad", (torch.zeros(2, 4), torch.zeros(2, 3), 0, True)),
        ("relu_grad", (torch.zeros(2, 4), torch.zeros(3, 4), 0, True)),
        ("relu_grad", (torch.zeros(2, 4), torch.zeros(2, 4), 5, True)),
        ("relu_grad", (torch.zeros(2, 4), torch.zeros(2, 4), -1, True)),
    ],
)
def test_direct_calls_are_safe(name: str, arguments: tuple[Any, ...], compiled: None) -> None:
    """Without the Python checks the C++ ones raise: nothing is read out of bounds."""
    options = ("none", False) if name == "fwd" else ()
    with pytest.raises(RuntimeError, match="expected"):
        getattr(OPS, f"masked_linear_{name}")(*arguments, *options)
