"""MaskedLinear: construction, dense twins, freezing, expanding, state, transforms."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from clnp_kernels.nn import MaskedLinear

SIZES = {"active_in": 3, "active_out": 4}


def layer(seed: int = 0, **options: Any) -> MaskedLinear:
    """A layer 7 -> 9 with random frozen tensors."""
    torch.manual_seed(seed)
    masked = MaskedLinear(7, 9, **{**SIZES, **options})
    masked.active_weight.normal_()
    if masked.active_bias is not None:
        masked.active_bias.normal_()
    return masked


def test_sizes() -> None:
    masked = layer()
    assert (masked.in_features, masked.out_features) == (7, 9)
    assert (masked.active_in, masked.active_out) == (3, 4)
    assert {name for name, _ in masked.named_parameters()} == {"free_weight", "free_bias"}
    assert "in_features=7, out_features=9, active_in=3, active_out=4" in repr(masked)
    assert layer(bias=False).active_bias is None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(5, 3), (1, 1), (0, 3), (4, 0)])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_initialised_as_linear(sizes: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(3)
    masked = MaskedLinear(*sizes, bias)
    torch.manual_seed(3)
    dense = nn.Linear(*sizes, bias)
    if sizes[0]:
        assert torch.equal(masked.free_weight, dense.weight)
        assert not bias or torch.equal(masked.free_bias, dense.bias)
    x = torch.randn(6, sizes[0])
    if sizes[0]:
        assert torch.equal(masked(x), dense(x))
    assert masked(x).shape == (6, sizes[1])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_dense_twins(activation: str, bias: bool) -> None:
    masked = layer(activation=activation, bias=bias)
    dense = masked.to_dense()
    assert not dense.weight[:4, 3:].any()
    again = MaskedLinear.from_dense(dense, activation=activation, **SIZES)
    x = torch.randn(5, 7)
    assert torch.equal(again(x), masked(x))
    y = dense(x).relu() if activation == "relu" else dense(x)
    torch.testing.assert_close(masked(x), y)
    assert again.free_weight.is_leaf
    dense.weight.data.fill_(0)
    assert torch.equal(again(x), masked(x))


def test_skip_active() -> None:
    masked = layer(activation="relu")
    x = torch.randn(5, 7, requires_grad=True)
    y = masked(x)
    masked.skip_active = True
    free = masked(x)
    assert torch.equal(free, y[:, 4:])
    free.sum().backward()
    assert x.grad is not None
    assert not x.grad[:, :3].any()
    assert x.grad[:, 3:].any()


def test_activity() -> None:
    masked = layer(activation="relu")
    x = torch.randn(2, 5, 7)
    y, activity = masked.forward_with_activity(x)
    assert torch.equal(y, masked(x))
    torch.testing.assert_close(activity, y.abs().sum((0, 1)))


def test_reset_free_parameters() -> None:
    masked = layer()
    frozen = masked.active_weight.clone()
    weight, bias = masked.free_weight, masked.free_bias
    masked.reset_free_parameters(torch.Generator().manual_seed(1))
    first, first_bias = weight.detach().clone(), bias.detach().clone()
    masked.reset_free_parameters(torch.Generator().manual_seed(1), scale=0.5)
    assert masked.free_weight is weight
    assert torch.equal(weight, first * 0.5)
    assert torch.equal(bias, first_bias)
    assert torch.equal(masked.active_weight, frozen)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_freeze_keeps_the_function(data: st.DataObject) -> None:
    """Surviving channels compute the same as before, from the surviving inputs."""
    draw = data.draw
    active_in, free_in, active_out, free_out = (draw(st.integers(0, 5)) for _ in range(4))
    bias = draw(st.booleans())
    masked = MaskedLinear(
        active_in + free_in,
        active_out + free_out,
        bias,
        active_in=active_in,
        active_out=active_out,
        dtype=torch.float64,
    )
    masked.active_weight.normal_()
    kept_out = torch.tensor(
        draw(st.permutations(range(free_out)))[: draw(st.integers(0, free_out))]
    )
    kept_in = torch.tensor(draw(st.permutations(range(free_in)))[: draw(st.integers(0, free_in))])
    keep_out, keep_in = kept_out.long(), kept_in.long()
    x = torch.randn(4, active_in + free_in, dtype=torch.float64)
    dropped = torch.ones(free_in, dtype=torch.bool)
    dropped[keep_in] = False
    x[:, active_in:][:, dropped] = 0
    before = masked(x)
    masked.freeze(keep_out, keep_in)
    new_in, new_out = active_in + len(keep_in), active_out + len(keep_out)
    assert masked.active_weight.shape == (new_out, new_in)
    assert masked.free_weight.shape == (free_out - len(keep_out), active_in + free_in)
    assert not masked.free_weight.any()
    order = torch.cat([keep_in, torch.arange(free_in)[dropped]])
    moved = torch.cat([x[:, :active_in], x[:, active_in:][:, order]], 1)
    after = masked(moved)[:, :new_out]
    want = torch.cat([before[:, :active_out], before[:, active_out:][:, keep_out]], 1)
    torch.testing.assert_close(after, want)


def test_freeze_then_nothing_moves_it() -> None:
    masked = layer()
    masked.freeze(torch.tensor([2, 0]), torch.tensor([1]))
    masked.reset_free_parameters()
    frozen = masked.active_weight.clone()
    optimizer = torch.optim.AdamW(masked.parameters(), weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        masked(torch.randn(5, 7)).pow(2).sum().backward()
        optimizer.step()
    assert torch.equal(masked.active_weight, frozen)


def test_expand() -> None:
    masked = layer()
    x = torch.randn(5, 7)
    before = masked(x)
    masked.expand(2, 3)
    assert (masked.in_features, masked.out_features) == (10, 11)
    assert (masked.active_in, masked.active_out) == (3, 4)
    after = masked(torch.cat([x, torch.randn(5, 3)], 1))
    torch.testing.assert_close(after[:, :9], before)
    assert not after[:, 9:].any()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"active_in": 7, "active_out": 9}, SIZES])
def test_state_dict_moves_boundaries(sizes: dict[str, int], bias: bool) -> None:
    source = layer(bias=bias)
    source.expand(1, 2)
    other = nn.Sequential(MaskedLinear(7, 9, bias, **sizes))
    held = list(other.parameters())
    other.load_state_dict({f"0.{key}": value for key, value in source.state_dict().items()})
    x = torch.randn(4, 9)
    assert torch.equal(other(x), source(x))
    assert all(mine is now for mine, now in zip(held, other.parameters(), strict=True))
    for name, value in source.state_dict().items():
        assert other.state_dict()[f"0.{name}"].data_ptr() != value.data_ptr()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("active_weight", (4, 8)),
        ("active_weight", (4,)),
        ("active_bias", (3,)),
        ("free_bias", (4,)),
        ("free_weight", (5, 2)),
    ],
)
def test_nonsense_state_is_refused(name: str, shape: tuple[int, ...]) -> None:
    masked = layer()
    before = copy.deepcopy(masked.state_dict())
    with pytest.raises(RuntimeError, match=r"expected .*, got "):
        masked.load_state_dict({**before, name: torch.zeros(shape)})
    for key, value in masked.state_dict().items():
        assert torch.equal(value, before[key])


def test_missing_and_unexpected_keys() -> None:
    state = layer().state_dict()
    with pytest.raises(RuntimeError, match="free_bias"):
        layer().load_state_dict({k: v for k, v in state.items() if k != "free_bias"})
    with pytest.raises(RuntimeError, match="active_bias"):
        layer(bias=False).load_state_dict(state)


def test_copies_casts_and_compiles() -> None:
    masked = layer(activation="relu")
    x = torch.randn(5, 7)
    assert torch.equal(copy.deepcopy(masked)(x), masked(x))
    assert masked.double()(x.double()).dtype == torch.float64
    masked.float()
    compiled = torch.compile(masked, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), masked(x))
    meta = MaskedLinear(7, 9, device="meta", **SIZES)
    assert meta(torch.empty(5, 7, device="meta")).shape == (5, 9)


def test_functional_call() -> None:
    masked = layer(activation="relu")
    x = torch.randn(5, 7)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(masked, parameters, (x,)).pow(2).sum()

    parameters = dict(masked.named_parameters())
    grads = torch.func.grad(loss)({key: value.detach() for key, value in parameters.items()})
    want = torch.autograd.grad(loss(parameters), list(parameters.values()))
    for ours, theirs in zip(grads.values(), want, strict=True):
        torch.testing.assert_close(ours, theirs)


INDEX = torch.tensor([0])


@pytest.mark.parametrize(
    ("call", "kind", "match"),
    [
        (lambda: MaskedLinear(-1, 2), ValueError, "^in_features: expected .*, got -1"),
        (
            lambda: MaskedLinear(2, 2, active_out=3),
            ValueError,
            "^active_out: expected 0 to.*, got 3",
        ),
        (lambda: MaskedLinear(2, 2, active_in=-1), ValueError, "^active_in: expected .*, got -1"),
        (
            lambda: MaskedLinear(2, 2, activation="tanh"),
            ValueError,
            "^activation: expected .*, got 'tanh'",
        ),
        (lambda: layer().expand(-1), ValueError, "^out_features: expected .*, got -1"),
        (
            lambda: layer().freeze(torch.tensor([5]), INDEX),
            ValueError,
            "^keep_out: expected .*, got 5 to 5",
        ),
        (
            lambda: layer().freeze(INDEX, torch.tensor([0, 0])),
            ValueError,
            "^keep_in: expected .*, got a number",
        ),
        (
            lambda: layer().freeze(INDEX.int(), INDEX),
            TypeError,
            "^keep_out: expected .*, got torch.int32",
        ),
        (lambda: layer().freeze([0], INDEX), TypeError, "^keep_out: expected .*, got list"),
    ],
)
def test_bad_arguments(call: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        call()
