"""partial_batch_norm: values, statistics, gradients, exactness, transforms, bad arguments."""

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clnp_kernels import ops
from tests.clnp_kernels.ops.conv_cases import FORMATS
from tests.oracles import DTYPES, error
from tests.oracles import assert_accurate as assert_accurate_by_rule

OPS = torch.ops.clnp_kernels
# B, Ca, Cf, H, W
SHAPES = {
    "even": (4, 8, 8, 8, 8),
    "odd": (3, 5, 6, 7, 9),
    "one channel": (5, 0, 1, 3, 3),
    "one pixel": (7, 3, 4, 1, 1),
    "one column": (3, 2, 3, 5, 1),
    "many": (9, 30, 271, 9, 8),
    "nothing frozen": (2, 0, 5, 6, 6),
    "everything frozen": (2, 5, 0, 6, 6),
    "no images": (0, 3, 4, 5, 5),
    "no channels": (2, 0, 0, 5, 5),
}


class Arguments(NamedTuple):
    """Tensors of partial_batch_norm."""

    x: Tensor
    active_mean: Tensor
    active_var: Tensor
    free_mean: Tensor
    free_var: Tensor
    active_weight: Tensor | None
    free_weight: Tensor | None
    active_bias: Tensor | None
    free_bias: Tensor | None

    def to(self, dtype: torch.dtype) -> "Arguments":
        """Copies of the same numbers in another dtype."""
        return Arguments(*(None if t is None else t.to(dtype).clone() for t in self))


def random_arguments(
    shape: str, dtype: torch.dtype, lies: str, generator: torch.Generator, affine: bool = True
) -> Arguments:
    """Fresh random arguments; vectors are float32 for a half x."""
    batch, active, free, height, width = SHAPES[shape]
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def vector(size: int, low: float) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64).add(low).to(wide)

    x = torch.randn(batch, active + free, height, width, generator=generator, dtype=torch.float64)
    images = torch.empty(x.shape, dtype=dtype, memory_format=FORMATS[lies]).copy_(2 * x + 1)
    statistics = [vector(n, low) for n in (active, free) for low in (-0.5, 0.5)]
    pairs = [vector(n, -0.5) if affine else None for n in (active, free, active, free)]
    return Arguments(images, *statistics, *pairs)


def assert_accurate(ours: Tensor, torchs: Tensor, exact: Tensor) -> None:
    """By the rule; sums in float64, whose oracle errs alike, may differ by more roundings."""
    if ours.dtype == torch.float64:
        assert ours.shape == exact.shape
        assert error(ours, exact) <= 64 * torch.finfo(ours.dtype).eps * float(exact.norm())
    else:
        assert_accurate_by_rule(ours, torchs, exact)


def call(arguments: Arguments, **options: Any) -> Any:
    return ops.partial_batch_norm(*arguments, **options)


def oracle(arguments: Arguments, training: bool, activation: str = "none") -> Tensor:
    """F.batch_norm on slices; changes the running statistics as it does."""
    split = len(arguments.active_mean)
    parts = []
    for part, x in (("active", arguments.x[:, :split]), ("free", arguments.x[:, split:])):
        names = (f"{part}_{kind}" for kind in ("mean", "var", "weight", "bias"))
        mean, var, weight, bias = (getattr(arguments, name) for name in names)
        use_batch = training and part == "free"
        if x.numel():
            parts.append(F.batch_norm(x, mean, var, weight, bias, use_batch, 0.3, 1e-3))
        else:
            vectors = [v for v in (weight, bias) if v is not None]
            parts.append(x + 0 * sum(v.sum() for v in vectors) if vectors else x * 1)
    y = torch.cat(parts, 1)
    return y.relu() if activation == "relu" else y


OPTIONS = {"momentum": 0.3, "eps": 1e-3}


