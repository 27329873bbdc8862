"""PartialBatchNorm2d: dense twins, freezing, expanding, state, transforms."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clnp_kernels.nn import PartialBatchNorm2d


def layer(seed: int = 0, channels: int = 9, active: int = 4, **options: Any) -> PartialBatchNorm2d:
    """A layer whose tensors are random."""
    torch.manual_seed(seed)
    norm = PartialBatchNorm2d(channels, active=active, **options)
    for name, tensor in norm.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
        assert name
    return norm


def images(batch: int = 3, channels: int = 9) -> Tensor:
    return torch.randn(batch, channels, 5, 4).add(0.7)


def test_sizes() -> None:
    norm = layer()
    assert (norm.num_features, norm.active, norm.affine) == (9, 4, True)
    assert {name for name, _ in norm.named_parameters()} == {"free_weight", "free_bias"}
    assert "9, active=4" in repr(norm)
    plain = layer(affine=False)
    assert not plain.affine
    assert plain.active_weight is None
    assert not list(plain.parameters())


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_nothing_frozen_is_batch_norm(momentum: float | None, affine: bool) -> None:
    dense = nn.BatchNorm2d(9, momentum=momentum, affine=affine)
    norm = PartialBatchNorm2d.from_dense(dense)
    for step in range(4):
        x = images(step + 2)
        torch.testing.assert_close(norm(x), dense(x))
    dense.eval(), norm.eval()
    torch.testing.assert_close(norm(x), dense(x))
    ours, want = norm.to_dense().state_dict(), dense.state_dict()
    torch.testing.assert_close(ours, want)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_dense_twins(training: bool, affine: bool) -> None:
    norm = layer(affine=affine).train(training)
    dense = norm.to_dense()
    again = PartialBatchNorm2d.from_dense(dense, active=4)
    assert again.training == dense.training == training
    x = images()
    assert torch.equal(again(x), norm(x))
    y = norm(x)
    torch.testing.assert_close(y[:, :4], dense.eval()(x)[:, :4])
    if not training:
        torch.testing.assert_close(y, dense(x))


def test_active_channels_never_move() -> None:
    norm = layer(activation="relu")
    frozen = {k: v.clone() for k, v in norm.state_dict().items() if k.startswith("active")}
    first = norm(images())[:, :4]
    x = images()
    before = norm(x)[:, :4]
    optimizer = torch.optim.AdamW(norm.parameters(), weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        norm(images()).pow(2).sum().backward()
        optimizer.step()
    assert first.shape == before.shape
    assert torch.equal(norm(x)[:, :4], before)
    for name, value in frozen.items():
        assert torch.equal(norm.state_dict()[name], value)


def test_skip_active_and_activity() -> None:
    norm = layer(activation="relu").eval()
    x = images().requires_grad_()
    y, activity = norm.forward_with_activity(x)
    torch.testing.assert_close(activity, y.abs().sum((0, 2, 3)))
    norm.skip_active = True
    free = norm(x)
    assert torch.equal(free, y[:, 4:])
    (grad,) = torch.autograd.grad(free.sum(), x)
    assert not grad[:, :4].any()


def test_freeze_keeps_the_function() -> None:
    for keep in ([3, 0], [], [0, 1, 2, 3, 4], [4, 2, 1]):
        norm = layer().eval()
        kept, x = torch.tensor(keep, dtype=torch.int64), images()
        before = norm(x)
        norm.freeze(kept)
        assert (norm.num_features, norm.active) == (9, 4 + len(keep))
        rest = torch.tensor([i for i in range(5) if i not in keep], dtype=torch.int64)
        order = torch.cat([torch.arange(4), 4 + kept, 4 + rest])
        after = norm(x[:, order])[:, : norm.active]
        assert torch.equal(after, before[:, order][:, : norm.active])
        assert norm.free_weight is not None
        assert norm.free_weight.is_leaf
        assert torch.equal(norm.free_var, torch.ones(5 - len(keep)))
        assert not norm.free_mean.any()
        assert norm.num_batches_tracked == 0


def test_expand() -> None:
    norm = layer().eval()
    x = images()
    before = norm(x)
    norm.expand(2)
    assert (norm.num_features, norm.active) == (11, 4)
    added = torch.randn(3, 2, 5, 4)
    after = norm(torch.cat([x, added], 1))
    assert torch.equal(after[:, :9], before)
    torch.testing.assert_close(after[:, 9:], added, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("active", [0, 4, 9])
def test_state_dict_moves_boundaries(active: int, affine: bool) -> None:
    source = layer(affine=affine).eval()
    source.expand(2)
    other = nn.Sequential(PartialBatchNorm2d(9, affine=affine, active=active)).eval()
    held = list(other.parameters())
    other.load_state_dict({f"0.{key}": value for key, value in source.state_dict().items()})
    x = images(channels=11)
    assert torch.equal(other(x), source(x))
    assert all(mine is now for mine, now in zip(held, other.parameters(), strict=True))


@pytest.mark.parametrize(("name", "shape"), [("active_var", (3,)), ("free_bias", (5, 1))])
def test_nonsense_state_is_refused(name: str, shape: tuple[int, ...]) -> None:
    norm = layer()
    before = copy.deepcopy(norm.state_dict())
    with pytest.raises(RuntimeError, match=r"expected .*, got "):
        norm.load_state_dict({**before, name: torch.zeros(shape)})
    for key, value in norm.state_dict().items():
        assert torch.equal(value, before[key])


def test_missing_keys() -> None:
    state = layer().state_dict()
    with pytest.raises(RuntimeError, match="free_var"):
        layer().load_state_dict({k: v for k, v in state.items() if k != "free_var"})


def test_copies_casts_and_compiles() -> None:
    norm = layer(activation="relu")
    x = images()
    assert torch.equal(copy.deepcopy(norm)(x), copy.deepcopy(norm)(x))
    twin = copy.deepcopy(norm)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), norm(x))
    assert torch.equal(twin.free_mean, norm.free_mean)
    assert norm.double()(x.double()).dtype == torch.float64
    meta = PartialBatchNorm2d(9, active=2, device="meta").eval()
    assert meta(torch.empty(3, 9, 5, 4, device="meta")).shape == (3, 9, 5, 4)


@pytest.mark.parametrize(
    ("call", "kind", "match"),
    [
        (lambda: PartialBatchNorm2d(-1), ValueError, "^num_features: expected .*, got -1"),
        (lambda: PartialBatchNorm2d(2, active=3), ValueError, "^active: expected 0 to.*, got 3"),
        (
            lambda: PartialBatchNorm2d(2, activation="tanh"),
            ValueError,
            "^activation: expected .*, got 'tanh'",
        ),
        (lambda: layer().expand(-1), ValueError, "^num_features: expected .*, got -1"),
        (lambda: layer().freeze(torch.tensor([5])), ValueError, "^keep: expected .*, got 5 to 5"),
        (lambda: layer().freeze([0]), TypeError, "^keep: expected .*, got list"),
        (
            lambda: PartialBatchNorm2d.from_dense(nn.BatchNorm2d(2, track_running_stats=False)),
            ValueError,
            r"^norm\.track_running_stats: expected .*, got False",
        ),
    ],
)
def test_bad_arguments(call: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        call()
