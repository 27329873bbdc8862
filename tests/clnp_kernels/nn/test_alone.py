"""The layers in networks of others: modes, odd batches, dtypes, copies, frozen parameters."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clnp_kernels.nn import MaskedConv2d, MaskedLinear, PartialBatchNorm1d, PartialBatchNorm2d

Make = Callable[..., nn.Module]
# name -> (dense layer, ours with a boundary, shape of an example)
LAYERS: dict[str, tuple[Make, Make, tuple[int, ...]]] = {
    "linear": (
        lambda: nn.Linear(6, 5),
        lambda dense, n: MaskedLinear.from_dense(dense, active_in=n, active_out=n),
        (6,),
    ),
    "conv": (
        lambda: nn.Conv2d(6, 5, 3, padding=1),
        lambda dense, n: MaskedConv2d.from_dense(dense, active_in=n, active_out=n),
        (6, 4, 3),
    ),
    "depthwise": (
        lambda: nn.Conv2d(6, 6, 3, groups=6),
        lambda dense, n: MaskedConv2d.from_dense(dense, active_in=n, active_out=n),
        (6, 4, 3),
    ),
    "norm": (
        lambda: nn.BatchNorm2d(6),
        lambda dense, n: PartialBatchNorm2d.from_dense(dense, active=n),
        (6, 4, 3),
    ),
    "cumulative": (
        lambda: nn.BatchNorm2d(6, momentum=None),
        lambda dense, n: PartialBatchNorm2d.from_dense(dense, active=n),
        (6, 4, 3),
    ),
    "norm of vectors": (
        lambda: nn.BatchNorm1d(6),
        lambda dense, n: PartialBatchNorm1d.from_dense(dense, active=n),
        (6,),
    ),
}
layers = pytest.mark.parametrize("name", LAYERS)
norms = pytest.mark.parametrize("name", ["norm", "cumulative", "norm of vectors"])


def made(name: str, boundary: int = 2) -> tuple[nn.Module, nn.Module, Tensor]:
    """(dense layer, ours, a batch)."""
    torch.manual_seed(0)
    make, ours, shape = LAYERS[name]
    dense = make()
    with torch.no_grad():
        for p in dense.parameters():
            p.uniform_(-1, 1)
    return dense, ours(dense, boundary), torch.randn(7, *shape)


def bits(layer: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in layer.state_dict().items()}


@layers
@pytest.mark.parametrize("frozen", [(), ("weight",), ("bias",), ("weight", "bias")], ids=str)
def test_what_does_not_train(name: str, frozen: tuple[str, ...]) -> None:
    """As in the dense layer: no gradient for what is frozen, the right one for what is not."""
    dense, _, x = made(name)
    for part in frozen:
        dense.get_parameter(part).requires_grad_(False)
    ours = LAYERS[name][1](dense, 0)
    for layer in (dense, ours):
        for p in layer.parameters():
            assert p.grad is None
        y = layer(x)
        if y.requires_grad:
            (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    for part in ("weight", "bias"):
        want, got = dense.get_parameter(part), ours.get_parameter(f"free_{part}")
        assert got.requires_grad == want.requires_grad == (part not in frozen)
        if want.grad is None:
            assert got.grad is None
        else:
            torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-5)


@layers
def test_frozen_by_requires_grad(name: str) -> None:
    """The gradient of the input does not depend on what is trained."""
    _, layer, x = made(name)
    grads = []
    for trained in (True, False):
        one = copy.deepcopy(layer).requires_grad_(trained)
        leaf = x.clone().requires_grad_()
        one(leaf).pow(2).sum().backward()
        assert leaf.grad is not None
        grads.append(leaf.grad)
        assert all((p.grad is not None) == trained for p in one.parameters())
    assert torch.equal(*grads)
    assert not layer.requires_grad_(False)(x).requires_grad


@layers
def test_modes(name: str) -> None:
    """Only statistics depend on the mode; evaluation changes nothing."""
    _, layer, x = made(name)
    layer.eval()
    before = bits(layer)
    first = layer(x)
    assert torch.equal(layer(x[:1]), layer(x[:1]))
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    layer.train()
    layer(x)
    moved = {k for k, v in layer.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == (
        {"free_mean", "free_var", "num_batches_tracked"}
        if "norm" in name or name == "cumulative"
        else set()
    )
    layer.load_state_dict(before)
    assert torch.equal(layer.eval()(x), first)


@layers
@pytest.mark.parametrize("boundary", [0, 2, 5])
def test_empty_batches(name: str, boundary: int) -> None:
    """As the dense layer: an empty result, and no statistic but the count of batches moves."""
    dense, layer, x = made(name, boundary)
    before = bits(layer)
    y = layer(x[:0].requires_grad_())
    assert y.shape == dense(x[:0]).shape
    y.sum().backward()
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key]) or key == "num_batches_tracked"
    for p in layer.parameters():
        assert p.grad is None or not p.grad.any()


@norms
def test_one_value_per_channel_is_refused_and_does_not_count(name: str) -> None:
    dense, layer, _ = made(name)
    one = torch.randn(1, 6, 1, 1) if dense.__class__ is nn.BatchNorm2d else torch.randn(1, 6)
    before = bits(layer)
    with pytest.raises(ValueError, match=r"^x\.shape: expected more than one value.*, got "):
        layer(one)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert torch.isfinite(layer.eval()(one)).all()
    whole = LAYERS[name][1](dense, 6)  # nothing to take statistics of
    assert torch.isfinite(whole(one)).all()


def test_cumulative_average_counts_what_was_seen() -> None:
    """The mean of the batches' means, after a refused one and a file too."""
    torch.manual_seed(0)
    layer, seen = PartialBatchNorm2d(3, momentum=None, active=1), []
    for rows in (4, 1, 6, 5):
        x = torch.randn(rows, 3, 1, 1)
        if rows == 1:
            with pytest.raises(ValueError, match="expected more than one value"):
                layer(x)
            continue
        layer(x)
        seen.append(x.mean((0, 2, 3))[1:])
        again = PartialBatchNorm2d(3, momentum=None)
        again.load_state_dict(layer.state_dict())
        layer = again
    torch.testing.assert_close(layer.free_mean, torch.stack(seen).mean(0))


