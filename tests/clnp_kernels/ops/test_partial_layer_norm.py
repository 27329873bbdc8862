"""partial_layer_norm: values, gradients, bits of prefixes, exactness, transforms, bad arguments."""

import os
import re
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clnp_kernels import ops
from clnp_kernels.reference import partial_layer_norm as reference
from tests.oracles import DTYPES, assert_accurate

OPS = torch.ops.clnp_kernels
# rows, ends of the blocks
SHAPES = {
    "one block": (9, (40,)),
    "two blocks": (8, (16, 48)),
    "odd": (7, (5, 12, 31, 43)),
    "one channel each": (5, (1, 2, 3)),
    "empty blocks": (6, (0, 4, 4, 11)),
    "many rows": (261, (3, 10, 17)),
    "long": (3, (1500, 2311)),
    "nothing free": (4, (6, 9, 9)),
    "no rows": (0, (3, 8)),
    "no channels": (3, (0, 0)),
}
shapes = pytest.mark.parametrize("shape", SHAPES)
both = pytest.mark.parametrize("rms", [False, True], ids=["layer", "rms"])


class Arguments(NamedTuple):
    """Tensors of partial_layer_norm and its boundaries."""

    x: Tensor
    boundaries: list[int]
    active_weight: Tensor | None = None
    free_weight: Tensor | None = None
    active_bias: Tensor | None = None
    free_bias: Tensor | None = None

    def to(self, dtype: torch.dtype) -> "Arguments":
        """Copies of the same numbers in another dtype."""
        x, ends, *vectors = self
        return Arguments(x.to(dtype), ends, *(v if v is None else v.to(dtype) for v in vectors))

    @property
    def split(self) -> int:
        return self.boundaries[-2] if len(self.boundaries) > 1 else 0

    def prefix(self, blocks: int, *, frozen: bool) -> "Arguments":
        """A copy of the first blocks: the last one free, or frozen before an empty free one."""
        ends = self.boundaries[:blocks]
        split, end = (ends[-2] if len(ends) > 1 else 0), ends[-1]
        split = end if frozen else split
        ends = [*ends, end] if frozen else ends
        pairs = []
        for active, free in (self[2:4], self[4:6]):
            if active is None or free is None:
                pairs += [None, None]
            else:
                whole = torch.cat([active, free])
                pairs += [whole[:split].clone(), whole[split:end].clone()]
        return Arguments(self.x[:, :end].clone(), ends, *pairs)


def random_arguments(
    shape: str, dtype: torch.dtype, generator: torch.Generator, affine: bool = True
) -> Arguments:
    """Fresh random arguments; vectors are float32 for a half x."""
    rows, ends = SHAPES[shape]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    split = ends[-2] if len(ends) > 1 else 0
    x = torch.randn(rows, ends[-1], generator=generator, dtype=torch.float64) * 2 + 1
    sizes = (split, ends[-1] - split) * 2
    vectors = [torch.rand(n, generator=generator, dtype=torch.float64).add(0.5) for n in sizes]
    given = [v.to(wide) if affine else None for v in vectors]
    return Arguments(x.to(dtype), [*ends], *given)


def call(arguments: Arguments, **options: Any) -> Any:
    return ops.partial_layer_norm(*arguments, **options)


def oracle(arguments: Arguments, rms: bool = False, eps: float = 1e-3) -> Tensor:
    """PyTorch's own normalisation of every prefix, of which the last block is taken."""
    x, ends, *vectors = arguments
    joined = [None if a is None else torch.cat([a, f]) for a, f in (vectors[:2], vectors[2:])]
    parts, start = [], 0
    for end in ends:
        weight, bias = (None if v is None else v[:end] for v in joined)
        if end == start:
            continue
        if rms:
            y = F.rms_norm(x[:, :end], [end], weight, eps)
            y = y if bias is None else y + bias
        else:
            y = F.layer_norm(x[:, :end], [end], weight, bias, eps)
        parts.append(y[:, start:])
        start = end
    return torch.cat(parts, 1) if parts else x * 1


