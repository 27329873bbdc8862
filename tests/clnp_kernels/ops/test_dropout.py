"""dropout: the generator's published numbers, the reference, shares, gradients, bad arguments."""

import pytest
import torch

from clnp_kernels import ops
from clnp_kernels.reference import dropout as reference
from tests.oracles import DTYPES

OP = torch.ops.clnp_kernels.dropout
SHAPES = [(), (0,), (1,), (7, 18), (127,), (128,), (129,), (3, 5, 7, 9), (40, 3001)]


def seed(number: int) -> torch.Tensor:
    return torch.tensor([number])


def test_published_numbers_of_philox() -> None:
    """Of Random123's known answers the one whose counter and key a small tensor reaches."""
    bits = reference.random_bits(0, 128, torch.device("cpu")).view(4, 2, 16)
    words = [int(low) | int(high) << 16 for low, high in bits[:, :, 0]]
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> None:
    x = torch.randn(shape, generator=generator).to(dtype)
    for number in (0, -5, 1 << 40, (1 << 63) - 1):
        for p in (0.0, 0.2, 0.9999999):
            y = OP(x, seed(number), p)
            assert torch.equal(y, reference.dropout(x, seed(number), p))
            assert y.is_contiguous()
    assert torch.equal(OP(x, seed(3), 0.0), x)
    if len(shape) == 4:
        last = x.contiguous(memory_format=torch.channels_last)
        assert torch.equal(OP(last, seed(1), 0.5), OP(x, seed(1), 0.5))
    if shape:
        part = torch.stack([x, x], -1)[..., 0]
        assert torch.equal(OP(part, seed(1), 0.5), OP(x, seed(1), 0.5))


@pytest.mark.parametrize("p", [0.01, 0.25, 0.5, 0.9])
def test_shares_and_scale(p: float) -> None:
    torch.manual_seed(0)
    n = 1_000_000
    y = ops.dropout(torch.full((n,), 3.0, dtype=torch.float64), p)
    stays = y != 0
    # Five standard deviations, and half a step of p.
    assert abs(stays.double().mean() - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5 + 1 / 131072
    assert y[stays].unique().numel() == 1
    assert y.max().item() == pytest.approx(3 / (1 - p), rel=1e-3)
    # Neighbours, and elements whose numbers come from one word, know nothing of each other.
    kept = stays.double() - stays.double().mean()
    for distance in (1, 2, 16, 32, 128, 1024):
        product = (kept[distance:] * kept[:-distance]).mean() / (p * (1 - p))
        assert abs(product) < 5 / n**0.5


def test_calls_differ_and_seeds_repeat() -> None:
    x = torch.ones(5000)
    torch.manual_seed(1)
    first, second = ops.dropout(x, 0.5), ops.dropout(x, 0.5)
    assert 2000 < int((first != second).sum()) < 3000
    torch.manual_seed(1)
    assert torch.equal(ops.dropout(x, 0.5), first)


def test_what_is_dropped_is_zero_whatever_it_was() -> None:
    x = torch.tensor([float("nan"), float("inf"), -1.0]).repeat(1000)
    y = OP(x, seed(0), 0.5)
    assert 1300 < int((y == 0).sum()) < 1700


def test_same_for_any_number_of_threads() -> None:
    x = torch.ones(1 << 18)
    before = torch.get_num_threads()
    outputs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        outputs.append(OP(x, seed(9), 0.3))
    torch.set_num_threads(before)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_gradient_goes_through_the_mask(generator: torch.Generator) -> None:
    x = torch.randn(40, 50, generator=generator, requires_grad=True)
    y = ops.dropout(x, 0.4)
    grad = torch.randn(50, 40, generator=generator).T
    y.backward(grad)
    scale = (y.detach() / x.detach()).nan_to_num()
    torch.testing.assert_close(x.grad, scale * grad)
    wide = torch.randn(3, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    apply = lambda x: OP(x, seed(4), 0.3)  # noqa: E731
    assert torch.autograd.gradcheck(apply, wide)
    assert torch.autograd.gradgradcheck(apply, wide)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_transforms() -> None:
    x = torch.randn(6, 50, requires_grad=True)
    torch.library.opcheck(OP.default, (x, seed(2), 0.5))
    rows = torch.func.vmap(lambda row: OP(row, seed(2), 0.5))(x.detach())
    assert torch.equal(rows, torch.stack([OP(row, seed(2), 0.5) for row in x.detach()]))
    compiled = torch.compile(ops.dropout, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    first, second = compiled(x, 0.5), compiled(x, 0.5)
    assert not torch.equal(first, second)
    assert torch.equal(first != 0, first.detach() == 2 * x.detach())


@pytest.mark.parametrize(
    ("x", "p", "error", "words"),
    [
        (torch.ones(3, dtype=torch.int64), 0.5, TypeError, "x.dtype"),
        ([1.0], 0.5, TypeError, "torch.Tensor"),
        (torch.ones(3), "half", TypeError, "'half'"),
        (torch.ones(3), True, TypeError, "True"),
        (torch.ones(3), 1.0, ValueError, "0 <= p < 1"),
        (torch.ones(3), -0.1, ValueError, "0 <= p < 1"),
        (torch.ones(3), float("nan"), ValueError, "0 <= p < 1"),
    ],
)
def test_bad_arguments(x: object, p: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ops.dropout(x, p)  # type: ignore[arg-type]


def test_direct_calls_are_safe(compiled: None) -> None:
    """Without the Python checks the C++ ones raise."""
    for wrong in (torch.zeros(2, dtype=torch.int64), torch.zeros(1)):
        with pytest.raises(RuntimeError, match="seed"):
            OP(torch.ones(3), wrong, 0.5)
    with pytest.raises(RuntimeError, match="0 <= p < 1"):
        OP(torch.ones(3), seed(0), 1.5)
