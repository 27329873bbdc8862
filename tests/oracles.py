"""Float64 oracles and the rule by which a result is right.

The rule: the error against a float64 computation is at most twice the error that PyTorch's own
operators make at the same dtype, so no tolerance depends on a machine.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RATIO = 2.0
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# B, Ia, If, Oa, Of: ordinary, odd, one channel, several pieces of work, and each size empty
SHAPES = {
    "even": (8, 16, 16, 16, 16),
    "odd": (7, 5, 12, 3, 9),
    "one": (1, 1, 1, 1, 1),
    "wide": (33, 70, 259, 131, 517),
    "tall": (1100, 3, 5, 2, 6),
    "no rows": (0, 4, 5, 3, 2),
    "nothing frozen": (9, 0, 11, 0, 13),
    "everything frozen": (9, 11, 0, 13, 0),
    "no active inputs": (6, 0, 7, 4, 5),
    "no active outputs": (6, 4, 3, 0, 5),
    "no free inputs": (6, 7, 0, 4, 5),
    "no inputs": (6, 0, 0, 4, 5),
    "no outputs": (6, 3, 4, 0, 0),
}


class Arguments(NamedTuple):
    """Arguments of masked_linear."""

    x: Tensor
    active_weight: Tensor
    free_weight: Tensor
    active_bias: Tensor | None
    free_bias: Tensor | None

    def to(self, dtype: torch.dtype) -> "Arguments":
        """The same numbers in another dtype."""
        return Arguments(*(None if t is None else t.to(dtype) for t in self))


def random_arguments(
    shape: str, dtype: torch.dtype, bias: bool, generator: torch.Generator
) -> Arguments:
    """Fresh random arguments of a named shape."""
    rows, active_in, free_in, active_out, free_out = SHAPES[shape]
    inputs = active_in + free_in

    def randn(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype)

    biases = (randn(active_out), randn(free_out)) if bias else (None, None)
    weights = randn(active_out, active_in), randn(free_out, inputs)
    return Arguments(randn(rows, inputs), *weights, *biases)


def masked_linear(arguments: Arguments, activation: str) -> Tensor:
    """y [B, O], differentiable, by slices in plain PyTorch at the dtype of the arguments."""
    x, active_weight, free_weight, active_bias, free_bias = arguments
    active = F.linear(x[:, : active_weight.shape[1]], active_weight, active_bias)
    y = torch.cat([active, F.linear(x, free_weight, free_bias)], 1)
    return y.relu() if activation == "relu" else y


def joined(tensors: list[Tensor]) -> Tensor:
    """All elements of all tensors in one, so that no element is judged alone."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def error(value: Tensor, exact: Tensor) -> float:
    """Root of the sum of squared errors."""
    return float((value.double() - exact.double()).norm())


def assert_accurate(ours: Tensor, torchs: Tensor, exact: Tensor) -> None:
    """Raise unless ``ours`` has the type of ``torchs`` and errs at most twice as much."""
    assert ours.shape == torchs.shape == exact.shape
    assert ours.dtype == torchs.dtype
    assert not ours.isnan().any()
    # Where PyTorch happens to hit the exact value, one rounding is still right; float64 has no
    # better oracle, there a few are.
    roundings = 4 if ours.dtype == torch.float64 else 1
    rounding = roundings * torch.finfo(ours.dtype).eps * float(exact.norm())
    assert error(ours, exact) <= RATIO * error(torchs, exact) + rounding