@both
@pytest.mark.parametrize("dtype", DTYPES)
@shapes
def test_values(shape: str, dtype: torch.dtype, rms: bool, generator: torch.Generator) -> None:
    for affine in (True, False):
        mixed = random_arguments(shape, dtype, generator, affine)
        alike = mixed.to(dtype)
        torchs = oracle(alike, rms)
        for arguments in (alike, mixed):
            y, activity = call(arguments, rms=rms, eps=1e-3, activity=True)
            assert_accurate(y, torchs, oracle(arguments.to(torch.float64), rms))
            assert y.is_contiguous()
            assert activity.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            sums = y.double().abs().sum(0)
            torch.testing.assert_close(activity.double(), sums, rtol=1e-6, atol=1e-9)


def gradients(
    arguments: Arguments, grad_y: Tensor, rms: bool, ours: bool, **options: Any
) -> list[Tensor]:
    """Gradients of x, free weight and free bias: ours, else the oracle's."""
    x, ends, *vectors = arguments
    x, *vectors = (None if t is None else t.detach().clone() for t in (x, *vectors))
    wanted = [t.requires_grad_() for t in (x, vectors[1], vectors[3]) if t is not None]
    leaves = Arguments(x, ends, *vectors)
    y = call(leaves, rms=rms, eps=1e-3, **options) if ours else oracle(leaves, rms)
    found = torch.autograd.grad(y, wanted, grad_y.to(y.dtype), allow_unused=True)
    return [torch.zeros_like(w) if f is None else f for f, w in zip(found, wanted, strict=True)]


# of blocks of one channel the terms nearly cancel: test_gradcheck has them
@both
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "one channel each"])
def test_gradients(shape: str, dtype: torch.dtype, rms: bool, generator: torch.Generator) -> None:
    for full, affine in ((False, True), (True, True), (False, False)):
        arguments = random_arguments(shape, dtype, generator, affine).to(dtype)
        grad_y = torch.randn(arguments.x.shape, generator=generator).to(dtype)
        exact = gradients(arguments.to(torch.float64), grad_y, rms, ours=False)
        torchs = gradients(arguments, grad_y, rms, ours=False)
        ours = gradients(arguments, grad_y, rms, ours=True, full_input_grad=full)
        if not full:
            # Only free outputs see free inputs, so their gradient is the true one.
            assert not ours[0][:, : arguments.split].any()
            exact[0], torchs[0], ours[0] = (g[0][:, arguments.split :] for g in
                                            (exact, torchs, ours))  # fmt: skip
        for our, their, true in zip(ours, torchs, exact, strict=True):
            assert_accurate(our, their, true)


