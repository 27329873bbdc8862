"""MaskedConv2d: construction, dense twins, freezing, expanding, state, transforms."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from clnp_kernels.nn import MaskedConv2d

SIZES = {"active_in": 3, "active_out": 4}
DEPTHWISE = {"active_in": 4, "active_out": 4}


def layer(seed: int = 0, **options: Any) -> MaskedConv2d:
    """A layer 7 -> 9 with random frozen tensors."""
    torch.manual_seed(seed)
    return randomised(MaskedConv2d(7, 9, 3, 2, (1, 0), **{**SIZES, **options}))


def depthwise(seed: int = 0, **options: Any) -> MaskedConv2d:
    """A depthwise layer of 9 channels with random frozen tensors."""
    torch.manual_seed(seed)
    return randomised(MaskedConv2d(9, 9, 3, padding=1, groups=9, **{**DEPTHWISE, **options}))


def randomised(masked: MaskedConv2d) -> MaskedConv2d:
    masked.active_weight.normal_()
    if masked.active_bias is not None:
        masked.active_bias.normal_()
    return masked


def images(masked: MaskedConv2d, batch: int = 3) -> Tensor:
    dtype = masked.free_weight.dtype
    return torch.randn(batch, masked.in_channels, 6, 5, dtype=dtype)


def test_sizes() -> None:
    masked = layer()
    assert (masked.in_channels, masked.out_channels, masked.kernel_size) == (7, 9, (3, 3))
    assert (masked.active_in, masked.active_out) == (3, 4)
    assert {name for name, _ in masked.named_parameters()} == {"free_weight", "free_bias"}
    assert "7, 9, kernel_size=(3, 3), stride=(2, 2), padding=(1, 0)" in repr(masked)
    assert layer(bias=False).active_bias is None
    other = depthwise()
    assert (other.in_channels, other.out_channels) == (9, 9)
    assert (other.active_in, other.active_out) == (4, 4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 6])
def test_initialised_as_conv2d(groups: int, bias: bool) -> None:
    options: dict[str, Any] = {"padding": 1, "groups": groups, "bias": bias}
    torch.manual_seed(3)
    masked = MaskedConv2d(6, 6, (3, 2), **options)
    torch.manual_seed(3)
    dense = nn.Conv2d(6, 6, (3, 2), **options)
    assert torch.equal(masked.free_weight, dense.weight)
    assert not bias or torch.equal(masked.free_bias, dense.bias)
    x = torch.randn(2, 6, 5, 5)
    assert torch.equal(masked(x), dense(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("make", [layer, depthwise])
def test_dense_twins(make: Any, activation: str, bias: bool) -> None:
    masked = make(activation=activation, bias=bias).to(memory_format=torch.channels_last)
    dense = masked.to_dense()
    if make is layer:
        assert not dense.weight[:4, 3:].any()
    sizes = SIZES if make is layer else DEPTHWISE
    again = MaskedConv2d.from_dense(dense, activation=activation, **sizes)
    assert again.free_weight.stride() == masked.free_weight.stride()
    x = images(masked)
    assert torch.equal(again(x), masked(x))
    y = dense(x).relu() if activation == "relu" else dense(x)
    torch.testing.assert_close(masked(x), y)
    assert again.free_weight.is_leaf
    dense.weight.data.fill_(0)
    assert torch.equal(again(x), masked(x))


def test_paddings_of_conv2d() -> None:
    x = torch.randn(2, 3, 7, 7)
    for padding, kernel in (("same", 3), ("valid", 2)):
        dense = nn.Conv2d(3, 4, kernel, padding=padding, dilation=2)
        torch.testing.assert_close(MaskedConv2d.from_dense(dense)(x), dense(x))
    with pytest.raises(ValueError, match=r"^conv\.padding: expected .*, got 'same'"):
        MaskedConv2d.from_dense(nn.Conv2d(3, 4, 2, padding="same"))
    with pytest.raises(ValueError, match=r"^conv\.padding_mode: expected .*, got 'reflect'"):
        MaskedConv2d.from_dense(nn.Conv2d(3, 4, 3, padding_mode="reflect"))


@pytest.mark.parametrize("make", [layer, depthwise])
def test_skip_active(make: Any) -> None:
    masked = make(activation="relu")
    x = images(masked).requires_grad_()
    y = masked(x)
    masked.skip_active = True
    free = masked(x)
    torch.testing.assert_close(free, y[:, 4:])
    (grad,) = torch.autograd.grad(free.sum(), x)
    assert not grad[:, : masked.active_in].any()
    assert grad[:, masked.active_in :].any()


def test_activity() -> None:
    masked = layer(activation="relu")
    y, activity = masked.forward_with_activity(images(masked))
    torch.testing.assert_close(activity, y.abs().sum((0, 2, 3)))


@pytest.mark.parametrize("make", [layer, depthwise])
def test_reset_free_parameters(make: Any) -> None:
    masked = make()
    weight, frozen = masked.free_weight, masked.active_weight.clone()
    masked.reset_free_parameters(torch.Generator().manual_seed(1))
    first, bias = weight.detach().clone(), masked.free_bias.detach().clone()
    masked.reset_free_parameters(torch.Generator().manual_seed(1), scale=0.5)
    assert masked.free_weight is weight
    assert torch.equal(weight, first * 0.5)
    assert torch.equal(masked.free_bias, bias)
    assert torch.equal(masked.active_weight, frozen)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_freeze_keeps_the_function(data: st.DataObject) -> None:
    """Surviving channels compute the same as before, from the surviving inputs."""
    draw = data.draw
    active_in, free_in, active_out, free_out = (draw(st.integers(0, 4)) for _ in range(4))
    bias, own_filters = draw(st.booleans()), draw(st.booleans())
    if own_filters:
        active_in, free_in = active_out, free_out
    inputs, outputs = active_in + free_in, active_out + free_out
    own_filters = own_filters and outputs > 1
    masked = MaskedConv2d(
        inputs,
        outputs,
        2,
        groups=outputs if own_filters else 1,
        bias=bias,
        active_in=active_in,
        active_out=active_out,
        dtype=torch.float64,
    )
    masked.active_weight.normal_()
    keep_out = some(draw, free_out)
    keep_in = keep_out if own_filters else some(draw, free_in)
    x = torch.randn(2, inputs, 4, 3, dtype=torch.float64)
    dropped = torch.ones(free_in, dtype=torch.bool)
    dropped[keep_in] = False
    x[:, active_in:][:, dropped] = 0
    before = masked(x)
    masked.freeze(keep_out, keep_in)
    assert masked.active_out == active_out + len(keep_out)
    assert masked.active_in == active_in + len(keep_in)
    assert (masked.in_channels, masked.out_channels) == (inputs, outputs)
    assert not masked.free_weight.any()
    order = torch.cat([keep_in, torch.arange(free_in)[dropped]])
    moved = torch.cat([x[:, :active_in], x[:, active_in:][:, order]], 1)
    after = masked(moved)[:, : masked.active_out]
    want = torch.cat([before[:, :active_out], before[:, active_out:][:, keep_out]], 1)
    torch.testing.assert_close(after, want)


def some(draw: Any, size: int) -> Tensor:
    """Different numbers below `size`, in any order."""
    chosen = draw(st.permutations(range(size)))[: draw(st.integers(0, size))]
    return torch.tensor(chosen, dtype=torch.int64)


@pytest.mark.parametrize("make", [layer, depthwise])
def test_freeze_then_nothing_moves_it(make: Any) -> None:
    masked = make()
    keep = torch.tensor([2, 0])
    masked.freeze(keep, keep if make is depthwise else torch.tensor([1]))
    masked.reset_free_parameters()
    frozen = masked.active_weight.clone()
    optimizer = torch.optim.AdamW(masked.parameters(), weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        masked(images(masked)).pow(2).sum().backward()
        optimizer.step()
    assert torch.equal(masked.active_weight, frozen)


@pytest.mark.parametrize("make", [layer, depthwise])
def test_expand(make: Any) -> None:
    masked = make().to(memory_format=torch.channels_last)
    x = images(masked)
    before = masked(x)
    masked.expand(2, 2 if make is depthwise else 3)
    assert masked.out_channels == 11
    added = masked.in_channels - x.shape[1]
    assert added == (2 if make is depthwise else 3)
    after = masked(torch.cat([x, torch.randn(3, added, 6, 5)], 1))
    torch.testing.assert_close(after[:, :9], before)
    assert not after[:, 9:].any()
    assert masked.free_weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"active_in": 7, "active_out": 9}, SIZES])
def test_state_dict_moves_boundaries(sizes: dict[str, int], bias: bool) -> None:
    source = layer(bias=bias)
    source.expand(1, 2)
    other = nn.Sequential(MaskedConv2d(7, 9, 3, 2, (1, 0), bias=bias, **sizes))
    held = list(other.parameters())
    other.load_state_dict({f"0.{key}": value for key, value in source.state_dict().items()})
    x = images(source)
    assert torch.equal(other(x), source(x))
    assert all(mine is now for mine, now in zip(held, other.parameters(), strict=True))
    for name, value in source.state_dict().items():
        assert other.state_dict()[f"0.{name}"].data_ptr() != value.data_ptr()


@pytest.mark.parametrize(
    ("make", "name", "shape"),
    [
        (layer, "active_weight", (4, 8, 3, 3)),
        (layer, "active_weight", (4,)),
        (layer, "free_weight", (5, 7, 3, 2)),
        (layer, "active_bias", (3,)),
        (layer, "free_bias", (4,)),
        (depthwise, "free_weight", (5, 2, 3, 3)),
    ],
)
def test_nonsense_state_is_refused(make: Any, name: str, shape: tuple[int, ...]) -> None:
    masked = make()
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
    x = images(masked)
    assert torch.equal(copy.deepcopy(masked)(x), masked(x))
    assert masked.double()(x.double()).dtype == torch.float64
    masked.float()
    compiled = torch.compile(masked, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), masked(x))
    meta = MaskedConv2d(7, 9, 3, device="meta", **SIZES)
    assert meta(torch.empty(5, 7, 6, 6, device="meta")).shape == (5, 9, 4, 4)


INDEX = torch.tensor([0])


@pytest.mark.parametrize(
    ("call", "kind", "match"),
    [
        (lambda: MaskedConv2d(-1, 2, 3), ValueError, "^in_channels: expected .*, got -1"),
        (
            lambda: MaskedConv2d(2, 2, 3, active_out=3),
            ValueError,
            "^active_out: expected 0 t.*, got 3",
        ),
        (lambda: MaskedConv2d(4, 4, 3, groups=2), ValueError, "^groups: expected 1, or 4.*, got 2"),
        (
            lambda: MaskedConv2d(4, 4, 3, groups=4, active_in=1),
            ValueError,
            "^active_in: expected .*, got 1",
        ),
        (lambda: MaskedConv2d(2, 2, 0), ValueError, "^kernel_size: expected .*, got 0"),
        (lambda: MaskedConv2d(2, 2, 3, stride=0), ValueError, "^stride: expected .*, got 0"),
        (
            lambda: MaskedConv2d(2, 2, 3, activation="tanh"),
            ValueError,
            "^activation: expected .*, got 'tanh'",
        ),
        (lambda: layer().expand(-1), ValueError, "^out_channels: expected .*, got -1"),
        (
            lambda: depthwise().expand(1),
            ValueError,
            "^in_channels: expected out_channels = 1.*, got 0",
        ),
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
            lambda: depthwise().freeze(INDEX, INDEX + 1),
            ValueError,
            r"^keep_in: expected .*, got \[1\]",
        ),
        (lambda: layer().freeze([0], INDEX), TypeError, "^keep_out: expected .*, got list"),
    ],
)
def test_bad_arguments(call: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        call()
