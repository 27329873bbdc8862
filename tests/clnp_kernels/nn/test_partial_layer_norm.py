"""PartialLayerNorm and PartialRMSNorm: dense twins, freezing, expanding, state, transforms."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clnp_kernels.nn import PartialLayerNorm, PartialRMSNorm

KINDS = [PartialLayerNorm, PartialRMSNorm]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
affine = pytest.mark.parametrize("elementwise_affine", [True, False])


def layer(kind: Any = PartialLayerNorm, channels: int = 9, active: Any = 4, **options: Any) -> Any:
    """A layer whose vectors are random."""
    torch.manual_seed(0)
    norm = kind(channels, active=active, **options)
    for tensor in norm.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return norm


def rows(channels: int = 9) -> Tensor:
    return torch.randn(3, 5, channels).add(0.7)


def test_sizes() -> None:
    norm = layer(active=[2, 4])
    assert (norm.num_features, norm.active, norm.boundaries) == (9, 4, (2, 4, 9))
    assert {name for name, _ in norm.named_parameters()} == {"free_weight", "free_bias"}
    assert set(norm.state_dict()) == {*norm.names}
    assert "9, active=[2, 4]" in repr(norm)
    assert [name for name, _ in layer(bias=False).named_parameters()] == ["free_weight"]
    assert [name for name, _ in layer(PartialRMSNorm).named_parameters()] == ["free_weight"]
    assert not list(layer(elementwise_affine=False).parameters())


@kinds
@affine
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_block_is_the_dense_layer(
    dtype: torch.dtype, elementwise_affine: bool, kind: Any
) -> None:
    dense = kind.dense(9, elementwise_affine=elementwise_affine).to(dtype)
    for p in dense.parameters():
        nn.init.uniform_(p, 0.5, 1.5)
    norm, x = kind.from_dense(dense), rows().to(dtype)
    torch.testing.assert_close(norm(x), dense(x))
    # small enough for eps to count
    torch.testing.assert_close(norm(x * 1e-3), dense(x * 1e-3))
    assert norm.to_dense().state_dict().keys() == dense.state_dict().keys()
    torch.testing.assert_close(norm.to_dense()(x), dense(x))


@kinds
def test_frozen_blocks_have_no_dense_twin(kind: Any) -> None:
    dense = kind.dense(9)
    norm, x = kind.from_dense(dense, active=[2, 4]), rows()
    torch.testing.assert_close(norm(x)[..., 4:], dense(x)[..., 4:])
    narrow = kind(2, eps=dense.eps)
    assert torch.equal(norm(x)[..., :2], narrow(x[..., :2]))
    with pytest.raises(ValueError, match=r"^boundaries: expected one block .*, got \[2, 4, 9\]"):
        norm.to_dense()
    with pytest.raises(ValueError, match=r"^norm\.normalized_shape: expected .*, got \(2, 9\)"):
        kind.from_dense(kind.dense([2, 9]))


def test_what_does_not_train_in_the_dense_layer_does_not_here() -> None:
    dense = nn.LayerNorm(9)
    dense.bias.requires_grad_(False)
    norm = PartialLayerNorm.from_dense(dense.eval())
    assert norm.free_weight.requires_grad
    assert not norm.free_bias.requires_grad
    assert not norm.training
    norm(rows()).sum().backward()
    assert norm.free_bias.grad is None


@kinds
def test_active_channels_never_move(kind: Any) -> None:
    norm = layer(kind, active=[2, 4])
    frozen = {k: v.clone() for k, v in norm.state_dict().items() if k.startswith("active")}
    x = rows()
    before = norm(x)[..., :4]
    optimizer = torch.optim.AdamW(norm.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        norm(rows()).pow(3).sum().backward()
        optimizer.step()
    x[..., 4:] = float("nan")
    assert torch.equal(norm(x)[..., :4], before)
    for name, value in frozen.items():
        assert torch.equal(norm.state_dict()[name], value)


@kinds
def test_skip_active_and_activity(kind: Any) -> None:
    norm, x = layer(kind, active=[2, 4]), rows().requires_grad_()
    y, activity = norm.forward_with_activity(x)
    torch.testing.assert_close(activity, y.abs().sum((0, 1)))
    norm.skip_active = True
    free = norm(x)
    assert torch.equal(free, y[..., 4:])
    (grad,) = torch.autograd.grad(free.pow(2).sum(), x)
    assert not grad[..., :4].any()
    assert grad[..., 4:].any()
    # the statistics are those of all channels
    with pytest.raises(ValueError, match=r"^x\.shape: expected .* C = 9.*, got \[3, 5, 5\]"):
        norm(x[..., 4:])


@kinds
@affine
@pytest.mark.parametrize("keep", [[3, 0], [], [0, 1, 2, 3, 4], [4, 2, 1]], ids=str)
def test_freeze_keeps_the_function_of_the_pruned_layer(
    keep: list[int], elementwise_affine: bool, kind: Any
) -> None:
    norm = layer(kind, elementwise_affine=elementwise_affine)
    pruned, kept, x = copy.deepcopy(norm), torch.tensor(keep, dtype=torch.int64), rows()
    pruned.keep_free(kept)
    assert pruned.boundaries == (4, 4 + len(keep))
    norm.freeze(kept)
    assert norm.boundaries == (4, 4 + len(keep), 9)
    rest = torch.tensor([i for i in range(5) if i not in keep], dtype=torch.int64)
    order = torch.cat([torch.arange(4), 4 + kept, 4 + rest])
    after = norm(x[..., order])
    assert torch.equal(after[..., : norm.active], pruned(x[..., order[: norm.active]]))
    if elementwise_affine:
        assert norm.free_weight.is_leaf
        assert torch.equal(norm.free_weight, torch.ones(5 - len(keep)))


@kinds
def test_life_of_three_tasks(kind: Any) -> None:
    """Train, freeze, expand, again and again: every block computes what it did when frozen."""
    norm, x = layer(kind, 6, active=0), rows(6)
    recorded: list[tuple[int, Tensor]] = []
    for keep, added in ([4, 1], 3), ([0, 5], 0), ([], 2):
        norm.reset_free_parameters()
        optimizer = torch.optim.SGD(norm.parameters(), lr=0.1)
        norm(x).pow(3).sum().backward()
        optimizer.step()
        kept = torch.tensor(keep, dtype=torch.int64)
        active = norm.active
        free = norm.num_features - active
        rest = torch.tensor([i for i in range(free) if i not in keep], dtype=torch.int64)
        x = x[..., torch.cat([torch.arange(active), active + kept, active + rest])]
        norm.freeze(kept)
        recorded.append((norm.active, norm(x)[..., : norm.active].detach().clone()))
        norm.expand(added)
        x = torch.cat([x, rows(added)], -1)
        assert norm.num_features == x.shape[-1]
        for size, before in recorded:
            assert torch.equal(norm(x)[..., :size], before)
    assert norm.boundaries == (2, 4, 4, 11)
    with pytest.raises(RuntimeError, match="build the optimizer anew"):
        optimizer.step()


@kinds
@affine
@pytest.mark.parametrize("active", [0, 4, [1, 2, 7], 9], ids=str)
def test_state_dict_moves_boundaries(active: Any, elementwise_affine: bool, kind: Any) -> None:
    source = layer(kind, active=[2, 4], elementwise_affine=elementwise_affine)
    source.expand(2)
    other = nn.Sequential(kind(9, elementwise_affine=elementwise_affine, active=active))
    held = list(other.parameters())
    other.load_state_dict({f"0.{key}": value for key, value in source.state_dict().items()})
    x = rows(11)
    assert other[0].boundaries == (2, 4, 11)
    assert torch.equal(other(x), source(x))
    assert all(mine is now for mine, now in zip(held, other.parameters(), strict=True))
    other[0].freeze(torch.tensor([1]))
    assert other[0].boundaries == tuple(other[0].ends.tolist()) == (2, 4, 5, 11)
    assert source.boundaries == (2, 4, 11)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ends", torch.tensor([4, 10])),
        ("ends", torch.tensor([5, 4, 9])),
        ("ends", torch.tensor([-1, 4, 9])),
        ("ends", torch.tensor([4.0, 9.0])),
        ("ends", torch.tensor([], dtype=torch.int64)),
        ("ends", torch.tensor([[4, 9]])),
        ("active_weight", torch.ones(3)),
        ("free_bias", torch.ones(5, 1)),
    ],
)
def test_nonsense_state_is_refused(name: str, value: Tensor) -> None:
    norm = layer()
    before = copy.deepcopy(norm.state_dict())
    with pytest.raises(RuntimeError, match=r"expected .*, got "):
        norm.load_state_dict({**before, name: value})
    assert norm.boundaries == (4, 9)
    for key, held in norm.state_dict().items():
        assert torch.equal(held, before[key])


def test_missing_keys() -> None:
    state = layer().state_dict()
    for name in ("ends", "free_bias"):
        with pytest.raises(RuntimeError, match=name):
            layer().load_state_dict({k: v for k, v in state.items() if k != name})


@kinds
def test_copies_casts_and_compiles(kind: Any) -> None:
    norm, x = layer(kind, active=[2, 4]), rows()
    y = norm(x)
    for other in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert torch.equal(other(x), y)
        assert other.boundaries == norm.boundaries
    compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), y)
    assert norm.double()(x.double()).dtype == torch.float64
    assert norm.ends.dtype == torch.int64
    meta = kind(9, active=2, device="meta")
    assert meta(torch.empty(3, 9, device="meta")).shape == (3, 9)


@pytest.mark.parametrize(
    ("call", "kind", "match"),
    [
        (lambda: PartialLayerNorm(-1), ValueError, "^num_features: expected .*, got -1"),
        (lambda: PartialLayerNorm(2.5), TypeError, "^num_features: expected .*, got 2.5"),
        (lambda: PartialLayerNorm(2, active=3), ValueError, "^active: expected 0 to.*, got 3"),
        (lambda: PartialLayerNorm(2, active="2"), TypeError, "^active: expected .*, got '2'"),
        (
            lambda: PartialLayerNorm(9, active=[4, 2]),
            ValueError,
            r"^active: expected .*, got \[4, 2\]",
        ),
        (lambda: PartialRMSNorm(2, eps=-1.0), ValueError, "^eps: expected .*, got -1.0"),
        (lambda: PartialRMSNorm(2)([1.0]), TypeError, "^x: expected .*, got list"),
        (lambda: layer().expand(-1), ValueError, "^num_features: expected .*, got -1"),
        (lambda: layer().freeze(torch.tensor([5])), ValueError, "^keep: expected .*, got 5 to 5"),
        (lambda: layer().keep_free([0]), TypeError, "^keep: expected .*, got list"),
    ],
)
def test_bad_arguments(call: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        call()