@both
@pytest.mark.parametrize("function", ["served", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@shapes
def test_prefixes_have_the_same_bits(
    shape: str, dtype: torch.dtype, function: str, rms: bool, generator: torch.Generator
) -> None:
    """A narrow network of the first blocks computes what the wide one does for them."""
    if function == "served" and "CLNP_GPU" in os.environ:
        pytest.skip("PyTorch's sums on slices depend on strides")
    forward = reference if function == "reference" else ops
    arguments = random_arguments(shape, dtype, generator)
    options = (1e-3, rms, False, True)
    wide = forward.partial_layer_norm_fwd(*arguments, *options)
    for blocks in range(1, len(arguments.boundaries)):
        for frozen in (False, True):
            narrow = arguments.prefix(blocks, frozen=frozen)
            y, activity, *_ = forward.partial_layer_norm_fwd(*narrow, *options)
            assert torch.equal(y, wide[0][:, : narrow.boundaries[-1]])
            if function == "served":
                torch.testing.assert_close(activity, wide[1][: narrow.boundaries[-1]])


@both
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_no_interference(poison: float, rms: bool, generator: torch.Generator) -> None:
    """Whatever free channels and their vectors hold, active outputs keep their bits."""
    arguments = random_arguments("odd", torch.float32, generator)
    split = arguments.split
    before = call(arguments, rms=rms)
    spoilt = arguments.x.clone()
    spoilt[:, split:] = poison
    for changed in (
        arguments._replace(x=spoilt),
        arguments._replace(free_weight=torch.full_like(arguments.free_weight, poison)),
        arguments._replace(free_bias=torch.full_like(arguments.free_bias, poison)),
    ):
        after = call(changed, rms=rms)
        assert torch.equal(after[:, :split], before[:, :split])
        assert not after[:, split:].isfinite().all()
    # An active input reaches its own block and the later ones.
    spoilt = arguments.x.clone()
    spoilt[:, 6] = float("nan")  # of the second block
    after = call(arguments._replace(x=spoilt), rms=rms)
    assert torch.equal(after[:, :5], before[:, :5])
    assert after[:, 5:].isnan().all()


@both
def test_skipping_computes_the_free_channels(rms: bool, generator: torch.Generator) -> None:
    for shape in SHAPES:
        arguments = random_arguments(shape, torch.float32, generator)
        leaves = [t.requires_grad_() for t in (arguments.x, *arguments[3::2])]
        results = []
        for skip in (False, True):
            y, sums = call(arguments, rms=rms, activity=True, skip_active=skip)
            if not skip:
                y, sums = y[:, arguments.split :], sums[arguments.split :]
            results.append((y, sums, *torch.autograd.grad(y.square().sum(), leaves)))
        for whole, part in zip(*results, strict=True):
            torch.testing.assert_close(whole, part, rtol=1e-6, atol=1e-6)
        assert torch.equal(results[0][0], results[1][0])


@both
def test_same_for_any_number_of_threads(
    rms: bool, compiled: None, generator: torch.Generator
) -> None:
    arguments = random_arguments("odd", torch.float32, generator)
    arguments = arguments._replace(x=torch.randn(3000, 43, generator=generator))
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found = ops.partial_layer_norm_fwd(*arguments, 1e-5, rms, False, True)
        grads = ops.partial_layer_norm_bwd(
            found[0][:, 31:], arguments.x, *found[2:], arguments.free_weight, rms, True
        )
        results.append((*found, *grads))
    torch.set_num_threads(before)
    for one, two, three in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


@pytest.mark.parametrize("ends", [[96], [32, 96]])
def test_far_from_zero(ends: list[int], generator: torch.Generator) -> None:
    """Large means, and blocks far from each other, cost the variance nothing."""
    x = torch.randn(20, 96, generator=generator)
    x = x + torch.tensor([3000.0, -5000.0, 2000.0]).repeat_interleave(32)
    if len(ends) == 1:
        x = torch.randn(20, 96, generator=generator) + 3000
    _, _, mean, rstd = ops.partial_layer_norm_fwd(x, ends, *[None] * 4, 0.0, False, False, False)
    exact = x.double()
    torch.testing.assert_close(mean.double(), exact.mean(1), rtol=1e-6, atol=1e-3)
    var = exact.var(1, correction=0)
    torch.testing.assert_close(rstd.double(), var.rsqrt(), rtol=1e-5, atol=0)


def test_one_large_channel(generator: torch.Generator) -> None:
    """As the massive activations of transformers: the rest of the row keeps its digits."""
    x = torch.randn(20, 96, generator=generator)
    x[:, 0] = 1e4
    y = ops.partial_layer_norm(x, [32, 96])
    exact = oracle(Arguments(x.double(), [32, 96]), eps=1e-5)
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-6)


@both
def test_strides(rms: bool, generator: torch.Generator) -> None:
    arguments = random_arguments("odd", torch.float64, generator)
    x, want = arguments.x, call(arguments, rms=rms)
    grad = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    first = gradients(arguments, grad, rms, ours=True)
    several = [
        x.t().contiguous().t(),
        torch.cat([x, x], 1)[:, :43],
        torch.stack([x, x], -1)[..., 0],
    ]
    for strided in several:
        given = arguments._replace(x=strided)
        torch.testing.assert_close(call(given, rms=rms), want)
        y = call(given._replace(x=strided.detach().requires_grad_()), rms=rms, eps=1e-3)
        (found,) = torch.autograd.grad(y, y.grad_fn.next_functions[0][0].variable, grad.t()
                                       .contiguous().t())  # fmt: skip
        torch.testing.assert_close(found, first[0])
    row = arguments._replace(x=x[:1].expand(4, -1))
    torch.testing.assert_close(call(row, rms=rms), want[:1].expand(4, -1))
    deep = arguments._replace(x=x.view(7, 1, 43))
    assert torch.equal(call(deep, rms=rms), want.view(7, 1, 43))
    assert torch.equal(call(arguments._replace(x=x[0]), rms=rms), want[0])


@both
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("shape", ["odd", "one channel each"])
def test_gradcheck(shape: str, full: bool, rms: bool, generator: torch.Generator) -> None:
    """Restricted, the gradient of the free channels is the true one, as no other sees them."""
    a = random_arguments(shape, torch.float64, generator)
    split = 0 if full else a.split
    inputs = [t.requires_grad_() for t in (a.x[:, split:], a.free_weight, a.free_bias)]

    def function(free: Tensor, weight: Tensor, bias: Tensor) -> Any:
        x = torch.cat([a.x[:, :split].detach(), free], 1)
        given = a._replace(x=x, free_weight=weight, free_bias=bias)
        return call(given, rms=rms, full_input_grad=full)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


def test_only_what_learns_gets_a_gradient(generator: torch.Generator) -> None:
    a = random_arguments("odd", torch.float32, generator)
    vectors = [t.requires_grad_() for t in a[2:]]
    grads = torch.autograd.grad(call(a).sum(), vectors, allow_unused=True)
    assert [grad is not None for grad in grads] == [False, True, False, True]
    full = torch.autograd.grad(call(a, full_input_grad=True).sum(), vectors, allow_unused=True)
    assert [grad is not None for grad in full] == [False, True, False, True]


def test_no_second_gradient(generator: torch.Generator) -> None:
    arguments = random_arguments("odd", torch.float64, generator)
    x = arguments.x.requires_grad_()
    (grad,) = torch.autograd.grad(call(arguments).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second gradient"):
        grad.sum().backward()


# opcheck itself looks at .grad of tensors that are no leaves
@pytest.mark.filterwarnings("ignore:The .grad attribute")
@both
@pytest.mark.parametrize("skip", [False, True])
def test_opcheck(skip: bool, rms: bool, generator: torch.Generator) -> None:
    a = random_arguments("odd", torch.float32, generator)
    y, _, *saved = ops.partial_layer_norm_fwd(*a, 1e-3, rms, skip, True)
    backward = (y[:, -12:].roll(1), a.x, *saved, a.free_weight, rms, not skip)
    torch.library.opcheck(OPS.partial_layer_norm_bwd.default, backward)
    a.free_weight.requires_grad_()
    torch.library.opcheck(OPS.partial_layer_norm_fwd.default, (*a, 1e-3, rms, skip, True))


@both
def test_compile_and_func(rms: bool, generator: torch.Generator) -> None:
    arguments = random_arguments("odd", torch.float32, generator)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    leaves = [t.requires_grad_() for t in (arguments.x, *arguments[3::2])]
    results = []
    for function in (call, compiled):
        y, activity = function(arguments, rms=rms, activity=True)
        results.append((y, activity, *torch.autograd.grad(y.pow(2).sum(), leaves)))
    for eager, traced in zip(*results, strict=True):
        assert torch.equal(eager, traced)
        assert eager.stride() == traced.stride()

    def loss(x: Tensor) -> Tensor:
        return call(arguments._replace(x=x), rms=rms).pow(2).sum()

    torch.testing.assert_close(torch.func.grad(loss)(arguments.x), results[0][2])
    each = torch.func.vmap(lambda x: call(arguments._replace(x=x), rms=rms))(arguments.x[:, None])
    torch.testing.assert_close(each[:, 0], results[0][0])


def test_autocast(generator: torch.Generator) -> None:
    """x keeps its dtype, parameters and statistics stay float32."""
    arguments = random_arguments("odd", torch.bfloat16, generator)
    outside = call(arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(call(arguments), outside)
        assert call(arguments._replace(x=arguments.x.float())).dtype == torch.float32


BAD: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "x": ({"x": [1.0]}, TypeError),
    "x.shape": ({"x": torch.zeros(2, 6)}, ValueError),
    "x.dtype": ({"x": torch.zeros(2, 5, dtype=torch.int64)}, TypeError),
    "boundaries": ({"boundaries": []}, ValueError),
    "boundaries[1]": ({"boundaries": [3, 2]}, ValueError),
    "boundaries[0]": ({"boundaries": [-1, 5]}, ValueError),
    "active_weight.shape": ({"active_weight": torch.ones(3)}, ValueError),
    "free_weight.dtype": ({"free_weight": torch.ones(3, dtype=torch.float64)}, TypeError),
    "free_weight": ({"free_weight": None}, ValueError),
    "active_bias": ({"free_bias": torch.ones(3)}, ValueError),
    "free_bias": ({"active_bias": torch.ones(2)}, ValueError),
    "active_weight.device": ({"active_weight": torch.ones(2, device="meta")}, ValueError),
    "eps": ({"eps": -1.0}, ValueError),
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_arguments(argument: str) -> None:
    ones = {"active_weight": torch.ones(2), "free_weight": torch.ones(3)}
    good: dict[str, Any] = {"x": torch.zeros(2, 5), "boundaries": [2, 5], **ones}
    ops.partial_layer_norm(**good)
    changed, kind = BAD[argument]
    with pytest.raises(kind, match=f"^{re.escape(argument)}: expected .*, got "):
        ops.partial_layer_norm(**{**good, **changed})


def test_boundaries_of_other_types_are_refused() -> None:
    x = torch.zeros(2, 5)
    for boundaries in (5, "5", [2.0, 5], [None, 5], [torch.tensor(2), 5], None):
        with pytest.raises(TypeError, match=r"^boundaries.*: expected .*, got "):
            ops.partial_layer_norm(x, boundaries)


def test_without_a_frozen_block_no_frozen_vectors_are_needed(generator: torch.Generator) -> None:
    a = random_arguments("one block", torch.float32, generator)
    want = F.layer_norm(a.x, [40], a.free_weight, a.free_bias)
    y = ops.partial_layer_norm(a.x, [40], free_weight=a.free_weight, free_bias=a.free_bias)
    torch.testing.assert_close(y, want)


def test_direct_calls_are_safe(compiled: None) -> None:
    x, two, three = torch.zeros(2, 5), torch.ones(2), torch.ones(3)
    options = (1e-5, False, False, False)
    for given in (
        (x, [2, 6], two, three),
        (x, [], two, three),
        (x, [3, 2, 5], two, three),
        (x, [-1, 5], two, three),
        (x, [2, 5], three, three),
        (x, [2, 5], two, torch.ones(4)),
        (x[0], [2, 5], two, three),
    ):
        with pytest.raises(RuntimeError, match="expected"):
            OPS.partial_layer_norm_fwd(*given, None, None, *options)
    for given in (
        (x[:1], x, two, two, None),
        (torch.zeros(2, 6), x, two, two, None),
        (x[:, :3], x, three, two, None),
        (x[:, :3], x, two, three, None),
        (x[:, :3], x, two, two, two),
        (x[:, :3], x, two.double(), two, None),
        (x[:, :3].double(), x, two, two, None),
    ):
        with pytest.raises(RuntimeError, match="expected"):
            OPS.partial_layer_norm_bwd(*given, False, True)