@layers
def test_dtypes_and_memory_formats(name: str) -> None:
    """float64 is as exact as the dense layer; how an image lies changes the values by rounding."""
    dense, _, x = made(name)
    dense, x = dense.double(), x.double()
    layer = LAYERS[name][1](dense, 0)
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-12, atol=1e-12)
    if x.ndim == 4:
        last = copy.deepcopy(layer).to(memory_format=torch.channels_last)
        y = last(x.to(memory_format=torch.channels_last))
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, layer(x), rtol=1e-12, atol=1e-12)
    with pytest.raises(
        TypeError, match=r"\.dtype: expected torch\.float\d\d.*, got torch\.float\d\d"
    ):
        layer(x.float())


@layers
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state"])
def test_copies(name: str, way: str) -> None:
    """A copy says the same, shares nothing, and may have had another boundary before."""
    dense, layer, x = made(name)
    layer(x)
    layer.eval()
    if way == "state":
        other = LAYERS[name][1](dense, 3).eval()
        other.load_state_dict(layer.state_dict())
    else:
        other = copy.deepcopy(layer) if way == "deepcopy" else pickle.loads(pickle.dumps(layer))
    assert torch.equal(other(x), layer(x))
    before = bits(layer)
    with torch.no_grad():
        for p in other.parameters():
            p.fill_(3.0)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize(
    ("call", "kind", "match"),
    [
        (lambda: MaskedLinear(6.0, 5), TypeError, r"^in_features: expected a whole.*, got 6.0"),
        (lambda: MaskedLinear(6, "5"), TypeError, r"^out_features: expected a whole.*, got '5'"),
        (
            lambda: MaskedConv2d(6, 5, 3, active_out=1.5),
            TypeError,
            r"^active_out: expected .*, got 1.5",
        ),
        (lambda: PartialBatchNorm2d(None), TypeError, r"^num_features: expected .*, got None"),
        (lambda: PartialBatchNorm2d(5, eps=-1.0), ValueError, r"^eps: expected .*, got -1.0"),
        (lambda: PartialBatchNorm2d(5, eps="x"), TypeError, r"^eps: expected .*, got 'x'"),
        (
            lambda: PartialBatchNorm2d(5, momentum=1.5),
            ValueError,
            r"^momentum: expected .*, got 1.5",
        ),
        (
            lambda: PartialBatchNorm2d(5, momentum=float("nan")),
            ValueError,
            r"^momentum: expected .*, got nan",
        ),
        (lambda: PartialBatchNorm1d(5)([1.0]), TypeError, r"^x: expected .*, got list"),
        (lambda: PartialBatchNorm1d(5)(torch.ones(2, 5, 3)), ValueError, r"^x.shape: expected"),
    ],
)
def test_bad_arguments(call: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        call()


def test_sizes_may_be_numpys() -> None:
    layer = MaskedLinear(np.int64(6), np.int64(5), active_out=np.int64(2))
    assert layer(torch.zeros(1, 6)).shape == (1, 5)
