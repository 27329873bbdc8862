"""masked_conv2d: values, gradients, exactness, memory formats, transforms, bad arguments."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clnp_kernels import ops
from tests.clnp_kernels.ops import conv_cases as cases
from tests.clnp_kernels.ops.conv_cases import CASES, FORMATS, Arguments, Case, random_arguments
from tests.oracles import DTYPES, assert_accurate

OPS = torch.ops.clnp_kernels
ACTIVATIONS = ("none", "relu")
# Of the same call on the same numbers
EXACT = (torch.float32, torch.bfloat16, torch.float64)


def call(arguments: Arguments, case: Case, **options: Any) -> Any:
    return ops.masked_conv2d(*arguments, **case.geometry, **options)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_values(name: str, dtype: torch.dtype, layout: str, generator: torch.Generator) -> None:
    case = CASES[name]
    for bias in (True, False):
        arguments = random_arguments(case, dtype, bias, layout, generator)
        for activation in ACTIVATIONS:
            exact = cases.masked_conv2d(arguments.to(torch.float64), case, activation)
            y, activity = call(arguments, case, activation=activation, activity=True)
            assert_accurate(y, cases.masked_conv2d(arguments, case, activation), exact)
            if arguments.x.numel() and y.numel():
                assert y.is_contiguous(memory_format=FORMATS[layout])
            assert torch.equal(y, call(arguments, case, activation=activation))
            sums = y.double().abs().sum((0, 2, 3))
            assert activity.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            torch.testing.assert_close(activity.double(), sums, rtol=1e-6, atol=0)


def restrided(t: Tensor) -> Tensor:
    """The same numbers in the same memory, with other strides where a size is 1."""
    strides = [7 if size == 1 else stride for size, stride in zip(t.shape, t.stride(), strict=True)]
    return t.as_strided(t.shape, strides)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_strides_of_sizes_of_one_change_no_bit(
    name: str, layout: str, generator: torch.Generator
) -> None:
    """Such strides differ between a network in training and the same one read from a file."""
    case = CASES[name]
    arguments = random_arguments(case, torch.float32, True, layout, generator)
    y = call(arguments, case)
    grad_y = torch.randn(y.shape, generator=generator)
    weights = {"active_weight": restrided(arguments.active_weight)}
    weights["free_weight"] = restrided(arguments.free_weight)
    again = arguments._replace(**weights)
    assert torch.equal(y, call(again, case))
    expected = gradients(arguments, case, grad_y, None, activation="none")
    found = gradients(again, case, grad_y, None, activation="none")
    assert all(map(torch.equal, found, expected))


def gradients(
    arguments: Arguments, case: Case, grad_y: Tensor, y: Tensor | None, **options: Any
) -> list[Tensor]:
    """Gradients of x, free weight and free bias: ours with options, else the oracle's."""
    leaves = [None if t is None else t.detach().clone() for t in arguments]
    wanted = [t for t in (leaves[0], leaves[2], leaves[4]) if t is not None]
    for leaf in wanted:
        leaf.requires_grad_()
    grad = grad_y.to(leaves[0].dtype)
    if options:
        out = call(Arguments(*leaves), case, **options)
    else:
        out = cases.masked_conv2d(Arguments(*leaves), case)
        grad = grad if y is None else grad.masked_fill(y <= 0, 0)
    found = torch.autograd.grad(out, wanted, grad, allow_unused=True)
    return [torch.zeros_like(w) if f is None else f for f, w in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_gradients(
    name: str, dtype: torch.dtype, layout: str, full: bool, generator: torch.Generator
) -> None:
    case = CASES[name]
    active_in = case.inputs[0]
    for activation, bias in (("none", True), ("relu", True), ("relu", False)):
        arguments = random_arguments(case, dtype, bias, layout, generator)
        # The ReLU is open where ours is: its decision is not what is tested here.
        y = call(arguments, case, activation=activation)
        grad_y = torch.randn(y.shape, generator=generator).to(dtype)
        mask = y if activation == "relu" else None
        exact = gradients(arguments.to(torch.float64), case, grad_y, mask)
        torchs = gradients(arguments, case, grad_y, mask)
        ours = gradients(arguments, case, grad_y, mask, activation=activation, full_input_grad=full)
        if not full:
            assert not ours[0].numel() or ours[0].is_contiguous(memory_format=FORMATS[layout])
            assert not ours[0][:, :active_in].any()
            exact[0], torchs[0], ours[0] = (g[0][:, active_in:] for g in (exact, torchs, ours))
        for our, their, true in zip(ours, torchs, exact, strict=True):
            assert_accurate(our, their, true)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("dtype", EXACT)
def test_nothing_frozen_is_conv2d(
    dtype: torch.dtype, depthwise: bool, layout: str, generator: torch.Generator
) -> None:
    channels = 24
    case = Case(3, (0, channels), (0, channels), (11, 9), (3, 3), (1, 2), (1, 0), (2, 1), depthwise)
    groups = channels if depthwise else 1
    for bias in (True, False):
        arguments = random_arguments(case, dtype, bias, layout, generator)
        x, _, weight, _, b = arguments
        dense = F.conv2d(x, weight, b, case.stride, case.padding, case.dilation, groups)
        y = call(arguments, case)
        assert torch.equal(y, dense)
        assert y.stride() == dense.stride()
        assert torch.equal(call(arguments, case, activation="relu"), dense.relu())


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("dtype", EXACT)
def test_nothing_frozen_has_gradients_of_conv2d(
    dtype: torch.dtype, depthwise: bool, layout: str, compiled: None, generator: torch.Generator
) -> None:
    channels = 24
    case = Case(3, (0, channels), (0, channels), (11, 9), (3, 3), (1, 2), (1, 0), (2, 1), depthwise)
    arguments = random_arguments(case, dtype, True, layout, generator)
    x, weight = arguments.x.requires_grad_(), arguments.free_weight.requires_grad_()
    y = call(arguments, case)
    geometry = (case.stride, case.padding, case.dilation, channels if depthwise else 1)
    dense = F.conv2d(x, weight, arguments.free_bias, *geometry)
    grad = torch.randn(y.shape, generator=generator).to(dtype)
    grad = grad.contiguous(memory_format=FORMATS[layout])
    want = torch.autograd.grad(dense, (x, weight), grad)
    for our, their in zip(torch.autograd.grad(y, (x, weight), grad), want, strict=True):
        assert torch.equal(our, their)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", ["even", "odd", "depthwise"])
def test_no_interference(name: str, layout: str, generator: torch.Generator) -> None:
    case = CASES[name]
    arguments = random_arguments(case, torch.float32, True, layout, generator)
    before = call(arguments, case, activation="relu")
    active_in, active_out = case.inputs[0], case.outputs[0]
    for poison in (float("nan"), float("inf")):
        x = arguments.x.clone()
        x[:, active_in:] = poison
        free_weight = torch.full_like(arguments.free_weight, poison)
        poisoned = arguments._replace(x=x, free_weight=free_weight)
        after = call(poisoned, case, activation="relu")
        assert torch.equal(after[:, :active_out], before[:, :active_out])
        assert not after[:, active_out:].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides(dtype: torch.dtype, generator: torch.Generator) -> None:
    """Slices of channels, transposed and expanded images, spread parameters."""
    case = CASES["odd"]
    arguments = random_arguments(case, dtype, True, "planes", generator)
    x = arguments.x
    wide = torch.cat([x, x, x], 1)
    spread = Arguments(*(torch.stack([t, t], -1)[..., 0] for t in arguments if t is not None))
    several = [arguments._replace(x=x.transpose(2, 3).contiguous().transpose(2, 3)), spread]
    for memory_format in FORMATS.values():
        part = wide.contiguous(memory_format=memory_format)[:, 7:14]
        several.append(arguments._replace(x=part))
    several.append(arguments._replace(x=x[:1].expand(3, -1, -1, -1)))
    last = {"memory_format": torch.channels_last}
    weights = {
        name: getattr(arguments, name).contiguous(**last)
        for name in ("active_weight", "free_weight")
    }
    several.append(arguments._replace(**weights))
    for strided in several:
        dense = Arguments(*(None if t is None else t.contiguous() for t in strided))
        exact = cases.masked_conv2d(dense.to(torch.float64), case, "relu")
        y = call(strided, case, activation="relu")
        assert_accurate(y, cases.masked_conv2d(dense, case, "relu"), exact)
    assert call(several[3], case).is_contiguous(**last)
    assert call(several[5], case).is_contiguous()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", FORMATS)
def test_gradient_of_another_format(
    layout: str, activation: str, generator: torch.Generator
) -> None:
    case = CASES["odd"]
    arguments = random_arguments(case, torch.float64, True, layout, generator)
    weight = arguments.free_weight.requires_grad_()
    y = call(arguments, case, activation=activation)
    want_y = cases.masked_conv2d(arguments, case, activation)
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    for given in (
        grad,
        grad.contiguous(memory_format=torch.channels_last),
        grad[:1, :1, :1, :1].expand_as(y),
    ):
        (ours,) = torch.autograd.grad(y, weight, given, retain_graph=True)
        (want,) = torch.autograd.grad(want_y, weight, given, retain_graph=True)
        torch.testing.assert_close(ours, want)


@pytest.mark.parametrize("full", [False, True])
def test_frozen_gets_no_gradient(full: bool, generator: torch.Generator) -> None:
    case = CASES["odd"]
    arguments = random_arguments(case, torch.float32, True, "planes", generator)
    for tensor in arguments:
        assert tensor is not None
        tensor.requires_grad_()
    y, activity = call(arguments, case, activity=True, full_input_grad=full)
    assert not activity.requires_grad
    y.sum().backward()
    assert arguments.active_weight.grad is None
    assert arguments.active_bias is not None
    assert arguments.active_bias.grad is None


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", ["odd", "depthwise"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation: str, name: str, full: bool, generator: torch.Generator) -> None:
    """Restricted, the gradient of the free inputs is the true one, as no other output sees them."""
    case = CASES[name]._replace(batch=2, size=(4, 4))
    arguments = random_arguments(case, torch.float64, True, "channels_last", generator)
    x, active, weight, active_bias, free_bias = arguments
    assert free_bias is not None
    split = 0 if full else case.inputs[0]
    inputs = [t.requires_grad_() for t in (x[:, split:], weight, free_bias)]

    def function(free: Tensor, weight: Tensor, free_bias: Tensor) -> Any:
        whole = torch.cat([x[:, :split].detach(), free], 1)
        given = Arguments(whole, active, weight, active_bias, free_bias)
        return call(given, case, activation=activation, full_input_grad=full)

    fast = {"fast_mode": True}
    assert torch.autograd.gradcheck(function, inputs, **fast)
    assert torch.autograd.gradgradcheck(function, inputs, **fast)


@pytest.mark.parametrize("name", ["odd", "depthwise"])
def test_second_gradient_restricted(name: str, generator: torch.Generator) -> None:
    """The gradient of the (restricted) gradient is what autograd finds for its formula."""
    case = CASES[name]
    arguments = random_arguments(case, torch.float64, True, "planes", generator)
    x, weight = arguments.x.requires_grad_(), arguments.free_weight.requires_grad_()
    active = case.inputs[0]
    results = []
    for function in (call, cases.masked_conv2d):
        (grad_x,) = torch.autograd.grad(
            function(arguments, case)[:, case.outputs[0] :].pow(2).sum(), x, create_graph=True
        )
        results.append(torch.autograd.grad(grad_x[:, active:].pow(2).sum(), weight)[0])
    torch.testing.assert_close(*results)


def samples(name: str, layout: str, generator: torch.Generator) -> tuple[Any, ...]:
    case = CASES["odd"]
    arguments = random_arguments(case, torch.float32, True, layout, generator)
    x, active, free, _, _ = arguments
    y = call(arguments, case)
    geometry = (case.stride, case.padding, case.dilation, False)
    arguments.free_weight.requires_grad_()
    return {
        "fwd": (*arguments, *geometry, "relu", True),
        "relu_grad": (y, y.roll(1), 2, True),
        "dgrad": (y[:, 2:], x, free, active.shape[1], *geometry),
        "wgrad": (y[:, 2:], x, case.kernel, *geometry, True),
    }[name]


# opcheck itself looks at .grad of tensors that are no leaves
@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", ["fwd", "relu_grad", "dgrad", "wgrad"])
def test_opcheck(name: str, layout: str, generator: torch.Generator) -> None:
    op = getattr(OPS, f"masked_conv2d_{name}").default
    torch.library.opcheck(op, samples(name, layout, generator))


@pytest.mark.parametrize("layout", FORMATS)
def test_compile(layout: str, generator: torch.Generator) -> None:
    case = CASES["odd"]
    arguments = random_arguments(case, torch.float32, True, layout, generator)
    weight = arguments.free_weight.requires_grad_()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    results = []
    for function in (call, compiled):
        y, activity = function(arguments, case, activation="relu", activity=True)
        results.append((y, activity, *torch.autograd.grad(y.pow(2).sum(), weight)))
    for eager, traced in zip(*results, strict=True):
        assert torch.equal(eager, traced)
        assert eager.stride() == traced.stride()


def test_autocast(generator: torch.Generator) -> None:
    case = CASES["even"]
    arguments = random_arguments(case, torch.float32, True, "channels_last", generator)
    for tensor in (arguments.x, arguments.free_weight, arguments.free_bias):
        assert tensor is not None
        tensor.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = call(arguments, case)
        want = cases.masked_conv2d(arguments, case)
        double = call(arguments.to(torch.float64), case)
    assert y.dtype == torch.bfloat16
    assert double.dtype == torch.float64
    torch.testing.assert_close(y, want)
    y.float().sum().backward()
    assert arguments.x.grad is not None
    assert arguments.x.grad.dtype == arguments.free_weight.grad.dtype == torch.float32


def test_func(generator: torch.Generator) -> None:
    case = CASES["odd"]
    arguments = random_arguments(case, torch.float64, True, "planes", generator)

    def loss(weight: Tensor, x: Tensor, ours: bool = True) -> Tensor:
        args = arguments._replace(x=x, free_weight=weight)
        function = call if ours else cases.masked_conv2d
        return function(args, case, activation="relu").pow(2).sum()

    x, weight = arguments.x, arguments.free_weight
    want = torch.func.grad(lambda w, x: loss(w, x, False))(weight, x)
    torch.testing.assert_close(torch.func.grad(loss)(weight, x), want)
    many = torch.stack([weight, 2 * weight], 1)
    both = torch.func.vmap(loss, (1, None))(many, x)
    torch.testing.assert_close(both, torch.stack([loss(weight, x), loss(2 * weight, x)]))


BAD = {
    "x.shape": {"x": torch.zeros(2, 6, 5, 5)},
    "x": {"x": [[0.0] * 5]},
    "x.dtype": {"x": torch.zeros(2, 5, 5, 5, dtype=torch.int64)},
    "active_weight.shape": {"active_weight": torch.zeros(2, 6, 3, 3)},
    "active_weight.dtype": {"active_weight": torch.zeros(2, 3, 3, 3, dtype=torch.float64)},
    "free_weight.shape": {"free_weight": torch.zeros(4, 5)},
    "active_bias": {"active_bias": None},
    "free_bias": {"free_bias": None},
    "free_bias.shape": {"free_bias": torch.zeros(3)},
    "active_bias.shape": {"active_bias": torch.zeros(4)},
    "active_weight.device": {"active_weight": torch.zeros(2, 3, 3, 3, device="meta")},
    "activation": {"activation": "gelu"},
    "stride": {"stride": 0},
    "padding": {"padding": (1, -1)},
    "dilation": {"dilation": (1, 1, 1)},
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_arguments(argument: str) -> None:
    good: dict[str, Any] = {
        "x": torch.zeros(2, 5, 5, 5),
        "active_weight": torch.zeros(2, 3, 3, 3),
        "free_weight": torch.zeros(4, 5, 3, 3),
        "active_bias": torch.zeros(2),
        "free_bias": torch.zeros(4),
    }
    ops.masked_conv2d(**good)
    kind = TypeError if argument in ("x", "x.dtype", "active_weight.dtype") else ValueError
    with pytest.raises(kind, match=f"^{argument}: expected .*, got "):
        ops.masked_conv2d(**{**good, **BAD[argument]})


@pytest.mark.parametrize(
    ("changed", "options", "match"),
    [
        ({"x": torch.zeros(2, 5, 2, 5)}, {}, r"^x\.shape: expected H at least 3"),
        ({"active_weight": torch.zeros(2, 3, 1, 3)}, {}, "expected kernel"),
        ({}, {"depthwise": True}, "expected 1 input for each depthwise filter"),
    ],
)
def test_what_does_not_fit(changed: dict[str, Any], options: dict[str, Any], match: str) -> None:
    tensors = {
        "x": torch.zeros(2, 5, 5, 5),
        "active_weight": torch.zeros(2, 3, 3, 3),
        "free_weight": torch.zeros(4, 5, 3, 3),
    }
    with pytest.raises(ValueError, match=match):
        ops.masked_conv2d(**{**tensors, **changed}, **options)


GEOMETRY = ((1, 1), (0, 0), (1, 1), False)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("fwd", (zeros(2, 6, 5, 5), zeros(2, 3, 3, 3), zeros(4, 5, 3, 3), None, None)),
        ("fwd", (zeros(2, 5, 5, 5), zeros(2, 6, 3, 3), zeros(4, 5, 3, 3), None, None)),
        ("fwd", (zeros(2, 5, 2, 5), zeros(2, 3, 3, 3), zeros(4, 5, 3, 3), None, None)),
        ("fwd", (zeros(5), zeros(2, 3, 3, 3), zeros(4, 5, 3, 3), None, None)),
        ("fwd", (zeros(2, 5, 5, 5), zeros(2, 3, 3, 3), zeros(4, 5, 3, 3), zeros(1), zeros(4))),
        ("dgrad", (zeros(2, 5, 3, 3), zeros(2, 5, 5, 5), zeros(4, 5, 3, 3), 3)),
        ("dgrad", (zeros(2, 4, 2, 3), zeros(2, 5, 5, 5), zeros(4, 5, 3, 3), 3)),
        ("dgrad", (zeros(2, 4, 3, 3), zeros(2, 5, 5, 5), zeros(4, 5, 3, 3), 6)),
        ("wgrad", (zeros(2, 4, 3, 3), zeros(3, 5, 5, 5), (3, 3))),
        ("wgrad", (zeros(2, 4, 3, 3), zeros(2, 5, 5, 5), (3,))),
        ("relu_grad", (zeros(2, 4, 3, 3), zeros(2, 3, 3, 3), 0, True)),
        ("relu_grad", (zeros(2, 4, 3, 3), zeros(2, 4, 3, 3), 5, True)),
        ("relu_grad", (zeros(2, 4, 3, 3), zeros(2, 4, 3, 3), -1, True)),
    ],
)
def test_direct_calls_are_safe(name: str, arguments: tuple[Any, ...], compiled: None) -> None:
    """Without the Python checks the C++ ones raise: nothing is read out of bounds."""
    options: dict[str, tuple[Any, ...]] = {
        "fwd": (*GEOMETRY, "none", False),
        "dgrad": GEOMETRY,
        "wgrad": (*GEOMETRY, True),
    }
    with pytest.raises(RuntimeError, match="expected"):
        getattr(OPS, f"masked_conv2d_{name}")(*arguments, *options.get(name, ()))


@pytest.mark.parametrize("inputs", [2, 3, 7, 8])
@pytest.mark.parametrize("stride", [(2, 2), (1, 2), (3, 1)])
def test_strided_points(inputs: int, stride: tuple[int, int]) -> None:
    """oneDNN's own weight gradient of these writes behind its buffer on some processors."""
    torch.manual_seed(0)
    x = torch.randn(4, inputs, 9, 10, dtype=torch.float64)
    weight = torch.randn(6, inputs, 1, 1, dtype=torch.float64, requires_grad=True)
    wanted = F.conv2d(x, weight, None, stride)
    grad = torch.randn_like(wanted)
    (expected,) = torch.autograd.grad(wanted, weight, grad)
    last = torch.channels_last
    free = weight.detach().float().contiguous(memory_format=last).requires_grad_()
    images = x.float().contiguous(memory_format=last)
    for _ in range(5):
        y = ops.masked_conv2d(images, free.new_empty(0, 0, 1, 1), free, stride=stride)
        (got,) = torch.autograd.grad(y, free, grad.float().contiguous(memory_format=last))
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)