@pytest.mark.parametrize("lies", FORMATS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values(
    shape: str, dtype: torch.dtype, training: bool, lies: str, generator: torch.Generator
) -> None:
    for affine, activation in ((True, "none"), (True, "relu"), (False, "none")):
        arguments = random_arguments(shape, dtype, lies, generator, affine)
        exact, torchs = arguments.to(torch.float64), arguments.to(arguments.active_mean.dtype)
        torchs = torchs._replace(x=arguments.x)
        true, want = oracle(exact, training, activation), oracle(torchs, training, activation)
        y, activity = call(
            arguments, training=training, activation=activation, activity=True, **OPTIONS
        )
        assert_accurate(y, want, true)
        if y.numel():
            assert y.is_contiguous(memory_format=FORMATS[lies])
        sums = y.double().abs().sum((0, 2, 3))
        assert activity.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(activity.double(), sums, rtol=1e-6, atol=1e-9)
        for ours, theirs, real in zip(arguments[1:5], torchs[1:5], exact[1:5], strict=True):
            assert_accurate(ours, theirs, real)


def gradients(
    arguments: Arguments, grad_y: Tensor, y: Tensor | None, training: bool, **options: Any
) -> list[Tensor]:
    """Gradients of x, free weight and free bias: ours with options, else the oracle's."""
    leaves = Arguments(*(None if t is None else t.detach().clone() for t in arguments))
    wanted = [t for t in (leaves.x, leaves.free_weight, leaves.free_bias) if t is not None]
    for leaf in wanted:
        leaf.requires_grad_()
    grad = grad_y.to(leaves.x.dtype)
    if options:
        out = call(leaves, training=training, **OPTIONS, **options)
    else:
        out = oracle(leaves, training)
        grad = grad if y is None else grad.masked_fill(y <= 0, 0)
    found = torch.autograd.grad(out, wanted, grad, allow_unused=True)
    return [torch.zeros_like(w) if f is None else f for f, w in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("lies", FORMATS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(
    shape: str, dtype: torch.dtype, training: bool, lies: str, generator: torch.Generator
) -> None:
    active = SHAPES[shape][1]
    for full, activation, affine in (
        (False, "none", True),
        (True, "none", False),
        (False, "relu", True),
        (True, "relu", True),
    ):
        arguments = random_arguments(shape, dtype, lies, generator, affine)
        options = {"activation": activation, "full_input_grad": full}
        y = call(copied(arguments), training=training, **options, **OPTIONS)
        mask = y if activation == "relu" else None
        grad_y = torch.randn(y.shape, generator=generator).to(dtype)
        exact = gradients(arguments.to(torch.float64), grad_y, mask, training)
        torchs = gradients(arguments, grad_y, mask, training)
        ours = gradients(arguments, grad_y, mask, training, **options)
        if ours[0].numel() and not full:
            assert ours[0].is_contiguous(memory_format=FORMATS[lies])
        if not full:
            assert not ours[0][:, :active].any()
            exact[0], torchs[0], ours[0] = (g[0][:, active:] for g in (exact, torchs, ours))
        for our, their, true in zip(ours, torchs, exact, strict=True):
            assert_accurate(our, their, true)


def copied(arguments: Arguments) -> Arguments:
    """Copies with the same dtypes and memory formats, as a call moves the running statistics."""
    return Arguments(*(None if t is None else t.clone() for t in arguments))


@pytest.mark.parametrize("training", [False, True])
def test_backward_takes_its_own_relu(training: bool, generator: torch.Generator) -> None:
    arguments = random_arguments("odd", torch.float64, "planes", generator)
    y = call(arguments.to(torch.float64), training=training, activation="relu", **OPTIONS)
    grad_y = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    options = {"activation": "relu", "full_input_grad": True}
    ours = gradients(arguments, grad_y, y, training, **options)
    for our, their in zip(ours, gradients(arguments, grad_y, y, training), strict=True):
        torch.testing.assert_close(our, their)


@pytest.mark.parametrize("lies", FORMATS)
@pytest.mark.parametrize("training", [False, True])
def test_no_interference(training: bool, lies: str, generator: torch.Generator) -> None:
    arguments = random_arguments("odd", torch.float32, lies, generator)
    split = len(arguments.active_mean)
    before = call(arguments.to(torch.float32), training=training, activation="relu")
    frozen = [t.clone() for t in (arguments.active_mean, arguments.active_var)]
    for poison in (float("nan"), float("inf")):
        x = arguments.x.clone()
        x[:, split:] = poison
        after = call(arguments._replace(x=x), training=training, activation="relu")
        assert torch.equal(after[:, :split], before[:, :split])
        assert not after[:, split:].isfinite().all()
    assert torch.equal(arguments.active_mean, frozen[0])
    assert torch.equal(arguments.active_var, frozen[1])


@pytest.mark.parametrize("lies", FORMATS)
def test_same_for_any_number_of_threads(
    lies: str, compiled: None, generator: torch.Generator
) -> None:
    arguments = random_arguments("even", torch.float32, lies, generator)
    x = torch.randn(40, 16, 24, 24, generator=generator)
    arguments = arguments._replace(x=x.contiguous(memory_format=FORMATS[lies]))
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found = ops.partial_batch_norm_fwd(*arguments, True, 1e-5, "relu", True)
        a = arguments
        vectors = (*found[2:], a.free_weight)
        grads = ops.partial_batch_norm_bwd(a.x, a.x, found[0], *vectors, True, 1e-5)
        results.append((*found, *grads))
    torch.set_num_threads(before)
    for one, two, three in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_far_from_zero(generator: torch.Generator) -> None:
    """Large means cost the variance nothing."""
    arguments = random_arguments("even", torch.float32, "channels_last", generator)
    far = arguments._replace(x=arguments.x + 3000)
    _, _, mean, var = ops.partial_batch_norm_fwd(*far, True, 1e-5, "none", False)
    free = far.x[:, 8:].double()
    torch.testing.assert_close(mean.double(), free.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), free.var((0, 2, 3), correction=0), rtol=1e-5, atol=0)


def test_strides(generator: torch.Generator) -> None:
    arguments = random_arguments("odd", torch.float64, "planes", generator)
    want = oracle(arguments.to(torch.float64), True)
    x = arguments.x
    several = [x.transpose(2, 3).contiguous().transpose(2, 3), torch.stack([x, x], -1)[..., 0]]
    for memory_format in FORMATS.values():
        several.append(torch.cat([x, x], 1).contiguous(memory_format=memory_format)[:, :11])
    for strided in several:
        y = call(arguments.to(torch.float64)._replace(x=strided), training=True, **OPTIONS)
        torch.testing.assert_close(y, want)
    row = x[:1].expand(3, -1, -1, -1)
    y = call(arguments._replace(x=row), **OPTIONS)
    torch.testing.assert_close(y, oracle(arguments._replace(x=row.contiguous()), False))


def test_gradient_of_another_format(generator: torch.Generator) -> None:
    for lies in FORMATS:
        arguments = random_arguments("odd", torch.float64, lies, generator)
        results = []
        for function in (call, oracle):
            given = arguments.to(torch.float64)
            assert given.free_weight is not None
            weight = given.free_weight.requires_grad_()
            y = function(given, training=True, **({} if function is oracle else OPTIONS))
            results.append([torch.autograd.grad(y, weight, grad, retain_graph=True)[0]
                            for grad in other_formats(y)])  # fmt: skip
        for ours, want in zip(*results, strict=True):
            torch.testing.assert_close(ours, want)


def other_formats(y: Tensor) -> list[Tensor]:
    """Gradients that lie otherwise than y."""
    grad = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    last = grad.contiguous(memory_format=torch.channels_last)
    return [grad, last, grad[:1, :1, :1, :1].expand_as(y)]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("training", [False, True])
def test_gradcheck(training: bool, activation: str, full: bool, generator: torch.Generator) -> None:
    """Restricted, the gradient of the free channels is the true one, as no other sees them."""
    a = random_arguments("odd", torch.float64, "channels_last", generator)
    assert a.free_weight is not None
    assert a.free_bias is not None
    split = 0 if full else len(a.active_mean)
    inputs = [t.requires_grad_() for t in (a.x[:, split:], a.free_weight, a.free_bias)]

    def function(free: Tensor, weight: Tensor, bias: Tensor) -> Any:
        x = torch.cat([a.x[:, :split].detach(), free], 1)
        given = a._replace(x=x, free_weight=weight, free_bias=bias)
        options = {"training": training, "activation": activation, "full_input_grad": full}
        # running statistics move with each call
        given = given._replace(free_mean=a.free_mean.clone(), free_var=a.free_var.clone())
        return call(given, **options)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


def test_no_second_gradient(generator: torch.Generator) -> None:
    arguments = random_arguments("odd", torch.float64, "planes", generator)
    x = arguments.x.requires_grad_()
    (grad,) = torch.autograd.grad(call(arguments, training=True).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second gradient"):
        grad.sum().backward()


# opcheck itself looks at .grad of tensors that are no leaves
@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("lies", FORMATS)
@pytest.mark.parametrize("training", [False, True])
def test_opcheck(training: bool, lies: str, generator: torch.Generator) -> None:
    a = random_arguments("odd", torch.float32, lies, generator)
    assert a.free_weight is not None
    y = call(a.to(torch.float32), activation="relu")
    backward = (y.roll(1), a.x, y, a.free_mean, a.free_var, a.free_weight, training, 1e-3)
    torch.library.opcheck(OPS.partial_batch_norm_bwd.default, backward)
    a.free_weight.requires_grad_()
    torch.library.opcheck(OPS.partial_batch_norm_fwd.default, (*a, training, 1e-3, "relu", True))


@pytest.mark.parametrize("lies", FORMATS)
def test_compile(lies: str, generator: torch.Generator) -> None:
    arguments = random_arguments("odd", torch.float32, lies, generator)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    results = []
    for function in (call, compiled):
        given = arguments.to(torch.float32)._replace(x=arguments.x)
        assert given.free_weight is not None
        weight = given.free_weight.requires_grad_()
        y, activity = function(given, training=True, activation="relu", activity=True)
        (grad,) = torch.autograd.grad(y.pow(2).sum(), weight)
        results.append((y, activity, grad, given.free_mean, given.free_var))
    for eager, traced in zip(*results, strict=True):
        assert torch.equal(eager, traced)
        assert eager.stride() == traced.stride()


def test_autocast(generator: torch.Generator) -> None:
    """As F.batch_norm: x keeps its dtype, parameters stay float32."""
    arguments = random_arguments("even", torch.bfloat16, "channels_last", generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert call(arguments, training=True).dtype == torch.bfloat16
        assert call(arguments._replace(x=arguments.x.float())).dtype == torch.float32


BAD = {
    "x.shape": {"x": torch.zeros(2, 6, 3, 3)},
    "x": {"x": [1.0]},
    "x.dtype": {"x": torch.zeros(2, 5, 3, 3, dtype=torch.int64)},
    "active_var.shape": {"active_var": torch.ones(3)},
    "free_mean.dtype": {"free_mean": torch.zeros(3, dtype=torch.float64)},
    "free_var": {"free_var": None},
    "free_weight": {"active_weight": torch.ones(2)},
    "active_bias": {"free_bias": torch.ones(3)},
    "free_bias.shape": {"free_bias": torch.ones(2), "active_bias": torch.ones(2)},
    "active_mean.device": {"active_mean": torch.zeros(2, device="meta")},
    "activation": {"activation": "gelu"},
    "momentum": {"momentum": 1.5},
    "eps": {"eps": -1.0},
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_arguments(argument: str) -> None:
    good: dict[str, Any] = {
        "x": torch.zeros(2, 5, 3, 3),
        "active_mean": torch.zeros(2),
        "active_var": torch.ones(2),
        "free_mean": torch.zeros(3),
        "free_var": torch.ones(3),
    }
    ops.partial_batch_norm(**good)
    kind = TypeError if argument in ("x", "x.dtype", "free_mean.dtype", "free_var") else ValueError
    with pytest.raises(kind, match=f"^{argument}: expected .*, got "):
        ops.partial_batch_norm(**{**good, **BAD[argument]})


def test_one_value_per_channel_is_refused() -> None:
    two, x = torch.ones(2), torch.zeros(1, 4, 1, 1)
    with pytest.raises(ValueError, match=r"^x\.shape: expected .* larger batch"):
        ops.partial_batch_norm(x, two, two, two, two, training=True)
    ops.partial_batch_norm(x[:, :2], two, two, two[:0], two[:0], training=True)


def test_direct_calls_are_safe(compiled: None) -> None:
    two, three = torch.ones(2), torch.ones(3)
    none = (None,) * 4
    bad = [
        (torch.zeros(2, 6, 3, 3), (two, two, three, three)),
        (torch.zeros(2, 5, 3, 3), (two, three, three, three)),
        (two, (two, two, three, three)),
    ]
    for x, vectors in bad:
        with pytest.raises(RuntimeError, match="expected"):
            OPS.partial_batch_norm_fwd(x, *vectors, *none, False, 1e-5, "none", False)
    x = torch.zeros(2, 5, 3, 3)
    six = torch.ones(6)
    for grad, vectors in ((x[:, :4], (three, three)), (x, (three, two)), (x, (six, six))):
        with pytest.raises(RuntimeError, match="expected"):
            OPS.partial_batch_norm_bwd(grad, x, None, *vectors, None, True, 1e-5)
