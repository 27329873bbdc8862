"""channel_activity: any dimension and strides, every dtype, bad arguments."""

import pytest
import torch

from clnp_kernels import ops
from tests.oracles import DTYPES, assert_accurate

SHAPES = [(7,), (5, 3), (2, 3, 4, 5), (1030, 70), (3, 600, 11), (0, 4), (4, 0), (2, 0, 3)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> None:
    x = torch.randn(shape, generator=generator).to(dtype)
    layouts = [x, x.flip(-1).flip(-1), x.movedim(0, -1).contiguous().movedim(-1, 0)]
    if len(shape) == 4:
        layouts.append(x.contiguous(memory_format=torch.channels_last))
    if shape[-1] > 1:
        layouts.append(torch.stack([x, x], -1)[..., 0])
    for dim in range(-len(shape), len(shape)):
        rows = x.movedim(dim, 0).unsqueeze(-1).flatten(1)
        exact = rows.double().abs().sum(1)
        # float32 sums of the same numbers are what PyTorch offers at this accuracy
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        for layout in layouts:
            assert_accurate(ops.channel_activity(layout, dim), rows.abs().sum(1, dtype=wide), exact)


def test_slices_and_expanded(generator: torch.Generator) -> None:
    x = torch.randn(40, 30, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(ops.channel_activity(x[:, 7:19]), x[:, 7:19].abs().sum(0))
    torch.testing.assert_close(ops.channel_activity(x[::3, ::2]), x[::3, ::2].abs().sum(0))
    row = x[:1].expand(50, -1)
    torch.testing.assert_close(ops.channel_activity(row), 50 * x[0].abs())


def test_same_for_any_number_of_threads(generator: torch.Generator) -> None:
    x = torch.randn(5000, 300, generator=generator)
    before = torch.get_num_threads()
    sums = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        sums.append(ops.channel_activity(x))
    torch.set_num_threads(before)
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])


def test_no_gradient_flows() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    assert not ops.channel_activity(x).requires_grad


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_transforms() -> None:
    x = torch.randn(4, 3, 5)
    torch.library.opcheck(torch.ops.clnp_kernels.channel_activity.default, (x, 1))
    want = x.abs().sum(1)
    torch.testing.assert_close(torch.func.vmap(ops.channel_activity)(x), want)
    compiled = torch.compile(ops.channel_activity, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, 1), x.abs().sum((0, 2)))


@pytest.mark.parametrize(
    ("x", "dim", "kind", "match"),
    [
        (torch.zeros(2, 3), 2, ValueError, "^dim: expected .*, got 2"),
        (torch.zeros(()), 0, ValueError, "^dim: expected .*, got 0"),
        (
            torch.zeros(2, dtype=torch.int64),
            0,
            TypeError,
            r"^x\.dtype: expected .*, got torch.int64",
        ),
        ([1.0], 0, TypeError, "^x: expected .*, got list"),
        (torch.zeros(2, 2).to_sparse(), 0, TypeError, "^x: expected .*, got torch.sparse_coo"),
    ],
)
def test_bad_arguments(x: torch.Tensor, dim: int, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        ops.channel_activity(x, dim)
