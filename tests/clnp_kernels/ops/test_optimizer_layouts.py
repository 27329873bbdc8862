"""The optimizers on tensors with any order of dimensions, with and without gaps."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from clnp_kernels.optim import SGDL1, AdamL1

SHAPE = (5, 4, 3, 2)


def permuted(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """The same numbers, with memory in this order of dimensions."""
    back = torch.tensor(order).argsort().tolist()
    return x.permute(order).contiguous().permute(back)


def gaps(x: Tensor) -> Tensor:
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), 7.0)
    wide[..., ::2] = x
    return wide[..., ::2]


LAYOUTS = {
    str(order): lambda x, order=order: permuted(x, order) for order in permutations(range(4))
}
LAYOUTS["gaps"] = gaps
LAYOUTS["channels_last"] = lambda x: x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("make", [AdamL1, lambda p, **k: SGDL1(p, momentum=0.9, **k)])
@pytest.mark.parametrize("of_grad", ["like the parameter", "(3, 0, 2, 1)", "gaps"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_numbers_of_contiguous_tensors(make, of_grad: str, layout: str) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(SHAPE, generator=generator)
    grads = [torch.randn(SHAPE, generator=generator) for _ in range(3)]
    lie = LAYOUTS[layout]
    lie_grad = lie if of_grad == "like the parameter" else LAYOUTS[of_grad]
    plain, other = torch.nn.Parameter(start.clone()), torch.nn.Parameter(lie(start))
    optimizers = [make([p], lr=0.1, l1=0.05) for p in (plain, other)]
    for grad in grads:
        plain.grad, other.grad = grad, lie_grad(grad)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(plain, other)
    assert other.stride() == lie(start).stride()
    states = [next(iter(optimizer.state.values())) for optimizer in optimizers]
    for key, value in states[0].items():
        if isinstance(value, Tensor):
            assert torch.equal(value, states[1][key]), key
